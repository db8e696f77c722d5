"""The graph as the sampler reads it: compressed sparse columns (CSC)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnnsys._extension import core
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.files import map_npy
from gnnsys.memory.alloc import empty, view_array

__all__ = ["CSC"]

_INT32_NODES = 1 << 31


class CSC:
    """In-neighbours of every node: ``indices[indptr[v]:indptr[v + 1]]``.

    Args:
        indptr: (nodes + 1,) int64, ascending from 0 to the number of edges.
        indices: (edges,) int32 or int64 source nodes, in RAM or mapped from a file.
        perm: (edges,) int64, the number that the edge at each position has for the user; None where
            that is the position itself.

    Raises:
        ArgumentError, DTypeError: arrays of a wrong type or shape, or an indptr that descends.

    >>> graph = CSC.from_edge_index(torch.tensor([[0, 1, 2], [2, 2, 1]]), num_nodes=3)
    >>> graph.indptr.tolist(), graph.indices.tolist()
    ([0, 0, 1, 3], [2, 0, 1])
    """

    def __init__(self, indptr: Tensor, indices: Tensor, perm: Tensor | None = None) -> None:
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
        self.indptr = indptr
        self.indices = indices
        self.perm = perm

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
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
        source, target = (part.to(torch.int64).contiguous() for part in edge_index.cpu())
        if is_sorted and bool((target[1:] < target[:-1]).any()):
            raise ArgumentError("is_sorted: True, but the targets in edge_index[1] descend")
        indptr = empty((num_nodes + 1,), torch.int64)
        index_dtype = torch.int32 if num_nodes < _INT32_NODES else torch.int64
        indices = empty((len(source),), index_dtype)
        perm = empty((len(source),), torch.int64)
        try:
            core.coo_to_csc(
                source.numpy(), target.numpy(), indptr.numpy(), indices.numpy(), perm.numpy()
            )
        except IndexError as error:
            raise ArgumentError(f"edge_index: {error}") from error
        return cls(indptr, indices, None if is_sorted else perm)

    @classmethod
    def from_files(cls, indptr: str | os.PathLike[str], indices: str | os.PathLike[str]) -> CSC:
        """Maps ``indices`` (and reads ``indptr``) from .npy files without loading them.

        Raises:
            MissingFileError, FileFormatError: a file is not there, or not what it should be.
        """
        return cls(
            torch.from_numpy(np.array(map_npy(Path(indptr)))), view_array(map_npy(Path(indices)))
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
