"""The graph as the sampler reads it: compressed sparse columns (CSC)."""

from __future__ import annotations

import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders.neighbor_file import NeighborFile
from gnnsys.memory.alloc import empty, view_array
from gnnsys.system.extension import core
from gnnsys.system.files import map_npy

__all__ = ["CSC", "check_ends", "check_times_ascend", "reduce_shared", "share"]

_INT32_NODES = 1 << 31


class CSC:
    """In-neighbours of every node: ``indices[indptr[v]:indptr[v + 1]]``.

    Args:
        indptr: (nodes + 1,) int64, ascending from 0 to the number of edges.
        indices: (edges,) int32 or int64 source nodes, in RAM or mapped from a file.
        perm: (edges,) int64, the number that the edge at each position has for the user; None where
            that is the position itself.
        num_sources: number of nodes that edges come from, where it is not that of their targets.
        file: that ``indices`` are mapped from, where it may be read otherwise.

    Raises:
        ArgumentError, DTypeError: arrays of a wrong type or shape, or an indptr that descends.

    >>> graph = CSC.from_edge_index(torch.tensor([[0, 1, 2], [2, 2, 1]]), num_nodes=3)
    >>> graph.indptr.tolist(), graph.indices.tolist()
    ([0, 0, 1, 3], [2, 0, 1])
    """

    def __init__(
        self,
        indptr: Tensor,
        indices: Tensor,
        perm: Tensor | None = None,
        num_sources: int | None = None,
        file: NeighborFile | None = None,
    ) -> None:
        _check_vector("indptr", indptr, (torch.int64,))
        _check_vector("indices", indices, (torch.int32, torch.int64))
        if len(indptr) == 0:
            raise ArgumentError("indptr: empty, expected (nodes + 1) entries")
        if perm is not None and len(perm) != len(indices):
            raise ArgumentError(f"perm: {len(perm)} entries != {len(indices)} edges")
        fault = core.find_indptr_fault(indptr.numpy(), len(indices))
        if fault >= 0:
            raise ArgumentError(
                f"indptr: entry {fault} is {int(indptr[fault])}; expected entries that ascend from "
                f"0 to the {len(indices)} edges"
            )
        # Tensor objects of its own: set_() and the like, called on those given, change those alone.
        self.indptr = indptr.detach()
        self.indices = indices.detach()
        self.perm = None if perm is None else perm.detach()
        self.num_sources = len(indptr) - 1 if num_sources is None else num_sources
        self.file = file

    @property
    def num_nodes(self) -> int:
        """Number of nodes that edges lead to."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return len(self.indices)

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int, is_sorted: bool = False) -> CSC:
        """Sorts an edge list by target; edges of one target keep their order.

        Args:
            edge_index: (2, edges) int64, sources above targets.
            num_nodes: of the graph.
            is_sorted: the list is sorted by target already, so ``perm`` is not needed.

        Raises:
            ArgumentError: a node outside ``[0, num_nodes)``, or another shape.
        """
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ArgumentError(f"edge_index: shape {tuple(edge_index.shape)}, expected (2, edges)")
        source, target = edge_index
        return cls.from_edges(source, target, num_nodes, num_nodes, is_sorted)

    @classmethod
    def from_edges(
        cls,
        source: Tensor,
        target: Tensor,
        num_sources: int,
        num_nodes: int,
        is_sorted: bool = False,
        time: Tensor | None = None,
    ) -> CSC:
        """Sorts edges between two types of nodes by target, and by time within a target.

        Args:
            source: (edges,) node ids of any integer type, below ``num_sources``.
            target: (edges,) node ids of any integer type, below ``num_nodes``.
            num_sources: number of nodes that edges come from.
            num_nodes: number of nodes that they lead to.
            is_sorted: the edges are in that order already, so ``perm`` is not needed.
            time: (edges,) int64; edges of the same target and time keep their order.

        Raises:
            ArgumentError: a node outside its range, or a wrong claim of being sorted.
        """
        source, target = (part.to("cpu", torch.int64).contiguous() for part in (source, target))
        if is_sorted and bool((target[1:] < target[:-1]).any()):
            raise ArgumentError("is_sorted: True, but the targets in edge_index[1] descend")
        ends, by_time = (source, target), None
        if time is not None and not is_sorted:
            by_time = torch.sort(time, stable=True).indices
            source, target = source[by_time], target[by_time]
        indptr = empty((num_nodes + 1,), torch.int64)
        indices = empty((len(source),), torch.int32 if num_sources < _INT32_NODES else torch.int64)
        perm = empty((len(source),), torch.int64)
        bad = core.group_edges(
            target.numpy(), source.numpy(), num_sources, indptr.numpy(), indices.numpy(),
            perm.numpy(),
        )  # fmt: skip
        if bad >= 0:
            check_ends("source", ends[0], num_sources)
            check_ends("target", ends[1], num_nodes)
        if is_sorted:
            graph = cls(indptr, indices, None, num_sources)
            if time is not None:
                check_times_ascend(graph, time)
            return graph
        return cls(indptr, indices, perm if by_time is None else by_time[perm], num_sources)

    @classmethod
    def from_files(cls, indptr: str | os.PathLike[str], indices: str | os.PathLike[str]) -> CSC:
        """Maps .npy files without loading them.

        Raises:
            MissingFileError, FileFormatError: a file is not there, or not what it should be.
        """
        mapped = map_npy(Path(indices))
        file = NeighborFile(Path(indices), mapped)
        return cls(view_array(map_npy(Path(indptr))), view_array(mapped), file=file)

    def targets(self) -> Tensor:
        """(edges,) int64, the node that the edge at each position leads to."""
        return torch.repeat_interleave(self.indptr.diff())

    def reversed(self) -> CSC:
        """The same edges run backwards; ``perm`` still gives the user's numbers."""
        graph = CSC.from_edges(self.targets(), self.indices, self.num_nodes, self.num_sources)
        if self.perm is not None:
            graph.perm = self.perm[graph.perm]
        return graph

    def share_memory(self) -> None:
        """Takes copies in memory that processes share in the place of arrays that are not there.

        The arrays themselves are not moved: a sampler may be reading them in another thread.
        """
        self.indptr, self.indices = share(self.indptr), share(self.indices)
        self.perm = None if self.perm is None else share(self.perm)
        self.file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None}  # of this process


def share(array: Tensor) -> Tensor:
    """The array, or a copy of it, in memory that processes share."""
    if array.is_shared():
        return array
    return torch.empty_like(array).share_memory_().copy_(array)


def reduce_shared(graph: Any) -> Any:
    """How what holds arrays is sent to another process, which then has them in common with this.

    torch would move the arrays themselves into shared memory, and free what a sampler reads.
    """
    graph.share_memory()
    return graph.__reduce_ex__(2)


ForkingPickler.register(CSC, reduce_shared)


def check_ends(what: str, ids: Tensor, num_nodes: int) -> None:
    """Raises ArgumentError for an id among ``ids``, (edges,), outside ``[0, num_nodes)``."""
    wrong = ((ids < 0) | (ids >= num_nodes)).nonzero()
    if len(wrong):
        edge = int(wrong[0])
        raise ArgumentError(
            f"edge_index: edge {edge} has the {what} {int(ids[edge])}, outside the nodes "
            f"[0, {num_nodes})"
        )


def check_times_ascend(graph: CSC, time: Tensor) -> None:
    """Raises ArgumentError unless the in-edges of every node ascend by ``time``, (edges,)."""
    targets = graph.targets()
    wrong = ((time[1:] < time[:-1]) & (targets[1:] == targets[:-1])).nonzero()
    if len(wrong):
        edge = int(wrong[0])
        raise ArgumentError(
            f"is_sorted: True, but among the in-edges of node {int(targets[edge])} the time "
            f"{int(time[edge])} stands before {int(time[edge + 1])}; temporal sampling needs them "
            "to ascend"
        )


def _check_vector(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if value.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise DTypeError(f"{name}: dtype {value.dtype}, expected {expected}")
    if value.dim() != 1 or not value.is_contiguous() or value.device.type != "cpu":
        raise ArgumentError(
            f"{name}: shape {tuple(value.shape)} on {value.device}, expected one dense dimension "
            "on the CPU"
        )
