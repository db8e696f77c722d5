"""A device that executes kernels on the CPU, thread by thread: slow, and bit for bit what they say.

The kernels and the executor are compiled by the C++ compiler of the machine, ``$CXX`` or ``c++``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from gnnsys.errors import BuildError
from gnnsys.system.extension import core
from gnnsys.system.gpu.device import (
    SOURCES,
    Argument,
    Launch,
    compiled,
    source_hash,
)
from gnnsys.system.gpu.host_memory import Range
from gnnsys.system.gpu.peer_memory import HostPeerMemory

__all__ = ["HostExecutorDevice", "Schedule"]

_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-w", "-ffp-contract=off")
_ORDERS = ("ascending", "descending", "random")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which CUDA thread runs next; results may not depend on it."""

    order: Literal["ascending", "descending", "random"] = "ascending"
    seed: int = 0
    """Of the random order."""
    resident_blocks: int = 1
    """Blocks that run at once."""


@dataclass(frozen=True, slots=True)
class _Kernel:
    library: ctypes.CDLL
    call: int
    """Address of the function that runs it."""

    name: str


class HostExecutorDevice:
    """Executes kernels on the CPU; the memory of the device is that of the process.

    Args:
        schedule: of all launches.

    Raises:
        BuildError: the machine has no C++ compiler.
    """

    torch_device = torch.device("cpu")

    def __init__(self, schedule: Schedule | None = None) -> None:
        self._schedule = schedule or Schedule()
        compiler = os.environ.get("CXX") or "c++"
        found = shutil.which(compiler)
        if found is None:
            raise BuildError(
                f"device simt: kernels are compiled by {compiler}, which is not on PATH; install a "
                "C++20 compiler, or name one by CXX"
            )
        self._compiler = found

    def kernel(self, header: str, instance: str) -> _Kernel:
        return _compile(self._compiler, header, instance)

    def launch(self, kernel: _Kernel, launch: Launch, arguments: Sequence[Argument]) -> None:
        """See ``Device``; returns when it is done.

        Raises:
            RuntimeError: a fault of the kernel: its threads wait for each other for ever, or break
                a rule of CUDA.
        """
        schedule = self._schedule
        kernel.library.simt_schedule(
            _ORDERS.index(schedule.order),
            ctypes.c_uint64(schedule.seed),
            schedule.resident_blocks,
        )
        status = core.launch_kernel(
            kernel.call, 0, launch.blocks, launch.threads, 0, list(arguments)
        )
        if status != 0:
            raise RuntimeError(f"{kernel.name}: {kernel.library.simt_error().decode()}")

    def __repr__(self) -> str:
        return "HostExecutorDevice()"

    def map_host(self, memory: Range) -> bool:
        """See ``Device.map_host``."""
        del memory
        return False

    def unmap_host(self, memory: Range) -> None:
        """See ``Device.unmap_host``."""

    def peer_memory(self, nbytes: int) -> HostPeerMemory:
        """See ``Device.peer_memory``."""
        return HostPeerMemory(nbytes)


@cache
def _compile(compiler: str, header: str, instance: str) -> _Kernel:
    source = (
        f'#include "{header}"\n#include "simt/entry.hpp"\n'
        "using namespace gnnsys::cuda;\n"
        f"SIMT_ENTRY({instance})\nSIMT_SCHEDULE\n"
    )
    _load_executor(compiler)
    loaded = ctypes.CDLL(str(_made(compiler, source, f"{header}: {instance}")))
    loaded.simt_error.restype = ctypes.c_char_p
    call = ctypes.cast(loaded.simt_launch, ctypes.c_void_p).value
    assert call is not None
    return _Kernel(loaded, call, instance)


@cache
def _load_executor(compiler: str) -> None:
    """Once for all kernels: each thread keeps the stacks that it made, of two mappings each, of
    which the kernel permits a process 65,530."""
    source = '#include "simt/executor.cpp"\n#include "simt/fiber.cpp"\n'
    ctypes.CDLL(str(_made(compiler, source, "the executor of kernels")), ctypes.RTLD_GLOBAL)


def _made(compiler: str, source: str, what: str) -> Path:
    """The library that the compiler makes of a source."""

    def make(path: Path) -> None:
        done = subprocess.run(
            [compiler, *_FLAGS, f"-I{SOURCES}", "-shared", "-xc++", "-", "-o", path],
            input=source, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise BuildError(f"{what}: {compiler} cannot compile it:\n{done.stderr}")

    return compiled(source_hash([compiler, _version_of(compiler), *_FLAGS, source]) + ".so", make)


@cache
def _version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
