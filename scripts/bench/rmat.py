"""Makes an R-MAT graph: the skewed degrees of a social network at any size, from a seed.

R-MAT (Chakrabarti, Zhan, Faloutsos: "R-MAT: A Recursive Model for Graph Mining", 2004): every edge
falls, once a level, into one of the four quarters of the adjacency matrix with probabilities
a = 0.57, b = c = 0.19, d = 0.05, those of Graph500. Node ids are then permuted, so that an id tells
nothing of its degree. An edge may occur several times.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from harness import BenchError
from numpy.typing import NDArray
from options import make_parser, positive

__all__ = [
    "RmatGraph",
    "RmatSpec",
    "check_folder",
    "draw_edges",
    "make_csc",
    "make_folder",
    "make_rmat",
    "open_rmat",
    "write_features",
]

_FORMAT = 1
_MAX_SCALE = 30  # node ids are int32
_A, _B, _C = 0.57, 0.19, 0.19
_WORD = 1 << 32
_T_A, _T_AB, _T_ABC = (np.uint64(int(p * _WORD)) for p in (_A, _A + _B, _A + _B + _C))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK_BYTES = 64 << 20
_EXAMPLES = """
Writes indptr.npy (int64), indices.npy (int32; the in-neighbours of each node, ascending), seeds.npy
(int64; the nodes that have in-neighbours, shuffled), rmat.json and, with --dim, features.npy.

examples:
  python scripts/bench/rmat.py graph20 --scale 20
  python scripts/bench/rmat.py graph16 --scale 16 --degree 8 --dim 128 --seed 7
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RmatSpec:
    """What a graph is made from."""

    scale: int
    """log2 of the number of nodes."""
    degree: int = 16
    """Edges per node."""
    seed: int = 1
    """Of edges, ids, seeds and features."""
    dim: int = 0
    """float32 features per node; 0 writes none."""

    def __post_init__(self) -> None:
        if not 1 <= self.scale <= _MAX_SCALE:
            raise BenchError(f"scale {self.scale}: expected 1 to {_MAX_SCALE}")
        if self.degree < 1:
            raise BenchError(f"degree {self.degree} < 1")
        if self.seed < 0 or self.dim < 0:
            raise BenchError(f"seed {self.seed} and dim {self.dim}: neither may be negative")

    @property
    def num_nodes(self) -> int:
        """2 to the power of ``scale``."""
        return 1 << self.scale

    @property
    def num_edges(self) -> int:
        """Counted with repetitions."""
        return self.num_nodes * self.degree


@dataclass(frozen=True, slots=True)
class RmatGraph:
    """A graph in memory."""

    spec: RmatSpec
    indptr: NDArray[np.int64]  # (nodes + 1,)
    indices: NDArray[np.int32]  # (edges,) in-neighbours, ascending for each node
    seeds: NDArray[np.int64]  # nodes with in-neighbours, shuffled


# splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): a counter
# makes each draw, so edges can be drawn in parallel and are the same on any number of threads.
@numba.njit(inline="always", cache=True)
def _mix(counter):  # type: ignore[no-untyped-def]
    bits = counter * _GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@numba.njit(parallel=True, cache=True)
def draw_edges(scale, seed, source, target):  # type: ignore[no-untyped-def]
    """Fills ``source`` and ``target``, (edges,) int32, with numbers below 2 to the power of
    ``scale``."""
    key = _mix(np.uint64(seed) + np.uint64(1))
    for edge in numba.prange(len(source)):
        row = np.int32(0)
        column = np.int32(0)
        for level in range(scale):
            counter = np.uint64(edge) * np.uint64(scale) + np.uint64(level)
            draw = _mix(counter ^ key) >> np.uint64(32)
            row = 2 * row + (draw >= _T_AB)
            column = 2 * column + (_T_A <= draw < _T_AB or draw >= _T_ABC)
        source[edge] = row
        target[edge] = column


@numba.njit(cache=True)
def _count_targets(target, indptr):  # type: ignore[no-untyped-def]
    for node in target:
        indptr[node + 1] += 1
    for node in range(len(indptr) - 1):
        indptr[node + 1] += indptr[node]


@numba.njit(cache=True)
def _place_sources(source, target, indptr, indices):  # type: ignore[no-untyped-def]
    end = indptr[:-1].copy()
    for edge in range(len(source)):
        node = target[edge]
        indices[end[node]] = source[edge]
        end[node] += 1


@numba.njit(parallel=True, cache=True)
def _sort_neighbours(indptr, indices):  # type: ignore[no-untyped-def]
    for node in numba.prange(len(indptr) - 1):
        indices[indptr[node] : indptr[node + 1]].sort()


def generate(spec: RmatSpec) -> RmatGraph:
    """The graph of ``spec``, always the same one."""
    rng = np.random.default_rng(spec.seed)
    source = np.empty(spec.num_edges, np.int32)
    target = np.empty(spec.num_edges, np.int32)
    draw_edges(spec.scale, spec.seed, source, target)
    new_id = rng.permutation(spec.num_nodes).astype(np.int32)
    np.take(new_id, source, out=source, mode="clip")
    np.take(new_id, target, out=target, mode="clip")
    indptr, indices = make_csc(source, target, spec.num_nodes)
    return RmatGraph(spec, indptr, indices, rng.permutation(np.flatnonzero(np.diff(indptr))))


def make_csc(
    source: NDArray[np.int32], target: NDArray[np.int32], num_targets: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(targets + 1,) where the in-neighbours of each target begin, and (edges,) these, ascending
    for each."""
    indptr = np.zeros(num_targets + 1, np.int64)
    indices = np.empty(len(source), np.int32)
    _count_targets(target, indptr)
    _place_sources(source, target, indptr, indices)
    _sort_neighbours(indptr, indices)
    return indptr, indices


def make_rmat(folder: Path, spec: RmatSpec) -> RmatGraph:
    """Generates a graph into a folder that does not exist yet.

    Raises:
        BenchError: the folder exists, or its parent does not.
    """

    def write(partial: Path) -> RmatGraph:
        graph = generate(spec)
        np.save(partial / "indptr.npy", graph.indptr)
        np.save(partial / "indices.npy", graph.indices)
        np.save(partial / "seeds.npy", graph.seeds)
        if spec.dim:
            write_features(partial / "features.npy", (spec.num_nodes, spec.dim), (spec.seed, 1))
        return graph

    return make_folder(folder, spec, write)


def make_folder(folder: Path, spec: Any, write: Callable[[Path], Any]) -> Any:
    """A folder that does not exist yet and says what it was made from; what ``write`` returns.

    Args:
        folder: to make.
        spec: a dataclass of numbers and texts.
        write: is given a folder for everything else.

    Raises:
        BenchError: the folder exists, or its parent does not.
    """
    if folder.exists():
        raise BenchError(f"{folder}: exists; remove it or give another folder")
    if not folder.absolute().parent.is_dir():
        raise BenchError(f"{folder}: its parent folder does not exist; make it first")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir()
        made = write(partial)
        (partial / "rmat.json").write_text(json.dumps({"format": _FORMAT, **asdict(spec)}) + "\n")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def write_features(path: Path, shape: tuple[int, int], seed: tuple[int, ...]) -> None:
    """A file of ``shape`` (nodes, features) with float32 numbers of the normal distribution."""
    features = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], step):
        block = features[start : start + step]
        rng.standard_normal(out=block, dtype=np.float32)
    features.flush()


def open_rmat(folder: Path, spec: RmatSpec) -> RmatGraph:
    """Loads the graph in ``folder``, not its features; a ``spec`` without features takes any.

    Raises:
        BenchError: there is none, or it was made from something else than ``spec``.
    """
    check_folder(folder, spec)
    arrays = (np.load(folder / f"{name}.npy") for name in ("indptr", "indices", "seeds"))
    return RmatGraph(spec, *arrays)


def check_folder(folder: Path, spec: Any) -> None:
    """Raises BenchError for a folder that was not made from ``spec``, or not by ``make_folder``.

    A ``dim`` of 0 stands for any.
    """
    found = _read_spec(folder)
    wanted = {"format": _FORMAT, **asdict(spec)}
    differing = [
        f"{key} {found.get(key)} != {value}"
        for key, value in wanted.items()
        if found.get(key) != value and (key != "dim" or value > 0)
    ]
    if differing:
        raise BenchError(
            f"{folder}: holds another graph ({', '.join(differing)}); give another folder"
        )


def _read_spec(folder: Path) -> dict[str, Any]:
    path = folder / "rmat.json"
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; rmat.py makes such a folder") from error
    except ValueError as error:
        raise BenchError(f"{path}: not JSON ({error}); remove the folder") from error
    if not isinstance(found, dict):
        raise BenchError(f"{path}: not what rmat.py writes; remove the folder")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Makes a graph from the command line; returns the exit status."""
    parser = make_parser("rmat.py", __doc__, _EXAMPLES)
    parser.add_argument("folder", type=Path, help="to write; must not exist")
    parser.add_argument("--scale", type=positive, default=20, help="log2 of nodes; default 20")
    parser.add_argument("--degree", type=positive, default=16, help="edges per node; default 16")
    parser.add_argument("--dim", type=int, default=0, help="features per node; default 0: none")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args(arguments)
    try:
        spec = RmatSpec(
            scale=options.scale, degree=options.degree, seed=options.seed, dim=options.dim
        )
        graph = make_rmat(options.folder, spec)
    except BenchError as error:
        print(f"rmat.py: {error}", file=sys.stderr)
        return 2
    largest = int(np.diff(graph.indptr).max())
    print(
        f"{options.folder}: {spec.num_nodes} nodes, {spec.num_edges} edges, {len(graph.seeds)} "
        f"nodes with in-neighbours, largest in-degree {largest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
