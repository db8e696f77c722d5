"""Trained rows: what is read is what was written last, whatever the cache; versions are whole."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gnnsys.cache.embedding import files, table
from gnnsys.cache.embedding.directory import RowDirectory
from gnnsys.cache.embedding.slots import RecordSlots
from gnnsys.cache.embedding.store import EmbeddingStore
from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    RowIndexError,
    StorageError,
    TooLargeError,
    UnsupportedError,
)
from gnnsys.memory.file import FileStore

ROWS, DIM = 60, 3
STATE = {"sum": 0.25}
ALL = torch.arange(ROWS)


def first_rows(first: int, last: int) -> Tensor:
    return torch.arange(first * DIM, last * DIM, dtype=torch.float32).view(-1, DIM)


def make(folder: Path, cache: int | float | str, **options: Any) -> EmbeddingStore:
    return EmbeddingStore.create(
        folder, (ROWS, DIM), state=STATE, initial=first_rows, cache=cache, **options
    )


def add(amount: float) -> Callable[[slice, Tensor, dict[str, Tensor]], None]:
    def change(piece: slice, rows: Tensor, state: dict[str, Tensor]) -> None:
        rows += amount
        state["sum"] += 1

    return change


def read(store: EmbeddingStore) -> tuple[Tensor, Tensor]:
    return store.gather(ALL), store.gather_state(ALL)["sum"]


def ids_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


@pytest.mark.parametrize("storage", ["mmap", "pread"])
@pytest.mark.parametrize("capacity", [1, 7, ROWS])
def test_rows_and_state_are_those_of_an_array_whatever_happens(
    storage: Any, capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LEAST_LOG_BYTES", 200)  # so that the log is rewritten often
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    draw = np.random.default_rng(seed)
    store = make(tmp_path / "t", capacity, storage=storage)
    rows, state = first_rows(0, ROWS).numpy(), np.full((ROWS, DIM), 0.25, np.float32)
    saved, prepared = (rows.copy(), state.copy()), None
    for step in range(25 if capacity == 1 else 120):
        ids = draw.integers(0, ROWS, draw.integers(0, 25))
        kind = draw.choice(["gather", "update", "write", "ahead", "save", "restore", "range"],
                           p=[0.25, 0.35, 0.1, 0.15, 0.07, 0.03, 0.05])  # fmt: skip
        if kind == "gather":
            assert (store.gather(torch.from_numpy(ids)).numpy() == rows[ids]).all()
        elif kind == "update":
            ids = np.unique(ids)
            store.update(torch.from_numpy(ids), add(step))
            rows[ids] += step
            state[ids] += 1
        elif kind == "write":
            new = draw.random((len(ids), DIM), np.float32)
            store.write(torch.from_numpy(ids), torch.from_numpy(new))
            for row, value in zip(ids, new, strict=True):
                rows[row] = value
        elif kind == "ahead":
            store.prefetch(torch.from_numpy(ids))
            changed = np.unique(draw.integers(0, ROWS, 20))
            store.update(torch.from_numpy(changed), add(1))
            rows[changed] += 1
            state[changed] += 1
            assert (store.gather(torch.from_numpy(ids)).numpy() == rows[ids]).all()
        elif kind == "save":
            store.save()
            saved = rows.copy(), state.copy()
        elif kind == "restore":
            if draw.random() < 0.5:  # as after a crash between two phases
                store.prepare()
                prepared = rows.copy(), state.copy()
                store.close()
                store = EmbeddingStore(tmp_path / "t", cache=capacity, storage=storage)
                store.restore(store.version + 1)
                saved = prepared
            else:
                store.restore(store.version)
            rows, state = saved[0].copy(), saved[1].copy()
        else:
            first, last = sorted(draw.integers(0, ROWS + 1, 2))
            assert (store.read_range(first, last).numpy() == rows[first:last]).all()
    found = read(store)
    assert (found[0].numpy() == rows).all()
    assert (found[1].numpy() == state).all()
    store.save()
    store.close()
    whole = np.load(tmp_path / "t" / "rows.npy")
    assert (whole == np.concatenate([rows, state], 1)).all()


# Three hazards of caches whose rows are trained, with one too small for two batches ---------------


@pytest.fixture(params=["mmap", "pread"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> EmbeddingStore:
    return make(tmp_path / "t", 4, storage=request.param)


def test_a_row_that_left_the_cache_while_its_batch_was_in_flight_is_updated(
    small: EmbeddingStore,
) -> None:
    batch, other = ids_of(0, 1, 2, 3), ids_of(10, 11, 12, 13)
    seen = small.gather(batch)
    small.gather(other)  # takes all slots, before the update of the first batch
    small.update(batch, add(100))
    small.gather(other)
    assert torch.equal(small.gather(batch), seen + 100)


def test_rows_that_are_read_ahead_while_they_are_updated_are_gathered_after_the_update(
    small: EmbeddingStore,
) -> None:
    batch = ids_of(0, 1, 2, 3)
    before = small.gather(batch)
    small.gather(ids_of(10, 11, 12, 13))
    small.prefetch(batch)  # reads them from the disk,
    small.update(batch, add(100))  # where they are older than in the cache from here on
    small.update(ids_of(10, 11, 12, 13), add(1))  # and from here on older than in the log
    assert torch.equal(small.gather(batch), before + 100)


def test_a_row_missed_by_a_batch_and_read_ahead_for_the_next_one_has_the_update_between(
    small: EmbeddingStore,
) -> None:
    following = ids_of(3, 20, 21, 22)
    small.prefetch(following)
    before = small.gather(ids_of(0, 1, 2, 3))[3]
    small.update(ids_of(3), add(100))
    assert torch.equal(small.gather(following)[0], before + 100)
    assert small.counters.served("file").rows == 4 + 3


def test_rows_that_an_update_reads_from_the_disk_are_counted(small: EmbeddingStore) -> None:
    small.gather(ids_of(0, 1, 2, 3))
    small.update(ids_of(3, 8), add(1))
    small.write(ids_of(9, 3), torch.zeros(2, DIM))
    rows = {tier: served.rows for tier, served in small.counters.tiers().items()}
    assert rows == {"cache": 0, "file": 4 + 1 + 1}


def test_a_table_whose_directory_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * ROWS + 5 * (10 + 4 * DIM * 2)
    monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda: needed - 1)
    with pytest.raises(TooLargeError, match=f"take {needed} bytes > {needed - 1}, the memory"):
        make(tmp_path / "t", cache=5)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda: needed)
    make(tmp_path / "t", cache=5).close()


def test_a_row_read_ahead_and_updated_is_not_taken_for_the_one_read_when_the_log_is_rewritten(
    small: EmbeddingStore,
) -> None:
    before = small.gather(ids_of(0))
    small.update(ids_of(0), add(1))
    small.gather(ids_of(10, 11, 12, 13))  # row 0 goes to cell 0 of the log
    small.prefetch(ids_of(0, 20))
    small.update(ids_of(0), add(100))
    small.gather(ids_of(14, 15, 16, 17))  # to cell 1
    small._records.files._log.rewrite_at = 0  # back to cell 0
    assert torch.equal(small.gather(ids_of(0, 20))[:1], before + 101)


# Versions ----------------------------------------------------------------------------------------


def test_what_is_not_saved_is_gone_and_what_is_saved_is_there(tmp_path: Path) -> None:
    store = make(tmp_path / "t", 5)
    store.update(ALL, add(1))
    assert store.save() == store.version == 1
    saved = read(store)
    store.update(ALL, add(1))
    store.close()
    again = EmbeddingStore(tmp_path / "t", cache=0.5)
    assert again.version == 1
    assert all(map(torch.equal, read(again), saved))


def test_a_prepared_version_waits_for_the_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LEAST_LOG_BYTES", 200)  # a short file to copy
    store = make(tmp_path / "t", 5)
    old = read(store)
    store.update(ALL, add(1))
    new = read(store)
    assert store.prepare() == 1
    for wanted, expected in ((0, old), (1, new)):
        copy = tmp_path / f"copy{wanted}"
        shutil.copytree(tmp_path / "t", copy)
        opened = EmbeddingStore(copy, cache=5)
        opened.restore(wanted)
        assert all(map(torch.equal, read(opened), expected))
        with pytest.raises(ArgumentError, match=r"version: 7, but .* holds version"):
            opened.restore(7)


@pytest.mark.parametrize("reopen", [False, True])
def test_rows_are_not_written_while_a_version_is_prepared(reopen: bool, tmp_path: Path) -> None:
    store = make(tmp_path / "t", 5)
    store.prepare()
    if reopen:
        store.close()
        store = EmbeddingStore(tmp_path / "t", cache=5)
    for attempt in (
        lambda: store.write(ids_of(3), torch.ones(1, DIM)),
        lambda: store.update(ids_of(3), add(1)),
        store.prepare,
        store.save,
    ):
        with pytest.raises(ArgumentError, match="version 1 is prepared"):
            attempt()
    assert torch.equal(store.gather(ALL), first_rows(0, ROWS))
    store.withdraw()
    with pytest.raises(ArgumentError, match="no version is prepared"):
        store.commit()
    store.write(ids_of(3), torch.ones(1, DIM))
    assert store.save() == 1
    assert torch.equal(store.gather(ids_of(3)), torch.ones(1, DIM))


# In the middle of the records, before the header, before and after the decision is removed.
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_commit_that_was_begun_is_ended_by_who_opens_the_table(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "t", 5)
    store.update(ALL, add(cut))
    new = read(store)
    left = [cut]

    def dies(done: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return done(*args, **options)

        return call

    store.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(store._files.table, "write", dies(store._files.table.write))
        patch.setattr(table, "replace_file", dies(table.replace_file))
        patch.setattr(files, "remove", dies(files.remove))
        patch.setattr(files, "_BLOCK_BYTES", 720)
        with pytest.raises(KeyboardInterrupt):
            store.commit()
    store.close()
    opened = EmbeddingStore(tmp_path / "t", cache=5)
    assert opened.version == 1
    assert all(map(torch.equal, read(opened), new))
    assert sorted(os.listdir(tmp_path / "t")) == ["lock", "rows.npy", "table.json"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "t", 5)
    store.update(ids_of(0, 1, 2, 3, 4), add(1))

    def full(*args: Any) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store._files, "append", full)
        for attempt in (lambda: store.gather(ids_of(9, 10)), store.save):
            with pytest.raises(StorageError, match="disk full"):
                attempt()
    expected = first_rows(0, ROWS)
    expected[:5] += 1
    assert torch.equal(store.gather(ALL), expected)
    assert store.save() == 1


FULL, BEFORE, AFTER = "disk full", "interrupted before", "interrupted after"


def fail(patch: pytest.MonkeyPatch, kind: str, at: int) -> list[int]:
    """Lets operation ``at`` fail or be interrupted; returns how many are left until then."""
    left = [at]

    def wrapped(done: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and kind != AFTER:
                raise error
            result = done(*args, **options)
            if left[0] == 0:
                raise error
            return result

        return call

    in_memory = [(RecordSlots, "load"), (RecordSlots, "put"), (RecordSlots, "unload")]
    in_files = [(FileStore, "write"), (FileStore, "gather"), (FileStore, "create")]
    of_system = [(os, "replace"), (os, "rename"), (os, "fsync"), (Path, "unlink")]
    for place, name in [*in_files, *of_system, *(in_memory if kind != FULL else [])]:
        error: BaseException = KeyboardInterrupt()
        if kind == FULL:
            full = OSError(errno.ENOSPC, "No space left on device")
            error = full if (place, name) in of_system else StorageError("disk full")
        patch.setattr(place, name, wrapped(getattr(place, name), error))
    return left


@pytest.mark.parametrize("kind", [FULL, BEFORE, AFTER])
def test_whatever_fails_or_is_interrupted_rows_go_on_and_versions_are_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LEAST_LOG_BYTES", 200)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 720)
    start = first_rows(0, ROWS)

    def counts(store: EmbeddingStore) -> Tensor:
        """How often each row was added to: its elements and its state were together."""
        rows, state = read(store)
        found = rows - start
        assert torch.equal(found, state - 0.25)
        assert torch.equal(found[:, :1].expand_as(found), found)
        return found[:, 0]

    first = int.from_bytes(os.urandom(1), "little") % 7 + 1  # all of them take too long
    print(f"first {first}")
    for at in itertools.count(first, 7):
        folder = tmp_path / f"{at}"
        store = make(folder, 25, threads=1)
        store.update(ALL, add(1))
        store.save()
        saved, version, low = counts(store), 1, 1
        with monkeypatch.context() as patch:
            left = fail(patch, kind, at)
            try:
                for low in (1, 2):  # noqa: B007  (the last one is used)
                    store.update(ALL, add(1))
                    store.gather(ALL)
                store.save()
            except (StorageError, KeyboardInterrupt):
                pass
        shutil.copytree(folder, folder.with_suffix(".copy"))
        now = counts(store)
        assert set(now.tolist()) <= {low, low + 1}, at
        copy = EmbeddingStore(folder.with_suffix(".copy"), cache=9, threads=1)
        assert torch.equal(counts(copy), now if copy.version > version else saved), at
        if copy._files.is_prepared:  # killed before save could take it back
            copy.withdraw()
        copy.close()
        if at % 2:
            store.update(ALL, add(1))
            store.gather(ALL)
            store.update(ALL, add(1))
            assert torch.equal(counts(store), now + 2), at
            store.save()
            now += 2
        else:
            store.restore(store.version)
            assert torch.equal(counts(store), now if store.version > version else saved), at
            now = counts(store)
        store.close()
        again = EmbeddingStore(folder, cache=9, threads=1)
        expected = now if at % 2 or again.version > version else saved
        assert torch.equal(counts(again), expected), at
        again.close()
        assert sorted(os.listdir(folder)) == ["lock", "rows.npy", "table.json"]
        if left[0] > 0:
            assert at > 20
            break


def test_a_rewritten_log_waits_where_it_was_interrupted(
    small: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.update(ALL, add(1))
    small.update(ids_of(0, 1, 2, 3), add(1))
    small.gather(ids_of(10, 11, 12, 13))  # the log has older records of rows 0 to 3, too
    move = RowDirectory.move_in_log

    def interrupted(*args: Any) -> None:
        move(*args)
        raise KeyboardInterrupt

    small._records.files._log.rewrite_at = 0
    with monkeypatch.context() as patch:
        patch.setattr(RowDirectory, "move_in_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small.gather(ids_of(0, 50))
    expected = first_rows(0, ROWS) + 1
    expected[:4] += 1
    assert torch.equal(small.gather(ALL), expected)


def test_rows_that_were_changed_when_an_update_was_interrupted_stay_changed(
    small: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = RecordSlots.put

    def interrupted(*args: Any) -> None:
        put(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordSlots, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small.update(ids_of(0, 1), add(1))
    small.gather(ids_of(10, 11, 12, 13))
    assert torch.equal(small.gather(ids_of(0, 1)), first_rows(0, 2) + 1)


def test_a_forked_process_is_refused(small: EmbeddingStore) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            small.update(ids_of(0), add(1))
        except UnsupportedError as error:
            small.close()
            code = 0 if str(small.folder) in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    small.update(ids_of(0), add(1))
    assert torch.equal(small.gather(ids_of(0)), first_rows(0, 1) + 1)


def test_threads_save_and_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LEAST_LOG_BYTES", 200)
    store = make(tmp_path / "t", 7, threads=1)
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(store.update, ALL, add(1)) for _ in range(30)]
        tasks += [pool.submit(store.save) for _ in range(10)]
        tasks += [pool.submit(store.gather, ALL) for _ in range(10)]
        for task in tasks:
            task.result()
    assert store.version == 10
    assert torch.equal(store.gather(ALL), first_rows(0, ROWS) + 30)


def test_the_header_is_that_of_when_the_lock_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "t", 5).close()

    def others_first(path: Path) -> Any:
        monkeypatch.undo()
        other = EmbeddingStore(tmp_path / "t", cache=5)
        other.save()
        other.close()
        return files.lock_file(path)

    monkeypatch.setattr(files, "lock_file", others_first)
    assert EmbeddingStore(tmp_path / "t", cache=5).version == 1


# Bad input ---------------------------------------------------------------------------------------


def test_ids_and_rows_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "t", 5)
    before = read(store)
    for bad in (ids_of(0, ROWS), ids_of(-1, 3)):
        for call in (store.gather, store.gather_state, store.prefetch):
            with pytest.raises(RowIndexError, match="is outside the rows"):
                call(bad)
        with pytest.raises(RowIndexError, match="is outside the rows"):
            store.update(bad, add(1))
        with pytest.raises(RowIndexError, match="is outside the rows"):
            store.write(bad, torch.ones(2, DIM))
    with pytest.raises(ArgumentError, match="ascending"):
        store.update(ids_of(3, 3), add(1))
    with pytest.raises(DTypeError, match="float32"):
        store.gather(torch.ones(2))
    with pytest.raises(ArgumentError, match="rows: shape"):
        store.write(ids_of(3), torch.ones(1, DIM + 1))
    with pytest.raises(UnsupportedError, match="trained as"):
        store.with_dtype(torch.float64)

    def fails(piece: slice, rows: Tensor, state: dict[str, Tensor]) -> None:
        rows += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.update(ids_of(3), fails)
    assert all(map(torch.equal, read(store), before))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": (0, 3)}, ArgumentError, "shape: "),
        ({"shape": (3,)}, ArgumentError, "shape: "),
        ({"shape": (4.5, 2)}, ArgumentError, "shape: "),
        ({"shape": 5}, ArgumentError, "shape: "),
        ({"state": {"a": "x"}}, ArgumentError, "state: "),
        ({"state": ["sum"]}, ArgumentError, "state: "),
        ({"dtype": torch.int64}, DTypeError, "torch.float32"),
        ({"cache": 0}, ArgumentError, "holds no record"),
        ({"cache": "no"}, GnnsysError, "cache"),
        ({"threads": -1}, ArgumentError, "threads"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    given = {"shape": (4, 3), "cache": 2} | options
    with pytest.raises(error, match=message):
        EmbeddingStore.create(tmp_path / "t", given.pop("shape"), **given)
    assert [*tmp_path.iterdir()] == []


def test_a_table_that_cannot_be_opened_or_was_half_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArgumentError, match="storage"):
        make(tmp_path / "t", 5, storage="disk")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "t.new").mkdir()  # as a killed process leaves them
    (tmp_path / "t.new" / "rows.npy").write_bytes(b"half")
    make(tmp_path / "t", 5).close()
    (tmp_path / "t" / "changes.3.npy").touch()
    (tmp_path / "t" / "prepared.bin.new").touch()
    EmbeddingStore(tmp_path / "t", cache=5).close()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert sorted(os.listdir(tmp_path / "t")) == ["lock", "rows.npy", "table.json"]


def test_a_folder_that_is_no_table_or_damaged_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    with pytest.raises(MissingFileError, match=r"table\.json"):
        EmbeddingStore(folder, cache=3)
    make(folder, 5).close()
    with pytest.raises(StorageError, match="is there already"):
        make(folder, 5)
    header = (folder / "table.json").read_text()
    for damaged in ("{}", "[1]", header.replace("60", "61"), header.replace("float32", "int9")):
        (folder / "table.json").write_text(damaged)
        with pytest.raises(FileFormatError, match=r"table\.json|rows\.npy"):
            EmbeddingStore(folder, cache=3)
    (folder / "table.json").write_text(header)
    store = EmbeddingStore(folder, cache=3)
    with pytest.raises(StorageError, match="has this table open"):
        EmbeddingStore(folder, cache=3)
    store.close()
    with pytest.raises(ArgumentError, match="was closed"):
        store.gather(ids_of(1))


def test_a_table_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fails(first: int, last: int) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        EmbeddingStore.create(tmp_path / "t", (9, 2), initial=fails, cache=2)
    assert [*tmp_path.iterdir()] == []


def test_slots_of_rows_that_were_asked_for_again_stay() -> None:
    directory = RowDirectory(rows=100, capacity=4)
    none = np.empty(0, np.int32)

    def give(slots: Any, *ids: int) -> None:
        directory.vacate(slots)
        directory.enter(slots, np.array(ids))

    give(directory.choose(4, none), *range(4))
    directory.find(np.array([1, 3]))
    give(directory.choose(2, none), 50, 51)
    assert sorted(directory.row_of.tolist()) == [1, 3, 50, 51]
    kept = directory.find(np.array([1, 50, 3]))
    give(directory.choose(1, kept), 60)
    assert sorted(directory.row_of.tolist()) == [1, 3, 50, 60]
