"""Edges by type and their pairs: by native code on the CPU, elsewhere by operations of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnsys.system.extension import core

__all__ = ["number_by_torch", "number_pairs", "sort_by_torch", "sort_by_type"]

# E edges, T edge types, M distinct pairs of a node and the type of one of its edges.


def sort_by_type(
    edge_index: Tensor,
    edge_type: Tensor,
    num_nodes: tuple[int, int],
    ptr: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
) -> bool | None:
    """Sorts edges by type, keeping the order of those with one type.

    Args:
        edge_index: (2, E) int64, sources above targets.
        edge_type: (E,) int64.
        num_nodes: of the sources and the targets.
        ptr: (T + 1,) int64 on the CPU, filled with where each type's edges begin.
        out: (E,) int64 each, filled with the sources, the targets and the edges' numbers.

    Returns:
        Whether the edges were in this order, where the numbers are not written; None if an id is
        outside its range.

    >>> edge_index, out = torch.tensor([[0, 1], [1, 1]]), torch.empty(3, 2, dtype=torch.int64)
    >>> ptr = torch.empty(3, dtype=torch.int64)
    >>> sort_by_type(edge_index, torch.tensor([1, 0]), (2, 2), ptr, (*out,))
    False
    >>> ptr.tolist(), out.tolist()
    ([0, 1, 2], [[1, 0], [1, 1], [1, 0]])
    """
    if edge_type.device.type != "cpu":
        return sort_by_torch(edge_index, edge_type, num_nodes, ptr, out)
    given = (edge_index[0], edge_index[1], edge_type)
    source, target, kind = (each.contiguous().numpy() for each in given)
    sources, targets, numbers = (each.numpy() for each in out)
    return core.sort_by_type(
        source, target, kind, *num_nodes, ptr.numpy(), sources, targets, numbers
    )


def sort_by_torch(
    edge_index: Tensor,
    edge_type: Tensor,
    num_nodes: tuple[int, int],
    ptr: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
) -> bool | None:
    """``sort_by_type`` on any device, which it waits for."""
    limits = zip((*edge_index, edge_type), (*num_nodes, len(ptr) - 1), strict=True)
    fits = [((ids >= 0) & (ids < limit)).all() for ids, limit in limits]
    ascends = (edge_type[1:] >= edge_type[:-1]).all()
    *all_fit, is_sorted = torch.stack([*fits, ascends]).tolist()
    if not all(all_fit):
        return None
    kinds, order = edge_type.sort(stable=True)
    ptr.copy_(torch.searchsorted(kinds, torch.arange(len(ptr), device=kinds.device)))
    for to, values in zip(out, (*edge_index[:, order], order), strict=True):
        to.copy_(values)
    return bool(is_sorted)


def number_pairs(
    node: Tensor, edge_ptr: Tensor, num_nodes: int, of_edge: Tensor
) -> tuple[Tensor, Tensor]:
    """The distinct pairs (node, type) of edges sorted by type, numbered by type.

    Args:
        node: (E,) int64, of each edge.
        edge_ptr: (T + 1,) int64 on the CPU: where each type's edges begin.
        num_nodes: above all nodes.
        of_edge: (E,) int64, filled with each edge's pair.

    Returns:
        The pairs' nodes, (M,) int64, and on the CPU where each type's pairs begin, (T + 1,).

    >>> pair = torch.empty(3, dtype=torch.int64)
    >>> number_pairs(torch.tensor([4, 2, 4]), torch.tensor([0, 3]), 5, pair)
    (tensor([4, 2]), tensor([0, 2]))
    >>> pair.tolist()
    [0, 1, 0]
    """
    if node.device.type != "cpu":
        return number_by_torch(node, edge_ptr, num_nodes, of_edge)
    nodes, ptr = torch.empty_like(node), torch.empty_like(edge_ptr)
    arrays = (of_edge.numpy(), nodes.numpy(), ptr.numpy())
    count = core.number_pairs(node.numpy(), edge_ptr.numpy(), num_nodes, *arrays)
    return nodes[:count], ptr


def number_by_torch(
    node: Tensor, edge_ptr: Tensor, num_nodes: int, of_edge: Tensor
) -> tuple[Tensor, Tensor]:
    """``number_pairs`` on any device; those of one type ascend here."""
    types = len(edge_ptr) - 1
    kinds = torch.arange(types, device=node.device)
    kind = kinds.repeat_interleave(edge_ptr.diff().to(node.device), output_size=len(node))
    key, pair = torch.unique(kind * num_nodes + node, return_inverse=True)
    of_edge.copy_(pair)
    firsts = torch.arange(types + 1, device=node.device) * num_nodes
    return key % max(num_nodes, 1), torch.searchsorted(key, firsts).to(edge_ptr.device)
