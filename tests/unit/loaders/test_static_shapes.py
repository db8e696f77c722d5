"""``static_shapes``: batches of one shape, which hold what batches without padding hold."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GAT, GraphSAGE
from torch_geometric.utils import remove_self_loops

import gnnsys
from gnnsys.errors import UnsupportedError

NODES, EDGES, SEEDS, BATCH = 300, 2000, 150, 32


def make_data() -> Data:
    draw = torch.Generator().manual_seed(2)
    # Targets near 0 have many neighbours, so that sizes of batches differ.
    ends = (NODES * torch.rand(2, EDGES, generator=draw) ** 2).long()
    return Data(
        x=torch.randn(NODES, 8, generator=draw),
        y=torch.randint(4, (NODES,), generator=draw),
        mask=torch.rand(NODES, generator=draw) < 0.5,
        half=torch.randn(NODES, 2, generator=draw).bfloat16(),
        node_index=torch.randint(9, (2, NODES), generator=draw),  # nodes lie along its last dim
        edge_index=ends,
        edge_attr=torch.randn(EDGES, 3, generator=draw),
        about="a graph",
    )


def in_file(data: Data, folder: Path) -> Data:
    """The data, its features in a file behind a cache."""
    np.save(folder / "x.npy", data.x.numpy())
    x = gnnsys.unified(folder / "x.npy", cache=50, device="cpu", storage="pread")
    return Data(**{**data.to_dict(), "x": x})


def in_stores(data: Data, folder: Path) -> Any:
    features = gnnsys.FeatureStore()
    features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
    features.put_tensor(data.y, group_name=None, attr_name="y", index=None)
    stored = Data(num_nodes=NODES)
    stored.put_edge_index(data.edge_index, layout="coo", size=(NODES, NODES))
    return features, stored


def loader_of(data: Any, **options: Any) -> gnnsys.NeighborLoader:
    given = {"num_neighbors": [5, 4, 2], "batch_size": BATCH, "shuffle": True, "seed": 5}
    return gnnsys.NeighborLoader(data, **{**given, "input_nodes": torch.arange(SEEDS), **options})


def shapes_of(batch: Data) -> dict[str, Any]:
    """Of all that a model may be given, so not of the names of the seeds."""
    told = {name: tuple(v.shape) for name, v in batch.to_dict().items() if isinstance(v, Tensor)}
    del told["input_id"]
    return {**told, "hops": (batch.num_sampled_nodes, batch.num_sampled_edges)}


def assert_padded(padded: Data, plain: Data) -> None:
    """Padding lies behind each hop, apart from all else; without it, the batch is the plain one."""
    real, real_edges = padded.pad_node_mask, padded.pad_edge_mask
    assert set(padded.keys()) - set(plain.keys()) == {"pad_node_mask", "pad_edge_mask"}
    for name, value in plain.to_dict().items():
        if name == "node_index":
            assert torch.equal(padded[name][:, real], value)
        elif name in ("n_id", "x", "y", "mask", "half"):
            assert torch.equal(padded[name][real], value), name
        elif name in ("e_id", "edge_attr"):
            assert torch.equal(padded[name][real_edges], value), name
        elif name not in ("edge_index", "num_sampled_nodes", "num_sampled_edges", "num_nodes"):
            assert torch.equal(padded[name], value) if name == "input_id" else padded[name] == value
    for mask, sizes, counts in (
        (real, padded.num_sampled_nodes, plain.num_sampled_nodes),
        (real_edges, padded.num_sampled_edges, plain.num_sampled_edges),
    ):
        for part, count in zip(mask.split(sizes), counts, strict=True):
            assert torch.equal(part, torch.arange(len(part)) < count)
    assert len(real) == padded.num_nodes == len(padded.x)
    assert torch.equal(padded.edge_index[:, real_edges], real.nonzero()[:, 0][plain.edge_index])
    padding = padded.edge_index[:, ~real_edges]
    assert not real[padding].any()
    assert bool((padding[0] != padding[1]).all())
    assert bool((padded.edge_index[1].diff() >= 0).all())  # as without padding
    assert not padded.x[~real].any()
    assert bool((padded.y[~real] == -100).all())


@pytest.mark.parametrize("kind", ["memory", "file", "stores"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 0, "num_neighbors": [-1, 3]},
        {"sampling": "labor"},
        {"replace": True},
        {"generator": torch.Generator().manual_seed(0)},
        {"layout": "csr"},
    ],
    ids=lambda options: " ".join(options) or "shuffled",
)
def test_batches_have_one_shape_and_hold_the_plain_ones(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data = make_data()
    source = {"file": in_file, "stores": in_stores}.get(kind, lambda data, folder: data)
    given, other = source(data, tmp_path), source(data, tmp_path)
    loader = loader_of(given, static_shapes=True, **copy.deepcopy(options))
    plain = loader_of(other, **copy.deepcopy(options))
    shapes, nodes, edges = [], 0, 0
    for _ in range(3):
        for padded, expected in zip(loader, plain, strict=True):
            assert_padded(padded, expected)
            shapes.append(shapes_of(padded))
            nodes, edges = nodes + expected.num_nodes, edges + expected.num_edges
    assert shapes[:5] == shapes[:1] * 5  # the epoch that was measured
    assert len({shape["x"] for shape in shapes}) <= 2  # a later one may have a larger batch
    assert shapes[-1]["hops"] == loader.padded_sizes
    assert loader.padding is not None
    counts = [sum(shape[name][0] for shape in shapes) for name in ("x", "e_id")]
    assert loader.padding.node_share == pytest.approx(1 - nodes / counts[0])
    assert loader.padding.edge_share == pytest.approx(1 - edges / counts[1])
    if kind == "file":  # no row of padding was read
        rows = [sum(x.counters.as_dict()["rows"].values()) for x in (given.x, other.x)]
        assert rows == [nodes, nodes]


def test_a_larger_batch_enlarges_what_follows_once(caplog: pytest.LogCaptureFixture) -> None:
    data = make_data()
    loader = loader_of(data, static_shapes=True)
    loader.padded_sizes = ([33, 10, 200, 300], [70, 200, 300])
    with caplog.at_level(logging.WARNING):
        for padded, plain in zip(loader, loader_of(data), strict=True):
            assert_padded(padded, plain)
    assert 1 <= len(caplog.records) <= 2
    assert "exceeds [33, 10, 200, 300]" in caplog.text
    grown = loader.padded_sizes
    assert {tuple(batch.num_sampled_nodes) for batch in loader} == {tuple(grown[0])}
    for again in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert again.padded_sizes == grown


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler", "one_thread")
@pytest.mark.parametrize("model", [GraphSAGE(8, 16, 2, 4), GAT(8, 16, 1, 4, heads=2)], ids=repr)
def test_a_compiled_model_is_compiled_for_the_first_batch_alone(model: torch.nn.Module) -> None:
    data = make_data()
    # Layers take self loops out, which makes a shape of its own of each batch.
    data.edge_index, data.edge_attr = remove_self_loops(data.edge_index, data.edge_attr)

    def run(net: Any, batch: Data) -> Tensor:
        hops = batch.num_sampled_nodes, batch.num_sampled_edges
        logits: Tensor = net(
            batch.x,
            batch.edge_index,
            num_sampled_nodes_per_hop=hops[0],
            num_sampled_edges_per_hop=hops[1],
        )
        return logits[: batch.batch_size]

    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    expected = [run(model, batch) for batch in loader_of(data, num_neighbors=[5, 4])]
    found, frames = [], []
    for batch in loader_of(data, num_neighbors=[5, 4], static_shapes=True):
        found.append(run(compiled, batch))
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames == frames[:1] * 5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    run(compiled, next(iter(loader_of(data, num_neighbors=[5, 4]))))
    assert counter.frame_count > frames[0]  # the counter counts


def typed() -> HeteroData:
    data = HeteroData()
    data["a"].x = torch.ones(3, 1)
    data["a", "to", "a"].edge_index = torch.tensor([[0], [1]])
    return data


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": typed(), "input_nodes": "a"}, "types"),
        ({"disjoint": True}, "disjoint"),
        ({"subgraph_type": "induced"}, "induced"),
        ({"transform_sampler_output": lambda out: out}, "transform_sampler_output"),
        ({"batch_sampler": [[0], [1]], "batch_size": 1, "shuffle": None}, "batch_sampler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_padded_is_refused_when_the_loader_is_made(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"static_shapes: .*{says}"):
        loader_of(**{"data": make_data(), **options}, static_shapes=True)


def test_features_that_are_learnt_are_refused() -> None:
    data = make_data()
    data.x = torch.nn.Parameter(data.x)
    with pytest.raises(UnsupportedError, match=r"static_shapes: .*n_id"):
        iter(loader_of(data, static_shapes=True))
