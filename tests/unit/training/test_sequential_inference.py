"""Inference that reads rows in sequence, against PyG on the whole graph and gathered rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv
from torch_geometric.nn.models import GAT, GCN, GIN, GraphSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN

import gnnsys
from gnnsys._core import Aggregator, Fold, isas
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, FileFormatError, UnsupportedError
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC
from gnnsys.system.budget import process_budget
from gnnsys.training import inference_reads, sequential_inference
from gnnsys.training.inference_reads import SUMS, Passes, choose_reads
from gnnsys.training.layer_reads import plan_reads
from gnnsys.training.loop import run_training
from gnnsys.training.sequential_inference import with_ascending_neighbors

GROUP = 256
NODES, COLUMNS = 3 * GROUP - 100, 6
FLOWS = ["source_to_target", "target_to_source"]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several windows and chunks in small graphs."""
    monkeypatch.setattr(inference_reads, "GROUP", GROUP)
    monkeypatch.setattr(sequential_inference, "GROUP", GROUP)


@pytest.fixture(scope="module")
def data() -> Data:
    """Neighbours in no order, with loops, double edges, hubs, nodes without in-edges and without
    out-edges, and lone nodes."""
    draw = torch.Generator().manual_seed(2)
    source = torch.randint(NODES - 150, (3000,), generator=draw)
    target = torch.randint(50, NODES - 50, (3000,), generator=draw)
    source[:500], target[500:750] = 7, 200
    loops = torch.arange(0, 75).repeat(2, 1)
    edge_index = torch.cat([torch.stack([source, target]), loops], 1)
    edge_index[:, 1500:1550] = edge_index[:, 1550:1600]
    x = torch.randn(NODES, COLUMNS, generator=draw, dtype=torch.float64)
    return Data(x=x, edge_index=edge_index)


class GraphConvs(BasicGNN):
    """Layers whose linear part comes after the sums."""

    supports_edge_weight = supports_edge_attr = False

    def init_conv(self, width: Any, out: int, **more: Any) -> Any:
        return GraphConv(width, out, **more)


MODELS = [
    (GraphSAGE, {}),
    (GraphSAGE, {"aggr": "sum", "root_weight": False, "jk": "last", "normalize": True}),
    (GraphSAGE, {"aggr": "max", "norm": "batch_norm"}),
    (GraphSAGE, {"aggr": "min", "bias": False}),
    (GCN, {}),
    (GCN, {"add_self_loops": False, "norm": "layer_norm", "norm_kwargs": {"mode": "node"}}),
    (GCN, {"normalize": False, "aggr": "max", "act_first": True}),
    (GIN, {"eps": 0.3}),
    (GraphConvs, {"aggr": "mean"}),
]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("kind", "options"), MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_outputs_equal_the_model_on_the_whole_graph(
    kind: Any, options: Any, flow: str, data: Data
) -> None:
    torch.manual_seed(1)  # the first layer widens rows, the last one narrows them
    model = kind(COLUMNS, 16, num_layers=2, out_channels=3, flow=flow, **options).double().eval()
    found = gnnsys.inference(model, data, mode="sequential", memory=1)
    with torch.no_grad():
        expected = model(data.x, data.edge_index)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_projected_rows_are_summed_as_pyg_sums_them(data: Data) -> None:
    model = GraphSAGE(COLUMNS, 8, 2, 3, project=True).double().eval()
    found = gnnsys.inference(model, data, mode="sequential")
    with torch.no_grad():
        torch.testing.assert_close(found, model(data.x, data.edge_index), rtol=1e-10, atol=1e-10)
    backwards = GraphSAGE(COLUMNS, 8, 2, 3, project=True, flow="target_to_source").double()
    with pytest.raises(UnsupportedError, match="projects rows of sources"):
        gnnsys.inference(backwards, data, mode="sequential")


@pytest.mark.parametrize("kind", [GraphSAGE, GCN])
def test_memory_threads_and_place_change_no_bit(kind: Any, data: Data, tmp_path: Path) -> None:
    torch.manual_seed(1)
    single = Data(x=data.x.float(), edge_index=data.edge_index)
    model = kind(COLUMNS, 16, num_layers=3, out_channels=3).eval()
    found = [
        gnnsys.inference(model, single, mode="sequential", memory=memory, threads=threads)
        for memory, threads in ((1, 1), (80_000, 2), (1 << 30, 3))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    place = tmp_path / "h.npy"
    in_files = gnnsys.inference(model, single, mode="sequential", memory=1, out=place)
    assert torch.equal(torch.from_numpy(np.load(place)), found[0])
    assert os.listdir(tmp_path) == ["h.npy"]
    del in_files
    gathered = gnnsys.inference(model, single, mode="gather")
    largest = gathered.abs().max()
    torch.testing.assert_close(found[0] / largest, gathered / largest, rtol=1e-5, atol=1e-6)


def test_a_graph_without_edges_has_the_outputs_of_lone_nodes(data: Data) -> None:
    lone = Data(x=data.x, edge_index=torch.empty((2, 0), dtype=torch.int64))
    for kind, options in [(GraphSAGE, {"aggr": "max"}), (GraphSAGE, {}), (GCN, {}), (GIN, {})]:
        model = kind(COLUMNS, 8, num_layers=2, out_channels=3, **options).double().eval()
        found = gnnsys.inference(model, lone, mode="sequential", memory=1)
        with torch.no_grad():
            torch.testing.assert_close(found, model(lone.x, lone.edge_index))


def test_a_pass_reads_the_rows_alone_that_its_targets_need(tmp_path: Path) -> None:
    # Targets of the first two groups have sources in the last one, the others none.
    edges = torch.stack([torch.full((64,), 3 * GROUP + 5), torch.arange(0, 2 * GROUP, 8)])
    rows = np.random.default_rng(0).standard_normal((4 * GROUP, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", rows)
    x = gnnsys.unified(tmp_path / "x.npy", device="cpu")
    model = GraphSAGE(4, 8, 1, 3).eval()
    found = gnnsys.inference(model, Data(x=x, edge_index=edges), mode="sequential", memory=1)
    with torch.no_grad():
        torch.testing.assert_close(found, model(torch.from_numpy(rows), edges))
    own, groups = 4 * GROUP, 2  # two windows need the last group
    assert x.store.counters.as_dict()["rows"] == {"file": own + groups * GROUP}


def test_what_rows_in_sequence_are_not_enough_for_is_refused(data: Data) -> None:
    gat = GAT(COLUMNS, 8, 2, 3).double()
    with pytest.raises(UnsupportedError, match=r"convs\.0, GATConv.*mode='gather'"):
        gnnsys.inference(gat, data, mode="sequential")
    with torch.no_grad():
        expected = gat.eval()(data.x, data.edge_index)
    torch.testing.assert_close(gnnsys.inference(gat, data), expected)
    for options in ({"aggr": "std"}, {"aggr": ["mean", "max"]}):
        model = GraphSAGE(COLUMNS, 8, 2, 3, **options).double()
        with pytest.raises(UnsupportedError, match="aggregates by"):
            gnnsys.inference(model, data, mode="sequential")
    with pytest.raises(UnsupportedError, match="weighs neighbours by degrees"):
        gnnsys.inference(GCN(COLUMNS, 8, 2, 3, aggr="max").double(), data, mode="sequential")
    with pytest.raises(UnsupportedError, match="layers: functions of blocks"):
        gnnsys.inference(gat, data, layers=[lambda block: block.inputs], mode="sequential")
    stacked = Data(x=torch.ones(5, 2, 3), edge_index=torch.tensor([[0, 1], [2, 2]]))
    with pytest.raises(UnsupportedError, match=r"shape \(5, 2, 3\); only \(nodes, columns\)"):
        gnnsys.inference(GraphSAGE(3, 8, 2, 3), stacked, mode="sequential")
    wrong: Any = "scan"
    with pytest.raises(ArgumentError, match="'scan', expected one of auto, gather, sequential"):
        gnnsys.inference(gat, data, mode=wrong)
    with pytest.raises(ArgumentError, match="memory: 0"):
        gnnsys.inference(gat, data, memory=0)


def test_neighbours_are_sorted_where_they_do_not_ascend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential_inference, "_LOOKED_AT", 3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        edges = torch.randint(5, (2, 9), generator=draw)
        graph = CSC.from_edge_index(edges, 5)
        ascending = with_ascending_neighbors(graph)
        lists = [graph.indices[a:b].sort().values for a, b in _bounds(graph)]
        assert torch.equal(ascending.indices, torch.cat(lists))
        assert torch.equal(ascending.indptr, graph.indptr)
        assert with_ascending_neighbors(ascending) is ascending


def _bounds(graph: CSC) -> list[tuple[int, int]]:
    return list(zip(graph.indptr[:-1].tolist(), graph.indptr[1:].tolist(), strict=True))


# Sums of rows that come piece by piece ------------------------------------------------------------


@pytest.mark.parametrize("how", ["sum", "max", "min"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_pieces_of_rows_are_folded_in_the_order_of_the_edges(
    how: str, kind: torch.dtype, ids: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(5)
    rows = torch.randn(60, 37, generator=draw, dtype=kind)
    rows[11, 3] = torch.nan
    lists = [torch.randint(60, (n,), generator=draw).sort().values for n in (0, 9, 1, 30, 0, 4)]
    indptr = torch.tensor([0, *map(len, lists)]).cumsum(0)
    source = torch.cat(lists).to(ids)
    start = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}[how]
    for own in (-1, 20):
        expected = torch.full((6, 37), start, dtype=kind)
        for target, some in enumerate(lists):
            for number in some.tolist():
                if own < 0 or number != own + target:
                    with_row = torch.stack([expected[target], rows[number]])
                    expected[target] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}[
                        how
                    ](with_row, 0)
        for isa, piece in zip([*isas(), "auto"], (60, 7, 13, 1), strict=False):
            following, out = indptr[:-1].clone(), torch.full((6, 37), start, dtype=kind)
            for first in range(0, 60, piece):
                late = _fold(isa, indptr, source, own, following, rows, first, piece, how, out)
                assert late == -1
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(following, indptr[1:])


def _fold(
    isa: str, indptr: Tensor, source: Tensor, own: int, following: Tensor, rows: Tensor,
    first: int, piece: int, how: str, out: Tensor,
) -> int:  # fmt: skip
    late: int = Aggregator(2, isa).fold(
        indptr.numpy(), source.numpy(), own, following.numpy(),
        rows[first : first + piece].numpy(), first, getattr(Fold, how), out.numpy(),
    )  # fmt: skip
    return late


def test_an_edge_whose_row_should_have_come_before_is_told_of() -> None:
    indptr, source = torch.tensor([0, 1, 4]), torch.tensor([5, 6, 2, 7])
    out, rows = torch.zeros(2, 3), torch.ones(8, 3)
    assert _fold("auto", indptr, source, -1, indptr[:-1].clone(), rows, 4, 4, "sum", out) == 2
    with pytest.raises(ValueError, match="do not fit"):
        _fold("auto", indptr, source, -1, indptr, rows, 4, 4, "sum", out)


# The choice ---------------------------------------------------------------------------------------


def test_passes_take_the_memory_that_there_is() -> None:
    before = 0
    for memory in (1, 1 << 20, 10 << 20, 100 << 20, 1 << 30):
        for targets in (1, GROUP, 50_000, 10_000_000):
            passes = Passes.of(targets, 400, 256, memory)
            assert passes.window % GROUP == passes.chunk % GROUP == 0
            assert passes.count * passes.window >= targets
            assert (passes.count - 1) * passes.window < targets
            least = GROUP * (2 * 400 + 256 + 256 + 8)
            assert passes.nbytes <= max(memory, least)
        assert passes.window >= before
        before = passes.window


def test_the_way_that_reads_fewer_bytes_is_taken() -> None:
    sizes: Any = {"nodes": 1 << 20, "edges": 1 << 24, "row_bytes": 1024, "message_bytes": 1024}
    sizes["delivered_bytes"] = 1024
    little, plenty = 100 << 20, 2 << 30
    found = choose_reads("auto", **sizes, memory=little, kept=little)
    assert found.way == "sequential"
    assert found.sequential == (found.passes + 1) << 30 < found.gathered
    # Nothing is read of what lies in memory or stays there.
    assert choose_reads("auto", **sizes, memory=little, kept=plenty).way == "gather"
    resident = choose_reads("auto", **sizes, memory=little, kept=little, resident=True)
    assert (resident.way, resident.gathered, resident.memory) == ("gather", 0, 0)
    # Rows that are stored in fewer bytes are read in fewer, into as much memory.
    small: Any = {**sizes, "row_bytes": 260}
    of_small = choose_reads("sequential", **small, memory=little, kept=little)
    assert (of_small.passes, of_small.memory) == (found.passes, found.memory)
    assert of_small.sequential * 1024 == found.sequential * 260
    # Few edges cost less than passes; a layer may not be able to take its rows in sequence.
    few: Any = {**sizes, "edges": 1 << 18}
    assert choose_reads("auto", **few, memory=little, kept=little).way == "gather"
    unable: Any = {**sizes, "message_bytes": None}
    assert choose_reads("auto", **unable, memory=little, kept=little).way == "gather"
    assert choose_reads("gather", **sizes, memory=little, kept=little).way == "gather"
    assert choose_reads("sequential", **few, memory=little, kept=plenty).way == "sequential"


def test_a_runs_plan_tells_how_layers_read() -> None:
    sizes: Any = {"nodes": 1 << 22, "edges": 1 << 26, "widths": (128, 256, 256, 10)}
    more: Any = {**sizes, "feature_bytes": 256, "left": 1 << 30}
    planned = {
        name: plan_reads(TrainConfig(dataset="g", model=name, layers=3), **more, in_files=True)
        for name in ("sage", "gcn", "gin", "gat")
    }
    assert planned["gat"].modes == ("gather",) * 3
    assert planned["gat"].memory == 0
    assert planned["sage"].modes == ("gather", "sequential", "sequential")  # features stay
    assert 0 < (planned["sage"].memory or 0) <= 1 << 28
    # The last layer of a sage sums 10 columns, that of a gin 256.
    assert planned["gin"].layers[2].passes > planned["sage"].layers[2].passes == 1
    assert "layer 2 in " in planned["sage"].describe()
    assert planned["gat"].describe() == ""
    in_memory = plan_reads(TrainConfig(dataset="g", layers=3), **more, in_files=False)
    assert in_memory.modes == ("gather",) * 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "gat"}, "a gat weighs each neighbour"),
        ({"eval": "neighborhoods"}, "--eval layerwise"),
        ({"eval": "sampled"}, "--eval layerwise"),
        ({"full_batch": True}, "is for mini-batches"),
    ],
)
def test_options_that_rows_in_sequence_do_not_go_with_are_refused(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentError, match=f"--eval-reads sequential.*{told}"):
        TrainConfig(dataset="g", eval_reads="sequential", **options)


def test_a_run_gets_the_same_scores_by_rows_in_sequence(tmp_path: Path) -> None:
    folder = generate_community(tmp_path / "g", nodes=4_000, features=8, degree=6, train=0.02)

    def train(reads: Any) -> Any:
        config = TrainConfig(
            dataset=str(folder), epochs=2, hidden=8, eval_reads=reads, eval="layerwise",
            eval_store=str(tmp_path), fanouts=(3, 3),
        )  # fmt: skip
        return run_training(config)

    gathered, sequential = train("gather"), train("sequential")
    assert [each.loss for each in sequential.history] == [each.loss for each in gathered.history]
    vals = [[record.val for record in run.history] for run in (gathered, sequential)]
    assert vals[1] == pytest.approx(vals[0], abs=2 / 800)  # a node's logits may tie
    ways = [[layer["way"] for layer in run.evaluation["reads"]] for run in (gathered, sequential)]
    assert ways == [["gather"] * 2, ["sequential"] * 2]
    told = "inputs are read in sequence, of layer 1 in 1 pass, layer 2 in 1 pass: "
    assert told in sequential.evaluation["why"]
    names = sequential.memory["names"]
    assert SUMS in names
    assert SUMS not in gathered.memory["names"]
    assert not process_budget().planned(SUMS)
    assert os.listdir(tmp_path) == ["g"]


def test_neighbors_of_a_file_that_became_shorter_are_one_error(tmp_path: Path) -> None:
    folder = generate_community(tmp_path / "g", nodes=3000, classes=3, features=8)
    data = gnnsys.open_dataset(folder)
    torch.manual_seed(0)
    model = GraphSAGE(8, 16, 2, 3)
    expected = gnnsys.inference(model, data, mode="sequential")
    assert torch.isfinite(expected).all()
    os.truncate(folder / "indices.npy", 4096)
    with pytest.raises(FileFormatError, match=r"indices.npy"):
        gnnsys.inference(model, data, mode="sequential")
