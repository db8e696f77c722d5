"""Batches hold nothing that is newer than their seeds, and ``check_leakage`` finds what is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from gnnsys import LinkNeighborLoader, NeighborLoader, NeighborSampler, check_leakage
from gnnsys.errors import ArgumentError, DTypeError, LeakageError

BUYS, BOUGHT = ("user", "buys", "item"), ("item", "bought", "user")
NODES, EDGES, END = 60, 500, 100
NOW = 50
"""Of the seeds where all have the same time."""


def random_times(draw: torch.Generator, count: int) -> Tensor:
    return torch.randint(END, (count,), generator=draw)


def homogeneous() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, 3, generator=draw),
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
        edge_attr=torch.randn(EDGES, 2, generator=draw),
        y=torch.randint(5, (NODES,), generator=draw),
        born=random_times(draw, NODES),
        stamp=random_times(draw, EDGES),
    )


def heterogeneous(of_edges: bool = False) -> HeteroData:
    """Users have no times of their own; all is in edges, or items have times."""
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    data["user"].x = torch.randn(40, 3, generator=draw)
    data["item"].x = torch.randn(30, 2, generator=draw)
    ends = torch.randint(40, (EDGES,), generator=draw), torch.randint(30, (EDGES,), generator=draw)
    data[BUYS].edge_index = torch.stack(ends)
    data[BOUGHT].edge_index = data[BUYS].edge_index.flip(0)
    if of_edges:
        data[BUYS].stamp = data[BOUGHT].stamp = random_times(draw, EDGES)
    else:
        data["item"].born = random_times(draw, 30)
    return data


def links_of(data: Data) -> dict[str, Tensor]:
    """Links of a homogeneous graph, as old as the younger of their ends or younger."""
    links = data.edge_index[:, :90]
    return {
        "edge_label_index": links,
        "edge_label_time": data.born[links].amax(0) + torch.arange(90) % 7,
    }


def check_equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(one.stores, other.stores, strict=True):
        for name, value in mine.items():
            assert not isinstance(value, Tensor) or torch.equal(value, theirs[name]), name


def nodes_by_birth(**options: Any) -> Any:
    data = homogeneous()
    return NeighborLoader(data, [5, 3], time_attr="born", batch_size=16, **options), data, "born"


def nodes_by_edges(**options: Any) -> Any:
    data = homogeneous()
    times = {"input_time": torch.arange(NODES), "time_attr": "stamp"}
    return NeighborLoader(data, [5, 3], batch_size=16, **times, **options), data, "stamp"


def users_by_birth(**options: Any) -> Any:
    data = heterogeneous()
    times = {"input_time": 2 * torch.arange(40), "time_attr": "born"}
    return NeighborLoader(data, [5, 3], "user", batch_size=16, **times, **options), data, "born"


def users_by_edges(**options: Any) -> Any:
    data = heterogeneous(of_edges=True)
    times = {"input_time": 2 * torch.arange(40), "time_attr": "stamp"}
    return NeighborLoader(data, [5, 3], "user", batch_size=16, **times, **options), data, "stamp"


def links(**options: Any) -> Any:
    data = homogeneous()
    loader = LinkNeighborLoader(
        data, [5, 3], time_attr="born", batch_size=16, **links_of(data), **options
    )
    return loader, data, "born"


def typed_links(**options: Any) -> Any:
    data = heterogeneous(of_edges=True)
    loader = LinkNeighborLoader(
        data,
        [5, 3],
        (BUYS, data[BUYS].edge_index),
        edge_label_time=data[BUYS].stamp,
        time_attr="stamp",
        batch_size=64,
        **options,
    )
    return loader, data, "stamp"


LOADERS = [nodes_by_birth, nodes_by_edges, users_by_birth, users_by_edges, links, typed_links]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"time_window": 30, "last_n": 4, "temporal_strategy": "last"},
    {"sampling": "labor", "replace": False, "last_n": 9},
]


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_batch_leaks(make: Callable[..., Any], options: dict[str, Any]) -> None:
    loader, data, time = make(**options)
    edges = 0
    for batch in loader:
        check_leakage(batch, data, time)
        edges += batch.num_edges
    assert edges > 100


@pytest.mark.parametrize("make", [links, typed_links])
@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_no_batch_with_negative_links_leaks(make: Callable[..., Any], mode: str) -> None:
    loader, data, time = make(neg_sampling=mode)
    for batch in loader:
        check_leakage(batch, data, time)


def in_window(seed_time: Tensor, time: Tensor, tree: Tensor) -> bool:
    age = seed_time[tree] - time
    return bool(((age >= 0) & (age <= 30)).all())


def test_limits_of_a_loader_reach_its_sampler() -> None:
    for batch in nodes_by_edges(time_window=30)[0]:
        assert in_window(batch.seed_time, batch.stamp, batch.batch[batch.edge_index[1]])
    for batch in users_by_edges(time_window={BUYS: 30})[0]:
        store = batch[BUYS]
        tree = batch["item"].batch[store.edge_index[1]]
        assert in_window(batch["user"].seed_time, store.stamp, tree)
    for batch in typed_links(time_window=30)[0]:
        for kind in (BUYS, BOUGHT):
            tree = batch[kind[-1]].batch[batch[kind].edge_index[1]]
            assert in_window(batch[BUYS].edge_label_time, batch[kind].stamp, tree)
    for make in (nodes_by_edges, links):
        few = [batch.num_edges for batch in make(last_n=2)[0]]
        assert all(a < b for a, b in zip(few, (b.num_edges for b in make()[0]), strict=True))


def test_a_window_over_all_times_changes_nothing() -> None:
    for make in LOADERS:
        plain, wide = (make(**options)[0] for options in ({}, {"time_window": END, "last_n": 999}))
        for one, other in zip(plain, wide, strict=True):
            check_equal(one, other)


# What is later than the seeds may be anything ----------------------------------------------------


def change_later_nodes(data: Data) -> Data:
    """Other features, labels and times for the nodes that are born later, and other edges."""
    changed = copy.copy(data)
    later = data.born > NOW
    changed.x, changed.y, changed.born = data.x.clone(), data.y.clone(), data.born.clone()
    changed.x[later], changed.y[later] = -1, -1
    changed.born[later] = END + data.born[later].flip(0)
    at, source = later[data.edge_index[0]], later.nonzero().view(-1)
    changed.edge_index, changed.edge_attr = data.edge_index.clone(), data.edge_attr.clone()
    changed.edge_index[0, at] = source[torch.arange(int(at.sum())) % len(source)]
    changed.edge_attr[at] = -1
    return changed


def change_later_edges(data: Data) -> Data:
    """Other ends, features and times for the edges that come later."""
    changed = copy.copy(data)
    later = data.stamp > NOW
    for name in ("edge_index", "edge_attr", "stamp"):
        changed[name] = data[name].clone()
    changed.edge_index[:, later] = data.edge_index[:, later].flip(0, 1)
    changed.edge_attr[later] = -1
    changed.stamp[later] = NOW + 1 + data.stamp[later].flip(0) % 3
    return changed


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("time", "change"), [("born", change_later_nodes), ("stamp", change_later_edges)]
)
def test_batches_do_not_depend_on_anything_later(
    time: str, change: Callable[[Data], Data], options: dict[str, Any]
) -> None:
    data = homogeneous()
    seeds = (data.born <= NOW).nonzero().view(-1)
    before, after = (
        NeighborLoader(
            each,
            [5, 3],
            seeds,
            torch.full((len(seeds),), NOW),
            time_attr=time,
            batch_size=8,
            shuffle=True,
            **options,
        )
        for each in (data, change(data))
    )
    for one, other in zip(before, after, strict=True):
        assert {"x", "y", "edge_attr", "edge_index", "n_id", "e_id"} < {*one.keys()}
        check_equal(one, other)


# Planted leaks -----------------------------------------------------------------------------------


def test_a_sampler_that_ignores_times_is_caught() -> None:
    data = homogeneous()
    late = NeighborLoader(data, [5], disjoint=True, batch_size=NODES)
    with pytest.raises(LeakageError, match=r"of \d+ nodes are newer than their seed: node \d+ has"):
        check_leakage(next(iter(late)), data, "born", seed_time=data.born)
    typed = heterogeneous(of_edges=True)
    late = NeighborLoader(typed, [5], "user", disjoint=True, batch_size=40)
    with pytest.raises(LeakageError, match=r"edges of \('item', 'bought', 'user'\) are newer"):
        check_leakage(next(iter(late)), typed, "stamp", seed_time=torch.full((40,), NOW))


def test_one_edge_that_is_too_new_is_caught() -> None:
    data = homogeneous()
    seed, now = data.edge_index[1, :1], data.stamp[:1] - 1
    liar = copy.copy(data)
    liar.stamp = data.stamp.clone()
    liar.stamp[0] = 0  # is one later in truth
    for source, is_caught in ((data, False), (liar, True)):
        loader = NeighborLoader(source, [-1], seed, now, time_attr="stamp")
        batch = next(iter(loader))
        assert (0 in batch.e_id.tolist()) == is_caught
        if not is_caught:
            check_leakage(batch, data, "stamp")
            continue
        told = f"1 of {batch.num_edges} edges are newer than their seed: edge 0 has 'stamp' "
        with pytest.raises(LeakageError, match=told + f"{int(now) + 1}, its seed {int(now)}"):
            check_leakage(batch, data, "stamp")


def test_an_edge_between_two_trees_is_caught() -> None:
    loader, data, time = nodes_by_birth()
    batch = next(iter(loader))
    wrong = int((batch.batch == 3).nonzero()[0])
    batch.edge_index[0, 0] = wrong
    tree = int(batch.batch[batch.edge_index[1, 0]])
    with pytest.raises(
        LeakageError, match=f"edge 0 of .* joins the trees of two seeds, 3 and {tree}"
    ):
        check_leakage(batch, data, time)


def test_values_that_become_known_later_are_caught() -> None:
    loader, data, time = nodes_by_birth()
    batch = next(iter(loader))
    data.y_time, data.x_time = data.born.clone(), data.born.view(-1, 1).repeat(1, 3)
    known_at = {"y": "y_time", "x": "x_time"}
    check_leakage(batch, data, time, known_at=known_at)
    sampled = batch.n_id[batch.batch_size :]
    alone = int(sampled[~torch.isin(sampled, batch.n_id[: batch.batch_size])][0])
    data.x_time[alone, 1] = END
    with pytest.raises(LeakageError, match=rf"'x' of .* only later .* that of node {alone} has"):
        check_leakage(batch, data, time, known_at=known_at)
    check_leakage(batch, data, time, known_at={"y": "y_time"})
    data.y_time[alone] = END
    with pytest.raises(LeakageError, match=rf"'y' of .* that of node {alone} has 'y_time' {END}"):
        check_leakage(batch, data, time, known_at={"y": "y_time"})


def test_values_of_edges_that_become_known_later_are_caught() -> None:
    loader, data, time = nodes_by_edges()
    batch = next(iter(loader))
    data.known = data.stamp.clone()
    check_leakage(batch, data, time, known_at={"edge_attr": "known"})
    edge = int(batch.e_id[0])
    data.known[edge] = END
    with pytest.raises(LeakageError, match=rf"'edge_attr' of .* edges is known .* edge {edge} has"):
        check_leakage(batch, data, time, known_at={"edge_attr": "known"})


def test_labels_of_the_seeds_alone_may_be_from_later() -> None:
    data = homogeneous()
    data.known = data.born + 1  # to each node itself, and to others of the same age, too late
    options = {"time_attr": "born", "batch_size": NODES}
    batch = next(iter(NeighborLoader(data, [5, 3], **options)))
    late = int((data.born[batch.n_id] == data.born[batch.batch])[NODES:].sum())
    assert late > 0
    for label, number in (("y", late), ("other", late + NODES)):
        told = f"'y' of {number} of {len(batch.n_id)} nodes is known only later"
        with pytest.raises(LeakageError, match=told):
            check_leakage(batch, data, "born", known_at={"y": "known"}, label=label)

    def keep_labels_of_seeds(batch: Data) -> Data:
        batch.y = batch.y[: batch.batch_size]
        return batch

    loader = NeighborLoader(data, [5, 3], transform=keep_labels_of_seeds, **options)
    check_leakage(next(iter(loader)), data, "born", known_at={"y": "known"})


# Bad input ---------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_one_clear_error() -> None:
    loader, data, time = nodes_by_birth()
    batch = next(iter(loader))
    plain = next(iter(NeighborLoader(data, [5])))
    none = torch.empty(2, 0, dtype=torch.int64)
    small = Data(born=data.born[:3], edge_index=none, num_nodes=3)
    floats = copy.copy(data)
    floats.born = data.born.double()
    nameless = copy.copy(batch)
    del nameless.n_id
    cases: list[tuple[Any, Any, str, dict[str, Any], type[Exception], str]] = [
        (plain, data, time, {}, ArgumentError, "batch is missing.*disjoint=True"),
        (batch, heterogeneous(), time, {}, ArgumentError, "a Data of a HeteroData, expected both"),
        (batch, data, "when", {}, ArgumentError, "no type in data has times called 'when'"),
        (batch, data, time, {"known_at": {"y": "when"}}, ArgumentError, "called 'when'"),
        (batch, data, time, {"known_at": {"Y": "born"}}, ArgumentError, "has the attribute 'Y'"),
        (batch, Data(born=data.born), time, {}, ArgumentError, "a Data without num_nodes"),
        (batch, small, time, {}, ArgumentError, r"data: 3 times in born, .* the node \d+"),
        (batch, floats, time, {}, DTypeError, "born: dtype torch.float64, expected times"),
        (nameless, data, time, {}, ArgumentError, "n_id is missing"),
        (batch, data, "stamp", {}, ArgumentError, "seed_time: no times for the seeds of 16 trees"),
        (batch, data, time, {"seed_time": torch.ones(3).long()}, ArgumentError, "3 times for the"),
        (batch, data, time, {"seed_time": torch.ones(16)}, DTypeError, "seed_time: dtype"),
    ]
    for one, whole, name, options, error, told in cases:
        with pytest.raises(error, match=told):
            check_leakage(one, whole, name, **options)


def test_a_graph_of_times_alone_is_enough_to_compare_with() -> None:
    loader, data, time = users_by_birth()
    times = HeteroData()
    times["item"].born = data["item"].born
    for batch in loader:
        check_leakage(batch, times, time)
    times["item"].born = times["item"].born + END
    batch = next(iter(loader))
    with pytest.raises(LeakageError, match="nodes of 'item' are newer"):
        check_leakage(batch, times, time)
    assert times.node_types == ["item"]

    loader, plain, time = nodes_by_birth()
    batch = next(iter(loader))
    times = Data(born=plain.born, num_nodes=plain.num_nodes)
    check_leakage(batch, times, time)
    times.born = times.born + END
    with pytest.raises(LeakageError, match="nodes are newer"):
        check_leakage(batch, times, time, seed_time=plain.born[batch.input_id])


def test_a_sampler_may_be_given_other_limits() -> None:
    sampler = NeighborSampler(homogeneous(), [9], time_attr="born", seed=1)
    seeds = torch.arange(NODES)
    edges = []
    for limits in ((None, None), (20, None), (20, 1), (None, None)):
        sampler.time_window, sampler.last_n = limits
        edges.append(len(sampler.sample(seeds, 0).edge))
    assert edges[0] == edges[3] > edges[1] > edges[2] > 0
