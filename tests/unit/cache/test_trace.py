"""Trace files: what was recorded is read back, and nothing else passes for a trace."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.trace import Trace, TraceWriter, read_trace
from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    MissingFileError,
    RowIndexError,
    StorageError,
)


def record(path: Path, batches: Iterable[Any], num_rows: int) -> Path:
    with TraceWriter(path, num_rows) as writer:
        for ids in batches:
            writer.add(ids)
    return path


@settings(deadline=None, max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 49), max_size=9), max_size=6),
    num_rows=st.sampled_from([50, 1 << 31, (1 << 31) + 1, 1 << 62]),
)
def test_a_trace_holds_the_batches_that_were_recorded(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], num_rows: int
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t"
    trace = read_trace(record(path, batches, num_rows))
    assert trace.num_rows == num_rows
    assert [ids.tolist() for ids in trace] == batches
    assert all(ids.dtype == np.int64 for ids in trace)
    assert trace.num_ids == sum(map(len, batches))
    assert [ids.tolist() for ids in trace[1:-1]] == batches[1:-1]
    assert list(path.parent.iterdir()) == [path]


def test_the_largest_ids_of_either_width_are_kept(tmp_path: Path) -> None:
    for rows in (1 << 31, 1 << 40):
        path = record(tmp_path / "t", [np.array([rows - 1, 0])], rows)
        assert read_trace(path)[-1].tolist() == [rows - 1, 0]


def test_an_id_takes_four_bytes_where_it_fits(tmp_path: Path) -> None:
    ids = np.arange(1000)
    for rows, itemsize in ((1 << 31, 4), (1 << 32, 8)):
        path = record(tmp_path / "t", [ids], rows)
        found = np.load(path / "ids.npy", mmap_mode="r")
        assert (found.itemsize, found.tolist()) == (itemsize, ids.tolist())
        assert np.load(path / "offsets.npy").tolist() == [0, len(ids)]


def test_nothing_has_the_name_before_the_end(tmp_path: Path) -> None:
    path = record(tmp_path / "t", [[1]], 5)
    writer = TraceWriter(path, 5)
    writer.add([2, 3])
    assert read_trace(path)[0].tolist() == [1]
    writer.close()
    writer.close()
    assert read_trace(path)[0].tolist() == [2, 3]
    with pytest.raises(ArgumentError, match="closed"):
        writer.add([1])


def test_an_error_while_recording_leaves_nothing(tmp_path: Path) -> None:
    def bad_ids() -> Iterator[list[int]]:
        yield [1]
        raise KeyError

    with pytest.raises(KeyError):
        record(tmp_path / "t", bad_ids(), 5)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "t.new").mkdir()
    (tmp_path / "t.new" / "ids.npy").write_bytes(b"x" * 10_000)
    (tmp_path / "t.new" / "lock").touch()
    assert len(read_trace(record(tmp_path / "t", [], 5))) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "ids.npy", "offsets.npy", "rows.npy", "t",
    ]  # fmt: skip


def test_a_file_of_the_name_makes_room_and_another_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"gnntrace")
    assert len(read_trace(record(tmp_path / "t", [[1]], 5))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ids.npy").touch()
    with pytest.raises(StorageError, match="mine: a folder that is no trace"):
        TraceWriter(tmp_path / "mine", 5)
    assert (tmp_path / "mine" / "ids.npy").exists()


def test_two_writers_of_one_name_are_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", 5) as first:
        first.add([4])
        with pytest.raises(StorageError, match="another writer"):
            TraceWriter(tmp_path / "t", 5)
    assert read_trace(tmp_path / "t")[0].tolist() == [4]


def test_wrong_batches_are_refused_by_name(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", 5) as writer:
        for ids, wrong in (([0, 5], "5 is outside"), ([-1], "-1 is outside")):
            with pytest.raises(RowIndexError, match=wrong):
                writer.add(ids)
        with pytest.raises(ArgumentError, match=r"shape \(1, 1\)"):
            writer.add([[1]])
        with pytest.raises(DTypeError, match="float64"):
            writer.add([0.5])
        writer.add(np.array([], np.float32))
        writer.add(np.array([4], np.uint16))
    assert [ids.tolist() for ids in read_trace(tmp_path / "t")] == [[], [4]]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="nowhere/t"):
        TraceWriter(tmp_path / "nowhere" / "t", 5)
    with pytest.raises(StorageError, match="folder"):
        TraceWriter(tmp_path / "folder", 5)
    with pytest.raises(ArgumentError, match="num_rows: -1"):
        TraceWriter(tmp_path / "t", -1)


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_trace(tmp_path / "none")
    (tmp_path / "old").write_bytes(b"gnntrace\1\0\0\0" + bytes(60))
    for place in (tmp_path, tmp_path / "old"):
        with pytest.raises(FileFormatError, match=r"not a trace.*older versions.*--trace FILE"):
            read_trace(place)
    path = record(tmp_path / "t", [[1, 2], [3]], 5)
    whole = (path / "ids.npy").read_bytes()
    (path / "ids.npy").write_bytes(whole[:-1])
    with pytest.raises(FileFormatError, match=r"ids\.npy: not a whole \.npy array"):
        read_trace(path)
    (path / "ids.npy").write_bytes(whole)
    offsets = path / "offsets.npy"
    for wrong in ([0, 4, 3], [0, 2], [1, 2, 3], [], [0.0, 2.0, 3.0], [[0, 2, 3]]):
        np.save(offsets, np.array(wrong))
        with pytest.raises(FileFormatError, match=r"offsets\.npy does not ascend from 0"):
            read_trace(path)
    np.save(offsets, np.array([0, 2, 3]))
    for rows in (-1, [5]):
        np.save(path / "rows.npy", np.array(rows))
        with pytest.raises(FileFormatError, match="damaged"):
            read_trace(path)
    np.save(path / "rows.npy", np.array(2))
    trace = read_trace(path)
    with pytest.raises(FileFormatError, match="batch 0 holds the id 2, outside"):
        trace[0]
    (path / "offsets.npy").unlink()
    with pytest.raises(MissingFileError, match="offsets"):
        read_trace(path)


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TraceWriter(tmp_path / "t", 5)
    writer.add([4])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"t.new/ids.npy: cannot be written"):
            writer.add([4])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArgumentError, match="closed"):
        writer.add([4])


def test_a_trace_is_a_sequence() -> None:
    trace = Trace(np.array([7, 8, 9]), np.array([0, 1, 1, 3]), num_rows=10)
    assert [len(ids) for ids in trace] == [1, 0, 2]
    assert trace[-1].tolist() == [8, 9]
    assert [ids.tolist() for ids in trace[2:][:1]] == [[8, 9]]
    assert len(trace[3:1]) == 0
    with pytest.raises(IndexError):
        trace[3]
    with pytest.raises(ArgumentError, match="step 2"):
        trace[::2]
