"""Layer-wise inference against the model on the whole graph."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import (
    ARMAConv,
    DiffGroupNorm,
    GraphConv,
    GraphNorm,
    GraphSizeNorm,
    LEConv,
    MeanSubtractionNorm,
    ResGatedGraphConv,
    SAGEConv,
    TAGConv,
    TransformerConv,
    aggr,
)
from torch_geometric.nn.models import GAT, GCN, GIN, PNA, EdgeCNN, GraphSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN

import gnnsys
from gnnsys.errors import ArgumentError, StorageError, UnsupportedError
from gnnsys.training.model_layers import Block
from gnnsys.training.models import NodeClassifier

NODES = 300
SMALL = 1 << 14  # bytes of a block: some forty blocks a layer


@pytest.fixture(scope="module")
def data() -> Data:
    """A random graph with self loops, double edges and isolated nodes."""
    draw = torch.Generator().manual_seed(0)
    edge_index = torch.randint(NODES - 20, (2, 3000), generator=draw)
    edge_index[:, :40] = torch.arange(40)
    edge_index[:, 40:60] = edge_index[:, 60:80]
    x = torch.randn(NODES, 12, generator=draw, dtype=torch.float64)
    return Data(x=x, edge_index=edge_index, num_nodes=NODES)


def make(kind: Any, **options: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    return kind(12, 8, 3, 5, dropout=0.4, **options).double().eval()


@pytest.fixture(scope="module")
def small() -> Data:
    """Fewer nodes of the same kind."""
    draw = torch.Generator().manual_seed(0)
    edge_index = torch.randint(45, (2, 300), generator=draw)
    edge_index[:, :20] = torch.arange(20)
    edge_index[:, 20:30] = edge_index[:, 40:50]
    x = torch.randn(55, 12, generator=draw, dtype=torch.float64)
    return Data(x=x, edge_index=edge_index, num_nodes=55)


def assert_equals_the_whole(model: torch.nn.Module, data: Data) -> None:
    with torch.no_grad():
        expected = model(data.x, data.edge_index)
    for block_bytes in (700, 3000, 1 << 30):  # a few nodes at a time, more, and all
        found = gnnsys.inference(model, data, block_bytes=block_bytes)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


PNA_OPTIONS: dict[str, Any] = {
    "aggregators": ["mean", "max", "std"],
    "scalers": ["identity", "amplification", "attenuation", "linear", "inverse_linear"],
    "deg": torch.arange(20),
}
MODELS = [
    (GraphSAGE, {}),
    (GraphSAGE, {"jk": "last", "norm": "layer_norm", "norm_kwargs": {"mode": "node"}}),
    (GraphSAGE, {"project": True, "normalize": True}),
    (GraphSAGE, {"root_weight": False, "act": "prelu", "act_kwargs": {"num_parameters": 8}}),
    (GraphSAGE, {"norm": "instance_norm", "norm_kwargs": {"track_running_stats": True}}),
    (GraphSAGE, {"act": torch.nn.Softmax(dim=-1), "act_first": True, "norm": "batch_norm"}),
    (GraphSAGE, {"act": lambda rows: rows.clamp(min=-1), "jk": "last"}),
    (GraphSAGE, {"act": None, "norm": DiffGroupNorm(8, groups=2)}),
    *((GraphSAGE, {"aggr": name}) for name in ("sum", "max", "min", "mul", "var", "std")),
    *((GraphSAGE, {"aggr": name}) for name in ("median", "softmax", "powermean")),
    (GraphSAGE, {"aggr": ["mean", "std", "median"]}),
    (GraphSAGE, {"aggr": aggr.SoftmaxAggregation(learn=True)}),
    (GraphSAGE, {"aggr": aggr.MultiAggregation(["min", "max"], mode="sum")}),
    (GraphSAGE, {"aggr": aggr.VariancePreservingAggregation()}),
    (GCN, {}),
    (GCN, {"improved": True, "cached": True}),
    (GCN, {"add_self_loops": False}),
    (GCN, {"normalize": False, "act_first": True}),
    (GCN, {"aggr": "max", "decomposed_layers": 2}),
    (GCN, {"aggr": "median", "add_self_loops": False}),
    (GAT, {"heads": 2}),
    (GAT, {"heads": 2, "add_self_loops": False, "residual": True}),
    (GAT, {"heads": 3, "concat": False, "edge_dim": 4, "norm": "batch_norm"}),
    (GAT, {"heads": 4, "v2": True}),
    (GAT, {"heads": 2, "v2": True, "share_weights": True, "edge_dim": 4}),
    (GAT, {"v2": True, "add_self_loops": False, "residual": True, "aggr": "median"}),
    (GIN, {"norm": "batch_norm"}),
    (GIN, {"eps": 0.3, "train_eps": True, "aggr": "std", "jk": "last"}),
    (EdgeCNN, {}),
    (EdgeCNN, {"aggr": "median", "norm": "batch_norm"}),
    (PNA, PNA_OPTIONS),
    (PNA, {**PNA_OPTIONS, "towers": 2, "divide_input": True, "train_norm": True}),
]
FLOWS = ["source_to_target", "target_to_source"]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("kind", "options"), MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_outputs_equal_the_model_on_the_whole_graph(
    kind: Any, options: Any, flow: str, small: Data
) -> None:
    torch.manual_seed(1)
    width = {} if "train_norm" in options else {"out_channels": 5}  # of towers that divide it
    model = kind(12, 8, num_layers=2, dropout=0.4, flow=flow, **width, **copy.deepcopy(options))
    assert_equals_the_whole(model.double().eval(), small)


@pytest.mark.parametrize(
    ("kind", "options"), [(GraphSAGE, {}), (GCN, {}), (GAT, {"heads": 2}), (GAT, {"v2": True})]
)
def test_fused_models_are_taken_apart_like_others(kind: Any, options: Any, small: Data) -> None:
    torch.manual_seed(1)
    model = gnnsys.fuse(kind(12, 8, num_layers=2, out_channels=5, **options))
    assert_equals_the_whole(model.double().eval(), small)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("kind", [GraphSAGE, GAT])
def test_other_weights_for_sources_and_targets_have_the_roles_that_pyg_gives_them(
    kind: Any, flow: str, small: Data
) -> None:
    model = kind((12, 12), 8, num_layers=2, out_channels=5, flow=flow).double().eval()
    assert_equals_the_whole(model, small)


@pytest.mark.parametrize("kind", [GraphSAGE, GCN, GAT])
def test_lazy_layers_get_their_widths(kind: Any, small: Data) -> None:
    model = kind(-1, 8, num_layers=2, out_channels=5).double()
    found = gnnsys.inference(model, small, block_bytes=3000)
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(small.x, small.edge_index))


@pytest.mark.parametrize("conv", [GraphConv, TransformerConv, ResGatedGraphConv])
@pytest.mark.parametrize("flow", FLOWS)
def test_other_layers_of_pyg_that_need_neighbours_alone_are_taken_apart(
    conv: Any, flow: str, small: Data
) -> None:
    assert_equals_the_whole(model_of(conv, flow=flow), small)


def model_of(conv: Any, **options: Any) -> BasicGNN:
    """Two layers of a kind."""

    class Model(BasicGNN):
        supports_edge_weight = supports_edge_attr = False

        def init_conv(self, width: Any, out: int, **more: Any) -> Any:
            return conv(width, out, **more)

    torch.manual_seed(1)
    return Model(12, 8, 2, 5, **options).double().eval()


def test_a_wrapped_model_is_the_one_within(small: Data) -> None:
    model = make(GCN)
    with torch.no_grad():
        expected = model(small.x, small.edge_index)
    for wrapped in (
        torch.compile(model, backend="eager"),
        torch.nn.DataParallel(model),
        torch.nn.DataParallel(torch.compile(model, backend="eager")),
    ):
        found = gnnsys.inference(wrapped, small, block_bytes=3000)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_part_has_its_mode_again_even_after_an_error(small: Data) -> None:
    model = make(GraphSAGE, norm="batch_norm").train()
    model.norms[1].eval()  # one that was frozen
    before = [part.training for part in model.modules()]
    gnnsys.inference(model, small)
    assert [part.training for part in model.modules()] == before
    with pytest.raises(ArgumentError, match="layers: empty"):
        gnnsys.inference(model, small, layers=[])
    assert [part.training for part in model.modules()] == before


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("loops", [True, False])
def test_what_a_cached_layer_holds_has_to_be_of_the_same_graph(
    flow: str, loops: bool, small: Data
) -> None:
    def make_cached() -> torch.nn.Module:
        return make(GCN, cached=True, add_self_loops=loops, flow=flow)

    fresh = make_cached()
    gnnsys.inference(fresh, small, block_bytes=3000)
    assert all(conv._cached_edge_index is None for conv in fresh.convs)
    same = small.edge_index[:, torch.randperm(small.num_edges)]
    model = make_cached()
    with torch.no_grad():
        model(small.x, same)
    assert_equals_the_whole(model, small)
    for edge_index, weight in [
        (small.edge_index[:, 1:], None),
        (small.edge_index.flip(0), None),
        (small.edge_index, torch.rand(small.num_edges, dtype=torch.float64)),
        (torch.cat([small.edge_index, torch.tensor([[60], [3]])], 1), None),
    ]:
        model, x = make_cached(), torch.cat([small.x, small.x])
        with torch.no_grad():
            model(x, edge_index, weight)
        with pytest.raises(UnsupportedError, match=r"convs\.0 has cached=True.*cached=False"):
            gnnsys.inference(model, small)


@pytest.mark.parametrize("kind", [GraphSAGE, GCN, GAT])
def test_files_give_the_same_bits_as_memory(kind: Any, data: Data, tmp_path: Path) -> None:
    model = make(kind)
    in_memory = gnnsys.inference(model, data, block_bytes=SMALL)
    in_files = gnnsys.inference(model, data, block_bytes=SMALL, out=tmp_path / "h.npy")
    assert isinstance(in_files, gnnsys.UnifiedTensor)
    assert torch.equal(in_files.materialize(), in_memory)
    assert os.listdir(tmp_path) == ["h.npy"]


def test_features_in_a_file_and_a_dataset_folder_give_the_same(data: Data, tmp_path: Path) -> None:
    from gnnsys.convert.common import ConvertOptions
    from gnnsys.convert.pyg import convert_pyg

    single = Data(x=data.x.float(), edge_index=data.edge_index, num_nodes=NODES)
    convert_pyg(single, tmp_path / "g", ConvertOptions(), name="g")
    model = make(GraphSAGE).float()
    expected = gnnsys.inference(model, single)
    found = gnnsys.inference(model, gnnsys.open_dataset(tmp_path / "g"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_layers_own_rows_are_read_from_a_cached_file_in_one_pass(
    data: Data, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", data.x.numpy())
    model, x = make(GraphSAGE), gnnsys.unified(tmp_path / "x.npy", cache=0.3, device="cpu")
    expected = gnnsys.inference(model, data, block_bytes=4000)
    behind = Data(x=x, edge_index=data.edge_index, num_nodes=NODES)
    assert torch.equal(gnnsys.inference(model, behind, block_bytes=4000), expected)
    stats, served = x.store.stats, x.counters.as_dict()["rows"]
    assert sum(served.values()) - stats.rows == NODES
    assert stats.batches > 3


def test_the_training_commands_model_is_taken_apart(data: Data) -> None:
    torch.manual_seed(0)
    model = NodeClassifier("gcn", in_channels=12, hidden=8, out_channels=3, layers=2).double()
    model.train()
    found = gnnsys.inference(model, data, block_bytes=SMALL)
    assert model.training  # left as it was, though dropout was off for the call
    with torch.no_grad():
        expected = model.eval()(data.x, data.edge_index)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_layers_of_ones_own_see_whole_neighbourhoods(data: Data) -> None:
    def sum_of_neighbours(block: Block) -> torch.Tensor:
        out = torch.zeros(block.targets, block.inputs.shape[1], dtype=block.inputs.dtype)
        source, target = block.edge_index
        return out.index_add_(0, target, block.inputs[source])

    model = torch.nn.Identity()
    found = gnnsys.inference(model, data, layers=[sum_of_neighbours] * 2, block_bytes=SMALL)
    adjacency = torch.zeros(NODES, NODES, dtype=torch.float64)
    ones = torch.ones(data.num_edges, dtype=torch.float64)
    adjacency.index_put_((data.edge_index[1], data.edge_index[0]), ones, accumulate=True)
    torch.testing.assert_close(found, adjacency @ (adjacency @ data.x))


# What is refused ----------------------------------------------------------------------------------


def test_what_cannot_be_taken_apart_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Linear cannot be taken apart"):
        gnnsys.inference(torch.nn.Linear(12, 2), data)
    for jk in ("cat", "max", "lstm"):
        with pytest.raises(UnsupportedError, match="jumping knowledge"):
            gnnsys.inference(make(GraphSAGE, jk=jk), data)
    with pytest.raises(StorageError, match=r"h\.npy"):
        gnnsys.inference(make(GraphSAGE), data, out=tmp_path / "missing" / "h.npy")


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_data_without_an_edge_list_are_refused(data: Data) -> None:
    model, x = make(GraphSAGE), data.x
    with pytest.raises(ArgumentError, match="without x and edge_index"):
        gnnsys.inference(model, Data(num_nodes=3))
    adjacency = torch.sparse_coo_tensor(data.edge_index.flip(0), torch.ones(3000), (NODES, NODES))
    with pytest.raises(ArgumentError, match=r"without x and edge_index.*adj_t"):
        gnnsys.inference(model, Data(x=x, adj_t=adjacency.to_sparse_csr()))
    with pytest.raises(ArgumentError, match=r"edge_index: a torch\.sparse_csr tensor"):
        gnnsys.inference(model, Data(x=x, edge_index=adjacency.to_sparse_csr()))
    with pytest.raises(UnsupportedError, match="HeteroData"):
        gnnsys.inference(model, HeteroData(node={"x": x}))
    with pytest.raises(ArgumentError, match="target 300, outside"):
        gnnsys.inference(model, Data(x=x, edge_index=torch.tensor([[0], [300]]), num_nodes=NODES))


def test_an_edge_index_may_be_one_of_pygs(small: Data) -> None:
    model = make(GCN)
    edge_index = EdgeIndex(small.edge_index, sparse_size=(55, 55))
    found = gnnsys.inference(model, Data(x=small.x, edge_index=edge_index), block_bytes=3000)
    assert torch.equal(found, gnnsys.inference(model, small, block_bytes=3000))


class Noisy(torch.nn.Module):
    """An activation that looks at the largest of all rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().max()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"norm": "layer_norm"}, r"norms\.0, LayerNorm"),
        ({"norm": "graph_norm"}, r"norms\.0, GraphNorm"),
        ({"norm": "pair_norm"}, r"norms\.0, PairNorm"),
        ({"norm": "instance_norm"}, r"norms\.0, InstanceNorm"),
        ({"norm": GraphSizeNorm()}, r"norms\.0, GraphSizeNorm"),
        ({"norm": MeanSubtractionNorm()}, r"norms\.0, MeanSubtractionNorm"),
        ({"norm": "batch_norm", "norm_kwargs": {"track_running_stats": False}}, "BatchNorm"),
        ({"act": torch.nn.Softmax(dim=0)}, r"act, Softmax\(dim=0\)"),
        ({"act": Noisy()}, "act, Noisy"),
        ({"act": lambda x: x - x.mean(0)}, "act, <function"),
    ],
)
@pytest.mark.parametrize("kind", [GraphSAGE, GIN, EdgeCNN])
def test_what_mixes_the_rows_of_all_nodes_is_refused(
    kind: Any, options: Any, part: str, small: Data
) -> None:
    with pytest.raises(UnsupportedError, match=f"{part}.*all nodes at once.*layers="):
        gnnsys.inference(make(kind, **options), small)


def test_networks_within_layers_are_looked_at(small: Data) -> None:
    model = make(GIN)
    model.convs[1].nn = torch.nn.Sequential(torch.nn.Linear(8, 8), GraphNorm(8)).double()
    with pytest.raises(UnsupportedError, match=r"convs\.1\.nn.*all nodes at once"):
        gnnsys.inference(model, small)
    model.convs[1].nn = torch.nn.ReLU()
    with pytest.raises(UnsupportedError, match=r"convs\.1\.nn.*how many columns"):
        gnnsys.inference(model, small)
    with pytest.raises(UnsupportedError, match=r"convs\.0\.nn has no weights yet"):
        gnnsys.inference(GIN(-1, 8, 2), small)


class LoudSAGE(SAGEConv):
    """A layer of PyG with other messages."""

    def message(self, x_j: torch.Tensor) -> torch.Tensor:
        return x_j - x_j.mean(0)


class WaySAGE(SAGEConv):
    """A layer of PyG that propagates otherwise."""

    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> torch.Tensor:
        return 2 * super().propagate(edge_index, size=size, **kwargs)


class SameSAGE(SAGEConv):
    """A layer of PyG under another name."""


class OwnSum(aggr.SumAggregation):
    """An aggregation of one's own."""


@pytest.mark.parametrize("conv", [LoudSAGE, WaySAGE, ARMAConv, TAGConv, LEConv])
def test_layers_that_are_not_known_are_refused(conv: Any, small: Data) -> None:
    with pytest.raises(UnsupportedError, match=rf"convs\.0, {conv.__name__}.*not known.*layers="):
        gnnsys.inference(model_of(conv), small)
    assert_equals_the_whole(model_of(SameSAGE), small)


@pytest.mark.parametrize("kind", ["lstm", OwnSum(), ["mean", "lstm"]])
def test_aggregations_that_are_not_known_are_refused(kind: Any, small: Data) -> None:
    more = {"aggr_kwargs": {"aggrs_kwargs": [{}, {"in_channels": 12, "out_channels": 12}]}}
    model = make(GraphSAGE, aggr=kind, **(more if isinstance(kind, list) else {}))
    with pytest.raises(UnsupportedError, match=r"convs\.0.*aggregates by (LSTM|OwnSum).*layers="):
        gnnsys.inference(model, small)


def test_a_forward_of_ones_own_and_mixed_flows_are_refused(small: Data) -> None:
    class Doubled(GraphSAGE):
        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x, edge_index)

    class Rooted(NodeClassifier):
        def forward(self, *args: Any) -> torch.Tensor:
            return super().forward(*args).sqrt()

    patched, mixed = make(GraphSAGE), make(GraphSAGE)
    patched.forward = lambda x, edge_index: x
    rooted = Rooted("gcn", in_channels=12, hidden=8, out_channels=3, layers=2)
    for model in (Doubled(12, 8, 2), patched, rooted):
        with pytest.raises(UnsupportedError, match=r"forward of its own.*layers="):
            gnnsys.inference(model, small)
    mixed.convs[1].flow = "target_to_source"
    with pytest.raises(UnsupportedError, match="expected one flow"):
        gnnsys.inference(mixed, small)


def test_hooks_of_a_user_are_refused_and_those_of_torch_are_not(small: Data) -> None:
    def double(*args: Any) -> Any:
        return 2 * args[-1]

    model = make(GraphSAGE)
    for register in (
        model.register_forward_hook,
        model.convs[1].register_forward_pre_hook,
        model.convs[1].lin_l.register_forward_hook,
        model.convs[0].register_message_forward_hook,
    ):
        handle = register(double)
        for hooked in (model, torch.nn.DataParallel(model)):
            with pytest.raises(UnsupportedError, match="has a forward hook"):
                gnnsys.inference(hooked, small)
        handle.remove()
    classifier = NodeClassifier("gcn", in_channels=12, hidden=8, out_channels=3, layers=2)
    classifier.register_forward_hook(double)
    with pytest.raises(UnsupportedError, match="NodeClassifier has a forward hook"):
        gnnsys.inference(classifier, small)
    torch.nn.utils.spectral_norm(model.convs[0].lin_l)
    assert_equals_the_whole(model.eval(), small)


# Edges with values --------------------------------------------------------------------------------


def with_edges(data: Data, **values: torch.Tensor) -> Data:
    return Data(x=data.x, edge_index=data.edge_index, num_nodes=data.num_nodes, **values)


def test_values_of_edges_that_the_model_would_take_are_refused(small: Data) -> None:
    weight, attr = torch.rand(300).double(), torch.rand(300, 4).double()
    for model, values, name in [
        (make(GCN), {"edge_weight": weight}, "edge_weight"),
        (make(GCN), {"edge_attr": weight}, "edge_attr"),  # as PyG's GDC leaves it
        (make(GAT, edge_dim=4), {"edge_attr": attr}, "edge_attr"),
        (make(GAT, edge_dim=1, v2=True), {"edge_attr": weight}, "edge_attr"),
        (make(PNA, **PNA_OPTIONS, edge_dim=4), {"edge_attr": attr}, "edge_attr"),
    ]:
        with pytest.raises(UnsupportedError, match=f"has {name}.*edge_index=….*layers="):
            gnnsys.inference(model, with_edges(small, **values))
    with pytest.raises(UnsupportedError, match=r"needs edge_attr.*edge_dim"):
        gnnsys.inference(make(PNA, **PNA_OPTIONS, edge_dim=4), small)


def test_values_of_edges_that_the_model_does_not_take_change_nothing(small: Data) -> None:
    weight, attr = torch.rand(300).double(), torch.rand(300, 4).double()
    classifier = NodeClassifier("gcn", in_channels=12, hidden=8, out_channels=3, layers=2).double()
    for model in (make(GraphSAGE), make(GAT), make(GIN), classifier.eval()):
        both = with_edges(small, edge_weight=weight, edge_attr=attr)
        assert_equals_the_whole(model, both)
    assert_equals_the_whole(make(GCN), with_edges(small, edge_attr=attr))


def test_weights_of_edges_in_a_dataset_folder_are_refused(small: Data, tmp_path: Path) -> None:
    from gnnsys.convert.common import ConvertOptions
    from gnnsys.convert.pyg import convert_pyg

    weighted = with_edges(small, edge_weight=torch.rand(300))
    weighted.x = small.x.float()
    convert_pyg(weighted, tmp_path / "g", ConvertOptions(), name="g")
    dataset = gnnsys.open_dataset(tmp_path / "g")
    with pytest.raises(UnsupportedError, match="has edge_weight"):
        gnnsys.inference(make(GCN).float(), dataset)
    model = make(GraphSAGE, flow="target_to_source").float()
    with torch.no_grad():
        expected = model(weighted.x, small.edge_index)
    found = gnnsys.inference(model, dataset, block_bytes=3000)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Files --------------------------------------------------------------------------------------------


def test_a_layer_that_fails_leaves_no_file(data: Data, tmp_path: Path) -> None:
    calls = []

    def fail_late(block: Block) -> torch.Tensor:
        calls.append(block.targets)
        if sum(calls) > 1.5 * NODES:
            raise ValueError("broken")
        return block.inputs[: block.targets]

    with pytest.raises(ValueError, match="broken"):
        gnnsys.inference(
            torch.nn.Identity(), data, layers=[fail_late] * 3, block_bytes=SMALL,
            out=tmp_path / "h.npy",
        )  # fmt: skip
    assert os.listdir(tmp_path) == []


# Out of core under a memory limit -----------------------------------------------------------------

LIMITED = """
    import os, sys
    import torch
    from torch_geometric.nn import GraphSAGE
    import gnnsys

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = gnnsys.open_dataset(sys.argv[1])
    model = GraphSAGE(16, 256, num_layers=2, out_channels=8).eval()
    # Libraries are in memory by now: the limit counts what comes on top of them.
    open(sys.argv[3] + "/cgroup.procs", "w").write("0")
    out = gnnsys.inference(
        model, dataset, out=sys.argv[2], mode=sys.argv[4], block_bytes=8 << 20, threads=1
    )
    print(out.shape, flush=True)
    os._exit(0)  # taking Python down would copy pages of libraries into the group
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gnnsys.generate import generate_community

    place = tmp_path_factory.mktemp("layerwise") / "g"
    return generate_community(place, nodes=250_000, features=16, degree=4, classes=8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gather", "sequential"])
def test_out_of_core_equals_in_memory_below_one_layers_activations(
    mode: Any,
    memory_group: Any,
    one_thread: None,
    large_folder: Path,
    tmp_path: Path,
    run_forked: Callable[..., Any],
) -> None:
    folder, hidden = large_folder, 256
    layer_bytes = 250_000 * hidden * 4
    limit = layer_bytes * 3 // 4
    memory_group.set_limit(limit)
    limited = run_forked(
        LIMITED, tmp_path, folder, tmp_path / "limited.npy", memory_group.folder, mode
    )
    assert limited.returncode == 0, limited.stderr
    print(f"peak {memory_group.peak_bytes():,} of {limit:,}, a layer has {layer_bytes:,}")
    assert memory_group.peak_bytes() <= limit < layer_bytes
    torch.manual_seed(0)
    model = GraphSAGE(16, hidden, num_layers=2, out_channels=8).eval()
    in_memory = gnnsys.inference(
        model, gnnsys.open_dataset(folder), mode=mode, block_bytes=8 << 20, threads=1
    )
    assert torch.equal(gnnsys.unified(tmp_path / "limited.npy").materialize(), in_memory)
