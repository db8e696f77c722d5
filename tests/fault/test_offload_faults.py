"""Disks that are full or fail while activations move, and killed processes: an error, never a wrong
gradient, and no file."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from gnnsys.errors import StorageError
from gnnsys.offload import ActivationOffload
from tests.fault.failing_reads import fail_reads_of
from tests.unit.offload.training import STORAGE, Residual, X, losses_and_state, same_bits

BUDGET = 3 * STORAGE


def offload_to(folder: Path, disk_budget: int | None = None) -> ActivationOffload:
    return ActivationOffload(BUDGET, folder=folder, policies=("disk",), disk_budget=disk_budget)


def forward(offload: ActivationOffload) -> Tensor:
    with offload:
        return Residual()(X).square().mean()


def test_a_file_that_may_not_grow_is_an_error_with_numbers(tmp_path: Path) -> None:
    offload = offload_to(tmp_path, 4 * STORAGE)
    with pytest.raises(StorageError, match=r"no 128000 bytes in a row .* of at most 512000 bytes"):
        forward(offload)
    gc.collect()
    small = Residual()
    with offload:
        loss = small.last(small.activation(small.first(X))).sum()
    loss.backward()
    offload.close()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_raises_by_the_end_of_the_block(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        offload = offload_to(tmp_path, 64 << 20)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"cannot be written \(No space left on device"):
                forward(offload)
            gc.collect()
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        assert same_bits(losses_and_state(Residual, offload), losses_and_state(Residual, None))
        offload.close()
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fails_to_read_raises_in_backward(tmp_path: Path) -> None:
    offload = offload_to(tmp_path)
    model = Residual()
    with offload:
        loss = model(X).square().mean()
    assert offload._keeper is not None
    assert offload._keeper._tier is not None
    fail_reads_of(offload._keeper._tier._file)
    with pytest.raises(StorageError, match=rf"^{tmp_path} .*: cannot be read at byte ") as one:
        loss.backward()
    assert one.value.errno == errno.EIO
    # Backward stopped at the first tensor that was lost: no layer before it has a gradient.
    assert model.first.weight.grad is None
    assert model.layers[0].weight.grad is None
    del loss
    gc.collect()
    offload.close()
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_no_file(
    run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "spill").mkdir()
    script = """
        import os, signal, torch
        from gnnsys.offload import ActivationOffload
        offload = ActivationOffload("2MB", folder="spill", policies=("disk",))
        x = torch.rand(1 << 18).requires_grad_()
        with offload:
            for _ in range(8):
                x = torch.sigmoid(x)
        print(offload._keeper._stored >= 4 << 20, os.listdir("spill"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = run_forked(script, tmp_path)
    assert (ran.returncode, ran.stdout) == (-9, "True []\n"), ran.stderr
    assert os.listdir(tmp_path / "spill") == []
