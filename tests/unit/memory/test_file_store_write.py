"""Writing rows of a .npy file: what is read back is what numpy's assignment makes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    GnnsysError,
    ReadOnlyError,
    RowIndexError,
    StorageError,
)
from gnnsys.memory import FileStore, Storage
from gnnsys.memory.encoding import SUPPORTED_DTYPES

PROPERTY = settings(deadline=None, print_blob=True)


def some(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.bool or not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=draw).to(dtype)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def bits(values: Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@PROPERTY
@given(
    st.sampled_from(SUPPORTED_DTYPES),
    st.integers(1, 40),
    st.lists(st.integers(0, 5), max_size=2),
    st.lists(st.lists(st.integers(0, 1 << 20), max_size=30), min_size=1, max_size=4),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_writes_equal_assignments_to_an_array(
    dtype: torch.dtype,
    num_rows: int,
    inner: list[int],
    writes: list[list[int]],
    id_type: torch.dtype,
) -> None:
    shape = (num_rows, *inner)
    expected = torch.zeros(shape, dtype=dtype)
    with TemporaryDirectory() as place:
        store = FileStore.create(f"{place}/x.npy", shape, dtype)
        for seed, drawn in enumerate(writes):
            ids = [row % num_rows for row in drawn]
            rows = some((len(ids), *inner), dtype, seed)
            store.write(torch.tensor(ids, dtype=id_type), rows)
            for row, value in zip(ids, rows, strict=True):  # one by one: the last of two stays
                expected[row] = value
        everything = torch.arange(num_rows)
        assert bits(store.gather(everything)) == bits(expected)
        stored = np.load(f"{place}/x.npy", mmap_mode="r")
        assert stored.shape == shape
        assert stored.tobytes() == bits(expected)
        assert stored.dtype.name == ("uint16" if dtype == torch.bfloat16 else str(dtype)[6:])


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_a_new_file_holds_zeros_from_byte_4096_and_takes_no_room(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    store = FileStore.create(tmp_path / "x.npy", (1 << 20, 4), dtype)
    assert not store.gather(torch.tensor([0, (1 << 20) - 1])).any()
    found = (tmp_path / "x.npy").stat()
    assert found.st_size == 4096 + (4 << 20) * dtype.itemsize
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("storage", ["mmap", "pread"])
@pytest.mark.parametrize("row_bytes", [24, 4096])
def test_ranges_are_written_across_files_as_into_an_array(
    storage: Storage, row_bytes: int, tmp_path: Path
) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (300, row_bytes), np.uint8)
    paths = [tmp_path / f"{part}.npy" for part in range(3)]
    for path, part in zip(paths, np.split(expected, 3), strict=True):
        np.save(path, part)
    store = FileStore(paths, writable=True, storage=storage)
    for first, count in ((0, 300), (90, 20), (100, 100), (299, 1), (5, 0), (300, 0), (37, 223)):
        rows = some((count, row_bytes), torch.uint8, first + count)
        store.write_range(first, rows)
        expected[first : first + count] = rows.numpy()
        assert np.array_equal(store.read_range(0, 300).numpy(), expected)
    assert np.array_equal(np.concatenate([np.load(path) for path in paths]), expected)


def test_ranges_are_cast_and_checked_as_rows_are(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (4, 3), torch.bfloat16)
    rows = some((3, 3), torch.float64, 5).requires_grad_()
    store.write_range(1, rows.T)
    assert torch.equal(store.read_range(1, 4), rows.detach().T.to(torch.bfloat16))
    before = (tmp_path / "x.npy").read_bytes()
    for first, shape in ((2, (3, 3)), (-1, (2, 3))):
        with pytest.raises(RowIndexError, match=r"are not within \[0, 4\)"):
            store.write_range(first, torch.ones(shape))
    for shape in ((2, 4), (2,), ()):
        with pytest.raises(ArgumentError, match=r"rows: shape .* on cpu, expected \([02], 3\)"):
            store.write_range(0, torch.ones(shape))
    with pytest.raises(ReadOnlyError, match="open it with writable"):
        FileStore(tmp_path / "x.npy", encoding=torch.bfloat16).write_range(0, torch.ones(1, 3))
    assert (tmp_path / "x.npy").read_bytes() == before


def test_rows_are_cast_to_the_type_of_the_file(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (3, 2), torch.bfloat16)
    rows = some((3, 2), torch.float64, 5)
    store.write(torch.tensor([2, 0, 1]), rows)
    assert torch.equal(store.gather(torch.tensor([2, 0, 1])), rows.to(torch.bfloat16))
    wide = store.with_dtype(torch.float32)
    assert torch.equal(wide.gather(torch.tensor([2])), rows[:1].to(torch.bfloat16).float())
    wide.write(torch.tensor([1]), torch.ones(1, 2))
    assert store.gather(torch.tensor([1])).tolist() == [[1, 1]]


def test_views_and_tensors_of_a_computation_are_written(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (4, 3), torch.complex64)
    rows = some((3, 4), torch.complex64, 1).requires_grad_()
    for view in (rows.T, rows.T.conj(), -rows.T.conj().imag, rows.T.imag._neg_view()):
        store.write(torch.arange(4), view)
        assert torch.equal(store.read_range(0, 4), view.detach().to(torch.complex64).clone())
    one = FileStore.create(tmp_path / "one.npy", (1, 1), torch.float32)
    one.write(torch.tensor([0]), torch.arange(9.0).view(1, 9)[:, 4::3][:, :1])
    assert one.read_range(0, 1).tolist() == [[4]]


def test_an_existing_file_is_written_in_place(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "x.npy", values)  # its data do not begin on a page
    store = FileStore(tmp_path / "x.npy", writable=True)
    store.write(torch.tensor([1, 2]), torch.full((2, 3), -1.0))
    values[1:3] = -1
    assert np.array_equal(np.load(tmp_path / "x.npy"), values)


def test_raw_files_are_written_behind_their_offset(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"head" + bytes(24))
    store = FileStore(
        tmp_path / "x.bin", shape=(3, 2), encoding=torch.float32, offset=4, writable=True
    )
    store.write(torch.tensor([2]), torch.ones(1, 2))
    expected = b"head" + bytes(16) + np.ones(2, np.float32).tobytes()
    assert (tmp_path / "x.bin").read_bytes() == expected


def test_what_is_written_is_seen_by_stores_that_are_open(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (5, 2))
    reader = FileStore(tmp_path / "x.npy")
    copy = pickle.loads(pickle.dumps(store))
    store.write(torch.tensor([3]), torch.ones(1, 2))
    assert reader.gather(torch.tensor([3])).tolist() == [[1, 1]]
    copy.write(torch.tensor([3]), 2 * torch.ones(1, 2))
    assert store.gather(torch.tensor([3])).tolist() == [[2, 2]]


def test_no_ids_write_nothing(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (5, 2))
    before = (tmp_path / "x.npy").read_bytes()
    store.write(torch.empty(0, dtype=torch.int64), torch.empty(0, 2))
    assert (tmp_path / "x.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("ids", "rows", "error", "says"),
    [
        ([0, 5], (2, 2), RowIndexError, r"id 5 at position 1 is outside the rows \[0, 5\)"),
        ([-1, 0], (2, 2), RowIndexError, "id -1 at position 0"),
        ([0, 1], (3, 2), ArgumentError, r"rows: shape \(3, 2\) on cpu, expected \(2, 2\)"),
        ([0, 1], (2, 3), ArgumentError, r"rows: shape \(2, 3\)"),
        ([0, 1], (4,), ArgumentError, r"rows: shape \(4,\)"),
        ([[0, 1]], (2, 2), ArgumentError, "ids: 2 dimensions"),
        ([0.0, 1.0], (2, 2), DTypeError, "ids: dtype torch.float32"),
    ],
)
def test_ids_and_rows_that_do_not_fit_write_nothing(
    ids: list[Any], rows: tuple[int, ...], error: type[GnnsysError], says: str, tmp_path: Path
) -> None:
    store = FileStore.create(tmp_path / "x.npy", (5, 2))
    before = (tmp_path / "x.npy").read_bytes()
    with pytest.raises(error, match=says):
        store.write(torch.tensor(ids), torch.ones(rows))
    assert (tmp_path / "x.npy").read_bytes() == before


def test_a_store_that_is_not_writable_or_closed_says_so(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (5, 2))
    with pytest.raises(ReadOnlyError, match=r"x\.npy: opened read-only; open it with writable"):
        FileStore(tmp_path / "x.npy").write(torch.tensor([0]), torch.ones(1, 2))
    store.close()
    with pytest.raises(ArgumentError, match="closed"):
        store.write(torch.tensor([0]), torch.ones(1, 2))


def test_a_file_that_was_removed_or_cut_is_not_made_anew(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "x.npy", (5, 2))
    os.truncate(tmp_path / "x.npy", 4100)
    with pytest.raises(FileFormatError, match=r"x\.npy: truncated"):
        store.write(torch.tensor([0]), torch.ones(1, 2))
    assert (tmp_path / "x.npy").stat().st_size == 4100
    other = FileStore.create(tmp_path / "y.npy", (5, 2))
    (tmp_path / "y.npy").unlink()
    with pytest.raises(StorageError, match=r"y\.npy: cannot be written \(No such file"):
        other.write(torch.tensor([0]), torch.ones(1, 2))
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "says"),
    [
        ((5, 2), torch.uint16, DTypeError, "dtype: dtype torch.uint16 is not one of float64"),
        ((5, 2), torch.float8_e4m3fn, DTypeError, "dtype: dtype torch.float8_e4m3fn"),
        ((), torch.float32, ArgumentError, r"shape \(\): expected \(rows, …\)"),
        ((-1, 2), torch.float32, ArgumentError, r"shape \(-1, 2\)"),
    ],
)
def test_files_that_no_store_could_open_are_not_made(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    error: type[GnnsysError],
    says: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=says):
        FileStore.create(tmp_path / "x.npy", shape, dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_file_can_be_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/x\.npy: cannot be written \(No such file"):
        FileStore.create(tmp_path / "none" / "x.npy", (5, 2))
    with pytest.raises(StorageError, match=r"cannot be written \(Is a directory\)"):
        FileStore.create(tmp_path, (5, 2))
