"""What becomes of freed memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gnnsys import keep_freed_memory
from gnnsys.errors import ArgumentError
from gnnsys.memory import alloc

RunForked = Callable[..., subprocess.CompletedProcess[str]]

GLIBC = "CS_GNU_LIBC_VERSION" in os.confstr_names and bool(os.confstr("CS_GNU_LIBC_VERSION"))

# The page faults of writing 200 MB: all 48,829 where the pages are fresh. The least of many turns
# counts, since glibc finds a place for an aligned tensor only where some bytes are left over.
FAULTS = """
import resource, torch, gnnsys
assert gnnsys.keep_freed_memory({nbytes}) is True
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(50_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
least = min(faults() for _ in range(12))
assert least {expected}, least
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc has mallopt")
@pytest.mark.parametrize(("nbytes", "expected"), [(1 << 40, "< 100"), (1 << 20, "> 40_000")])
def test_a_freed_tensor_s_pages_are_used_again_up_to_the_bytes_asked_for(
    nbytes: int, expected: str, tmp_path: Path, run_forked: RunForked
) -> None:
    done = run_forked(FAULTS.format(nbytes=nbytes, expected=expected), tmp_path)
    assert done.returncode == 0, done.stderr


# Every second tensor of 2 MB is freed, which a heap would keep: glibc maps larger ones only as
# soon as it has seen one freed that large.
HOLES = """
import psutil, torch
from gnnsys.memory.alloc import suit_freed_memory
suit_freed_memory({available})
torch.empty(8_000_000).fill_(1.0)
tensors = [torch.empty(500_000).fill_(1.0) for _ in range(200)]
full = psutil.Process().memory_info().rss
del tensors[::2]
assert full - psutil.Process().memory_info().rss {expected}
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc has mallopt")
@pytest.mark.parametrize(
    ("available", "expected"), [(1 << 30, "> 190_000_000"), (8 << 30, "< 10_000_000")]
)
def test_freed_memory_is_returned_where_there_is_little_of_it(
    available: int, expected: str, tmp_path: Path, run_forked: RunForked
) -> None:
    done = run_forked(HOLES.format(available=available, expected=expected), tmp_path)
    assert done.returncode == 0, done.stderr


def test_keeping_more_than_once_says_the_same() -> None:
    assert keep_freed_memory() == keep_freed_memory(1) == keep_freed_memory() == GLIBC


def test_a_library_other_than_glibc_keeps_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "confstr_names", {})
    alloc._is_glibc.cache_clear()
    try:
        with caplog.at_level("INFO", "gnnsys"):
            assert not any([keep_freed_memory(), keep_freed_memory()])
    finally:
        alloc._is_glibc.cache_clear()
    assert [record.message for record in caplog.records] == [
        "freed memory goes back to the kernel: only glibc can be told to keep it"
    ]


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_number_of_bytes_that_is_not_positive_is_refused(nbytes: int) -> None:
    with pytest.raises(ArgumentError, match=f"nbytes {nbytes}, expected a positive"):
        keep_freed_memory(nbytes)
