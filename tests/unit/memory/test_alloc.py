"""What becomes of freed memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnnsys import keep_freed_memory
from gnnsys.errors import ArgumentError
from gnnsys.memory import alloc

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
    nbytes: int, expected: str, tmp_path: Path
) -> None:
    code = FAULTS.format(nbytes=nbytes, expected=expected)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


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
