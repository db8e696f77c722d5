"""Which pages of host memory are registered, against a set of pages that keeps CUDA's rules."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.errors import DeviceError, ResourceError
from gnnsys.memory import HostStore
from gnnsys.memory.alloc import in_pages_of_its_own, view_array
from gnnsys.system.gpu.host_memory import (
    OWN_MAPPING_BYTES,
    HostMemory,
    Range,
    check_not_lost,
)

PAGE = mmap.PAGESIZE
PAGES = 12


class Pages:
    """Registers memory as ``cudaHostRegister`` is documented to: whole pages, each once."""

    def __init__(self, most: int = PAGES, foreign: set[int] | None = None) -> None:
        self.most, self.of, self.flags = most, dict[int, int](), set[int]()
        self.foreign = foreign or set()

    @property
    def registered(self) -> set[int]:
        return {
            first + i * PAGE for first, nbytes in self.of.items() for i in range(nbytes // PAGE)
        }

    def register(self, address: int, nbytes: int, flags: int) -> None:
        assert address % PAGE == nbytes % PAGE == 0 < nbytes
        pages = set(range(address, address + nbytes, PAGE))
        if pages & (self.registered | self.foreign):
            raise DeviceError("cudaErrorHostMemoryAlreadyRegistered", 712)
        if len(self.registered | pages) > self.most:
            raise DeviceError("cudaErrorMemoryAllocation", 2)
        self.of[address] = nbytes
        self.flags.add(flags)

    def unregister(self, address: int) -> None:
        del self.of[address]


def area(flags: int = mmap.MAP_PRIVATE, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    return mmap.mmap(-1, PAGES * PAGE, flags=flags | mmap.MAP_ANONYMOUS, prot=prot)


def address_of(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def pages_of(memory: Range) -> set[int]:
    first = memory.address // PAGE * PAGE
    return set(range(first, memory.address + memory.nbytes, PAGE))


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 2)), max_size=12),
    chunk=st.sampled_from([PAGE, 2 * PAGE, 1 << 30]),
)
def test_pages_are_registered_as_long_as_a_range_needs_them(
    steps: list[tuple[str, int]], chunk: int
) -> None:
    memory, pages = area(), Pages()
    ranges = [
        Range(address_of(memory) + first * PAGE, count * PAGE)
        for first, count in ((0, 3), (3, 1), (5, 6))
    ]
    host, live = HostMemory(pages, chunk), list[Range]()
    for what, number in steps:
        wanted = ranges[number]
        if what == "add":
            host.add(wanted)
            live.append(wanted)
        elif wanted in live:
            host.remove(wanted)
            live.remove(wanted)
        assert pages.registered == set().union(*map(pages_of, live))
        assert all(nbytes <= chunk for nbytes in pages.of.values())
    for each in live:
        host.remove(each)
    assert not pages.of


def test_memory_that_shares_pages_or_is_registered_in_part_is_refused(tmp_path: Path) -> None:
    memory, pages = area(), Pages(most=1 << 20)
    host, first = HostMemory(pages), address_of(memory)
    for wanted in (Range(first + 64, 2 * PAGE), Range(first, PAGE + 8)):
        with pytest.raises(DeviceError, match="share pages with other memory"):
            host.add(wanted)
    np.save(tmp_path / "rows.npy", np.arange(1000))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r+")  # begins within a page, of its own
    large = torch.empty((OWN_MAPPING_BYTES >> 3) + 1, dtype=torch.int64)
    copied = in_pages_of_its_own(torch.arange(5))
    assert copied.tolist() == [0, 1, 2, 3, 4]
    storage = copied.untyped_storage()
    good = [
        Range(first, 4 * PAGE),
        Range(rows.ctypes.data, rows.nbytes),
        Range(large.data_ptr(), large.nbytes),
        Range(storage.data_ptr(), storage.nbytes()),
    ]
    for each in good:
        host.add(each)
    assert [each.fills_pages for each in good] == [True, False, False, True]
    for wanted in (Range(first + PAGE, PAGE), Range(first + 3 * PAGE, 4 * PAGE)):
        with pytest.raises(DeviceError, match="a part of it is registered already"):
            host.add(wanted)
    for each in good:
        host.remove(each)
    assert not pages.of


def test_what_is_let_go_while_the_lock_is_held_is_unregistered_after_it() -> None:
    memory, pages = area(), Pages()
    host, first = HostMemory(pages), address_of(memory)
    gone, wanted = Range(first, PAGE), Range(first + PAGE, PAGE)
    host.add(gone)
    register = pages.register

    def collecting(*arguments: int) -> None:
        host.remove(gone)  # as the garbage collector may at any time
        register(*arguments)

    pages.register = collecting  # type: ignore[method-assign]
    host.add(wanted)
    assert pages.registered == pages_of(wanted)
    host.remove(wanted)


def test_what_another_registered_is_used_and_left_registered() -> None:
    memory = area()
    first = address_of(memory)
    pages = Pages(foreign={first, first + PAGE})
    host = HostMemory(pages, PAGE)
    host.add(Range(first, 4 * PAGE))
    assert pages.registered == {first + 2 * PAGE, first + 3 * PAGE}
    host.remove(Range(first, 4 * PAGE))
    assert not pages.of


def test_a_refusal_leaves_nothing_registered_and_names_the_limit() -> None:
    memory = area()
    pages = Pages(most=2)
    host, wanted = HostMemory(pages, PAGE), Range(address_of(memory), 3 * PAGE)
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (before[1], before[1]))
        with pytest.raises(DeviceError, match="cannot be registered: cudaErrorMemoryAllocation"):
            host.add(wanted)
        assert not pages.of
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, before[1]))
        with pytest.raises(ResourceError, match=r"the limit is 4 KiB; .*ulimit -l"):
            host.add(wanted)
        assert not pages.of
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    pages.most = 3
    host.add(wanted)
    assert len(pages.registered) == 3
    host.remove(wanted)


@pytest.mark.parametrize("reads_only", [True, False])
def test_memory_that_can_only_be_read_is_told_to_be_so_or_refused(
    tmp_path: Path, reads_only: bool
) -> None:
    np.save(tmp_path / "rows.npy", np.arange(4096.0))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    wanted = Range(rows.ctypes.data, rows.nbytes)
    pages = Pages(most=1 << 20)
    host = HostMemory(pages)
    if reads_only:
        host.add(wanted, reads_only=True)
        assert pages.flags == {1 | 2 | 8}
        host.remove(wanted)
    else:
        with pytest.raises(DeviceError, match="can only be read"):
            host.add(wanted, reads_only=False)
        assert not pages.of


def in_child(work: Callable[[], int]) -> int:
    """How a forked process ends that returns ``work()``: its status, or minus a signal."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # not pytest's
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("is_shared", [True, False])
def test_private_pages_are_not_there_in_a_forked_process_which_is_told_so(is_shared: bool) -> None:
    memory = area(mmap.MAP_SHARED if is_shared else mmap.MAP_PRIVATE)
    array = np.frombuffer(memory, np.uint8)
    first = array.ctypes.data
    rows = view_array(array[PAGE : 3 * PAGE].view(np.float32).reshape(-1, 64))
    store = HostStore(rows)
    wanted = Range(rows.data_ptr(), rows.nbytes)
    host = HostMemory(Pages(), PAGE)
    host.add(wanted)

    def read(page: int) -> Callable[[], int]:
        return lambda: ctypes.c_uint8.from_address(first + page * PAGE).value

    def gather() -> int:
        try:
            check_not_lost(wanted.address, wanted.nbytes)
            store.read_range(0, 1)
        except DeviceError as error:
            return 3 if "num_workers=0" in str(error) else 4
        return 0

    lost = [0, -signal.SIGSEGV, -signal.SIGSEGV, 0]
    assert [in_child(read(page)) for page in range(4)] == ([0] * 4 if is_shared else lost)
    assert in_child(gather) == (0 if is_shared else 3)
    check_not_lost(wanted.address, wanted.nbytes)
    host.remove(wanted)
    assert [in_child(read(page)) for page in range(4)] == [0] * 4
    assert in_child(gather) == 0
