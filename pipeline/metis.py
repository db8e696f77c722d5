"""METIS, in a process of its own where it takes long.

pymetis holds Python's interpreter lock: this process's other threads would stand still meanwhile,
those that tell other ranks that it lives among them, and Ctrl-C would wait.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import GnnsysError, UnsupportedError

__all__ = ["part_graph", "serve"]

_HERE = 1 << 18  # entries that take less than a second
# The package is the installed one, whatever lies in the folder that this process works in.
_CHILD = "import sys; sys.path.remove(''); from gnnsys.pipeline.metis import serve; serve()"

Ids = NDArray[np.int64]


def part_graph(parts: int, starts: Ids, neighbors: Ids, weights: Ids, seed: int) -> Ids:
    """The part of each vertex.

    Args:
        starts: (V + 1,) where the neighbours of each vertex begin; no loops, both directions.
        neighbors: (2 E,) those of one vertex after another.
        weights: (V,) of the vertices; parts are balanced by their sums.
        seed: of METIS.

    Raises:
        UnsupportedError: pymetis is not installed.

    >>> starts, neighbors = np.array([0, 1, 2, 3, 4]), np.array([1, 0, 3, 2])
    >>> part_graph(2, starts, neighbors, weights=np.ones(4, np.int64), seed=0).tolist()
    [1, 1, 0, 0]
    """
    # pymetis has no wheels for aarch64: there gnnsys is installed without it.
    if find_spec("pymetis") is None:
        raise UnsupportedError(
            "METIS, which splits graphs, is not installed: pip install pymetis (where it has no "
            "wheel, that takes a C++ compiler)"
        )
    if len(neighbors) <= _HERE:
        return _run(parts, starts, neighbors, weights, seed)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    head = np.array([parts, seed, len(weights), len(neighbors)], np.int64)
    try:
        for array in (head, starts, neighbors, weights):
            child.stdin.write(np.ascontiguousarray(array, np.int64).data)
        child.stdin.close()
        return _read(child.stdout, len(weights))
    except (OSError, EOFError) as error:
        raise GnnsysError(
            f"METIS: its process ended with status {child.wait()} ({error}); is memory short?"
        ) from error
    finally:
        child.kill()
        child.wait()


def _run(parts: int, starts: Ids, neighbors: Ids, weights: Ids, seed: int) -> Ids:
    import pymetis

    _, found = pymetis.part_graph(
        parts,
        pymetis.CSRAdjacency(starts, neighbors),
        vweights=weights,
        options=pymetis.Options(seed=seed % 2**31),
    )
    return np.asarray(found, np.int64)


def _read(stream: IO[bytes], count: int) -> Ids:
    array = np.empty(count, np.int64)
    rest = array.data.cast("B")
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError("its output is cut off")
        rest = rest[got:]
    return array


def serve() -> None:
    """Reads the arguments from standard input and writes the parts to standard output."""
    source = sys.stdin.buffer
    parts, seed, vertices, entries = _read(source, 4).tolist()
    starts, neighbors, weights = (_read(source, n) for n in (vertices + 1, entries, vertices))
    sys.stdout.buffer.write(_run(parts, starts, neighbors, weights, seed).data)
