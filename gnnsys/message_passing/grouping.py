"""Edges grouped by torch's operations, where they lie: what the core does of those on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_loops", "count_sorted", "group", "scan"]


def scan(source: Tensor, target: Tensor) -> tuple[bool, int, int, int, int]:
    """What ``core.scan_edges`` gives of (E,) sources and targets; waits for the device once.

    >>> scan(torch.tensor([4, 2]), torch.tensor([0, 0]))
    (True, 2, 4, 0, 0)
    """
    if len(source) == 0:
        return True, 0, -1, 0, -1
    ascends = (target[1:] >= target[:-1]).all().long()
    found = torch.stack([ascends, *source.aminmax(), *target.aminmax()])
    is_sorted, *ends = found.tolist()
    return bool(is_sorted), *ends


def count_sorted(key: Tensor, num_keys: int) -> Tensor:
    """(num_keys + 1,) int64: how many of the keys, which ascend, are less than 0, 1, …

    Not by ``bincount``, which waits for the device.

    >>> count_sorted(torch.tensor([0, 2, 2]), 3).tolist()
    [0, 1, 1, 3]
    """
    return torch.searchsorted(key, torch.arange(num_keys + 1, device=key.device))


def group(
    key: Tensor, value: Tensor, num_keys: int, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``core.group_edges`` writes: where each key's edges begin, their values, their numbers.

    Args:
        key, value: (E,) int64, from 0 on.
        num_keys: above all keys.
        kind: of the values and numbers.

    >>> group(torch.tensor([1, 0]), torch.tensor([5, 6]), 2, torch.int64)
    (tensor([0, 1, 2]), tensor([6, 5]), tensor([1, 0]))
    """
    ascending, order = key.sort(stable=True)
    return count_sorted(ascending, num_keys), value[order].to(kind), order.to(kind)


def add_loops(edge_index: Tensor, num_nodes: int, keep: bool) -> tuple[Tensor, Tensor]:
    """What ``core.add_loops`` writes: (2, E') edges with loops, by target, and their numbers.

    Args:
        edge_index: (2, E) int64.
        num_nodes: the nodes below this one receive a loop.
        keep: lets a given loop's number stand for the one at its node.

    >>> add_loops(torch.tensor([[1, 0], [0, 0]]), 2, True)
    (tensor([[1, 0, 1],
            [0, 0, 1]]), tensor([ 0,  1, -1]))
    """
    source, target = edge_index
    nodes = torch.arange(num_nodes, device=edge_index.device)
    loops = torch.full_like(nodes, -1)
    if keep:
        given = ((source == target) & (target < num_nodes)).nonzero()[:, 0]
        loops.scatter_reduce_(0, target[given], given, "amax")
    others = (source != target).nonzero()[:, 0]
    ascending, order = torch.cat([target[others], nodes]).sort(stable=True)
    ends = torch.stack([torch.cat([source[others], nodes])[order], ascending])
    return ends, torch.cat([others, loops])[order]
