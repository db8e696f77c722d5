"""GraphSAGE of PyG, run on a sampled batch in three ways, and its training step.

Shared by PyG's worker and ``training.py``, which imports it into its own process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.models import GraphSAGE

__all__ = ["FORWARDS", "make_sage", "make_step"]

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


def make_sage(dim: int, hidden: int, classes: int, layers: int) -> GraphSAGE:
    """The model, with the same weights each time."""
    torch.manual_seed(0)
    return GraphSAGE(dim, hidden, layers, classes)


def make_step(
    model: torch.nn.Module, forward: Callable[[Any, Any], Tensor], lr: float
) -> Callable[[Any], Tensor]:
    """A function that trains ``model`` on a batch and returns the loss of its seeds.

    Args:
        model: to train, by Adam.
        forward: gives the class scores of a batch's nodes, the seeds first.
        lr: learning rate.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        out = forward(model, batch)[: batch.batch_size]
        loss = F.cross_entropy(out, batch.y[: batch.batch_size])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _run_plain(model: GraphSAGE, batch: Any) -> Tensor:
    return model(batch.x, batch.edge_index)


def _run_trimmed(model: GraphSAGE, batch: Any) -> Tensor:
    nodes, edges = _count_hops(batch, model.num_layers)
    return model(
        batch.x,
        batch.edge_index,
        num_sampled_nodes_per_hop=nodes,
        num_sampled_edges_per_hop=edges,
    )


def _run_csr(model: GraphSAGE, batch: Any) -> Tensor:
    # Edges come hop by hop and grouped by target, so the matrix of a layer's hops is a prefix of
    # them and needs no sort.
    nodes, edges = _count_hops(batch, model.num_layers)
    source, target = batch.edge_index
    x = batch.x
    for layer, conv in enumerate(model.convs):
        hops = model.num_layers - layer
        sources, targets, count = sum(nodes[: hops + 1]), sum(nodes[:hops]), sum(edges[:hops])
        starts = torch._convert_indices_from_coo_to_csr(target[:count], targets)
        ones = torch.ones(count, dtype=x.dtype)
        matrix = torch.sparse_csr_tensor(
            starts, source[:count], ones, size=(targets, sources), check_invariants=False
        )
        x = conv((x[:sources], x[:targets]), matrix)
        if hops > 1:
            x = F.relu(x)
    return x


def _count_hops(batch: Any, hops: int) -> tuple[list[int], list[int]]:
    """Nodes and edges that each hop added, the seeds first, as PyG names them with pyg-lib.

    With torch-sparse it does not, but they follow from the order of nodes and edges.
    """
    if "num_sampled_nodes" in batch:
        return batch.num_sampled_nodes, batch.num_sampled_edges
    source, target = batch.edge_index
    nodes_until, edges_until = [batch.batch_size], [0]
    for _ in range(hops):
        edges_until.append(int(torch.searchsorted(target, nodes_until[-1])))
        newest = source[edges_until[-2] : edges_until[-1]]
        last = int(newest.max()) + 1 if len(newest) else 0
        nodes_until.append(max(nodes_until[-1], last))
    return _differences([0, *nodes_until]), _differences(edges_until)


def _differences(ends: list[int]) -> list[int]:
    return [end - start for start, end in pairwise(ends)]


FORWARDS: dict[str, Callable[[GraphSAGE, Any], Tensor]] = {
    # Every layer computes every node of the batch, as in PyG's examples.
    "plain": _run_plain,
    # PyG cuts off, layer by layer, the hops that later layers do not need.
    "trimmed": _run_trimmed,
    # The same by hand, aggregating by a sparse matrix: no message of an edge is ever written.
    "csr": _run_csr,
}
