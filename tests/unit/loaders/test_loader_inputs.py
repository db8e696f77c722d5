"""Seeds, links and what belongs to them: each that cannot be meant is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NumNeighbors
from torch_geometric.testing import MyFeatureStore, MyGraphStore

import gnnsys
from gnnsys.errors import ArgumentError, DTypeError, GnnsysError, UnsupportedError
from gnnsys.loaders import NeighborSampler

NODES, EDGES = 40, 200
WRITES, CITES = ("author", "writes", "paper"), ("paper", "cites", "paper")


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.arange(NODES).view(-1, 1),
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
        edge_weight=torch.rand(EDGES, generator=draw),
        time=torch.arange(NODES),
    )


def make_hetero() -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.zeros(20, 1), torch.zeros(30, 1)
    for kind in (WRITES, CITES):
        ends = [data[end].num_nodes for end in kind[::2]]
        data[kind].edge_index = torch.stack(
            [torch.randint(end, (90,), generator=draw) for end in ends]
        )
    return data


def make_stores(data: Any) -> tuple[MyFeatureStore, MyGraphStore]:
    features, graphs = MyFeatureStore(), MyGraphStore()
    if isinstance(data, Data):
        features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
        size = (NODES, NODES)
        graphs.put_edge_index(tuple(data.edge_index), None, "coo", size=size)
    else:
        for kind in data.node_types:
            features.put_tensor(data[kind].x, group_name=kind, attr_name="x", index=None)
        for kind in data.edge_types:
            size = (data[kind[0]].num_nodes, data[kind[-1]].num_nodes)
            graphs.put_edge_index(tuple(data[kind].edge_index), kind, "coo", size=size)
    return features, graphs


PLAIN = {"data": make_data, "stores": lambda: make_stores(make_data())}
TYPED = {"data": make_hetero, "stores": lambda: make_stores(make_hetero())}


def nodes(data: Any, **options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(data, **{"num_neighbors": [2], "batch_size": 8, **options})


def links(data: Any, **options: Any) -> gnnsys.LinkNeighborLoader:
    return gnnsys.LinkNeighborLoader(data, **{"num_neighbors": [2], "batch_size": 8, **options})


def seeds_of(loader: Any, kind: str | None = None) -> list[int]:
    parts = [batch if kind is None else batch[kind] for batch in loader]
    return [node for part in parts for node in part.n_id[: part.batch_size].tolist()]


# Seeds -------------------------------------------------------------------------------------------

BAD_SEEDS: dict[str, tuple[dict[str, Any], type[GnnsysError], str]] = {
    "short mask": (
        {"input_nodes": torch.ones(39, dtype=torch.bool)},
        ArgumentError,
        "input_nodes: a mask of 39 entries, expected one for each of the 40 nodes",
    ),
    "long list mask": ({"input_nodes": [True] * 41}, ArgumentError, "a mask of 41 entries"),
    "column mask": (
        {"input_nodes": torch.ones(40, 1, dtype=torch.bool)},
        ArgumentError,
        r"input_nodes: shape \(40, 1\)",
    ),
    "one number": ({"input_nodes": 3}, ArgumentError, r"input_nodes: shape \(\)"),
    "real ids": ({"input_nodes": torch.rand(3)}, DTypeError, "input_nodes: dtype torch.float32"),
    "real list": ({"input_nodes": [0.5, 1.5]}, DTypeError, "input_nodes: dtype torch.float32"),
    "a type": ({"input_nodes": "paper"}, ArgumentError, "'paper' is no node type .* has no types"),
    "typed ids": ({"input_nodes": ("paper", [1])}, ArgumentError, "'paper' is no node type"),
    "dict": ({"input_nodes": {"paper": [1]}}, ArgumentError, "seeds are of one type"),
    "object": ({"input_nodes": object()}, DTypeError, "input_nodes: <object .*, expected node ids"),
    "times of all nodes": (
        {"input_nodes": [30, 31], "input_time": torch.arange(40), "time_attr": "time"},
        ArgumentError,
        "input_time: 40 entries, expected one for each of the 2 seeds",
    ),
    "times of a mask": (
        {
            "input_nodes": torch.arange(40) < 2,
            "input_time": torch.arange(40),
            "time_attr": "time",
        },
        ArgumentError,
        "input_time: 40 entries, expected one for each of the 2 seeds",
    ),
    "fewer times than nodes": (
        {"input_time": torch.arange(39), "time_attr": "time"},
        ArgumentError,
        "input_time: 39 entries, expected one for each of the 40 seeds",
    ),
    "one time": (
        {"input_nodes": [1], "input_time": 5, "time_attr": "time"},
        ArgumentError,
        "input_time: 5, expected one for each of the 1 seeds",
    ),
    "real times": (
        {"input_nodes": [1], "input_time": torch.rand(1), "time_attr": "time"},
        DTypeError,
        "input_time: dtype torch.float32",
    ),
    "rows of times": (
        {"input_nodes": [1], "input_time": torch.zeros(1, 2).long(), "time_attr": "time"},
        ArgumentError,
        r"input_time: shape \(1, 2\)",
    ),
    "too many names": (
        {"input_nodes": [1, 2], "input_id": torch.arange(3)},
        ArgumentError,
        "input_id: 3 entries, expected one for each of the 2 seeds",
    ),
    "names of half the nodes": ({"input_id": torch.arange(20)}, ArgumentError, "the 40 seeds"),
    "weight by type": (
        {"weight_attr": {WRITES: "edge_weight"}},
        DTypeError,
        "weight_attr: a dict, expected the name",
    ),
    "time by type": ({"time_attr": ["time"]}, DTypeError, "time_attr: a list, expected the name"),
    "real fanouts": ({"num_neighbors": [2.5]}, ArgumentError, r"\[2.5\], expected .* whole number"),
    "a word for fanouts": ({"num_neighbors": "55"}, ArgumentError, "'55', expected"),
}


@pytest.mark.parametrize("case", BAD_SEEDS)
def test_seeds_that_cannot_be_meant_are_one_clear_error(case: str) -> None:
    options, kind, says = BAD_SEEDS[case]
    with pytest.raises(kind, match=says):
        nodes(make_data(), **options)


@pytest.mark.parametrize("data", TYPED.values(), ids=TYPED)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, r"input_nodes: None without a node type; give one of \["),
        (torch.arange(3), "without a node type"),
        ("papers", r"'papers' is no node type of the data, which has \["),
        (("papers", torch.arange(3)), "'papers' is no node type"),
        (("paper", torch.ones(30, dtype=torch.bool)), "a mask of 30 .* the 20 nodes"),
        (("paper", "author"), "seeds are of one type"),
        ({"paper": torch.arange(2)}, "seeds are of one type"),
        ([("paper", torch.arange(2)), ("author", torch.arange(2))], "seeds are of one type"),
        (("paper",), "seeds are of one type"),
    ],
    ids=str,
)
def test_seeds_of_a_type_that_is_not_there_leave_the_data_as_it_is(
    data: Callable[[], Any], given: Any, says: str
) -> None:
    given_data = data()
    with pytest.raises(ArgumentError, match=says):
        nodes(given_data, input_nodes=given)
    if isinstance(given_data, HeteroData):
        assert given_data.node_types == ["paper", "author"]
        assert given_data.edge_types == [WRITES, CITES]


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, range(40)),
        (range(5), range(5)),
        ([7, 3], [7, 3]),
        (np.array([7, 3], dtype=np.int32), [7, 3]),
        (np.arange(40) % 8 == 1, range(1, 40, 8)),
        ([number == 6 for number in range(40)], [6]),
        ([], []),
    ],
    ids=["None", "range", "list", "array", "array mask", "list mask", "none"],
)
def test_seeds_are_taken_in_every_form(
    data: Callable[[], Any], given: Any, expected: list[int]
) -> None:
    loader = nodes(data(), input_nodes=given)
    assert seeds_of(loader) == list(expected)
    assert loader.input_nodes is given


@pytest.mark.parametrize("data", TYPED.values(), ids=TYPED)
@pytest.mark.parametrize("given", ["author", ("author", None), ["author", range(30)]], ids=str)
def test_seeds_of_a_type_are_taken_in_every_form(data: Callable[[], Any], given: Any) -> None:
    loader = nodes(data(), input_nodes=given)
    assert seeds_of(loader, "author") == list(range(30))


def test_names_of_all_nodes_are_kept() -> None:
    for data, given in ((make_data(), None), (make_hetero(), "author")):
        names = torch.arange(40 if given is None else 30) + 1000
        loader = nodes(data, input_nodes=given, input_id=names)
        batches = [batch if given is None else batch[given] for batch in loader]
        assert torch.equal(torch.cat([batch.input_id for batch in batches]), names)


# Links -------------------------------------------------------------------------------------------

PAIRS = torch.arange(12).view(2, 6)
BAD_LINKS: dict[str, tuple[dict[str, Any], type[GnnsysError], str]] = {
    "columns": ({"edge_label_index": PAIRS.t()}, ArgumentError, r"shape \(6, 2\), expected \(2,"),
    "a list of nodes": ({"edge_label_index": [1, 2]}, ArgumentError, r"edge_label_index: shape"),
    "real": ({"edge_label_index": PAIRS + 0.5}, DTypeError, "edge_label_index: dtype torch.fl"),
    "pair of tensors": (
        {"edge_label_index": (PAIRS[0], PAIRS[1])},
        DTypeError,
        "edge_label_index: .*expected links",
    ),
    "a type": ({"edge_label_index": WRITES}, ArgumentError, "the data has no types"),
    "typed": ({"edge_label_index": (WRITES, PAIRS)}, ArgumentError, "the data has no types"),
    "dict": ({"edge_label_index": {WRITES: PAIRS}}, ArgumentError, "links are of one type"),
    "labels": ({"edge_label": torch.arange(9)}, ArgumentError, "edge_label: 9 entries.* 6 links"),
    "one label": ({"edge_label": torch.tensor(1)}, ArgumentError, "edge_label: tensor.1., expect"),
    "times": (
        {"edge_label_time": torch.arange(9), "time_attr": "time"},
        ArgumentError,
        "edge_label_time: 9 entries, expected one for each of the 6 links",
    ),
    "real times": (
        {"edge_label_time": torch.rand(6), "time_attr": "time"},
        DTypeError,
        "edge_label_time: dtype torch.float32",
    ),
    "names": ({"input_id": torch.arange(5)}, ArgumentError, "input_id: 5 entries"),
    "mode": ({"neg_sampling": "ternary"}, ArgumentError, "neg_sampling: 'ternary' is not a valid"),
    "amount": (
        {"neg_sampling": {"mode": "binary", "amount": 0}},
        ArgumentError,
        "neg_sampling: The attribute 'amount' needs to be positive",
    ),
    "ratio": ({"neg_sampling_ratio": -1.0}, ArgumentError, "neg_sampling_ratio: .*positive"),
    "half a triplet": (
        {"neg_sampling": ("triplet", 1.5)},
        ArgumentError,
        "'amount' needs to be an integer",
    ),
    "no such argument": ({"neg_sampling": {"size": 3}}, ArgumentError, "neg_sampling: .*'size'"),
}


@pytest.mark.parametrize("case", BAD_LINKS)
def test_links_that_cannot_be_meant_are_one_clear_error(case: str) -> None:
    options, kind, says = BAD_LINKS[case]
    with pytest.raises(kind, match=says):
        links(make_data(), **{"edge_label_index": PAIRS, **options})


@pytest.mark.parametrize("data", TYPED.values(), ids=TYPED)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "edge_label_index: None without an edge type"),
        (PAIRS, "without an edge type"),
        (("author", "reads", "paper"), "'reads', 'paper'.* is no edge type of the data"),
        ((("author", "writes", "book"), PAIRS), "'book' is no node type of the data"),
        (("author", "writes", "book"), "'book' is no node type of the data"),
        ([WRITES, CITES], "links are of one type"),
        ({WRITES: PAIRS}, "links are of one type"),
        ("writes", "'writes', expected links"),
        (("a", "b", "c", "d"), "expected an edge type"),
    ],
    ids=str,
)
def test_links_of_a_type_that_is_not_there_leave_the_data_as_it_is(
    data: Callable[[], Any], given: Any, says: str
) -> None:
    given_data = data()
    with pytest.raises(ArgumentError, match=says):
        links(given_data, edge_label_index=given)
    if isinstance(given_data, HeteroData):
        assert given_data.node_types == ["paper", "author"]
        assert given_data.edge_types == [WRITES, CITES]


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("given", [None, PAIRS, PAIRS.numpy(), PAIRS.tolist()], ids=range(4))
def test_links_are_taken_in_every_form(data: Callable[[], Any], given: Any) -> None:
    loader = links(data(), edge_label_index=given)
    found = torch.cat([batch.n_id[batch.edge_label_index] for batch in loader], dim=1)
    expected = make_data().edge_index if given is None else PAIRS
    assert torch.equal(found, expected)
    assert loader.edge_label_index is given


@pytest.mark.parametrize("data", TYPED.values(), ids=TYPED)
def test_links_of_a_type_are_taken_in_every_form(data: Callable[[], Any]) -> None:
    pairs = torch.stack([torch.arange(9) + 20, torch.arange(9)])
    for given, expected in (
        (WRITES, make_hetero()[WRITES].edge_index),
        ((WRITES, None), make_hetero()[WRITES].edge_index),
        ([WRITES, pairs], pairs),
        ((("author", "reads", "paper"), pairs), pairs),  # a relation that is to be predicted
    ):
        kind = given if given == WRITES else given[0]
        found = [
            torch.stack(
                [
                    batch[end].n_id[ids]
                    for end, ids in zip(kind[::2], batch[kind].edge_label_index, strict=True)
                ]
            )
            for batch in links(data(), edge_label_index=given)
        ]
        assert torch.equal(torch.cat(found, dim=1), expected)


def test_links_of_two_types_are_named_by_their_ends_too() -> None:
    batch = next(iter(links(make_hetero(), edge_label_index=("author", "paper"))))
    assert batch[WRITES].edge_label_index.shape == (2, 8)


def test_times_labels_and_names_are_taken_as_they_are_given() -> None:
    data = make_data()
    times = torch.arange(6, dtype=torch.int32)
    options = {"time_attr": "time", "input_id": [5, 4, 3, 2, 1, 0]}
    batch = next(iter(nodes(data, input_nodes=range(6), input_time=times, **options)))
    assert torch.equal(batch.seed_time, times)
    assert batch.input_id.tolist() == options["input_id"]
    more = {"edge_label_time": times, "edge_label": [1.0] * 6, **options}
    batch = next(iter(links(data, edge_label_index=PAIRS, **more)))
    assert torch.equal(batch.edge_label_time, times)
    assert batch.edge_label.tolist() == [1.0] * 6
    assert batch.input_id.tolist() == options["input_id"]


def test_labels_of_several_columns_are_taken() -> None:
    labels = torch.arange(18).view(6, 3)
    batch = next(iter(links(make_data(), edge_label_index=PAIRS, edge_label=labels)))
    assert torch.equal(batch.edge_label, labels)


@pytest.mark.parametrize("neg_sampling", [None, "binary", "triplet"])
def test_a_loader_is_called_with_positions_in_rows(neg_sampling: Any) -> None:
    loader = links(make_data(), edge_label_index=PAIRS, neg_sampling=neg_sampling)
    nested, flat = loader([[0, 4], [2, 1]]), loader([0, 4, 2, 1])
    assert torch.equal(nested.n_id, flat.n_id)
    assert torch.equal(nested.input_id, flat.input_id)
    if neg_sampling != "triplet":
        assert torch.equal(nested.edge_label_index, flat.edge_label_index)


@pytest.mark.parametrize(
    ("row", "col", "more", "says"),
    [
        (3, 4, {}, r"3 sources \(row\) and 4 targets"),
        (3, 3, {"label": torch.ones(4)}, "4 labels for 3 links"),
    ],
)
def test_a_sampler_checks_what_it_is_given(row: int, col: int, more: Any, says: str) -> None:
    inputs = EdgeSamplerInput(None, torch.arange(row), torch.arange(col), **more)
    with pytest.raises(ArgumentError, match=says):
        NeighborSampler(make_data(), [2]).sample_from_edges(inputs)


# Edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bool])
def test_edges_that_are_no_ids_are_an_error(dtype: torch.dtype) -> None:
    data, typed = make_data(), make_hetero()
    data.edge_index = data.edge_index.to(dtype)
    typed[CITES].edge_index = typed[CITES].edge_index.to(dtype)
    for given, options in ((data, {}), (typed, {"input_nodes": "paper"})):
        with pytest.raises(DTypeError, match=f"edge_index: dtype {dtype}, expected node ids"):
            nodes(given, **options)
    with pytest.raises(DTypeError, match=r"\('paper', 'cites', 'paper'\): edge_index"):
        nodes(typed, input_nodes="paper")
    with pytest.raises(DTypeError, match="edge_index"):
        nodes(make_stores(data))


def test_no_edges_at_all_may_be_of_any_type() -> None:
    data = Data(x=torch.zeros(3, 1), edge_index=torch.tensor([[], []]))
    assert [batch.num_edges for batch in nodes(data)] == [0]


@pytest.mark.parametrize("layout", ["csr", "coo", "csc"])
@pytest.mark.parametrize("name", ["adj", "adj_t"])
def test_sparse_matrices_are_refused_when_a_loader_is_made(name: str, layout: str) -> None:
    edge_index = make_data().edge_index
    matrix = torch.sparse_coo_tensor(edge_index, torch.ones(EDGES), (NODES, NODES))
    if layout != "coo":
        matrix = matrix.to_sparse(layout=getattr(torch, f"sparse_{layout}"))
    data = Data(x=torch.zeros(NODES, 1), **{name: matrix})
    typed = make_hetero()
    typed["paper", "in", "paper"][name] = matrix
    says = f"{name}.*: a torch.sparse_{layout} matrix, of which no batches .* edge_index"
    for make, options in ((nodes, {}), (links, {"edge_label_index": PAIRS})):
        with pytest.raises(UnsupportedError, match=says):
            make(data, **options)
    with pytest.raises(UnsupportedError, match=says):
        nodes(typed, input_nodes="paper")


# PyG's words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (
            lambda: nodes(make_data(), input_time=torch.arange(NODES)),
            ValueError,
            "Received conflicting 'input_time' and 'time_attr' arguments: 'input_time' is set "
            "while 'time_attr' is not set",
        ),
        (
            lambda: links(make_data(), time_attr="time"),
            ValueError,
            "'edge_label_time' is not set",
        ),
        (
            lambda: links(make_data(), edge_label_time=torch.arange(EDGES)),
            ValueError,
            "'time_attr' is not set",
        ),
        (
            lambda: nodes(
                make_hetero(), input_nodes="paper", num_neighbors={WRITES: [1], CITES: [1, 1]}
            ),
            ValueError,
            "Number of hops must be the same across all edge types",
        ),
        (
            lambda: nodes(make_hetero(), input_nodes="paper", num_neighbors={("a", "b"): [1]}),
            ValueError,
            "Not all edge types specified in 'num_neighbors' exist in the graph",
        ),
        (
            lambda: nodes(make_hetero(), input_nodes="paper", num_neighbors={WRITES: [1]}),
            ValueError,
            "Missing number of neighbors for edge type",
        ),
        (
            lambda: NumNeighbors([1], default=[1]),
            ValueError,
            "'default' must be set to 'None'",
        ),
        (
            lambda: links(
                make_data(), edge_label=torch.ones(EDGES), neg_sampling=NegativeSampling("triplet")
            ),
            ValueError,
            "'edge_label' needs to be undefined for 'triplet'-based negative sampling",
        ),
        (
            lambda: nodes(make_data(), time_attr="when"),
            ValueError,
            "The time attribute 'when' is neither a node-level or edge-level attribute",
        ),
        (
            lambda: nodes(make_hetero(), input_nodes="paper", time_attr="when"),
            ValueError,
            "The time attribute 'when' is neither a node-level or edge-level attribute",
        ),
        (
            lambda: nodes(make_data(), disjoint=True, subgraph_type="induced"),
            ValueError,
            "'disjoint' sampling not supported",
        ),
        (
            lambda: nodes(make_stores(make_data()), weight_attr="edge_weight"),
            NotImplementedError,
            "'weight_attr' argument not yet supported within 'NeighborSampler'",
        ),
        (
            lambda: nodes(make_stores(make_data()), time_attr="time"),
            ValueError,
            "Temporal sampling requires that edges are sorted by destination",
        ),
        (
            lambda: NeighborSampler(
                make_data(), [1], time_attr="time", sample_direction="backward"
            ),
            NotImplementedError,
            "Temporal Sampling not yet supported for backward sampling",
        ),
        (
            lambda: NeighborSampler([], [1]),
            ValueError,
            "Expected a 'Data', 'HeteroData', or a tuple of 'FeatureStore' and 'GraphStore'",
        ),
        (
            lambda: next(
                iter(
                    links(
                        make_data(),
                        neg_sampling=NegativeSampling("triplet", dst_weight=torch.ones(3)),
                    )
                )
            ),
            ValueError,
            "needs to match the number of nodes 40",
        ),
    ],
)
def test_errors_have_the_words_and_the_base_class_of_pygs(make: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


def test_the_warning_of_a_deprecated_argument_has_pygs_words() -> None:
    with pytest.warns(FutureWarning, match="usage of the 'directed' argument in 'NeighborSampler'"):
        nodes(make_data(), directed=False)
