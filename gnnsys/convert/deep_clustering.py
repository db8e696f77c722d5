"""Graphs of the deep clustering literature (SDCN, Bo et al., WWW 2020) to dataset folders.

A folder holds NAME_feat.npz, NAME_label.txt and NAME_graph.txt, the last one also with the number
of neighbours that it was made with: usps3_graph.txt. These graphs are small, and are read whole.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.csc import cut_edges
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError

__all__ = ["convert_deep_clustering", "is_deep_clustering"]

_ROWS = 4096
_DAMAGE = (ValueError, TypeError, LookupError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def is_deep_clustering(source: Path) -> bool:
    """Whether a folder holds a graph of this kind."""
    names = [file.name for file in source.glob("*_feat.npz")] if source.is_dir() else []
    return len(names) == 1 and bool(_list_graphs(source, names[0].removesuffix("_feat.npz")))


def convert_deep_clustering(
    folder: Path, path: Path, options: ConvertOptions, *, graph: str | None = None
) -> Path:
    """Makes a dataset folder; it has labels but no train, val and test.

    The graph is undirected, as in SDCN: an edge that the file holds in one direction or in both
    goes in both directions, once. A self loop stays one edge.

    Args:
        folder: holds NAME_feat.npz (scipy.sparse CSR, or ``x`` to be divided by ``scale``),
            NAME_label.txt (a class a line) and NAME_graph.txt (source and target a line).
        path: of the folder to make.
        options: of the conversion; ``undirected`` changes nothing.
        graph: name of the graph's file, where there are several.

    Raises:
        MissingFileError: a file that is not there.
        ArgumentError: several graphs, and ``graph`` names none of them.
        FileFormatError: files that are damaged, or do not fit one another.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.savez(folder / "toy_feat.npz", x=np.array([[2], [4], [6]], np.uint16), scale=2)
    >>> _ = (folder / "toy_label.txt").write_text("0\\n1\\n1\\n")
    >>> _ = (folder / "toy_graph.txt").write_text("0 1\\n1 2\\n")
    >>> path = convert_deep_clustering(folder, folder / "out", ConvertOptions())
    >>> np.load(path / "indices.npy"), np.load(path / "features.npy").ravel()
    (array([1, 0, 2, 1], dtype=int32), array([1., 2., 3.], dtype=float32))
    """
    features, labels, edges, name = _find_files(folder, graph)
    with Conversion(
        path, options, name=name, kind="deep-clustering", files=[features, labels, edges]
    ) as writer:
        rows = _read_features(features)
        writer.add_nodes(rows.shape[0])
        writer.write_features(rows, str(features))
        writer.write_labels(_read_text(labels, 1)[:, 0], str(labels))
        both = _both_directions(_read_text(edges, 2), edges, rows.shape[0])
        writer.write_csc(cut_edges(both), str(edges), both_ways=True)
        return writer.commit()


# Files --------------------------------------------------------------------------------------------


def _list_graphs(folder: Path, name: str) -> list[str]:
    found = (file.name for file in folder.glob(f"{name}*_graph.txt"))
    return sorted(file for file in found if re.fullmatch(rf"{re.escape(name)}\d*_graph\.txt", file))


def _find_files(folder: Path, graph: str | None) -> tuple[Path, Path, Path, str]:
    names = sorted(file.name.removesuffix("_feat.npz") for file in folder.glob("*_feat.npz"))
    if len(names) != 1:
        found = ", ".join(f"{name}_feat.npz" for name in names) or "none"
        raise MissingFileError(f"{folder}: {found}; expected one file NAME_feat.npz")
    name = names[0]
    graphs = _list_graphs(folder, name)
    if graph is None and len(graphs) > 1:
        raise ArgumentError(f"{folder}: {', '.join(graphs)}; say which of them is the graph")
    files = [folder / f"{name}_feat.npz", folder / f"{name}_label.txt"]
    files.append(folder / (graph or (graphs or [f"{name}_graph.txt"])[0]))
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file; it belongs to {name}_feat.npz")
    return files[0], files[1], files[2], name


class _Rows:
    """Rows that are divided by ``scale``, dense or of a sparse matrix, in blocks."""

    def __init__(self, rows: Any, scale: Any = 1) -> None:
        self._rows, self._scale = rows, scale
        self.shape: tuple[int, ...] = rows.shape
        self.dtype = np.dtype(np.float32)

    def blocks(self, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Rows from ``first`` on."""
        for start in range(first, self.shape[0], _ROWS):
            rows = self._rows[start : start + _ROWS]
            rows = rows.toarray() if scipy.sparse.issparse(rows) else rows / self._scale
            yield rows.astype(np.float32)


def _read_features(file: Path) -> _Rows:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise FileFormatError(f"{file}: not a whole matrix of features ({error})") from error
    try:
        if "x" not in arrays:
            return _Rows(_as_csr(**arrays))
        if arrays["x"].ndim != 2 or arrays["x"].dtype.kind not in "iuf":
            raise ValueError(f"x is {arrays['x'].dtype} of shape {arrays['x'].shape}")
    except _DAMAGE as error:
        raise FileFormatError(
            f"{file}: not a matrix of rows ({error}); expected scipy.sparse CSR, or x"
        ) from error
    return _Rows(arrays["x"], arrays.get("scale", 1))


def _as_csr(
    *, data: Any, indices: Any, indptr: Any, shape: Any, format: Any, **_: Any
) -> scipy.sparse.csr_matrix:
    """What ``scipy.sparse.save_npz`` wrote; entries at the same place add up."""
    if format.item() not in ("csr", b"csr"):
        raise ValueError(f"format {format}")
    rows = scipy.sparse.csr_matrix((data.astype(np.float32), indices, indptr), shape)
    rows.check_format(full_check=True)
    return rows


def _read_text(file: Path, columns: int) -> NDArray[np.int64]:
    """(lines, columns) whole numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without lines
            rows = np.loadtxt(file, np.int64, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{file}: not lines of whole numbers ({error})") from error
    if rows.size and rows.shape[1] != columns:
        raise FileFormatError(f"{file}: {rows.shape[1]} numbers a line, expected {columns}")
    return rows.reshape(-1, columns)


def _both_directions(edges: NDArray[np.int64], file: Path, nodes: int) -> NDArray[np.int64]:
    """(2, edges) sources and targets, each pair once."""
    outside = (edges < 0) | (edges >= nodes)
    if outside.any():
        line = int(np.argmax(outside.any(axis=1)))
        raise FileFormatError(
            f"{file}: edge {line} is {edges[line].tolist()}, outside the nodes [0, {nodes})"
        )
    both = np.concatenate([edges, edges[:, ::-1]])
    pairs = np.unique(both[:, 0] * nodes + both[:, 1])
    return np.stack([pairs // max(1, nodes), pairs % max(1, nodes)])
