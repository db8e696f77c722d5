"""Batches of gnnsys beside the same ones made by hand, and what is computed from either."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData

import gnnsys

CHANNELS, EDGE_DIM, RELATIONS, CLASSES = 4, 3, 2, 3

_OPTIONS: dict[str, Any] = {"batch_size": 6, "seed": 1, "shuffle": True}
_FANOUTS = [3, 2]
_LEAVES = {"edge_attr", "edge_weight", "pos", "x"}


def make_data(nodes: int = 60, edges: int = 240) -> Data:
    """A directed graph with loops, repeated edges and whatever layers of PyG ask of a graph."""
    draw = torch.Generator().manual_seed(1)
    data = Data(
        x=torch.randn(nodes, CHANNELS, generator=draw),
        y=torch.randint(CLASSES, (nodes,), generator=draw),
        pos=torch.rand(nodes, 3, generator=draw),
        normal=torch.rand(nodes, 3, generator=draw),
        node_type=torch.randint(2, (nodes,), generator=draw),
        train_mask=torch.rand(nodes, generator=draw) < 0.5,
        edge_index=torch.randint(nodes, (2, edges), generator=draw),
        edge_attr=torch.rand(edges, EDGE_DIM, generator=draw),
        edge_weight=torch.rand(edges, generator=draw) + 0.5,
        edge_type=torch.randint(RELATIONS, (edges,), generator=draw),
    )
    data.edge_index[:, 1] = data.edge_index[:, 0]
    data.edge_index[1, 2] = data.edge_index[0, 2]
    return data


def make_typed_data() -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    nodes = {"author": 40, "paper": 50}
    data = HeteroData()
    for node_type, count in nodes.items():
        data[node_type].x = torch.randn(count, CHANNELS, generator=draw)
        data[node_type].y = torch.randint(CLASSES, (count,), generator=draw)
        data[node_type].pos = torch.rand(count, 3, generator=draw)
    for edge_type in (
        ("author", "writes", "paper"),
        ("paper", "written_by", "author"),
        ("paper", "cites", "paper"),
    ):
        ends = [torch.randint(nodes[end], (200,), generator=draw) for end in edge_type[::2]]
        data[edge_type].edge_index = torch.stack(ends)
        data[edge_type].edge_attr = torch.rand(200, EDGE_DIM, generator=draw)
    return data


class Pair(NamedTuple):
    """A batch of a loader, and the same one made by hand."""

    ours: Any
    plain: Any


def pairs() -> dict[str, Pair]:
    """One of each kind of batches."""
    data, typed = make_data(), make_typed_data()
    return {
        "nodes": make_pair(data, next(node_batches(data))),
        "links": make_pair(data, next(link_batches(data))),
        "typed": make_pair(typed, next(typed_batches(typed))),
    }


def make_pair(data: Any, batch: Any) -> Pair:
    return Pair(batch, by_hand(data, batch))


def node_batches(data: Data) -> Iterator[Data]:
    return iter(gnnsys.NeighborLoader(data, _FANOUTS, **_OPTIONS))


def link_batches(data: Data) -> Iterator[Data]:
    return iter(gnnsys.LinkNeighborLoader(data, _FANOUTS, neg_sampling="binary", **_OPTIONS))


def typed_batches(data: HeteroData) -> Iterator[HeteroData]:
    fanouts = dict.fromkeys(data.edge_types, _FANOUTS)
    return iter(gnnsys.NeighborLoader(data, fanouts, "paper", **_OPTIONS))


def by_hand(data: Any, batch: Any) -> Any:
    """The batch of the nodes and edges that ``batch`` names, in tensors of its own."""
    plain = type(data)()
    if isinstance(data, HeteroData):
        for node_type in data.node_types:
            for key, value in data[node_type].items():
                plain[node_type][key] = value[batch[node_type].n_id].clone()
        for edge_type in data.edge_types:
            for key, value in data[edge_type].items():
                if key != "edge_index":
                    plain[edge_type][key] = value[batch[edge_type].e_id].clone()
            edges = data[edge_type].edge_index[:, batch[edge_type].e_id]
            ends = [batch[node_type].n_id for node_type in edge_type[::2]]
            plain[edge_type].edge_index = _relabel(edges, *ends)
        return _complete(plain, batch)
    for key in data.node_attrs():
        plain[key] = data[key][batch.n_id].clone()
    for key in data.edge_attrs():
        if key != "edge_index":
            plain[key] = data[key][batch.e_id].clone()
    plain.edge_index = _relabel(data.edge_index[:, batch.e_id], batch.n_id, batch.n_id)
    return _complete(plain, batch)


def _complete(plain: Any, batch: Any) -> Any:
    """Adds copies of what is of the batch itself."""
    for store, found in zip(plain.stores, batch.stores, strict=True):
        for key in set(found.keys()) - set(store.keys()):
            store[key] = copy.deepcopy(found[key])
    return plain


def _relabel(edges: Tensor, *ends: Tensor) -> Tensor:
    """Each end as the place that it has among the nodes of the batch."""
    places = [
        [among.tolist().index(node) for node in nodes]
        for nodes, among in zip(edges.tolist(), ends, strict=True)
    ]
    return torch.tensor(places, dtype=torch.int64)


def outcome(
    run: Callable[[Any], Any], batch: Any, model: Any = None, gradients: bool = True
) -> list[Any]:
    """What ``run`` makes of a batch, piece by piece, and the gradients of a weighted sum of it."""
    inputs = []
    if gradients:
        batch = copy.copy(batch)
        for store in batch.stores:
            for key in _LEAVES & set(store.keys()):
                store[key] = store[key].detach().requires_grad_()
        inputs = [store[key] for store in batch.stores for key in sorted(_LEAVES) if key in store]
        if isinstance(model, nn.Module):
            inputs += [weight for weight in model.parameters() if weight.requires_grad]
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    with torch.set_grad_enabled(gradients):
        found = list(pieces(run(batch)))
    roots = [piece for piece in found if isinstance(piece, Tensor) and piece.requires_grad]
    # Copies, because a reversible layer frees its outputs in the backward pass.
    found = [piece.detach().clone() if isinstance(piece, Tensor) else piece for piece in found]
    if roots:
        weights = [torch.linspace(-1, 1, root.numel()).view(root.shape) for root in roots]
        found += torch.autograd.grad(roots, inputs, weights, allow_unused=True)
    return found


def pieces(value: Any) -> Iterator[Any]:
    """The tensors, numbers and names that a result of PyG consists of."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        value = value.to_dense()
    if isinstance(value, Data | HeteroData):
        value = value.to_dict()
    if hasattr(value, "toarray"):  # SciPy
        yield torch.from_numpy(value.toarray())
    elif hasattr(value, "edges"):  # NetworkX
        yield from pieces([list(value.nodes(data=True)), list(value.edges(data=True))])
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield key
            yield from pieces(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from pieces(part)
    else:
        yield value


def assert_same(found: list[Any], expected: list[Any], relative: float = 0) -> None:
    """Both are the same, numbers bit by bit or by ``relative`` to a tensor's largest entry."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, Tensor):
            # Entries are about 1: gradients far below are what rounding leaves of a zero.
            margin = relative * max(1, _largest(theirs)) if relative else 0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=margin, equal_nan=True)
        elif isinstance(theirs, float):
            assert ours == pytest.approx(theirs, rel=relative, abs=0, nan_ok=True)
        else:
            assert ours == theirs


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()].double().abs()
    return float(finite.max()) if finite.numel() else 0
