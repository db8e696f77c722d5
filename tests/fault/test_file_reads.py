"""Disks, kernels and other processes that get in the way of reading: one clear error, or rows."""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    RowIndexError,
    StorageError,
    UnsupportedError,
)
from gnnsys.memory import FileStore, Reads, StagedRows
from gnnsys.memory.direct_rows import DirectRows, uring_refusal
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import check_ids
from gnnsys.memory.table_file import Shard, TableFile
from gnnsys.system.extension import core
from gnnsys.system.once import warn_once

DIRECT = ["pread"] + ([] if uring_refusal() else ["uring"])
MODES = ["mmap", *DIRECT]
BYTES = Encoding(torch.uint8, torch.uint8)
VALUES = np.random.default_rng(0).integers(0, 256, (500, 1000), dtype=np.uint8)


def rows_of(staged: StagedRows) -> np.ndarray:
    rows = [ctypes.string_at(staged.address + at, 1000) for at in staged.offsets.tolist()]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 1000)


def saved(folder: Path, values: np.ndarray = VALUES) -> Path:
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


@contextmanager
def own_memory(offset: int, rows: int, row_bytes: int, mode: str) -> Iterator[DirectRows]:
    """A table over this process's memory: a file whose holes are real EIOs, without O_DIRECT."""
    table = TableFile.__new__(TableFile)
    handle = os.open("/proc/self/mem", os.O_RDONLY)
    shape = torch.Size((rows, row_bytes))
    table.shards = [Shard("/proc/self/mem", handle, shape, torch.uint8, offset)]
    table.shape, table.stored, table.row_bytes = shape, torch.uint8, row_bytes
    table.check_size = lambda: None  # type: ignore[method-assign]  # its size is said to be 0
    reader = DirectRows(table, mode, depth=4)  # type: ignore[arg-type]
    yield reader
    reader.close()


@pytest.mark.parametrize("mode", DIRECT)
def test_an_input_output_error_names_file_and_byte(mode: str) -> None:
    page = 4096
    with own_memory(offset=16 * page, rows=8, row_bytes=page, mode=mode) as reader:  # unmapped
        for ask in (
            lambda: reader.start(Reads(np.array([3, 5]))).wait(),
            lambda: reader.gather(check_ids(torch.tensor([5, 3])), BYTES),
            lambda: reader.read_into(3, np.empty(page, np.uint8)),
        ):
            with pytest.raises(StorageError, match=rf"/proc/self/mem: .* byte {19 * page} ") as one:
                ask()
            assert one.value.errno == 5
            assert "Input/output error" in str(one.value)


@pytest.mark.parametrize("mode", DIRECT)
def test_a_file_system_without_direct_reads_is_read_and_told_of(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    buffer = np.random.default_rng(1).integers(0, 256, (40, 4096), dtype=np.uint8)
    # Rows start at pages of the file, that is, of the addresses.
    skip = -buffer.ctypes.data % 4096
    rows = buffer.reshape(-1)[skip : skip + 39 * 4096].reshape(39, 4096)
    with (
        caplog.at_level(logging.WARNING),
        own_memory(rows.ctypes.data, 39, 4096, mode) as reader,
    ):
        ids = check_ids(torch.tensor([38, 0, 7, 7]))
        assert np.array_equal(reader.gather(ids, BYTES).numpy(), rows[ids.numpy()])
        assert np.array_equal(reader.gather(ids, BYTES).numpy(), rows[ids.numpy()])
    assert [record.message for record in caplog.records].count(caplog.messages[0]) == 1
    assert "/proc/self/mem: its file system refuses O_DIRECT" in caplog.messages[0]


@pytest.mark.parametrize("storage", MODES)
def test_a_file_that_is_cut_while_open_raises_however_it_is_read(
    storage: str, tmp_path: Path
) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    os.truncate(tmp_path / "x.npy", 400_000)
    for ask in (
        lambda: store.gather(torch.tensor([499])),
        lambda: store.start_reads(Reads(np.array([0, 499]))).wait(),
        lambda: store.read_range(0, 500),
        lambda: store.read_range(100, 500),
    ):
        with pytest.raises(FileFormatError, match=r"x\.npy: truncated: .* the file at 400000"):
            ask()
    assert store.counters.as_dict()["rows"] == {}


@pytest.mark.parametrize("storage", MODES)
def test_a_file_that_grows_while_open_is_read_on(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(b"more" * 5000)
    assert np.array_equal(store.read_range(0, 500).numpy(), VALUES)
    assert np.array_equal(
        rows_of(store.start_reads(Reads(np.array([1, 499]))).wait()), VALUES[[1, 499]]
    )


@pytest.mark.parametrize("storage", MODES)
def test_a_file_that_is_replaced_while_open_stays_the_one_that_was_opened(
    storage: str, tmp_path: Path
) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    np.save(tmp_path / "y.npy", VALUES[:10] + 1)
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    assert np.array_equal(store.gather(torch.tensor([499])).numpy(), VALUES[[499]])
    assert np.array_equal(FileStore(tmp_path / "x.npy").read_range(0, 10).numpy(), VALUES[:10] + 1)


@pytest.mark.parametrize("storage", MODES)
def test_a_sparse_file_holds_zeros(storage: str, tmp_path: Path) -> None:
    FileStore.create(tmp_path / "x.npy", (1 << 20, 512)).close()  # of 2 GiB, none of it written
    store = FileStore(tmp_path / "x.npy", storage=storage)
    assert not store.gather(torch.tensor([0, 1 << 19, (1 << 20) - 1])).any()


@pytest.mark.parametrize("storage", MODES)
@pytest.mark.parametrize("row_bytes", [1000, 4096, 8192])
def test_what_is_written_is_read_at_once_however_the_file_is_read(
    storage: str, row_bytes: int, tmp_path: Path
) -> None:
    values = np.zeros((300, row_bytes), np.uint8)
    writer = FileStore.create(tmp_path / "x.npy", values.shape, torch.uint8, storage=storage)
    readers = [FileStore(tmp_path / "x.npy", storage=mode) for mode in {"mmap", storage}]
    readers.append(FileStore(tmp_path / "x.npy", storage=storage, writable=True))
    draw = np.random.default_rng(2)
    for number, ids in enumerate([np.arange(300), np.arange(40, 140), np.array([7, 299, 8])]):
        rows = draw.integers(0, 256, (len(ids), row_bytes), dtype=np.uint8)
        (readers[-1] if number % 2 else writer).write(torch.from_numpy(ids), torch.from_numpy(rows))
        values[ids] = rows
        for reader in (*readers, writer):
            assert np.array_equal(reader.gather(torch.arange(300)).numpy(), values)
            assert np.array_equal(reader.read_range(0, 300).numpy(), values)


@pytest.mark.parametrize("storage", MODES)
def test_rows_are_not_written_to_a_file_that_took_the_place(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage, writable=True)
    np.save(tmp_path / "y.npy", VALUES)
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    with pytest.raises(StorageError, match=r"x\.npy: was replaced by another file"):
        store.write(torch.arange(500), torch.zeros(500, 1000, dtype=torch.uint8))
    assert np.array_equal(np.load(tmp_path / "x.npy"), VALUES)


@pytest.mark.parametrize("storage", MODES)
def test_reads_that_were_let_go_or_closed_say_so(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    for wrong in (-1, 500):
        with pytest.raises(RowIndexError, match=f"id {wrong} at position"):
            store.start_reads(Reads(np.array(sorted([3, wrong]))))
    with pytest.raises(ArgumentError, match="id 3 at position 2 follows 3; expected strictly"):
        store.start_reads(Reads(np.array([1, 3, 3])))
    for first, last in [(-1, 3), (3, 2), (0, 501)]:
        with pytest.raises(RowIndexError, match=r"not within \[0, 500\)"):
            store.read_range(first, last)
    pending = store.start_reads(Reads(np.array([1])))
    store.close()
    store.close()
    assert store.read_stats.rows == 1
    with pytest.raises(ArgumentError, match="closed"):
        store.start_reads(Reads(np.array([1])))
    assert np.array_equal(rows_of(pending.wait()), VALUES[[1]])
    if storage != "mmap":
        pending = FileStore(saved(tmp_path), storage=storage).start_reads(Reads(np.array([1])))
        pending.cancel()
        with pytest.raises(ArgumentError, match="cancelled"):
            pending.wait()


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ArgumentError, match="storage: 'ssd', expected one of auto, uring, pread"):
        FileStore(tmp_path / "x.npy", storage="ssd")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="depth: -1, expected 1 to"):
        FileStore(tmp_path / "x.npy", depth=-1)
    with pytest.raises(ArgumentError, match="path: 0 files"):
        FileStore([])
    np.save(tmp_path / "y.npy", VALUES.astype(np.float32))
    with pytest.raises(FileFormatError, match=r"y\.npy: rows of torch.float32 \(1000,\), expected"):
        FileStore([tmp_path / "x.npy", tmp_path / "y.npy"])


def _gather_in_child(store: FileStore, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(np.array_equal(store.gather(torch.arange(500)).numpy(), VALUES))


@pytest.mark.parametrize("storage", MODES)
def test_a_forked_child_gathers_through_an_inherited_store(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    store.gather(torch.tensor([1, 2]))  # the parent has its threads and its ring
    pending = store.start_reads(Reads(np.array([4])))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_gather_in_child, args=(store, answers))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get()
    assert np.array_equal(rows_of(pending.wait()), VALUES[[4]])
    assert np.array_equal(store.gather(torch.arange(500)).numpy(), VALUES)


@pytest.mark.parametrize("storage", DIRECT)
def test_reads_of_the_parent_are_refused_in_a_forked_child(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    pending = store.start_reads(Reads(np.array([4])))
    child = os.fork()
    if child == 0:
        try:
            pending.wait()
        except ArgumentError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    pending.wait()


class _Batches(torch.utils.data.Dataset):
    def __init__(self, store: FileStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.store.gather(torch.arange(50 * number, 50 * (number + 1)))


@pytest.mark.parametrize("storage", DIRECT)
def test_data_loader_workers_gather_through_one_store(storage: str, tmp_path: Path) -> None:
    store = FileStore(saved(tmp_path), storage=storage)
    store.gather(torch.tensor([0]))
    loader = DataLoader(_Batches(store), batch_size=None, num_workers=2)
    assert np.array_equal(torch.cat(list(loader)).numpy(), VALUES)


@pytest.mark.parametrize("storage", MODES)
def test_a_pickled_store_reads_the_same_way(storage: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", VALUES)
    store = FileStore([saved(tmp_path), tmp_path / "y.npy"], storage=storage, depth=9)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.storage, copy.shape) == (storage, (1000, 1000))
    assert torch.equal(copy.read_range(0, 1000), store.read_range(0, 1000))


@pytest.mark.skipif(not core.has_uring, reason="built without liburing")
def test_where_io_uring_is_forbidden_threads_read_and_the_reason_is_told(
    refuse_calls: Callable[..., str], tmp_path: Path
) -> None:
    script = """
import numpy as np, torch
from gnnsys.errors import UnsupportedError
from gnnsys.memory import FileStore
from gnnsys.system import budget
budget.available_memory = lambda: 0  # so that the file is larger than it
for _ in range(2):
    store = FileStore("x.npy")
    assert store.storage == "pread", store.storage
    assert np.array_equal(store.gather(torch.arange(500)).numpy(), np.load("x.npy"))
try:
    FileStore("x.npy", storage="uring")
except UnsupportedError as error:
    print(error)
"""
    saved(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", refuse_calls({"io_uring_setup": errno.EPERM}) + script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    reason = "the kernel refuses it (Operation not permitted; a seccomp filter or /proc/sys/"
    assert ran.stderr.count("files are read by a pool of threads instead of io_uring") == 1
    assert reason in ran.stderr
    assert ran.stdout.startswith(f"storage: 'uring' cannot be used: {reason}")


def test_auto_maps_what_fits_in_a_quarter_of_the_memory_and_reads_the_rest_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    for available, expected in [(4 * VALUES.nbytes, "mmap"), (4 * VALUES.nbytes - 1, DIRECT[-1])]:
        monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda found=available: found)
        assert FileStore(path).storage == expected


def test_uring_without_liburing_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "has_uring", False)
    with pytest.raises(UnsupportedError, match="built without liburing: install liburing-dev"):
        FileStore(saved(tmp_path), storage="uring")
