"""Layer-wise inference against the model on the whole graph."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn.models import GAT, GCN, GIN, PNA, EdgeCNN, GraphSAGE

import gnnsys
from gnnsys.errors import ArgumentError, StorageError, UnsupportedError
from gnnsys.layerwise import Block
from gnnsys.models import NodeClassifier

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


MODELS = [
    (GraphSAGE, {}),
    (GraphSAGE, {"jk": "last", "norm": "layer_norm", "norm_kwargs": {"mode": "node"}}),
    (GCN, {}),
    (GCN, {"improved": True}),
    (GCN, {"add_self_loops": False}),
    (GCN, {"normalize": False, "act_first": True}),
    (GAT, {"heads": 2}),
    (GAT, {"heads": 4, "v2": True}),
    (GIN, {"norm": "batch_norm"}),
    (EdgeCNN, {}),
    (PNA, {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.ones(20).long()}),
]


@pytest.mark.parametrize(("kind", "options"), MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_outputs_equal_the_model_on_the_whole_graph(kind: Any, options: Any, data: Data) -> None:
    model = make(kind, **options)
    with torch.no_grad():
        expected = model(data.x, data.edge_index)
    found = gnnsys.inference(model, data, block_bytes=SMALL)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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


def test_what_cannot_be_taken_apart_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Linear cannot be taken apart"):
        gnnsys.inference(torch.nn.Linear(12, 2), data)
    with pytest.raises(UnsupportedError, match="jumping knowledge"):
        gnnsys.inference(make(GraphSAGE, jk="cat"), data)
    with pytest.raises(UnsupportedError, match="normalises over all nodes at once"):
        gnnsys.inference(make(GraphSAGE, norm="layer_norm"), data)
    with pytest.raises(ArgumentError, match="without x and edge_index"):
        gnnsys.inference(make(GraphSAGE), Data(num_nodes=3))
    with pytest.raises(StorageError, match=r"h\.npy"):
        gnnsys.inference(make(GraphSAGE), data, out=tmp_path / "missing" / "h.npy")


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
    import sys
    import torch
    from torch_geometric.nn import GraphSAGE
    import gnnsys

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = gnnsys.open_dataset(sys.argv[1])
    model = GraphSAGE(16, 256, num_layers=2, out_channels=8).eval()
    # Libraries are in memory by now: the limit counts what comes on top of them.
    if len(sys.argv) > 3:
        open(sys.argv[3] + "/cgroup.procs", "w").write("0")
    out = gnnsys.inference(model, dataset, out=sys.argv[2], block_bytes=8 << 20, threads=1)
    print(out.shape)
"""


@pytest.mark.slow
def test_out_of_core_equals_in_memory_below_one_layers_activations(
    memory_group: Any, one_thread: None, tmp_path: Path
) -> None:
    from gnnsys.generate import generate_community

    nodes, hidden = 250_000, 256
    folder = generate_community(tmp_path / "g", nodes=nodes, features=16, degree=4, classes=8)
    layer_bytes = nodes * hidden * 4
    limit = layer_bytes * 3 // 4
    script = textwrap.dedent(LIMITED)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    free = run(str(tmp_path / "free.npy"))
    assert free.returncode == 0, free.stderr
    memory_group.set_limit(limit)
    limited = run(str(tmp_path / "limited.npy"), str(memory_group.folder))
    assert limited.returncode == 0, limited.stderr
    assert (tmp_path / "free.npy").read_bytes() == (tmp_path / "limited.npy").read_bytes()
    print(f"peak {memory_group.peak_bytes():,} of {limit:,}, a layer has {layer_bytes:,}")
    assert memory_group.peak_bytes() <= limit < layer_bytes
    torch.manual_seed(0)
    model = GraphSAGE(16, hidden, num_layers=2, out_channels=8).eval()
    in_memory = gnnsys.inference(model, gnnsys.open_dataset(folder), block_bytes=8 << 20, threads=1)
    assert torch.equal(gnnsys.unified(tmp_path / "limited.npy").materialize(), in_memory)
