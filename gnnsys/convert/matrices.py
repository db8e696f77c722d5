"""Sparse matrices in files, whose entries are edges: Matrix Market's and scipy's .npz."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.csc import cut_edges
from gnnsys.convert.dialect import Dialect, open_text
from gnnsys.errors import FileFormatError

__all__ = ["SparseMatrix", "is_scipy", "read_matrix_market", "read_scipy"]

_BLOCK_EDGES = 1 << 21


def is_scipy(members: Sequence[str]) -> bool:
    """Whether a .npz file with these arrays is one of ``scipy.sparse.save_npz``."""
    return {"format", "shape", "data"} <= set(members)


class SparseMatrix:
    """The entries of a square matrix, in memory: an edge from each row to its column."""

    def __init__(self, path: Path, matrix: Any, about: str) -> None:
        if matrix.shape[0] != matrix.shape[1]:
            raise FileFormatError(
                f"{path}: a matrix of shape {matrix.shape}, expected a square one, whose rows and "
                "columns are the same nodes"
            )
        coo = matrix.tocoo()
        self.num_nodes = int(coo.shape[0])
        ends = np.stack([coo.row.astype(np.int64), coo.col.astype(np.int64)])
        self.blocks = cut_edges(ends, _BLOCK_EDGES)
        self.values: NDArray[Any] | None = coo.data
        self.about = about


def read_scipy(path: Path) -> SparseMatrix:
    """A matrix that ``scipy.sparse.save_npz`` wrote, in any of its layouts."""
    import scipy.sparse

    try:
        matrix = scipy.sparse.load_npz(path)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        raise FileFormatError(f"{path}: not a whole scipy matrix ({error})") from error
    return SparseMatrix(path, matrix, f"scipy's {matrix.format} matrix")


def read_matrix_market(path: Path, dialect: Dialect) -> SparseMatrix:
    """A Matrix Market file: coordinate, also symmetric, where each entry stands for two."""
    import scipy.io

    kind = dialect.banner.lower().split()
    if not kind:
        raise FileFormatError(
            f"{path}: does not begin with %%MatrixMarket; --format text if it is text"
        )
    if "array" in kind:
        raise FileFormatError(
            f"{path}: a dense array of Matrix Market, expected a coordinate matrix, whose entries "
            "are edges"
        )
    # Later versions warn where they are not told which of both kinds to give.
    known = inspect.signature(scipy.io.mmread).parameters
    arrays = {"spmatrix": False} if "spmatrix" in known else {}
    try:
        with open_text(path, dialect) as stream:
            matrix = scipy.io.mmread(stream, **arrays)
    except (OSError, ValueError, OverflowError, TypeError, EOFError) as error:
        raise FileFormatError(f"{path}: not a whole Matrix Market file ({error})") from error
    found = SparseMatrix(path, matrix, f"Matrix Market, {' '.join(kind[2:])}")
    if "pattern" in kind:
        found.values = None
    return found
