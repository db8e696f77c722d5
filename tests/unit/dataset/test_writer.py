"""DatasetWriter: the same bytes whatever the blocks, kills and continuations, and no litter."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.dataset import writer as folder_writer
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, read_manifest
from gnnsys.dataset.writer import DatasetWriter, RowReader, cut_rows
from gnnsys.errors import ArgumentError, DTypeError, GnnsysError, StorageError
from gnnsys.system.files import lock_file

PROPERTY = settings(deadline=None, print_blob=True, max_examples=25)
ROWS = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)


class Killed(BaseException):
    """Stands for a signal: no ``except Exception`` handles it."""


def in_blocks(rows: NDArray[Any], sizes: list[int]) -> RowReader:
    """Reads rows in blocks of these sizes, and the rest in one."""

    def read(first: int) -> Iterator[NDArray[Any]]:
        for size in sizes:
            yield rows[first : first + size]
            first += size
        yield rows[first:]

    return read


def write_graph(
    path: Path, rows: NDArray[Any] = ROWS, read: RowReader | None = None, **options: Any
) -> Path:
    """A graph without edges and with these features."""
    with DatasetWriter(path, name="some", **options) as writer:
        writer.add_nodes(len(rows))
        writer.add_edges(0)
        writer.write_nodes("features", read or cut_rows(rows), rows.shape, rows.dtype.name)
        indptr = np.zeros(len(rows) + 1, np.int64)
        writer.write_edges("indptr", cut_rows(indptr), indptr.shape, "int64")
        writer.write_edges("indices", cut_rows(indptr[:0]), (0,), "int64")
        return writer.commit()


def work_and_die(
    path: Path,
    error: type[BaseException],
    work: Callable[[DatasetWriter], None] = lambda writer: None,
    **options: Any,
) -> None:
    with DatasetWriter(path, name="some", **options) as writer:
        work(writer)
        raise error


def contents(folder: Path) -> dict[str, bytes]:
    """All files, by their place in the folder."""
    return {
        str(place.relative_to(folder)): place.read_bytes()
        for place in folder.rglob("*")
        if place.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def test_tables_are_plain_npy_on_whole_pages(tmp_path: Path) -> None:
    folder = write_graph(tmp_path / "g")
    assert names(tmp_path) == ["g"]
    assert names(folder) == ["features.npy", "graph.json", "indices.npy", "indptr.npy"]
    mapped = np.load(folder / "features.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, ROWS)
    assert (folder / "features.npy").read_bytes()[4096:] == ROWS.tobytes()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_a_table_without_elements_can_be_mapped_by_every_numpy(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    with DatasetWriter(tmp_path / "g", name="some") as writer:
        writer.add_nodes(3)
        rows = np.zeros(shape, np.float32)
        writer.write_nodes("train", cut_rows(rows), shape, "float32")
        place = writer.partial / "data" / "train.npy"
        assert np.load(place, mmap_mode="r").shape == shape
        # numpy 1.26 maps whole pages, and cannot where the header has ended on one.
        assert 0 < place.stat().st_size < 4096


@PROPERTY
@given(st.lists(st.integers(0, 30), max_size=6))
def test_blocks_of_any_length_give_the_same_bytes(sizes: list[int]) -> None:
    with TemporaryDirectory() as place:
        expected = contents(write_graph(Path(place) / "whole"))
        assert contents(write_graph(Path(place) / "cut", read=in_blocks(ROWS, sizes))) == expected


def test_checksums_are_the_crc32_of_each_16_mib(tmp_path: Path) -> None:
    rows = np.arange(9 << 20, dtype=np.int32)  # 36 MiB
    folder = write_graph(tmp_path / "g", rows, in_blocks(rows, [5, 1 << 20, 7 << 20]))
    table = read_manifest(folder).nodes[NODE_TYPE].tables["features"]
    data, step = rows.tobytes(), 16 << 20
    expected = [f"{zlib.crc32(data[at : at + step]):08x}" for at in range(0, len(data), step)]
    assert list(table.shards[0].crc32) == expected
    assert table.shards[0].bytes == (folder / "features.npy").stat().st_size


def test_bfloat16_is_stored_as_its_bits(tmp_path: Path) -> None:
    values = torch.from_numpy(ROWS).to(torch.bfloat16)
    bits = values.view(torch.uint16).numpy()
    with DatasetWriter(tmp_path / "g", name="some") as writer:
        writer.add_nodes(50)
        writer.write_nodes("features", cut_rows(bits), bits.shape, "bfloat16")
        folder = writer.commit()
    content = json.loads((folder / "graph.json").read_text())
    encoding = content["nodes"]["node"]["tables"]["features"]["encoding"]
    assert encoding == {"dtype": "bfloat16", "scale": None, "scales": [], "row_stride": 6}
    stored = np.load(folder / "features.npy")
    assert torch.equal(torch.from_numpy(stored).view(torch.bfloat16), values)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_nan_are_counted_and_infinities_are_not(dtype: str, tmp_path: Path) -> None:
    values = torch.tensor([1.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0])
    cast = values.to(getattr(torch, dtype))
    rows = (cast.view(torch.uint16) if dtype == "bfloat16" else cast).numpy()
    with DatasetWriter(tmp_path / "g", name="some") as writer:
        writer.add_nodes(6)
        writer.write_nodes("features", in_blocks(rows, [2]), (6,), dtype)
        writer.write_nodes("labels", cut_rows(np.zeros(6)), (6,), "float64")
        assert writer.nan == {"features": 2}


def test_types_of_a_heterogeneous_graph_have_folders(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "g", name="some", heterogeneous=True) as writer:
        writer.add_nodes(2, "paper")
        writer.add_edges(1, ("paper", "cites", "paper"))
        writer.write_nodes("time", cut_rows(np.array([3, 4])), (2,), "int64", "paper")
        indptr, indices = np.array([0, 0, 1]), np.array([1], np.int32)
        for name, rows in (("indptr", indptr), ("indices", indices)):
            edge_type = ("paper", "cites", "paper")
            writer.write_edges(name, cut_rows(rows), rows.shape, rows.dtype.name, edge_type)
        folder = writer.commit()
    assert np.load(folder / "nodes" / "paper" / "time.npy").tolist() == [3, 4]
    assert np.load(folder / "edges" / "paper__cites__paper" / "indices.npy").tolist() == [1]
    assert list(read_manifest(folder).nodes) == ["paper"]


def test_a_folder_that_is_there_and_empty_is_filled(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    assert "graph.json" in names(write_graph(tmp_path / "g"))


# Continuing ---------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.integers(0, 49), max_size=4), st.integers(1, 12), st.integers(1, 200))
def test_a_killed_table_goes_on_where_it_was_noted(
    kills: list[int], block: int, save_bytes: int
) -> None:
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_writer, "_SAVE_BYTES", save_bytes)
        expected = contents(write_graph(Path(place) / "whole"))
        begun = []

        def read(first: int, kill: int) -> Iterator[NDArray[Any]]:
            begun.append(first)
            for start in range(first, kill, block):
                yield ROWS[start : min(start + block, kill)]
            if kill < 50:
                raise Killed

        for kill in kills:
            with pytest.raises(Killed):
                write_graph(Path(place) / "g", read=partial(read, kill=kill))
            assert not (Path(place) / "g").exists()
        folder = write_graph(Path(place) / "g", read=partial(read, kill=50))
        assert contents(folder) == expected
        assert begun == sorted(begun)  # what was noted is not written again
        assert names(Path(place)) == ["g", "whole"]


def test_rows_that_a_power_failure_took_are_written_again(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "indptr":
            raise Killed

    expected = contents(write_graph(tmp_path / "whole"))
    with pytest.raises(Killed):
        write_graph(tmp_path / "g", progress=stop)
    os.truncate(tmp_path / "g.partial" / "data" / "features.npy", 4096 + 10)
    assert contents(write_graph(tmp_path / "g")) == expected


def test_notes_survive(tmp_path: Path) -> None:
    def work(writer: DatasetWriter) -> None:
        writer.note("far", [1, 2])
        writer.note("gone", 1)
        writer.forget("gone")

    with pytest.raises(Killed):
        work_and_die(tmp_path / "g", Killed, work)
    with DatasetWriter(tmp_path / "g", name="some") as writer:
        assert writer.recall("far", None) == [1, 2]
        assert writer.recall("gone", 5) == 5


def test_a_kill_just_before_the_end_leaves_nothing_to_trip_over(tmp_path: Path) -> None:
    expected = contents(write_graph(tmp_path / "whole"))
    with pytest.raises(Killed):
        work_and_die(tmp_path / "g", Killed)
    # As after the rename: the data has its name, what it was made with is still there.
    shutil.rmtree(tmp_path / "g.partial" / "data")
    assert contents(write_graph(tmp_path / "g")) == expected
    assert names(tmp_path) == ["g", "whole"]


# Refusing -----------------------------------------------------------------------------------------


def test_an_error_leaves_nothing_and_an_interrupt_leaves_the_work(tmp_path: Path) -> None:
    def work(writer: DatasetWriter) -> None:
        writer.add_nodes(50)
        writer.write_nodes("features", cut_rows(ROWS), ROWS.shape, "float32")

    for error in (ValueError, GnnsysError):
        with pytest.raises(error):
            work_and_die(tmp_path / "g", error, work)
        assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        work_and_die(tmp_path / "g", KeyboardInterrupt, work)
    assert names(tmp_path) == ["g.partial"]


def make_file(path: Path) -> None:
    path.touch()


def make_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


def make_link(path: Path) -> None:
    (path.parent / "other").mkdir()
    path.symlink_to(path.parent / "other")


def make_loose_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [make_file, make_full_folder, make_link, make_loose_link])
def test_nothing_is_overwritten(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "g")
    before = names(tmp_path)
    with pytest.raises(ArgumentError, match=r"/g: exists already and is not overwritten; remove"):
        write_graph(tmp_path / "g")
    assert names(tmp_path) == before


@pytest.mark.parametrize("inside", ["mine", "data", "scratch", "graph.json", "state.json"])
def test_a_folder_of_somebody_else_under_the_partial_name_is_left_alone(
    inside: str, tmp_path: Path
) -> None:
    (tmp_path / "g.partial").mkdir()
    (tmp_path / "g.partial" / inside).write_text("[]")
    with pytest.raises(ArgumentError, match=r"g\.partial: holds something else than an unfinished"):
        write_graph(tmp_path / "g")
    assert (tmp_path / "g.partial" / inside).read_text() == "[]"


def test_another_fingerprint_is_refused_and_the_work_stays(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work_and_die(tmp_path / "g", Killed, fingerprint="one")
    with pytest.raises(ArgumentError, match=r"g\.partial: an unfinished conversion of another"):
        write_graph(tmp_path / "g", fingerprint="two")
    assert names(tmp_path) == ["g.partial"]
    write_graph(tmp_path / "g", fingerprint="one")
    assert names(tmp_path) == ["g"]


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "g", name="some") as writer:
        with pytest.raises(
            ArgumentError, match=r"g\.partial: process \d+ on .* is writing it; wait"
        ):
            write_graph(tmp_path / "g")
        writer.add_nodes(0)
        writer.add_edges(0)
        none = np.zeros(1, np.int64)
        writer.write_edges("indptr", cut_rows(none), (1,), "int64")
        writer.write_edges("indices", cut_rows(none[:0]), (0,), "int64")
        writer.commit()
    assert names(tmp_path) == ["g"]
    assert read_manifest(tmp_path / "g").edges[EDGE_TYPE].count == 0


def test_a_writer_that_got_the_lock_of_one_that_finished_is_refused(tmp_path: Path) -> None:
    """Between looking at the target and locking, another process may finish."""
    place = tmp_path / "g"
    with pytest.MonkeyPatch.context() as patch:

        def finish_first(path: Path) -> Any:
            patch.undo()
            write_graph(place)
            return lock_file(path)

        patch.setattr(folder_writer, "lock_file", finish_first)
        with pytest.raises(ArgumentError, match="exists already"):
            write_graph(place)
    assert names(tmp_path) == ["g"]


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([ROWS[:49]], "49 rows, expected 50"),
        ([ROWS, ROWS[:1]], "more than the 50 rows expected"),
        ([ROWS.astype(np.float64)], r"a block of float64 \(50, 3\), expected float32 rows"),
        ([ROWS[:, :2]], r"a block of float32 \(50, 2\), expected float32 rows of \(3,\)"),
        ([ROWS.astype(">f4")], "a block of >f4"),
        ([], "0 rows, expected 50"),
    ],
)
def test_blocks_that_do_not_fit_the_table_are_refused(
    blocks: list[NDArray[Any]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=f"features: {says}"):
        write_graph(tmp_path / "g", read=lambda first: iter(blocks))
    assert names(tmp_path) == []


@pytest.mark.parametrize("dtype", ["object", "str32", "datetime64[s]", "float128", "float32,int8"])
def test_elements_that_are_no_numbers_are_refused(dtype: str, tmp_path: Path) -> None:
    def work(writer: DatasetWriter) -> None:
        writer.add_nodes(0)
        writer.write_nodes("features", cut_rows(np.zeros(0)), (0,), dtype)

    with pytest.raises(DTypeError, match="features: elements of type"):
        work_and_die(tmp_path / "g", Killed, work)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"g\.partial: cannot be written \(Not a directory\)"):
        write_graph(tmp_path / "file" / "g")
    with pytest.raises(StorageError, match=r"cannot be written \(File name too long\)"):
        write_graph(tmp_path / ("g" * 300))
    with pytest.raises(ArgumentError, match="exists already"):
        write_graph(Path("/"))
    user = os.geteuid()
    if user != 0:
        pytest.skip("only root can become a user who may not write here")
    os.chmod(tmp_path, 0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(StorageError) as caught:
            write_graph(tmp_path / "g")
    finally:
        os.seteuid(user)
    assert "Permission denied" in str(caught.value)
    assert names(tmp_path) == ["file"]
