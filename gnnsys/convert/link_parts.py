"""Which edges of a type are held out, in bounded memory: pairs of nodes by draw or by time.

Edges are read in blocks, in the order of the CSC, as often as it takes; what is found out of each
lies in a scratch file. A pair of nodes is held out with all of its parallel edges and, where both
ends are of one type, with those that lead back. The pairs have an order, the first to be held out
in front: that of a hash under the seed's key, or, by time, from the newest down, and of equal times
that of the hash. A pair is as new as the newest of its edges, so that no edge that is kept is newer
than a pair held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.graphbolt_files import Edges
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.tables import DatasetTables
from gnnsys.errors import FileFormatError, UnsupportedError
from gnnsys.rng import mix64, stream_key
from gnnsys.system.files import read_file, write_at

__all__ = ["EdgeBlocks", "ScratchRows", "choose_parts", "find_newest", "mark_reverses"]

_BLOCK_EDGES = 1 << 20
_PAIR_BYTES = 48  # source, target, number and key of a pair, and copies while they are gathered
_DIGIT = 16  # bits of a key that are counted in a pass

Words = NDArray[np.uint64]


class ScratchRows:
    """A number for each edge, in a scratch file.

    Args:
        path: of the file.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self.path, self._dtype = path, np.dtype(dtype)

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Those of the edges [begin, end)."""
        return read_file(self.path, self._dtype, end - begin, begin * self._dtype.itemsize)

    def write(self, begin: int, rows: NDArray[Any]) -> None:
        """Sets those of the edges from ``begin`` on."""
        write_at(self.path, begin * self._dtype.itemsize, rows.astype(self._dtype, copy=False))


class EdgeBlocks:
    """The edges of a type in blocks of about a million: the first one's number, sources, targets.

    Args:
        dataset: that has them.
        edge_type: theirs.
        tell: is given how many edges were read, and of how many.

    Raises:
        FileFormatError: an indptr that does not ascend; in a walk, a source outside the nodes, or
            sources of a target that do not ascend.
        UnsupportedError: so many nodes that their pairs have no numbers of 64 bits.
    """

    def __init__(
        self,
        dataset: DatasetTables,
        edge_type: EdgeType,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._edges, self._tell = Edges(dataset, edge_type), tell
        self._indptr = dataset.indptr(edge_type)
        self._label = f"{dataset.path}: indices of {edge_type}"
        self.count = dataset.num_edges(edge_type)
        self.num_sources, self.num_targets = (dataset.num_nodes(edge_type[end]) for end in (0, 2))
        self.is_of_one_type = edge_type[0] == edge_type[2]
        if self.num_sources * self.num_targets >= 1 << 63:
            raise UnsupportedError(
                f"{self._label}: {self.num_sources} and {self.num_targets} nodes have 2^63 pairs "
                "or more; links are held out of smaller types"
            )

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        begin = 0
        while begin < self.count:
            self._tell(begin, self.count)
            # Whole targets, so that parallel edges are in one block.
            last = np.searchsorted(self._indptr, begin + _BLOCK_EDGES, side="right") - 1
            if self._indptr[last] == begin:
                last = np.searchsorted(self._indptr, begin, side="right")
            end = int(self._indptr[last])
            source, target = self._edges.sources(begin, end), self._edges.targets(begin, end)
            wrong = (source[1:] < source[:-1]) & (target[1:] == target[:-1])
            if wrong.any():
                raise FileFormatError(
                    f"{self._label}: the source at position {begin + int(np.argmax(wrong)) + 1} is "
                    "below the one before it; expected those of a target to ascend; convert the "
                    "source again"
                )
            yield begin, source, target
            begin = end
        self._tell(self.count, self.count)


def find_newest(edges: EdgeBlocks, times: NDArray[Any], out: ScratchRows, memory: int) -> None:
    """The newest time of the pair of each edge, as a uint64 that is the less, the newer it is.

    Args:
        edges: of the type.
        times: (edges,) whole numbers, in their order.
        out: is filled.
        memory: bytes for pairs that are looked up at a time; where both ends are of one type, the
            edges are read once more for each part of them that it holds.
    """
    for begin, source, target in edges:
        own = _newer_first(np.asarray(times[begin : begin + len(source)]))
        starts = np.flatnonzero(
            np.append(True, (source[1:] != source[:-1]) | (target[1:] != target[:-1]))
        )
        lengths = np.diff(np.append(starts, len(source)))
        out.write(begin, np.repeat(np.minimum.reduceat(own, starts), lengths))
    if not edges.is_of_one_type:
        return
    for pairs in _pairs_in_parts(edges, None, memory):
        best = out.read(pairs.first, pairs.first + len(pairs))
        for begin, source, target in edges:
            places, there = pairs.find(source=target, target=source)
            newest = out.read(begin, begin + len(source))
            newest[there] = np.minimum(newest[there], best[places])
            out.write(begin, newest)


def choose_parts(
    edges: EdgeBlocks, counts: list[int], seed: int, newest: ScratchRows | None, out: ScratchRows
) -> list[int]:
    """The part that each edge is of: 0 where it is kept, or 1, 2, ….

    Args:
        edges: of the type.
        counts: how many edges the parts 1, 2, … are to have, the last of them in front in the
            order; a part has some more where its last pair has several edges.
        seed: of the hash.
        newest: what ``find_newest`` found; None to go by the hash alone.
        out: is filled.

    Returns:
        How many edges are kept, and of part 1, 2, ….
    """
    key = np.uint64(stream_key(seed, 0, 0, 0))

    def keys() -> Iterator[tuple[int, Words, Words]]:
        for begin, source, target in edges:
            if edges.is_of_one_type:
                source, target = np.minimum(source, target), np.maximum(source, target)
            drawn = mix64(mix64(source.view(np.uint64) + key) + target.view(np.uint64))
            times = newest.read(begin, begin + len(drawn)) if newest else np.zeros_like(drawn)
            yield begin, times, drawn

    bounds = []
    for part in range(len(counts), 0, -1):
        rank = sum(counts[part - 1 :]) - 1
        time = np.uint64(0)
        if newest:
            time, rank = _select(lambda: (times for _, times, _ in keys()), rank)

        def same_time(time: np.uint64 = time) -> Iterator[Words]:
            return (drawn[times == time] for _, times, drawn in keys())

        bounds.append((part, time, _select(same_time, rank)[0]))
    found = np.zeros(len(counts) + 1, np.int64)
    for begin, times, drawn in keys():
        parts = np.zeros(len(drawn), np.uint8)
        for part, time, bound in reversed(bounds):
            parts[(times < time) | ((times == time) & (drawn <= bound))] = part
        out.write(begin, parts)
        found += np.bincount(parts, minlength=len(found))
    return [int(each) for each in found]


def mark_reverses(
    held: EdgeBlocks, parts: ScratchRows, edges: EdgeBlocks, memory: int, out: ScratchRows
) -> int:
    """Marks the edges of a type that lead back along an edge that is held out, by 1 for 0.

    Args:
        held: the edges of the type that links are held out of.
        parts: theirs, of ``choose_parts``.
        edges: of the other type.
        memory: bytes for links held out; the edges are read once for each part of them that it
            holds.
        out: is filled.

    Returns:
        How many there are.
    """
    for begin, source, _ in edges:
        out.write(begin, np.zeros(len(source), np.uint8))
    found = 0
    for pairs in _pairs_in_parts(held, parts, memory):
        for begin, source, target in edges:
            _, there = pairs.find(source=target, target=source)
            if there.any():
                out.write(begin, out.read(begin, begin + len(source)) | there)
                found += int(there.sum())
    return found


class _Pairs:
    """Edges of successive targets, by their ends."""

    def __init__(self, first: int, blocks: list[tuple[NDArray[Any], NDArray[Any]]], width: int):
        self.first = first
        source, target = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        self._bounds, self._width = (int(target[0]), int(target[-1])), width
        self._keys = self._number(source, target)

    def __len__(self) -> int:
        return len(self._keys)

    def find(
        self, *, source: NDArray[np.int64], target: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Which of the edges there are, and where, from the first one on, the first of each is."""
        there = (target >= self._bounds[0]) & (target <= self._bounds[1])
        asked = self._number(source[there], target[there])
        places = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        same = self._keys[places] == asked
        there[there] = same
        return places[same], there

    def _number(self, source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = target * self._width + source
        return numbers


def _pairs_in_parts(edges: EdgeBlocks, parts: ScratchRows | None, memory: int) -> Iterator[_Pairs]:
    """All edges, or those that have a part, as many at a time as memory holds."""
    room = max(1, memory // _PAIR_BYTES)
    blocks: list[tuple[NDArray[Any], NDArray[Any]]] = []
    first = count = 0
    for begin, source, target in edges:
        if parts is not None:
            chosen = parts.read(begin, begin + len(source)) > 0
            source, target = source[chosen], target[chosen]
        if count and count + len(source) > room:
            yield _Pairs(first, blocks, edges.num_sources)
            blocks, count, first = [], 0, begin
        if len(source):
            blocks.append((source, target))
            count += len(source)
    if blocks:
        yield _Pairs(first, blocks, edges.num_sources)


def _newer_first(times: NDArray[Any]) -> Words:
    """Whole numbers to words that are the less, the greater the numbers."""
    return ~(times.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63))


def _select(read: Callable[[], Iterable[Words]], rank: int) -> tuple[np.uint64, int]:
    """The word of a rank, from 0, among all that are read, and its rank among those that equal it:
    digit by digit from the highest, counting in a pass for each."""
    prefix = 0
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, np.int64)
        for words in read():
            if shift + _DIGIT < 64:
                words = words[words >> np.uint64(shift + _DIGIT) == np.uint64(prefix)]
            digits = (words >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
    return np.uint64(prefix), rank
