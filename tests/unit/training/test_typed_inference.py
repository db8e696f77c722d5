"""Exact inference over node types against PyG's models on the whole graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import (
    ClusterGCNConv,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    GraphNorm,
    HeteroConv,
    HGTConv,
    LayerNorm,
    SAGEConv,
    TransformerConv,
    to_hetero,
)
from torch_geometric.nn.models import GAT, GIN, GraphSAGE

import gnnsys
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import ArgumentError, StorageError, UnsupportedError
from gnnsys.training.typed_convs import RelationAttention, RelationMeans

CITES, WRITES, BY = ("paper", "cites", "paper"), ("author", "writes", "paper"), (
    "paper", "by", "author",
)  # fmt: skip
IN, HAS, NONE = ("paper", "in", "venue"), ("venue", "has", "paper"), ("author", "none", "venue")
WIDTHS = {"paper": 6, "author": 5, "venue": 3}
COUNTS = {"paper": 50, "author": 30, "venue": 9}


@pytest.fixture(scope="module")
def data() -> HeteroData:
    """Types of other widths, loops, double edges, lone nodes, and a type without edges."""
    draw = torch.Generator().manual_seed(0)
    data = HeteroData()
    for kind, count in COUNTS.items():
        shape = (count, WIDTHS[kind])
        data[kind].x = torch.randn(shape, generator=draw, dtype=torch.float64)
    for kind, edges in [(CITES, 200), (WRITES, 90), (BY, 60), (IN, 40), (HAS, 40), (NONE, 0)]:
        ends = [torch.randint(COUNTS[end] - 2, (edges,), generator=draw) for end in kind[::2]]
        data[kind].edge_index = torch.stack(ends)
    data[CITES].edge_index[:, :10] = torch.arange(10)
    data[CITES].edge_index[:, 10:20] = data[CITES].edge_index[:, 20:30]
    return data


class Stack(nn.Module):
    """Layers of ``HeteroConv``, the first on features of each width; logits of authors."""

    def __init__(self, make: Callable[[Any, tuple[str, str, str]], nn.Module], **options: Any):
        super().__init__()
        kinds = (CITES, WRITES, BY, IN, HAS, NONE)
        widths = [WIDTHS, dict.fromkeys(WIDTHS, 8)]
        self.convs = nn.ModuleList(
            HeteroConv({k: make((w[k[0]], w[k[2]]), k) for k in kinds}, **options) for w in widths
        )
        self.lin = nn.Linear(8, 4)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
        for conv in self.convs:
            x = {kind: F.dropout(each, 0.5, self.training).relu() for kind, each in
                 conv(x, edges).items()}  # fmt: skip
        return self.lin(x["author"])


class Transformers(nn.Module):
    """PyG's example of HGT, with outputs of two types."""

    def __init__(self, data: HeteroData) -> None:
        super().__init__()
        self.lins = nn.ModuleDict({kind: nn.Linear(w, 8) for kind, w in WIDTHS.items()})
        self.convs = nn.ModuleList(HGTConv(8, 8, data.metadata(), 2) for _ in range(2))
        self.lin = nn.Linear(8, 4)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> dict[str, Tensor]:
        x = {kind: self.lins[kind](each).relu_() for kind, each in x.items()}
        for conv in self.convs:
            x = conv(x, edges)
        return {kind: self.lin(x[kind]) for kind in ("author", "venue")}


class Relations(Transformers):
    """The same with layers of relations, over all types at once."""

    def __init__(self, data: HeteroData, make: Callable[[Any], nn.Module]) -> None:
        super().__init__(data)
        self.convs = nn.ModuleList(make(data.edge_types) for _ in range(2))


class Skips(nn.Module):
    """Values of all depths meet: features, a gated layer, several paths; one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SAGEConv((5, 6), 6, aggr="max")
        self.cites = GCNConv(6, 6)
        self.gate = nn.Sequential(nn.Linear(12, 6), nn.Sigmoid())
        self.bias = nn.Parameter(torch.ones(6))
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Bilinear(6, 6, 3)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> dict[str, Tensor]:
        papers = x["paper"]
        some = self.first((x["author"], papers), edges[WRITES]).relu() + self.bias.exp()
        gate = self.gate(torch.cat([papers, some], -1))
        other = self.cites(gate * some + (1 - gate) * papers, edges[CITES])
        twice = self.cites(other.view(other.size(0), -1), edges[CITES])
        both = self.norm(torch.stack([some, other, twice]).mean(0))
        return {"paper": self.out(both, papers), "features": papers}


def pyg(model: Any, data: HeteroData, **options: Any) -> nn.Module:
    return to_hetero(model, data.metadata(), **options)


def gated(width: Any, kind: Any) -> nn.Module:
    if kind == CITES:
        return GCNConv(width[0], 8)
    return TransformerConv(width, 4, heads=2)


MODELS: dict[str, Callable[[HeteroData], nn.Module]] = {
    "rgcn": lambda data: Stack(lambda width, kind: SAGEConv(width, 8)),
    "mixed": lambda data: Stack(gated, aggr="mean"),
    "attention": lambda data: Stack(
        lambda width, kind: GATConv(width, 8, add_self_loops=kind == CITES), aggr="max"
    ),
    "lazy": lambda data: Stack(lambda width, kind: GraphConv((-1, -1), 8, aggr="max")),
    "hgt": Transformers,
    "means": lambda data: Relations(data, lambda kinds: RelationMeans(8, kinds)),
    "attention over types": lambda data: Relations(
        data, lambda kinds: RelationAttention(8, kinds, heads=2)
    ),
    "skips": lambda data: Skips(),
    "sage": lambda data: pyg(GraphSAGE((-1, -1), 8, 2, 3, dropout=0.3), data, aggr="mean"),
    "jumping": lambda data: pyg(
        GraphSAGE((-1, -1), 8, 2, 3, jk="cat", norm="batch_norm"), data, aggr="max"
    ),
    "gat": lambda data: pyg(GAT((-1, -1), 8, 2, 3, heads=2, add_self_loops=False), data),
    "gin": lambda data: pyg(Encoded(GIN(8, 8, 2, 3)), data),
}


class Encoded(nn.Module):
    """A model behind a lazy encoder of features; for layers that need ends of one width."""

    def __init__(self, gnn: Any) -> None:
        super().__init__()
        self.encoder, self.convs = nn.LazyLinear(8), gnn.convs

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encoder(x)
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return x


def make(name: str, data: HeteroData) -> nn.Module:
    torch.manual_seed(1)
    model = MODELS[name](data).double().eval()
    with torch.no_grad():
        model(data.x_dict, data.edge_index_dict)  # lazy parts have weights
    return model


def as_dict(outputs: Any) -> dict[str, Tensor]:
    return outputs if isinstance(outputs, dict) else {"author": outputs}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_the_model_on_the_whole_graph(name: str, data: HeteroData) -> None:
    model = make(name, data)
    with torch.no_grad():
        expected = model(data.x_dict, data.edge_index_dict)
    for block_bytes in (1500, 1 << 30):  # few nodes at a time, and all
        found = gnnsys.hetero_inference(model, data, block_bytes=block_bytes)
        assert type(found) is type(expected)
        assert as_dict(found).keys() == as_dict(expected).keys()
        for key, each in as_dict(expected).items():
            torch.testing.assert_close(as_dict(found)[key], each, rtol=1e-10, atol=1e-10)


def test_lazy_layers_get_their_widths_and_modes_stay(data: HeteroData) -> None:
    model = Stack(lambda width, kind: SAGEConv((-1, -1), 8)).double().train()
    model.convs[1].eval()
    before = [part.training for part in model.modules()]
    found = gnnsys.hetero_inference(model, data)
    assert [part.training for part in model.modules()] == before
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(data.x_dict, data.edge_index_dict))


@pytest.mark.parametrize("name", ["rgcn", "hgt", "gat"])
def test_threads_and_place_change_no_bit(name: str, data: HeteroData, tmp_path: Path) -> None:
    model = make(name, data).float()
    single = data.clone()
    for kind in COUNTS:
        np.save(tmp_path / f"{kind}.npy", data[kind].x.float().numpy())
        single[kind].x = gnnsys.unified(tmp_path / f"{kind}.npy", device="cpu")
    place = tmp_path / "out"
    results = [
        gnnsys.hetero_inference(model, single, block_bytes=6000, threads=threads, out=out)
        for threads, out in ((1, None), (2, None), (3, place))
    ]
    files = {key: torch.from_numpy(np.load(place / f"{key}.npy")) for key in as_dict(results[0])}
    assert sorted(os.listdir(place)) == sorted(f"{key}.npy" for key in files)
    for key, each in as_dict(results[0]).items():
        assert torch.equal(as_dict(results[1])[key], each)
        assert isinstance(as_dict(results[2])[key], gnnsys.UnifiedTensor)
        assert torch.equal(as_dict(results[2])[key].materialize(), each)
        assert torch.equal(files[key], each)


def test_a_folder_gives_the_same_with_rows_for_types_without_features(
    data: HeteroData, tmp_path: Path
) -> None:
    single = data.clone()
    for kind in COUNTS:
        single[kind].x = single[kind].x.float()
    model = make("rgcn", data).float()
    expected = gnnsys.hetero_inference(model, single)
    embedding = nn.Parameter(single["venue"].x)
    del single["venue"].x
    single["venue"].num_nodes = COUNTS["venue"]
    convert_pyg(single, tmp_path / "g", ConvertOptions(), name="g")
    dataset = gnnsys.open_dataset(tmp_path / "g")
    for given in (dataset, dataset.stores(cache="1MB", device="cpu"), single):
        with pytest.raises(ArgumentError, match=r"model: called as.*it fails: .*x=\{type: rows\}"):
            gnnsys.hetero_inference(model, given)
        found = gnnsys.hetero_inference(model, given, x={"venue": embedding})
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_the_outputs_do_not_need_is_not_read(data: HeteroData, tmp_path: Path) -> None:
    class Venues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SAGEConv((6, 3), 4)

        def forward(self, x: Any, edges: Any) -> Tensor:
            self.conv((x["paper"], x["venue"]), edges[IN])
            return self.conv((x["paper"], x["venue"]), edges[IN])

    rows = {}
    for kind in COUNTS:
        np.save(tmp_path / f"{kind}.npy", data[kind].x.numpy())
        rows[kind] = gnnsys.unified(tmp_path / f"{kind}.npy", device="cpu")
    gnnsys.hetero_inference(Venues().double(), data, x=rows, block_bytes=1 << 20)
    read = {kind: sum(each.counters.as_dict()["rows"].values()) for kind, each in rows.items()}
    papers = len(data[IN].edge_index[0].unique())
    assert read == {"paper": papers, "author": 0, "venue": COUNTS["venue"]}


def test_types_without_nodes_have_outputs_without_rows(data: HeteroData) -> None:
    empty = data.clone()
    empty["venue"].x = empty["venue"].x[:0]
    for kind in (IN, HAS, NONE):
        empty[kind].edge_index = torch.empty((2, 0), dtype=torch.int64)
    found = gnnsys.hetero_inference(make("hgt", data), empty)
    assert found["venue"].shape == (0, 4)
    with torch.no_grad():
        expected = make("hgt", data)(empty.x_dict, empty.edge_index_dict)
    torch.testing.assert_close(found["author"], expected["author"], rtol=1e-10, atol=1e-10)


# What is refused ----------------------------------------------------------------------------------


class Model(nn.Module):
    """A graph layer from papers to papers, between two functions of a test's."""

    def __init__(self, conv: Any = None, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.conv = SAGEConv(6, 6) if conv is None else conv
        self.before, self.after = before, after

    def forward(self, x: Any, edges: Any) -> Any:
        rows = x["paper"] if self.before is None else self.before(x, edges)
        rows = self.conv(rows, edges[CITES])
        return rows if self.after is None else self.after(rows, x)


class Last(nn.Module):
    """A module behind the graph layer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, rows: Tensor, x: Any) -> Any:
        return self.part(rows)


class Weights(nn.Module):
    """Rows that are no features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(COUNTS["paper"], 6))

    def forward(self, x: Any, edges: Any) -> Tensor:
        return self.weight


class Given(nn.Module):
    """A graph layer that is given other things."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.conv, self.give = GraphConv(6, 6), give

    def forward(self, rows: Tensor, edge_index: Tensor) -> Any:
        return self.conv(rows, *self.give(edge_index))


class Halved(SAGEConv):
    """With messages of its own."""

    def message(self, x_j: Tensor) -> Tensor:
        return x_j / 2


def in_place(rows: Tensor, x: Any) -> Tensor:
    rows.relu_()
    return rows


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Model(after=Last(LayerNorm(6))), r"after\.part, LayerNorm.*all nodes at once"),
    (lambda: Model(after=lambda rows, x: rows - rows.mean(0)), "sub, makes a row of those of all"),
    (
        lambda: Model(GINConv(nn.Sequential(nn.Linear(6, 6), GraphNorm(6)))),
        "conv, GINConv.*GraphNorm.*all nodes at once",
    ),
    (lambda: Model(Halved(6, 6)), r"conv, Halved\(6, 6.*is not known to need"),
    (lambda: Model(ClusterGCNConv(6, 6)), "conv, ClusterGCNConv.*is not known to need"),
    (lambda: Model(GCNConv(6, 6, cached=True)), r"conv, GCNConv\(6, 6\), keeps.*cached=False"),
    (lambda: Model(SAGEConv(6, 6, flow="target_to_source")), "conv, .*source_to_target"),
    (lambda: Model(before=Weights()), "conv, SAGE.*not made of the rows of 'paper' in x_dict"),
    (lambda: Model(Given(lambda edges: [edges.flip(0)])), "flip works on edges"),
    (lambda: Model(Given(lambda edges: [torch.ones(2, 3).long()])), "takes other edges"),
    (
        lambda: Model(Given(lambda edges: [edges, torch.ones(12).double()])),
        r"conv\.conv, GraphConv\(6, 6\), is given edge_weight",
    ),
    (
        lambda: Model(after=lambda rows, x: rows.sum() + x["author"]),
        "add brings rows of 'author' and 'paper' together",
    ),
    (
        lambda: Model(before=lambda x, edges: x["paper"] if x["paper"].sum() > 0 else -x["paper"]),
        "Model cannot be followed by torch.fx.*nor loop over them",
    ),
    (
        lambda: Model(after=lambda rows, x: rows.view(x["paper"].size(0), -1)),
        "size is no tensor of rows",
    ),
    (lambda: Model(after=in_place), "Model does not compute.*in place"),
    (lambda: Model(after=lambda rows, x: (rows, rows)), "returns .*expected rows of a node type"),
]


@pytest.mark.parametrize(("make_model", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_blocks_may_not_compute_is_refused_by_name(
    make_model: Any, message: str, data: HeteroData
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        gnnsys.hetero_inference(make_model().double(), data)


def test_hooks_and_edge_types_that_lead_nowhere_are_refused(data: HeteroData) -> None:
    model = Model().double()
    handle = model.conv.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(UnsupportedError, match="conv has a forward hook"):
        gnnsys.hetero_inference(model, data)
    handle.remove()
    fewer = data.clone()
    del fewer[IN], fewer[NONE]
    with pytest.raises(UnsupportedError, match="no edge type in the data that leads to 'venue'"):
        gnnsys.hetero_inference(make("hgt", data), fewer)


def test_arguments_that_cannot_be_used_are_named(data: HeteroData, tmp_path: Path) -> None:
    model = Model().double()
    (tmp_path / "file").touch()
    for options, message in [
        ({"x": {"nobody": data["paper"].x}}, r"x: 'nobody' is no node type.*'paper', 'author'"),
        ({"x": {"paper": data["author"].x}}, r"x of 'paper': 30 rows != 50 nodes"),
        ({"x": {"paper": "rows.npy"}}, "x of 'paper': a str, expected a tensor"),
        ({"block_bytes": 0}, "block_bytes: 0"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            gnnsys.hetero_inference(model, data, **options)
    with pytest.raises(ArgumentError, match=r"Data without node types.*gnnsys\.inference"):
        gnnsys.hetero_inference(model, Data(x=data["paper"].x))
    named = Model(after=lambda rows, x: {"of/papers": rows}).double()
    with pytest.raises(ArgumentError, match="out: 'of/papers' is no name for a file"):
        gnnsys.hetero_inference(named, data, out=tmp_path / "out")
    for place, message in [("file", "exists"), ("missing/out", "no such folder")]:
        with pytest.raises(StorageError, match=message):
            gnnsys.hetero_inference(model, data, out=tmp_path / place)
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_on_the_way_leaves_no_file(data: HeteroData, tmp_path: Path) -> None:
    heard = []

    def stop(what: str, done: int, total: int) -> None:
        heard.append((what, done, total))
        if what == "layer 2 of 2":
            raise KeyboardInterrupt

    (tmp_path / "old").mkdir()
    for place in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            gnnsys.hetero_inference(make("rgcn", data), data, out=tmp_path / place, progress=stop)
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == []
    assert ("layer 1 of 2", 50 + 30, 50 + 30) in heard  # no venues: authors have papers alone
