"""A PyG script changed in two lines trains to the same losses, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import GraphSAGE

import gnnsys

NODES, DIM, CLASSES = 600, 24, 5


def make_data() -> Data:
    draw = torch.Generator().manual_seed(3)
    return Data(
        x=torch.randn(NODES, DIM, generator=draw),
        edge_index=torch.randint(NODES, (2, 5000), generator=draw),
        edge_attr=torch.randn(5000, 3, generator=draw),
        y=torch.randint(CLASSES, (NODES,), generator=draw),
    )


def pyg_loader(data: Data, **options: Any) -> NodeLoader:
    sampler = gnnsys.NeighborSampler(data, [6, 4], seed=5)
    generator = torch.Generator().manual_seed(7)
    return NodeLoader(data, sampler, batch_size=64, shuffle=True, generator=generator, **options)


def own_loader(data: Data, **options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(data, [6, 4], batch_size=64, shuffle=True, seed=5, **options)


def train(data: Data, make_loader: Callable[..., Any], **options: Any) -> list[float]:
    torch.manual_seed(0)
    model = GraphSAGE(DIM, 16, num_layers=2, out_channels=CLASSES, dropout=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    loader = make_loader(data, **options)
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = F.cross_entropy(out, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def from_host(x: Tensor, folder: Path) -> Tensor:
    return gnnsys.unified(x, device="cpu")


def from_numpy(x: Tensor, folder: Path) -> Tensor:
    return gnnsys.unified(x.numpy(), device="cpu")


def from_file(x: Tensor, folder: Path) -> Tensor:
    np.save(folder / "x.npy", x.numpy())
    return gnnsys.unified(folder / "x.npy", device="cpu")


@pytest.mark.parametrize("make_loader", [pyg_loader, own_loader])
@pytest.mark.parametrize("unify", [from_host, from_numpy, from_file])
@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 0, "filter_per_worker": True},
        {"num_workers": 2},
        {"num_workers": 2, "filter_per_worker": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_losses_are_the_same_bit_for_bit(
    make_loader: Callable[..., Any],
    unify: Callable[[Tensor, Path], Tensor],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    plain = train(make_data(), make_loader, **options)
    data = make_data()
    data.x = unify(data.x, tmp_path)
    changed = train(data, make_loader, **options)
    assert len(plain) == 2 * -(-NODES // 64)
    assert changed == plain
    if options == {"num_workers": 0}:
        assert data.x.counters.tiers()  # in this process the rows went through the store


@pytest.mark.parametrize("make_loader", [pyg_loader, own_loader])
def test_losses_do_not_depend_on_workers(make_loader: Callable[..., Any]) -> None:
    alone = train(make_data(), make_loader)
    assert alone == train(make_data(), make_loader, num_workers=2)
    assert len(set(alone)) > len(alone) // 2


@pytest.mark.parametrize("unify", [from_host, from_file])
@pytest.mark.parametrize("filter_per_worker", [False, True])
def test_spawned_workers_deliver_the_same_batches(
    unify: Callable[[Tensor, Path], Tensor], filter_per_worker: bool, tmp_path: Path
) -> None:
    plain = make_data()
    data = make_data()
    data.x = unify(data.x, tmp_path)
    options = {"num_workers": 2, "filter_per_worker": filter_per_worker}
    loader = own_loader(data, multiprocessing_context="spawn", **options)
    for found, expected in zip(loader, own_loader(plain), strict=True):
        assert torch.equal(found.n_id, expected.n_id)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.edge_attr, expected.edge_attr)
        assert torch.equal(found.edge_index, expected.edge_index)


def test_feature_store_and_graph_store_give_rows_and_edges_of_the_data(tmp_path: Path) -> None:
    from torch_geometric.data import EdgeAttr, GraphStore

    class Graph(GraphStore):
        def __init__(self) -> None:
            super().__init__()
            self.edges: dict[Any, Any] = {}

        def _put_edge_index(self, edge_index: Any, edge_attr: EdgeAttr) -> bool:
            self.edges[edge_attr.edge_type] = (edge_index, edge_attr)
            return True

        def _get_edge_index(self, edge_attr: EdgeAttr) -> Any:
            return self.edges[edge_attr.edge_type][0]

        def _remove_edge_index(self, edge_attr: EdgeAttr) -> bool:
            return self.edges.pop(edge_attr.edge_type, None) is not None

        def get_all_edge_attrs(self) -> list[EdgeAttr]:
            return [attr for _, attr in self.edges.values()]

    data = make_data()
    features = gnnsys.FeatureStore()
    np.save(tmp_path / "x.npy", data.x.numpy())
    features.put_file(tmp_path / "x.npy", None, "x", device="cpu")
    features[None, "y", None] = data.y
    graph = Graph()
    graph.put_edge_index(
        data.edge_index, edge_type=None, layout="coo", size=(NODES, NODES), is_sorted=False
    )
    loader = gnnsys.NeighborLoader(
        (features, graph), [6, 4], input_nodes=torch.arange(NODES), batch_size=64, seed=5
    )
    for batch in loader:
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, data.y[batch.n_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert batch.num_edges > batch.batch_size
    assert features.counters.tiers()["file"].rows > 0
