"""However a file is read, its rows are those of the array, and each page is read once."""

from __future__ import annotations

import ctypes
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.memory import FileStore, Reads, StagedRows
from gnnsys.memory.direct_rows import uring_refusal
from gnnsys.memory.encoding import SUPPORTED_DTYPES

MODES = ["mmap", "pread"] + ([] if uring_refusal() else ["uring"])
DIRECT = MODES[1:]
ROW_BYTES = [0, 1, 100, 2048, 4096, 10_000]


def table(rows: int, row_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), dtype=np.uint8)


def rows_of(staged: StagedRows, row_bytes: int) -> np.ndarray:
    rows = [ctypes.string_at(staged.address + at, row_bytes) for at in staged.offsets.tolist()]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), row_bytes)


def save_shards(folder: Path, values: np.ndarray, cuts: list[int]) -> list[Path]:
    paths = [folder / f"x{number}.npy" for number in range(len(cuts) - 1)]
    for path, (first, last) in zip(paths, pairwise(cuts), strict=True):
        np.save(path, values[first:last])
    return paths


def pages_of(ids: list[int], row_bytes: int, offset: int) -> set[int]:
    """Every page that holds a byte of one of the rows, byte by byte."""
    return {
        (offset + row * row_bytes + byte) // 4096
        for row in ids
        for byte in {*range(0, row_bytes, 4096), row_bytes - 1}
    }


@pytest.mark.parametrize("storage", MODES)
@pytest.mark.parametrize("row_bytes", ROW_BYTES)
@pytest.mark.parametrize("cuts", [[0, 301], [0, 1, 130, 130, 301]])
def test_rows_equal_fancy_indexing_for_every_way_to_read(
    storage: str, row_bytes: int, cuts: list[int], tmp_path: Path
) -> None:
    values = table(301, row_bytes)
    store = FileStore(save_shards(tmp_path, values, cuts), storage=storage, threads=2)
    assert (store.storage, tuple(store.shape)) == (storage, (301, row_bytes))
    draw = np.random.default_rng(1)
    for ids in [[0], [300], [300, 0, 300], [], range(301), draw.integers(0, 301, 900)]:
        wanted = torch.tensor(list(ids), dtype=torch.int64)
        assert np.array_equal(store.gather(wanted).numpy(), values[list(ids)])
        assert np.array_equal(store.gather(wanted.int()).numpy(), values[list(ids)])
        unique = wanted.unique()
        staged = store.start_reads(Reads(unique.numpy())).wait()
        assert np.array_equal(rows_of(staged, row_bytes), values[unique.numpy()])
    assert np.array_equal(store.read_range(0, len(values)).numpy(), values)
    for first, last in [(0, 0), (0, 1), (129, 131), (300, 301), (5, 299)]:
        assert np.array_equal(store.read_range(first, last).numpy(), values[first:last])


@pytest.mark.parametrize("storage", MODES)
@pytest.mark.parametrize("offset", [0, 7, 4096, 5000])
def test_raw_files_are_read_from_any_offset(storage: str, offset: int, tmp_path: Path) -> None:
    values = table(50, 1000)
    (tmp_path / "x").write_bytes(bytes(offset) + values.tobytes())
    store = FileStore(
        tmp_path / "x", shape=(50, 1000), encoding=torch.uint8, offset=offset, storage=storage
    )
    ids = torch.tensor([49, 3, 3, 0])
    assert np.array_equal(store.gather(ids).numpy(), values[ids.numpy()])
    assert np.array_equal(store.read_range(0, len(values)).numpy(), values)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    inner=st.lists(st.integers(0, 40), max_size=2),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    delivered=st.sampled_from([None, torch.float32]),
    cuts=st.lists(st.integers(0, 400), max_size=3),
    count=st.integers(0, 700),
    storage=st.sampled_from(MODES),
    depth=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_table_is_gathered_and_scanned_bit_for_bit(
    rows: int,
    inner: list[int],
    dtype: torch.dtype,
    delivered: torch.dtype | None,
    cuts: list[int],
    count: int,
    storage: str,
    depth: int,
    seed: int,
) -> None:
    if dtype.is_complex:
        delivered = None
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 100, (rows, *inner), generator=draw).to(dtype)
    ids = torch.randint(0, rows, (count,), generator=draw)
    encoding = dtype if dtype == torch.bfloat16 else None
    in_file = (values.view(torch.int16) if encoding else values).numpy()
    with tempfile.TemporaryDirectory() as folder:
        bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
        paths = save_shards(Path(folder), in_file, bounds)
        store = FileStore(paths, encoding=encoding, dtype=delivered, storage=storage, depth=depth)
        expected = values.to(delivered or dtype)
        assert torch.equal(store.gather(ids), expected[ids])
        out = torch.empty_like(expected[ids])
        assert store.gather(ids, out=out) is out
        assert torch.equal(out, expected[ids])
        low, high = sorted(torch.randint(0, rows + 1, (2,), generator=draw).tolist())
        assert torch.equal(store.read_range(low, high), expected[low:high])
        served = store.counters.served("file")
        assert served.rows == 2 * count + high - low
        assert served.bytes == served.rows * store.row_bytes
        store.close()


@settings(max_examples=60, deadline=None)
@given(
    row_bytes=st.sampled_from([1, 100, 2048, 4096, 10_000]),
    ids=st.sets(st.integers(0, 299)),
    storage=st.sampled_from(DIRECT),
    padded=st.booleans(),
)
def test_each_page_that_holds_a_wanted_row_is_read_once_and_no_other(
    row_bytes: int, ids: set[int], storage: str, padded: bool
) -> None:
    offset, ordered = 4096 if padded else 128, sorted(ids)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = Path(folder) / "x"
        path.write_bytes(bytes(offset) + table(300, row_bytes).tobytes())
        store = FileStore(
            path, shape=(300, row_bytes), encoding=torch.uint8, offset=offset, storage=storage
        )
        staged = store.start_reads(Reads(np.array(ordered, np.int64))).wait()
        pages = pages_of(ordered, row_bytes, offset)
        assert staged.pages == len(pages)
        # What comes back is whole pages, but for the last of the file.
        size = path.stat().st_size
        assert staged.bytes_read == sum(min(4096, size - page * 4096) for page in pages)
        runs = sum(page - 1 not in pages for page in pages)
        assert runs <= staged.requests <= runs + len(pages) // 16
        stats = store.read_stats
        assert (stats.rows, stats.requests) == (len(ids), staged.requests)
        assert (stats.pages, stats.bytes_read) == (staged.pages, staged.bytes_read)
        store.close()


@pytest.mark.parametrize("storage", MODES)
def test_many_reads_may_be_outstanding_and_waited_for_in_any_order(
    storage: str, tmp_path: Path
) -> None:
    values = table(5000, 300)
    np.save(tmp_path / "x.npy", values)
    store = FileStore(tmp_path / "x.npy", storage=storage, depth=8)
    draw = np.random.default_rng(0)
    lists = [np.unique(draw.integers(0, 5000, 400)) for _ in range(12)]
    pending = [store.start_reads(Reads(ids)) for ids in lists]
    pending[3].cancel()
    del pending[7], lists[7]  # let go without a word
    order = [place for place in draw.permutation(len(pending)) if place != 3]
    staged = {int(place): pending[place].wait() for place in order}
    del pending, store  # the rows outlive what read them
    for place, rows in staged.items():
        assert np.array_equal(rows_of(rows, 300), values[lists[place]])


@pytest.mark.parametrize("storage", DIRECT)
def test_a_gather_larger_than_the_staging_memory_equals_fancy_indexing(
    storage: str, tmp_path: Path
) -> None:
    values = table(3000, 9000)
    np.save(tmp_path / "x.npy", values)
    store = FileStore(tmp_path / "x.npy", storage=storage)
    ids = np.random.default_rng(3).integers(0, 3000, 4000)
    assert np.array_equal(store.gather(torch.from_numpy(ids)).numpy(), values[ids])
    assert np.array_equal(store.read_range(0, len(values)).numpy(), values)
