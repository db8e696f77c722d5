"""A CUDA device: kernels compiled for it by NVRTC, launched on torch's current stream."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gnnsys.errors import BuildError, DeviceError, StorageError
from gnnsys.system.extension import core
from gnnsys.system.gpu.device import (
    SOURCES,
    Argument,
    Launch,
    compiled,
    source_hash,
)
from gnnsys.system.gpu.host_memory import HostMemory, Range
from gnnsys.system.gpu.peer_memory import CudaPeerMemory
from gnnsys.system.gpu.provider import PROVIDERS, Provider, find_provider
from gnnsys.system.once import warn_once

__all__ = ["CudaDevice", "compile_kernel"]

_log = logging.getLogger(__name__)

_OPTIONS = ("-std=c++20", "-default-device")
# Of cudaDeviceAttr.
_USES_HOST_PAGE_TABLES, _USES_HOST_POINTERS, _REGISTERS_READ_ONLY = 100, 91, 113


class CudaDevice:
    """A GPU that torch computes on; ``CudaDevice.of`` gives the one object there is for each.

    Args:
        torch_device: with an index.
        provider: reaches CUDA.

    Raises:
        DeviceError: no driver, or one that is too old.
    """

    def __init__(self, torch_device: torch.device, provider: Provider) -> None:
        self.torch_device, self.provider = torch_device, provider
        index = torch_device.index
        major, minor = torch.cuda.get_device_capability(torch_device)
        self._architecture = f"sm_{major}{minor}"
        self._reads_pageable = bool(provider.attribute(_USES_HOST_PAGE_TABLES, index))
        self._uses_host_pointers = bool(provider.attribute(_USES_HOST_POINTERS, index))
        self._reads_only = bool(provider.attribute(_REGISTERS_READ_ONLY, index))
        self._memory = _memory_of_process(provider)
        self._functions: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    @staticmethod
    def of(torch_device: torch.device) -> CudaDevice | None:
        """The device; None where nothing reaches CUDA, which is logged once.

        Args:
            torch_device: of CUDA; without an index, the current one.
        """
        index = torch_device.index
        return _device(torch.cuda.current_device() if index is None else index)

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaDevice.of, (self.torch_device,)

    def __repr__(self) -> str:
        return f"CudaDevice({str(self.torch_device)!r}, {self.provider.name})"

    def kernel(self, header: str, instance: str) -> int:
        """See ``Device.kernel``."""
        found = self._functions.get((header, instance))
        if found is not None:
            return found
        with self._lock:
            found = self._functions.get((header, instance))
            if found is None:
                path = compile_kernel(self.provider, self._architecture, header, instance)
                name, _, cubin = path.read_bytes().partition(b"\0")
                with self._bound():
                    found = self.provider.load(cubin, name.decode())
                self._functions[header, instance] = found
        return found

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Argument]) -> None:
        """See ``Device.launch``; on the current stream, which is not waited for.

        Raises:
            DeviceError: what CUDA refuses.
        """
        with self._bound():
            stream = torch.cuda.current_stream(self.torch_device).cuda_stream
            status = core.launch_kernel(
                _launch_address(), kernel, launch.blocks, launch.threads, stream, list(arguments)
            )
        if status != 0:
            raise DeviceError(f"cuLaunchKernel: error {status} of CUDA's driver", status)

    def map_host(self, memory: Range) -> bool:
        """See ``Device.map_host``; takes seconds for each GB that is not registered yet."""
        if self._reads_pageable:
            return False
        if not self._uses_host_pointers:
            raise DeviceError(f"{self.torch_device}: host memory has other addresses there")
        with self._bound():
            self._memory.add(memory, reads_only=self._reads_only)
        return True

    def unmap_host(self, memory: Range) -> None:
        """See ``Device.unmap_host``; waits for the device."""
        with self._bound():
            torch.cuda.synchronize(self.torch_device)  # no kernel reads it any more
            self._memory.remove(memory)

    def peer_memory(self, nbytes: int) -> CudaPeerMemory:
        """See ``Device.peer_memory``."""
        return CudaPeerMemory(self.provider, self.torch_device, nbytes, self._bound)

    @contextmanager
    def _bound(self) -> Iterator[None]:
        """Within it, this device is that of the thread."""
        with torch.cuda.device(self.torch_device):
            self._bind()
            yield

    def _bind(self) -> None:
        """A thread that torch has not used has no context of its own."""
        if not getattr(self._thread, "is_bound", False):
            self.provider.bind(self.torch_device.index)
            self._thread.is_bound = True


@functools.cache
def _launch_address() -> int:
    """Of ``cuLaunchKernel``, in the driver that the provider has loaded."""
    driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.cast(driver.cuLaunchKernel, ctypes.c_void_p).value
    assert address is not None
    return address


def compile_kernel(provider: Provider, architecture: str, header: str, instance: str) -> Path:
    """The file of a compiled kernel in the cache: its mangled name, a zero byte, a cubin.

    Args:
        provider: whose NVRTC compiles it, where it is not there yet.
        architecture: such as ``sm_90``.
        header, instance: see ``Device.kernel``.

    Raises:
        BuildError: it cannot be compiled.
    """
    source = f'#include "{header}"\nusing namespace gnnsys::cuda;\n'
    options = (f"-arch={architecture}", *_OPTIONS, f"-I{SOURCES}")

    def make(path: Path) -> None:
        cubin, name = provider.compile(source, options, instance)
        path.write_bytes(name.encode() + b"\0" + cubin)

    key = source_hash([provider.nvrtc, architecture, *_OPTIONS, source, instance])
    return compiled(f"{key}.cubin", make)


_opening = threading.Lock()
_devices: dict[int, CudaDevice | None] = {}
_memories: list[HostMemory] = []


def _device(index: int) -> CudaDevice | None:
    with _opening:
        if index not in _devices:
            _devices[index] = _open(torch.device("cuda", index))
        return _devices[index]


def _open(torch_device: torch.device) -> CudaDevice | None:
    refused = []
    for name in PROVIDERS:  # one may be of another version of CUDA than the driver or the GPU
        try:
            device = CudaDevice(torch_device, find_provider(name))
            device.kernel("cuda/sampler/relabel.cuh", "mark_new")
        except (DeviceError, BuildError, StorageError) as error:
            refused.append(str(error))
        else:
            return device
    told = "kernels do not run on the GPU, for which the CPU gathers and then copies: %s"
    warn_once(_log, told, "; ".join(dict.fromkeys(refused)))
    return None


def _memory_of_process(provider: Provider) -> HostMemory:
    """What is registered is so for all devices, whoever asked for it."""
    if not _memories:
        _memories.append(HostMemory(provider))
    return _memories[0]
