"""The contract of stores, held by every kind of store and every way of reading a file."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.cache.store import CachedStore
from gnnsys.errors import ArgumentError, DTypeError, ReadOnlyError, RowIndexError
from gnnsys.memory import FileStore, HostStore, Reads, Store
from gnnsys.memory.direct_rows import uring_refusal
from gnnsys.memory.mapped import MappedStore
from gnnsys.system.gpu import HostExecutorDevice

STORAGES = ["mmap", "pread"] + ([] if uring_refusal() else ["uring"])
ROWS, WIDTH = 23, 5
_PLACE = tempfile.TemporaryDirectory(prefix="gnnsys-contract-")  # goes with the process
FOLDER = Path(_PLACE.name)
VALUES = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
PROPERTY = settings(deadline=None, print_blob=True, max_examples=25)

Make = Callable[[Path], Store]


def saved(path: Path) -> Path:
    np.save(path, VALUES)
    return path


def sharded(path: Path, **options: Any) -> FileStore:
    parts = [path.with_suffix(f".{number}.npy") for number in range(2)]
    for part, rows in zip(parts, np.split(VALUES, [9]), strict=True):
        np.save(part, rows)
    return FileStore(parts, **options)


def kinds() -> dict[str, Make]:
    made: dict[str, Make] = {
        "host": lambda path: HostStore(VALUES.copy(), writable=True),
        "host, rows scattered": lambda path: HostStore(
            torch.from_numpy(VALUES.T.copy()).t(), writable=True
        ),
        "host, rows apart": lambda path: HostStore(
            torch.from_numpy(np.pad(VALUES, ((0, 0), (0, 3))))[:, :WIDTH], writable=True
        ),
    }
    for storage in STORAGES:
        options: dict[str, Any] = {"storage": storage}
        made[storage] = lambda path, o=options: FileStore(saved(path), writable=True, **o)
        made[f"{storage}, shards"] = lambda path, o=options: sharded(path, writable=True, **o)
        for cache in (0, 4, ROWS):
            made[f"{storage}, cache of {cache}"] = lambda path, o=options, c=cache: CachedStore(
                FileStore(saved(path), **o), cache=c
            )
    made["cache of a cache"] = lambda path: CachedStore(
        CachedStore(FileStore(saved(path)), cache=4), cache=4
    )
    made["cache of memory"] = lambda path: CachedStore(HostStore(VALUES), cache=4)
    made["host, staged"] = lambda path: MappedStore(
        HostStore(VALUES.copy(), writable=True), HostExecutorDevice(), "staged"
    )
    if shutil.which(os.environ.get("CXX", "c++")):  # compiles the kernels
        made["host, by kernels"] = lambda path: MappedStore(
            HostStore(VALUES.copy(), writable=True), HostExecutorDevice()
        )
        for cache in (4, ROWS):
            made[f"pread, cache of {cache} by kernels"] = lambda path, c=cache: CachedStore(
                FileStore(saved(path), storage="pread"), cache=c, device="simt"
            )
        made["memory, cache of 4 by kernels"] = lambda path: CachedStore(
            HostStore(VALUES), cache=4, device="simt"
        )
    return made


KINDS = kinds()
every_kind = pytest.mark.parametrize("kind", KINDS)


def ids_of(rows: int = ROWS) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rows - 1) | st.sampled_from([0, rows - 1]), max_size=40)


def staged_rows(store: Store, ids: np.ndarray) -> np.ndarray:
    staged = store.start_reads(Reads(ids)).wait()
    data = [
        ctypes.string_at(staged.address + at, store.row_bytes) for at in staged.offsets.tolist()
    ]
    return np.frombuffer(b"".join(data), np.float32).reshape(len(ids), WIDTH)


@every_kind
def test_a_store_says_what_it_holds(kind: str, tmp_path: Path) -> None:
    store = KINDS[kind](tmp_path / "x.npy")
    assert (tuple(store.shape), store.row_bytes) == ((ROWS, WIDTH), WIDTH * 4)
    assert store.dtype == store.encoding.stored == store.encoding.delivered == torch.float32
    assert store.device == torch.device("cpu")
    assert store.gather(torch.tensor([0])).device == store.device
    assert (store.path == "") == ("memory" in kind or "host" in kind)
    assert (store.depth > 0) == ("pread" in kind or "uring" in kind)
    if store.resident is not None:
        assert np.array_equal(store.resident.numpy(), VALUES)
    store.close()


@every_kind
@PROPERTY
@given(ids=ids_of(), narrow=st.booleans(), dtype=st.sampled_from([None, torch.float64, torch.half]))
def test_gathers_equal_fancy_indexing_and_are_counted(
    kind: str, ids: list[int], narrow: bool, dtype: torch.dtype | None
) -> None:
    given_store = KINDS[kind](FOLDER / "x.npy")
    store = given_store if dtype is None else given_store.with_dtype(dtype)
    wanted = torch.tensor(ids, dtype=torch.int32 if narrow else torch.int64)
    expected = torch.from_numpy(VALUES[ids]).to(store.dtype)
    assert torch.equal(store.gather(wanted), expected)
    out = torch.empty(len(ids), WIDTH, dtype=store.dtype)
    assert store.gather(wanted, out) is out
    assert torch.equal(out, expected)
    apart = torch.empty(len(ids), 2 * WIDTH, dtype=store.dtype)[:, ::2]
    assert torch.equal(store.gather(wanted, apart), expected)
    served = given_store.counters.tiers().values()
    assert sum(tier.rows for tier in served) == 3 * len(ids)
    assert sum(tier.bytes for tier in served) == 3 * len(ids) * store.row_bytes
    given_store.close()


@every_kind
@PROPERTY
@given(ids=st.sets(st.integers(0, ROWS - 1)), ends=st.tuples(*[st.integers(0, ROWS)] * 2))
def test_rows_read_ahead_and_in_one_pass_are_those_of_the_table(
    kind: str, ids: set[int], ends: tuple[int, int]
) -> None:
    store = KINDS[kind](FOLDER / "x.npy")
    wanted = np.array(sorted(ids), np.int64)
    assert np.array_equal(staged_rows(store, wanted), VALUES[wanted])
    assert store.counters.tiers() == {}
    first, last = sorted(ends)
    doubles = store.with_dtype(torch.float64)
    for out in (None, torch.empty(last - first, WIDTH, dtype=torch.float64)):
        rows = doubles.read_range(first, last, out)
        assert out is None or rows is out
        assert np.array_equal(rows.numpy(), VALUES[first:last])
    rows = store.read_range(first, last)
    assert np.array_equal(rows.numpy(), VALUES[first:last])
    rows.zero_()  # it is memory of its own
    assert np.array_equal(store.read_range(0, ROWS).numpy(), VALUES)
    served = store.counters.tiers().values()
    assert sum(tier.rows for tier in served) == 3 * (last - first) + ROWS
    store.close()


@every_kind
def test_ids_and_outputs_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    store = KINDS[kind](tmp_path / "x.npy")
    for wrong in (-1, ROWS, 1 << 40):
        with pytest.raises(RowIndexError, match=str(wrong)):
            store.gather(torch.tensor([3, wrong]))
        with pytest.raises(RowIndexError, match=f"id {wrong} at position"):
            store.start_reads(Reads(np.array(sorted([3, wrong]))))
    with pytest.raises(ArgumentError, match="id 3 at position 2 follows 3; expected strictly"):
        store.start_reads(Reads(np.array([1, 3, 3])))
    for first, last in [(-1, 3), (3, 2), (0, ROWS + 1)]:
        with pytest.raises(RowIndexError, match=rf"not within \[0, {ROWS}\)"):
            store.read_range(first, last)
    with pytest.raises(DTypeError, match="float32"):
        store.gather(torch.tensor([1.0]))
    with pytest.raises(ArgumentError, match="2 dimensions"):
        store.gather(torch.tensor([[1]]))
    with pytest.raises(ArgumentError, match=r"\(2, 5\) != \(1, 5\)"):
        store.gather(torch.tensor([1]), torch.empty(2, WIDTH))
    with pytest.raises(DTypeError, match=r"float64 != torch\.float32"):
        store.read_range(0, 1, torch.empty(1, WIDTH, dtype=torch.float64))
    with pytest.raises(DTypeError, match="complex32"):
        store.with_dtype(torch.complex32)
    assert store.counters.tiers() == {}
    store.close()


@every_kind
@PROPERTY
@given(ids=ids_of())
def test_of_an_id_that_is_written_twice_the_last_row_stays(kind: str, ids: list[int]) -> None:
    store = KINDS[kind](FOLDER / "x.npy")
    wanted = torch.tensor(ids, dtype=torch.int64)
    rows = torch.arange(len(ids) * WIDTH, dtype=torch.float64).view(-1, WIDTH)
    if "cache" in kind:
        with pytest.raises(ReadOnlyError):
            store.write(wanted, rows)
        return
    expected = VALUES.copy()
    for row, value in zip(ids, rows.numpy(), strict=True):
        expected[row] = value
    store.write(wanted, rows)
    assert np.array_equal(store.read_range(0, ROWS).numpy(), expected)
    store.close()


@every_kind
def test_what_cannot_be_written_changes_nothing(kind: str, tmp_path: Path) -> None:
    store = KINDS[kind](tmp_path / "x.npy")
    if "cache" in kind:
        return
    one = torch.zeros(1, WIDTH)
    for wrong in (-1, ROWS):
        with pytest.raises(RowIndexError, match=f"id {wrong} at position 1"):
            store.write(torch.tensor([2, wrong]), torch.zeros(2, WIDTH))
    for rows in (torch.zeros(WIDTH), one.expand(3, WIDTH), torch.zeros(2, 1)):
        with pytest.raises(ArgumentError, match=r"rows: shape .*, expected \(2, 5\)"):
            store.write(torch.tensor([2, 3]), rows)
    with pytest.raises(DTypeError):
        store.write(torch.tensor([0.0]), one)
    assert np.array_equal(store.read_range(0, ROWS).numpy(), VALUES)


@every_kind
def test_another_dtype_is_of_the_same_file_and_counted_together(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    store = KINDS[kind](path)
    for each in tmp_path.iterdir():
        other = each.with_suffix(".other")
        other.write_bytes(bytes(each.stat().st_size))
        os.replace(other, each)
    halves = store.with_dtype(torch.float16)
    assert (halves.dtype, halves.encoding.stored) == (torch.float16, torch.float32)
    expected = torch.from_numpy(VALUES[[5, ROWS - 1]]).half()
    assert torch.equal(halves.gather(torch.tensor([5, ROWS - 1])), expected)
    assert sum(tier.rows for tier in store.counters.tiers().values()) == 2
    halves.close()
    if "host" not in kind:
        with pytest.raises(ArgumentError, match="closed"):
            store.gather(torch.tensor([1]))


@every_kind
def test_rows_stay_when_their_store_is_closed(kind: str, tmp_path: Path) -> None:
    store = KINDS[kind](tmp_path / "x.npy")
    ids = np.array([2, ROWS - 1])
    gathered = store.gather(torch.from_numpy(ids))
    pending = store.start_reads(Reads(ids))
    staged = store.start_reads(Reads(ids)).wait()
    store.close()
    store.close()
    if "host" not in kind:
        for ask in (
            lambda: store.gather(torch.tensor([1])),
            lambda: store.read_range(0, 1),
            lambda: store.start_reads(Reads(ids)),
            *([lambda: store.stats] if isinstance(store, CachedStore) else []),
        ):
            with pytest.raises(ArgumentError, match="this store was closed"):
                ask()
    for rows in (staged, pending.wait()):
        data = [
            ctypes.string_at(rows.address + at, store.row_bytes) for at in rows.offsets.tolist()
        ]
        assert b"".join(data) == VALUES[ids].tobytes()
    assert np.array_equal(gathered.numpy(), VALUES[ids])


@pytest.mark.parametrize("cache", [None, 100, 1.0])
@pytest.mark.parametrize("storage", STORAGES)
def test_closing_waits_for_the_gathers_under_way(storage: Any, cache: Any, tmp_path: Path) -> None:
    values = np.arange(20_000 * 64, dtype=np.float32).reshape(-1, 64)
    np.save(tmp_path / "x.npy", values)
    ids = torch.arange(0, 20_000, 3)
    expected = torch.from_numpy(values)[ids]
    for _ in range(5):
        store: Any = FileStore(tmp_path / "x.npy", storage=storage)
        store = store if cache is None else CachedStore(store, cache=cache)
        begun = threading.Barrier(3)
        ends: list[BaseException] = []

        def gather(store: Any = store, begun: Any = begun, ends: Any = ends) -> None:
            try:
                begun.wait()
                while True:
                    assert torch.equal(store.gather(ids), expected)
            except BaseException as end:
                ends.append(end)

        threads = [threading.Thread(target=gather) for _ in range(2)]
        for thread in threads:
            thread.start()
        begun.wait()
        store.gather(ids[:10])
        store.close()
        for thread in threads:
            thread.join()
        assert [type(error) for error in ends] == [ArgumentError] * 2, ends
        assert all("this store was closed" in str(error) for error in ends)


def test_a_resident_tensor_that_is_given_other_memory_leaves_the_store_alone() -> None:
    values = torch.arange(400.0).view(100, 4)
    store = HostStore(values.clone(), writable=True)
    part = torch.ones(400).untyped_storage()
    changes: list[Callable[[Tensor], Any]] = [
        lambda x: x.set_(part, 300, (25, 4)),
        lambda x: x.resize_(1, 4),
        lambda x: x.resize_(200, 4),
    ]
    for number, change in enumerate(changes):
        resident = store.resident
        assert resident is not None
        change(resident)
        values[99] = -number
        store.write(torch.tensor([99]), values[99:])
        assert torch.equal(store.gather(torch.tensor([99, 0])), values[[99, 0]])
        assert torch.equal(store.read_range(0, 100), values)
