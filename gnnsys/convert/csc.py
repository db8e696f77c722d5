"""Edges in any order to CSC, in bounded memory: an external sort by (target, source).

The edges are copied to a scratch file as they arrive (spool), counted by target, distributed to
ranges of targets that fit in memory (split), and sorted range by range. Every step notes how far it
is, so that a killed conversion goes on there, also with other memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.format import EDGE_TYPE, EdgeType
from gnnsys.dataset.writer import DatasetWriter, RowReader, cut_rows
from gnnsys.errors import FileFormatError, StorageError
from gnnsys.system.extension import core
from gnnsys.system.files import append_file, read_file, write_at
from gnnsys.system.threads import num_threads

__all__ = ["EdgeReader", "EdgeSort", "cut_edges", "permute_rows", "sorted_numbers", "write_csc"]

EdgeReader = Callable[[int], Iterator[tuple[NDArray[Any], NDArray[Any]]]]
"""Given how many edges to leave out, yields the sources and targets from there on, in blocks of
about a million integers, in the order of the source."""

_INT32_NODES = 1 << 31
_MOST_NODES = 1 << 63
_BLOCK_EDGES = 1 << 21
_PARTS = ("source", "target", "number")  # files that edges are split into
_NUMBER = np.dtype(np.int64)
_SPARSE = 64  # nodes an edge beyond which ids are taken for names


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeSort:
    """What edges are sorted into, and how."""

    writer: DatasetWriter

    label: str
    """What to call the edges in messages: the file they come from."""

    edge_type: EdgeType = EDGE_TYPE

    undirected: bool = False
    """Add the reverse of every edge that is not a self loop."""

    keep_order: bool = False
    """Write edge_id: the number that each edge had where it came from; an added reverse has that of
    its edge."""

    numbers_apart: bool = False
    """Leave these numbers in a scratch file, for ``sorted_numbers``, in the place of edge_id."""

    memory: int = 2 << 30
    """Bytes for arrays of edges; 16 bytes a node come on top."""

    threads: int = 0
    """That sort; 0 for all cores this process may use."""

    counted: str = ""
    """The file whose rows are the nodes, for messages."""

    @property
    def key(self) -> str:
        return repr(self.edge_type)

    def path(self, what: str) -> Path:
        return self.writer.scratch / f"{'__'.join(self.edge_type).replace('/', '%2F')}.{what}"

    def tell(self, what: str, done: int, total: int) -> None:
        self.writer.report(f"{what} edges", done, total)


def write_csc(job: EdgeSort, read: EdgeReader) -> None:
    """Sorts edges and writes the tables indptr and indices, and edge_id where it is asked for.

    Declares the edges, and the nodes too where they are not declared: up to the greatest id.

    Raises:
        FileFormatError: a node id that is negative or not below the number of nodes.
    """
    writer, edge_type = job.writer, job.edge_type
    job = _resumed(job)
    chunks = _spool(job, read)
    greatest = max((chunk["greatest"] for chunk in chunks), default=-1)
    num_edges = sum(chunk["edges"] for chunk in chunks)
    if not writer.has_nodes(edge_type[2]):
        _check_dense(job, greatest, num_edges)
        writer.add_nodes(greatest + 1, edge_type[2])
    num_sources, num_targets = writer.num_nodes(edge_type[0]), writer.num_nodes(edge_type[2])
    writer.add_edges(num_edges, edge_type)
    indptr = _write_indptr(job, chunks, num_sources, num_targets)
    index = _index_type(max(num_sources, num_targets))
    _write_sorted(job, chunks, indptr, index, stored=_index_type(num_sources))


def _resumed(job: EdgeSort) -> EdgeSort:
    """The job with the memory that ranges were cut for before a kill; with less, they are forgotten
    and cut anew, from the source if the edges are in them already."""
    cut: dict[str, Any] | None = job.writer.recall(f"split {job.key}", None)
    if cut is None or job.writer.recall(f"sorted {job.key}", False):
        return job
    if cut["memory"] <= job.memory:
        return replace(job, memory=cut["memory"])
    job.writer.forget(f"split {job.key}")
    if not job.path("spool").exists():
        job.writer.forget(f"spool {job.key}")
    return job


def _index_type(nodes: int) -> np.dtype[Any]:
    return np.dtype(np.int32 if nodes < _INT32_NODES else np.int64)


# Spool --------------------------------------------------------------------------------------------


def _spool(job: EdgeSort, read: EdgeReader) -> list[dict[str, Any]]:
    """Copies the edges to a scratch file; returns what each chunk of it holds."""
    key = f"spool {job.key}"
    noted: dict[str, Any] = job.writer.recall(key, {"chunks": [], "taken": 0, "bytes": 0})
    if noted.get("done"):
        return noted["chunks"]
    path = job.path("spool")
    for source, target in read(noted["taken"]):
        first = noted["taken"]
        _check_ids(job, source, target, first)
        numbers = [np.arange(first, first + len(source))] if job.keep_order else []
        parts = [[source, target, *numbers]]
        if job.undirected:
            kept = source != target
            parts.append([target[kept], source[kept], *(number[kept] for number in numbers)])
        for arrays in parts:
            chunk = _describe(arrays[0], arrays[1], noted["bytes"])
            data = [ends.astype(chunk["dtype"]) for ends in arrays[:2]] + arrays[2:]
            noted["bytes"] = append_file(path, noted["bytes"], data)
            noted["chunks"].append(chunk)
        noted["taken"] += len(source)
        job.writer.note(key, noted)
        job.tell("read", noted["taken"], 0)
    noted["done"] = True
    job.writer.note(key, noted)
    return noted["chunks"]


def _check_ids(job: EdgeSort, source: NDArray[Any], target: NDArray[Any], first: int) -> None:
    for name, ids in (("source", source), ("target", target)):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < _MOST_NODES:
            place = int(np.argmax((ids < 0) | (ids >= _MOST_NODES)))
            raise FileFormatError(
                f"{job.label}: edge {first + place} has the {name} {ids[place]}; expected ids from "
                "0 up, below 2^63, or give --ids names to number other ids"
            )


def _check_dense(job: EdgeSort, greatest: int, edges: int) -> None:
    if greatest > max(1 << 20, _SPARSE * edges):
        raise FileFormatError(
            f"{job.label}: {edges} edges name node {greatest}, so nearly all nodes would have "
            "none; give --ids names to number those that occur, or --num-nodes"
        )


def _describe(source: NDArray[Any], target: NDArray[Any], offset: int) -> dict[str, Any]:
    greatest = int(max(source.max(), target.max())) if len(source) else -1
    dtype = "int32" if greatest < _INT32_NODES else "int64"
    return {"edges": len(source), "dtype": dtype, "greatest": greatest, "offset": offset}


def _read_chunks(
    job: EdgeSort,
    chunks: list[dict[str, Any]],
    index: np.dtype[Any] | None,
    what: str,
    first: int = 0,
) -> Iterator[list[NDArray[Any]]]:
    """Sources, targets and, where they are kept, numbers; the former as ``index`` once all are
    known to fit, None before."""
    total = sum(chunk["edges"] for chunk in chunks)
    done = sum(chunk["edges"] for chunk in chunks[:first])
    for chunk in chunks[first:]:
        job.tell(what, done, total)
        edges, dtype = chunk["edges"], np.dtype(chunk["dtype"])
        ends = read_file(job.path("spool"), dtype, 2 * edges, chunk["offset"])
        arrays = [part.astype(index or dtype, copy=False) for part in np.split(ends, 2)]
        if job.keep_order:
            offset = chunk["offset"] + 2 * edges * dtype.itemsize
            arrays.append(read_file(job.path("spool"), _NUMBER, edges, offset))
        yield arrays
        done += edges
    job.tell(what, total, total)


# Count --------------------------------------------------------------------------------------------


def _write_indptr(
    job: EdgeSort,
    chunks: list[dict[str, Any]],
    num_sources: int,
    num_targets: int,
) -> NDArray[np.int64]:
    def read(first: int) -> Iterator[NDArray[Any]]:
        indptr = np.zeros(num_targets + 1, np.int64)
        seen = 0
        for source, target, *_ in _read_chunks(job, chunks, None, "count"):
            wrong = core.count_targets(source, target, num_sources, indptr[1:])
            if wrong >= 0:
                ends = (source[wrong], num_sources), (target[wrong], num_targets)
                _refuse_edge(job, seen + wrong, *ends)
            seen += len(source)
        np.cumsum(indptr, out=indptr)
        return cut_rows(indptr)(first)

    job.writer.write_edges("indptr", read, (num_targets + 1,), "int64", job.edge_type)
    return job.writer.open_edges("indptr", job.edge_type)


def _refuse_edge(
    job: EdgeSort, edge: int, source: tuple[int, int], target: tuple[int, int]
) -> NoReturn:
    wrong = source[0] >= source[1]
    name, (found, limit) = ("source", source) if wrong else ("target", target)
    way_out = "give the number of nodes, or mend the file"
    if job.counted:
        way_out = f"{job.counted} has {limit} rows, one for each node: mend either"
    raise FileFormatError(
        f"{job.label}: edge {edge} has the {name} {found}, outside the nodes [0, {limit}); "
        f"{way_out}"
    )


# Split --------------------------------------------------------------------------------------------


def _edge_bytes(job: EdgeSort, index: np.dtype[Any]) -> int:
    """Bytes that sorting takes for each edge: source, target, sorted source, numbers twice."""
    return 3 * index.itemsize + (16 if job.keep_order else 0)


def _choose_bounds(
    job: EdgeSort, indptr: NDArray[np.int64], index: np.dtype[Any]
) -> NDArray[np.int64]:
    """Ranges of targets whose edges fit in memory together; one target is never divided."""
    room = max(1, job.memory // _edge_bytes(job, index))
    bounds = [0]
    nodes = len(indptr) - 1
    while bounds[-1] < nodes:
        last = int(np.searchsorted(indptr, indptr[bounds[-1]] + room, side="right")) - 1
        bounds.append(min(nodes, max(last, bounds[-1] + 1)))
    return np.array(bounds if nodes else [0, 0], np.int64)


def _split(
    job: EdgeSort,
    chunks: list[dict[str, Any]],
    indptr: NDArray[np.int64],
    bounds: NDArray[np.int64],
    index: np.dtype[Any],
) -> None:
    """Writes the edges grouped by range of targets: a range's place follows from indptr."""
    key = f"split {job.key}"
    starts = [int(indptr[bound]) for bound in bounds[:-1]]
    fresh = {"memory": job.memory, "chunks": 0, "next": starts}
    noted: dict[str, Any] = job.writer.recall(key, fresh)
    for source, target, *numbers in _read_chunks(job, chunks, index, "split", noted["chunks"]):
        ends = np.empty_like(source), np.empty_like(target)
        order = np.empty_like(numbers[0]) if numbers else None
        sizes = np.empty(len(starts), np.int64)
        core.split_edges(source, target, bounds, 0, *ends, order, sizes)
        grouped = [*ends, *(number[order] for number in numbers)]
        begin = 0
        for bucket in np.flatnonzero(sizes).tolist():
            size = int(sizes[bucket])
            at = noted["next"][bucket]
            for what, array in zip(_PARTS, grouped, strict=False):
                write_at(job.path(what), at * array.itemsize, array[begin : begin + size])
            noted["next"][bucket] = at + size
            begin += size
        noted["chunks"] += 1
        job.writer.note(key, noted)
    job.path("spool").unlink(missing_ok=True)


# Sort ---------------------------------------------------------------------------------------------


def _load(
    job: EdgeSort,
    chunks: list[dict[str, Any]],
    index: np.dtype[Any],
    begin: int,
    edges: int,
    whole: bool,
) -> list[NDArray[Any]]:
    """The edges of one range of targets."""
    kinds = [index, index, *[_NUMBER] * job.keep_order]
    if not whole:
        return [
            read_file(job.path(what), kind, edges, begin * kind.itemsize)
            for what, kind in zip(_PARTS, kinds, strict=False)
        ]
    arrays: list[NDArray[Any]] = [np.empty(edges, kind) for kind in kinds]
    at = 0
    for parts in _read_chunks(job, chunks, index, "load"):
        for array, part in zip(arrays, parts, strict=True):
            array[at : at + len(part)] = part
        at += len(parts[0])
    return arrays


def _write_sorted(
    job: EdgeSort,
    chunks: list[dict[str, Any]],
    indptr: NDArray[np.int64],
    index: np.dtype[Any],
    stored: np.dtype[Any],
) -> None:
    num_edges = int(indptr[-1])

    def read(first: int) -> Iterator[NDArray[Any]]:
        bounds = _choose_bounds(job, indptr, index)
        if len(bounds) > 2:
            _split(job, chunks, indptr, bounds, index)
        for low, high in pairwise(bounds.tolist()):
            begin, end = int(indptr[low]), int(indptr[high])
            if end <= first or begin == end:
                continue
            source, target, *number = _load(
                job, chunks, index, begin, end - begin, len(bounds) == 2
            )
            indices = np.empty_like(source)
            numbers = np.empty_like(number[0]) if number else None
            fits = core.sort_edges(
                source, target, number[0] if number else None, low,
                np.asarray(indptr[low : high + 1]), indices, numbers,
                num_threads(job.threads),
            )  # fmt: skip
            del source, target, number
            if not fits:
                raise StorageError(
                    f"{job.writer.scratch}: the edges in it are not those that were counted: "
                    "something else changed it; start again"
                )
            if numbers is not None:
                write_at(job.path("sorted_number"), begin * 8, numbers)
            blocks = cut_rows(indices)(max(0, first - begin))
            yield from (block.astype(stored, copy=False) for block in blocks)
            del blocks, indices, numbers  # before the next range comes into memory

    job.writer.write_edges("indices", read, (num_edges,), stored.name, job.edge_type)
    if job.keep_order and not job.numbers_apart:

        def read_numbers(first: int) -> Iterator[NDArray[Any]]:
            for begin in range(first, num_edges, _BLOCK_EDGES):
                edges = min(_BLOCK_EDGES, num_edges - begin)
                yield read_file(job.path("sorted_number"), _NUMBER, edges, begin * 8)

        job.writer.write_edges("edge_id", read_numbers, (num_edges,), "int64", job.edge_type)
    job.writer.note(f"sorted {job.key}", True)
    for what in ("spool", *_PARTS, *["sorted_number"] * (not job.numbers_apart)):
        job.path(what).unlink(missing_ok=True)


def sorted_numbers(job: EdgeSort) -> NDArray[np.int64]:
    """(edges,) what ``write_csc`` left of a job with ``numbers_apart``, mapped."""
    path = job.path("sorted_number")
    return np.memmap(path, _NUMBER, "r") if path.exists() else np.empty(0, _NUMBER)


def permute_rows(
    rows: NDArray[Any], order: NDArray[np.int64], shared: int, dtype: str
) -> RowReader:
    """Reads ``rows[order // shared]``: edge attributes in CSC order, given the table edge_id.

    bfloat16 is left as its bits.
    """
    kind = rows.dtype.newbyteorder("=") if dtype == "bfloat16" else np.dtype(dtype)
    step = max(1, (8 << 20) // max(1, rows[:1].nbytes))

    def read(first: int) -> Iterator[NDArray[Any]]:
        for start in range(first, len(order), step):
            part = np.asarray(order[start : start + step])
            yield rows[part // shared].astype(kind, copy=False)

    return read


def cut_edges(index: NDArray[Any], step: int = 1 << 20) -> EdgeReader:
    """Reads (2, edges) in blocks of ``step``."""

    def read(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for start in range(first, index.shape[1], step):
            source, target = np.ascontiguousarray(index[:, start : start + step])
            yield source, target

    return read
