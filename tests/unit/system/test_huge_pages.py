"""Memory on huge pages: what is written to it stays, whatever the kernel grants."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gnnsys.system import huge_pages
from gnnsys.system.huge_pages import HUGE_PAGE, HugePages, map_aligned

SIZE = 7 * HUGE_PAGE + 4096
BOTH = mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.memfd_create("gnnsys-test")
    os.ftruncate(descriptor, SIZE)
    yield descriptor
    os.close(descriptor)


def test_all_who_map_a_file_see_it_from_a_huge_page_s_boundary_on(descriptor: int) -> None:
    one, other = map_aligned(descriptor, SIZE, BOTH), map_aligned(descriptor, SIZE, mmap.PROT_READ)
    one[[0, -1]] = 1, 2
    assert other[[0, 1, -1]].tolist() == [1, 0, 2]
    assert one.ctypes.data % HUGE_PAGE == other.ctypes.data % HUGE_PAGE == 0
    assert not other.flags.writeable
    address = f"{one.ctypes.data:x}-"
    assert address in Path("/proc/self/maps").read_text()
    del one
    assert address not in Path("/proc/self/maps").read_text()
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_aligned(1 << 20, SIZE, BOTH)
    assert map_aligned(descriptor, 0, BOTH).shape == (0,)


def refuse(monkeypatch: pytest.MonkeyPatch, error: int) -> list[int]:
    """Has each madvise fail; returns where the bytes asked for appear."""
    asked: list[int] = []

    def madvise(address: int, nbytes: int, advice: int) -> int:
        asked.append(nbytes)
        ctypes.set_errno(error)
        return -1

    found = SimpleNamespace(madvise=madvise, mmap=huge_pages._libc.mmap)
    monkeypatch.setattr(huge_pages, "_libc", found)
    return asked


@pytest.mark.parametrize("planned", [0, 3 * HUGE_PAGE, SIZE])
@pytest.mark.parametrize("error", [0, errno.EAGAIN, errno.EINVAL, errno.ENOMEM])
def test_what_is_filled_is_kept_and_no_more_than_a_page_is_taken_besides(
    monkeypatch: pytest.MonkeyPatch, descriptor: int, error: int, planned: int
) -> None:
    asked = refuse(monkeypatch, error) if error else []
    memory = map_aligned(descriptor, SIZE, BOTH)
    pages, wanted = HugePages(memory, planned), np.zeros(SIZE, np.uint8)
    rng, end = np.random.default_rng(planned + error), 0
    while end < SIZE:
        first, end = end, min(SIZE, end + int(rng.integers(1, 3 * HUGE_PAGE)))
        wanted[first:end] = memory_bytes = rng.integers(0, 255, end - first, np.uint8)
        pages.reach(end)
        pages.reach(first)
        memory[first:end] = memory_bytes
        taken = os.fstat(descriptor).st_blocks * 512
        assert taken < max(planned, end) + 2 * HUGE_PAGE
        if not planned:
            assert taken < end + HUGE_PAGE
    assert np.array_equal(memory, wanted)
    if error == errno.EAGAIN:
        assert sum(asked) == SIZE // HUGE_PAGE * HUGE_PAGE  # each page once
    elif error:
        assert len(asked) == 1


def test_all_who_map_what_was_filled_read_it_by_huge_pages(
    descriptor: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", huge_pages.__name__)
    memory, seen = (map_aligned(descriptor, SIZE, BOTH) for _ in range(2))
    pages = HugePages(memory, 0)
    for end in range(HUGE_PAGE, SIZE, HUGE_PAGE):
        pages.reach(end)
        memory[end - HUGE_PAGE : end] = 5
    assert seen[:end:4096].min() == 5
    if caplog.text:
        pytest.skip("the kernel has no huge pages for shared memory")
    for each in (memory, seen):
        _, _, rest = Path("/proc/self/smaps").read_text().partition(f"{each.ctypes.data:x}-")
        found = re.search(r"^ShmemPmdMapped: +(\d+) kB", rest, re.MULTILINE)
        assert found is not None
        assert int(found[1]) << 10 == end
