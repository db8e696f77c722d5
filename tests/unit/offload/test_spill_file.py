"""What is written to a spill file is what is read; pages are given out again, never twice."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.errors import ArgumentError, StorageError
from gnnsys.offload import spill_file
from gnnsys.offload.spill_file import Extent, SpillFile

PAGE = 4096


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[SpillFile]:
    file = SpillFile(tmp_path, 64 << 20)
    yield file
    file.close()


def some(nbytes: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=draw)


def read(spill: SpillFile, extent: Extent) -> Tensor:
    out = spill.room_for(extent.nbytes)
    spill.read(extent, out)
    return out


@settings(deadline=None, print_blob=True)
@given(st.lists(st.tuples(st.integers(1, 5 * PAGE), st.integers(0, 20)), max_size=40))
def test_pages_are_taken_and_freed_as_in_a_map_of_single_pages(
    asked: list[tuple[int, int]],
) -> None:
    taken = [False] * 32
    held: list[Extent] = []
    spill = SpillFile(most_bytes=32 * PAGE)
    for nbytes, which in asked:
        if which < len(held):
            freed = held.pop(which)
            taken[freed.first : freed.first + freed.pages] = [False] * freed.pages
            spill.free(freed)
        pages = -(-nbytes // PAGE)
        places = [at for at in range(33 - pages) if not any(taken[at : at + pages])]
        if places:
            extent = spill.allocate(nbytes)
            assert (extent.first, extent.pages, extent.nbytes) == (places[0], pages, nbytes)
            taken[extent.first : extent.first + pages] = [True] * pages
            held.append(extent)
        else:
            with pytest.raises(StorageError, match=rf"no {nbytes} bytes .* {32 * PAGE} bytes"):
                spill.allocate(nbytes)
        assert spill.in_use == sum(taken) * PAGE <= spill.peak
    spill.close()


@pytest.mark.parametrize(("storage", "skipped"), [("auto", 0), ("auto", 64), ("mmap", 64)])
def test_every_length_is_read_as_it_was_written(
    storage: str, skipped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if storage != "auto":
        monkeypatch.setattr(spill_file, "_way_to_read", lambda path: storage)
    spill = SpillFile(tmp_path, 64 << 20)
    lengths = [1, 4095, 4096, 4097, (64 << 10) - 1, (64 << 10) + 5, 128 << 10, (5 << 20) + 4097]
    data = []
    for seed, nbytes in enumerate(lengths):
        memory = torch.empty(nbytes + 2 * PAGE, dtype=torch.uint8)
        begin = -memory.data_ptr() % PAGE + skipped
        data.append(memory[begin : begin + nbytes].copy_(some(nbytes, seed)))
    extents = [spill.allocate(len(each)) for each in data]
    for extent, each in zip(extents, data, strict=True):
        spill.write(extent, each)
    for extent, each in zip(reversed(extents), reversed(data), strict=True):
        assert torch.equal(read(spill, extent), each)
    assert spill.written == spill.read_bytes == sum(lengths)
    assert spill.write_seconds > 0 < spill.read_seconds
    spill.write(extents[3], data[3].flip(0))
    assert torch.equal(read(spill, extents[3]), data[3].flip(0))
    assert torch.equal(read(spill, extents[4]), data[4])
    spill.close()


def test_threads_move_and_free_at_once(spill: SpillFile) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            data = some(PAGE * (1 + (seed + turn) % 40) + seed, seed * 100 + turn)
            extent = spill.allocate(len(data))
            spill.write(extent, data)
            if not torch.equal(read(spill, extent), data):
                wrong.append(seed)
            spill.free(extent)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert spill.in_use == 0


def test_no_file_is_seen_while_it_is_used_nor_open_once_closed(tmp_path: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    spill = SpillFile(tmp_path, 1 << 20)
    extent = spill.allocate(100_000)
    spill.write(extent, some(100_000))
    read(spill, extent)
    assert os.listdir(tmp_path) == []
    spill.close()
    spill.close()
    spill.free(extent)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ArgumentError, match="was closed; make another"):
        spill.allocate(1)
    dropped = SpillFile(tmp_path, 1 << 20)
    dropped.write(dropped.allocate(5), some(5))
    del dropped
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_child_can_do_nothing_and_leaves_the_file_to_its_parent(spill: SpillFile) -> None:
    extent = spill.allocate(70_000)
    spill.write(extent, some(70_000))
    with spill._lock:  # as another thread may hold it in the moment of the fork
        child = os.fork()
        if child == 0:
            spill.free(extent)
            spill.close()
            try:
                spill.allocate(1)
            except ArgumentError as error:
                os._exit(0 if "belongs to a parent process" in str(error) else 1)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(read(spill, extent), some(70_000))
    assert spill.in_use == 18 * PAGE


def test_what_does_not_fit_an_extent_is_refused(spill: SpillFile) -> None:
    extent = spill.allocate(10)
    for data in (some(9), some(20)[::2], some(10).view(2, 5), some(40).view(torch.int32)):
        for move in (spill.write, spill.read):
            with pytest.raises(ArgumentError, match=r"expected dense \(10,\) of torch\.uint8"):
                move(extent, data)
    spill.free(extent)
    for use in (spill.free, lambda one: spill.write(one, some(10)), lambda one: read(spill, one)):
        with pytest.raises(ArgumentError, match="is not allocated in this file, or was freed"):
            use(extent)
    with pytest.raises(ArgumentError, match="nbytes: 0, expected a positive number"):
        spill.allocate(0)
    with pytest.raises(ArgumentError, match="most_bytes: 4095, expected at least a page of 4096"):
        SpillFile(most_bytes=4095)
