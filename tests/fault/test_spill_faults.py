"""Disks, limits and signals that get in the way of a spill file: one clear error, and no file."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gnnsys.errors import GnnsysError, StorageError
from gnnsys.offload.spill_file import SpillFile
from tests.fault.failing_reads import fail_reads_of

DATA = torch.arange(1 << 20).to(torch.uint8)


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    limits = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, limits)


def test_a_full_or_read_only_disk_is_one_error_and_what_was_written_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        spill = SpillFile(tmp_path)
        assert spill.most_bytes == 2 << 20
        assert f"{tmp_path}: lies in memory (tmpfs)" in caplog.text
        spill.close()
        spill = SpillFile(tmp_path, 64 << 20)
        full = rf"^{tmp_path} .*: cannot be written \(No space left on device\); make room"
        extents = [spill.allocate(len(DATA)) for _ in range(4)]
        for extent in extents[:3]:
            spill.write(extent, DATA)
        with pytest.raises(StorageError, match=full):
            spill.write(extents[3], DATA)
        out = spill.room_for(len(DATA))
        spill.read(extents[2], out)
        assert torch.equal(out, DATA)
        spill.close()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(StorageError, match=rf"^{tmp_path}: .* \(Read-only file system\); "):
            SpillFile(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fails_names_the_folder_and_is_an_input_output_error(tmp_path: Path) -> None:
    spill = SpillFile(tmp_path, 1 << 20)
    extent = spill.allocate(5000)
    spill.write(extent, DATA[:5000])
    fail_reads_of(spill)
    with pytest.raises(StorageError, match=rf"^{tmp_path} .*: cannot be read at byte 4096 ") as one:
        spill.read(extent, spill.room_for(5000))
    assert one.value.errno == errno.EIO
    spill.close()


def test_the_size_that_files_may_have_is_kept(tmp_path: Path) -> None:
    before = SpillFile(tmp_path, 2 << 20)
    extent = before.allocate(2 << 20)
    with limited(resource.RLIMIT_FSIZE, 1 << 20):
        spill = SpillFile(tmp_path)
        assert spill.most_bytes == (1 << 20) - 4096
        last = spill.allocate((1 << 20) - 4096)
        spill.write(last, DATA[4096:])
        spill.close()
        too_large = rf"^{tmp_path}.*: cannot be written \(File too large\); raise .* \(ulimit -f\)"
        with pytest.raises(StorageError, match=too_large):
            SpillFile(tmp_path, 1 << 20)
        with pytest.raises(StorageError, match=too_large):
            before.write(extent, DATA.repeat(2))
    with (
        limited(resource.RLIMIT_FSIZE, 5000),
        pytest.raises(StorageError, match=r"no room for activations: .* a file may have 5000 "),
    ):
        SpillFile(tmp_path)
    before.close()


def test_a_place_that_takes_no_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, why in (("none", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(StorageError, match=rf"/{folder}: cannot be written \({why}\); choose"):
            SpillFile(tmp_path / folder)
    with pytest.raises(StorageError, match=r"^/proc: cannot be written"):
        SpillFile("/proc")


def test_a_process_without_open_files_left_is_told_of_the_limit(tmp_path: Path) -> None:
    used = len(os.listdir("/proc/self/fd"))
    told = []
    for more in range(12):
        with limited(resource.RLIMIT_NOFILE, used + more):
            try:
                SpillFile(tmp_path, 1 << 20).close()
            except GnnsysError as error:
                told.append(str(error))
        assert len(os.listdir("/proc/self/fd")) == used
    assert 0 < len(told) < 12
    assert all(str(tmp_path) in error and "(ulimit -n)" in error for error in told)


def test_a_killed_process_leaves_no_file(
    run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "spill").mkdir()
    script = """
        import os, signal, torch
        from gnnsys.offload.spill_file import SpillFile
        spill = SpillFile("spill", 8 << 20)
        spill.write(spill.allocate(5 << 20), torch.ones(5 << 20, dtype=torch.uint8))
        print(os.fstat(int(spill._path.rpartition("/")[2])).st_blocks * 512 >= 5 << 20, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = run_forked(script, tmp_path)
    assert (ran.returncode, ran.stdout) == (-9, "True\n")
    assert os.listdir(tmp_path / "spill") == []
