"""Edges with a loop at each node, in an order that sums can be made in; kept for a tensor of edges.

PyG's layers drop the loops of their edges and append one for each node, in each layer anew, which
leaves edges that no longer ascend by target.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.message_passing.grouping import add_loops
from gnnsys.message_passing.known import KnownOf
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of, remember_neighbors
from gnnsys.system.extension import core

__all__ = ["LoopedEdges", "with_self_loops"]

# E edges, E' of them with the loops.


class LoopedEdges:
    """Edges sorted by target, a target's loop behind its other edges; see ``with_self_loops``."""

    def __init__(self, edge_index: Tensor, number: Tensor) -> None:
        self.edge_index = edge_index
        """(2, E') int64; its ``neighbors_of`` are known."""

        self.number = number
        """(E',) int64: the place of each edge among those given; -1 for a loop."""

    @functools.cached_property
    def given_order(self) -> Tensor:
        """(E',) int64: ``x[given_order]`` has the rows of edges in the order that PyG has them in.

        First those that are no loops, as they were given, then the loops by their nodes.
        """
        with torch.inference_mode(False):  # whose tensors no later call could differentiate by
            is_loop = self.number < 0
            others, loops = (~is_loop).nonzero()[:, 0], is_loop.nonzero()[:, 0]
            return torch.cat([others[self.number[others].argsort()], loops])

    @functools.cached_property
    def place(self) -> Tensor:
        """(E',) int64: of each edge, where ``given_order`` has it."""
        with torch.inference_mode(False):
            place = torch.empty_like(self.given_order)
            place[self.given_order] = torch.arange(len(place), device=place.device)
            return place


_known: KnownOf[dict[int, LoopedEdges]] = KnownOf()


def with_self_loops(edge_index: Tensor, num_nodes: int) -> LoopedEdges:
    """The edges with one loop at each node, sorted by target: computed once for a tensor of edges.

    Targets' other edges remain in their order, so that sums over them are those that PyG makes,
    bit for bit.

    Args:
        edge_index: (2, E) int64, sources above targets; need not be sorted. Its loops are dropped.
        num_nodes: the nodes below this one receive a loop.

    Raises:
        RowIndexError: a negative node.
        ArgumentError: ``num_nodes`` is negative.

    >>> looped = with_self_loops(torch.tensor([[2, 0, 1], [0, 0, 2]]), 3)
    >>> looped.edge_index.tolist()
    [[2, 0, 1, 1, 2], [0, 0, 1, 2, 2]]
    >>> looped.number.tolist(), looped.given_order.tolist()
    ([0, -1, -1, 2, -1], [0, 3, 1, 2, 4])
    """
    if num_nodes < 0:
        raise ArgumentError(f"num_nodes: {num_nodes}, expected 0 or more")
    made = _known.of(edge_index)
    if made is None:
        made = {}
        _known.remember(edge_index, made)
    looped = made.get(num_nodes)
    if looped is None:
        with torch.inference_mode(False):  # whose tensors are not remembered
            looped = _add_loops(edge_index, num_nodes)
        made[num_nodes] = looped
    return looped


def _add_loops(edge_index: Tensor, num_nodes: int) -> LoopedEdges:
    given = neighbors_of(edge_index)
    if edge_index.device.type != "cpu":
        return LoopedEdges(*add_loops(edge_index, num_nodes))
    groups = given.groups(1)
    room = len(given) + num_nodes
    indptr = torch.empty(max(len(groups), num_nodes) + 1, dtype=torch.int64)
    ends = torch.empty(2, room, dtype=torch.int64)
    number = torch.empty(room, dtype=torch.int64)
    order = None if groups.order is None else groups.order.numpy()
    count, *last = core.add_loops(
        groups.indptr.numpy(),
        groups.other.numpy(),
        order,
        num_nodes,
        indptr.numpy(),
        ends[0].numpy(),
        ends[1].numpy(),
        number.numpy(),
    )
    looped = LoopedEdges(ends[:, :count], number[:count])
    neighbors = Neighbors.sorted_by_target(looped.edge_index, indptr[: last[1] + 2], last[0] + 1)
    remember_neighbors(looped.edge_index, neighbors)
    return looped
