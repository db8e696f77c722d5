"""The edges of a graph, grouped by the node at either end; kept for a tensor while it lives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.message_passing.grouping import count_sorted, group, scan
from gnnsys.message_passing.known import KnownOf
from gnnsys.system.extension import core
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.graph_kernels import EdgeLaunches

__all__ = ["Neighbors", "neighbors_of", "remember_neighbors"]

# E edges, S sources, T targets.

_INT32 = 1 << 31


class Neighbors:
    """The edges of a graph, grouped by target, and by source once something asks for it.

    Waits for the device of the edges once, to see which nodes there are.

    Args:
        edge_index: (2, E) int64, sources above targets; need not be sorted.

    Raises:
        ArgumentError: edges of another shape or element type.
        RowIndexError: a negative node.

    >>> Neighbors(torch.tensor([[2, 0, 1], [0, 0, 2]])).groups(1).indptr.tolist()
    [0, 2, 2, 3]
    """

    def __init__(self, edge_index: Tensor) -> None:
        if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or len(edge_index) != 2:
            raise ArgumentError(
                f"edge_index: {edge_index.dtype} of shape {tuple(edge_index.shape)}, expected "
                "torch.int64 of (2, E), sources above targets"
            )
        ends = _ends_of(edge_index)
        self.is_sorted, least_source, most_source, least_target, most_target = _scan(*ends)
        if min(least_source, least_target) < 0:
            raise RowIndexError(
                f"edge_index: the least source is {least_source}, the least target {least_target}; "
                "expected none below 0"
            )
        counts = (most_source + 1, most_target + 1)
        self._set_up(ends, counts, _count_sorted(ends[1], counts[1]) if self.is_sorted else None)

    def _set_up(
        self, ends: tuple[Tensor, Tensor], counts: tuple[int, int], indptr: Tensor | None
    ) -> None:
        self._ends = ends
        self.counts = counts
        """Up to the last node that an edge comes from, and that one leads to."""
        by_target = None if indptr is None else Groups(indptr, ends[0], None)
        self._groups: list[Groups | None] = [None, by_target]
        self._launches: list[EdgeLaunches | None] = [None, None]

    @classmethod
    def sorted_by_target(cls, edge_index: Tensor, indptr: Tensor, num_sources: int) -> Neighbors:
        """Of edges of which it is known where those of each target begin; nothing is checked.

        Args:
            edge_index: (2, E) int64, sorted by target.
            indptr: (targets + 1,) int64, up to the last target that has an edge.
            num_sources: up to the last that has one.
        """
        made = cls.__new__(cls)
        made.is_sorted = True
        made._set_up(_ends_of(edge_index), (num_sources, len(indptr) - 1), indptr)
        return made

    def __len__(self) -> int:
        return len(self._ends[0])

    def groups(self, end: int) -> Groups:
        """The edges grouped by their sources (0) or their targets (1)."""
        made = self._groups[end]
        if made is None:
            made = _group(self._ends[end], self._ends[1 - end], self.counts[end], max(self.counts))
            self._groups[end] = made  # threads that meet here store equal groups
        return made

    def launches(self, end: int, device: Device) -> EdgeLaunches:
        """The kernels that sum over the groups of ``groups(end)``."""
        made = self._launches[end]
        if made is None or made.device is not device:
            groups = self.groups(end)
            made = EdgeLaunches(device, groups.indptr, groups.other, groups.order)
            self._launches[end] = made
        return made

    def degrees(self, end: int) -> Tensor:
        """(counts[end],) int64: the edges of each source or target, 1 where it has none."""
        return self.groups(end).indptr.diff().clamp_(min=1)


@dataclass(frozen=True, slots=True)
class Groups:
    """Edges in groups: those of group g are indptr[g] … indptr[g + 1] - 1."""

    indptr: Tensor
    """(groups + 1,) int64."""

    other: Tensor
    """(E,) int32 or int64: each edge's node at the other end."""

    order: Tensor | None
    """(E,) as ``other``: each edge's number; None where that is its position."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def arrays(self) -> core.EdgeArrays:
        """What core reads, where it lies now: a tensor that is put into a queue moves."""
        return core.EdgeArrays(
            self.indptr.data_ptr(),
            len(self),
            self.other.data_ptr(),
            0 if self.order is None else self.order.data_ptr(),
            self.other.element_size(),
        )


def _ends_of(edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Aliases that no autograd graph ties to the tensor given: they must not keep it alive."""
    return _alias(edge_index[0]).contiguous(), _alias(edge_index[1]).contiguous()


def _alias(x: Tensor) -> Tensor:
    alias = torch.empty(0, dtype=x.dtype, device=x.device)
    return alias.set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


def _scan(source: Tensor, target: Tensor) -> tuple[bool, int, int, int, int]:
    """Whether targets ascend; the least and the greatest source; those of the targets."""
    on_cpu = source.device.type == "cpu"
    return core.scan_edges(source.numpy(), target.numpy()) if on_cpu else scan(source, target)


def _count_sorted(target: Tensor, num_targets: int) -> Tensor:
    """(num_targets + 1,): where the edges of each target begin."""
    if target.device.type != "cpu":
        return count_sorted(target, num_targets)
    indptr = torch.empty(num_targets + 1, dtype=torch.int64)
    core.count_sorted(target.numpy(), indptr.numpy())
    return indptr


def _group(key: Tensor, value: Tensor, num_keys: int, num_values: int) -> Groups:
    kind = torch.int32 if max(num_values, len(key)) < _INT32 else torch.int64
    if key.device.type != "cpu":
        return Groups(*group(key, value, num_keys, kind))
    indptr = torch.empty(num_keys + 1, dtype=torch.int64)
    other = torch.empty(len(key), dtype=kind)
    order = torch.empty_like(other)
    core.group_edges(
        key.numpy(), value.numpy(), num_values, indptr.numpy(), other.numpy(), order.numpy()
    )
    return Groups(indptr, other, order)


_known: KnownOf[Neighbors] = KnownOf()

remember_neighbors = _known.remember
"""Takes note of a tensor's neighbours, which ``neighbors_of`` gives from now on."""


def neighbors_of(edge_index: Tensor) -> Neighbors:
    """The edges of a tensor, grouped; remembered until it changes or is let go.

    Args:
        edge_index: (2, E) int64.

    Raises:
        ArgumentError: edges of another shape or element type.
        RowIndexError: a negative node.
    """
    neighbors = _known.of(edge_index)
    if neighbors is None:
        neighbors = Neighbors(edge_index)
        _known.remember(edge_index, neighbors)
    return neighbors
