"""Memory of a device that kernels of other processes of the machine read, too.

Owns ``PeerMemory`` and its kinds: of CUDA, by its interprocess handles, and of the host, where
kernels are executed on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import DeviceError
from gnnsys.system.gpu.provider import Provider, find_provider
from gnnsys.system.shared_memory import SharedMemory, map_shared

__all__ = ["OUT_OF_MEMORY", "CudaPeerMemory", "HostPeerMemory", "PeerMemory", "peers_in_words"]

OUT_OF_MEMORY = 2  # of cudaError_t


class PeerMemory(Protocol):
    """Memory that this process made, and the way to that of others.

    Raises:
        DeviceError: the device refuses it; with the status ``OUT_OF_MEMORY`` where it is short.
        ResourceError: the system refuses it.
    """

    address: int
    """Of its first byte, a multiple of 256."""

    where: Any
    """What other processes open it by; JSON can hold it."""

    @property
    def memory(self) -> Tensor:
        """(bytes,) uint8 of the device, of this process; not used any more after ``leave``."""

    def open(self, where: Any, nbytes: int) -> int:
        """Where kernels of this process read memory of another one, until ``leave``.

        Raises:
            DeviceError, OSError: they cannot.
        """

    def leave(self) -> None:
        """Lets go of that of others."""

    def free(self) -> None:
        """Lets go of this process's own, once, when all others have left it; else it is kept for
        them, to the end of the process."""


class HostPeerMemory(PeerMemory):
    """Host memory, for kernels that are executed on the CPU.

    >>> own = HostPeerMemory(8)
    >>> own.memory[3] = 7
    >>> import ctypes
    >>> ctypes.c_uint8.from_address(own.open(own.where, 8) + 3).value
    7
    """

    def __init__(self, nbytes: int) -> None:
        own = SharedMemory.create("gnnsys-peer", nbytes)
        self._own: SharedMemory | None = own
        self._opened: list[NDArray[np.uint8]] = []
        self.address, self.where = own.bytes.ctypes.data, own.where

    @property
    def memory(self) -> Tensor:
        """See ``PeerMemory.memory``."""
        assert self._own is not None
        return torch.from_numpy(self._own.bytes)

    def open(self, where: Any, nbytes: int) -> int:
        """See ``PeerMemory.open``."""
        self._opened.append(map_shared(tuple(where), nbytes))
        return self._opened[-1].ctypes.data

    def leave(self) -> None:
        """See ``PeerMemory.leave``; also of its own, which is there as long as somebody maps it."""
        self._opened.clear()
        self._own = None

    def free(self) -> None:
        """See ``PeerMemory.free``."""


class CudaPeerMemory(PeerMemory):
    """Memory of a GPU, told to other processes by the handles of CUDA IPC.

    Args:
        provider: reaches CUDA.
        device: of torch, with an index.
        nbytes: of the memory.
        bound: makes the device that of the thread.
    """

    def __init__(
        self,
        provider: Provider,
        device: torch.device,
        nbytes: int,
        bound: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._provider, self._device, self._bound = provider, device, bound
        self._nbytes = nbytes
        self._index_of = {provider.bus_id(index): index for index in _gpus_of(provider)}
        self._opened: list[int] = []
        with bound():
            self.address = provider.allocate(max(1, nbytes))
            try:
                handle = provider.export(self.address)
            except DeviceError:
                provider.free(self.address)
                raise
        self.where = [provider.bus_id(device.index), handle.hex()]

    @property
    def memory(self) -> Tensor:
        """See ``PeerMemory.memory``."""
        return torch.as_tensor(_Interface(self.address, self._nbytes), device=self._device)

    def open(self, where: Any, nbytes: int) -> int:
        """See ``PeerMemory.open``; of a GPU that this process does not see, CUDA says whether."""
        del nbytes
        bus_id, handle = where
        peer, own = self._index_of.get(bus_id), self._device.index
        if peer not in (None, own) and not self._provider.can_read(own, peer):
            raise DeviceError(f"{self._device} has no peer access to the GPU at {bus_id}")
        with self._bound():
            self._opened.append(self._provider.open(bytes.fromhex(handle)))
        return self._opened[-1]

    def leave(self) -> None:
        """See ``PeerMemory.leave``."""
        with self._bound():
            while self._opened:
                self._provider.close(self._opened.pop())

    def free(self) -> None:
        """See ``PeerMemory.free``."""
        with self._bound():
            self._provider.free(self.address)


def peers_in_words() -> str:
    """Which GPUs of this machine read each other's memory; "" where nothing finds one."""
    try:
        provider = find_provider()
    except DeviceError:
        return ""
    gpus = list(_gpus_of(provider))
    apart = [
        f"{one} of {other}"
        for one in gpus
        for other in gpus
        if one != other and not provider.can_read(one, other)
    ]
    if apart:
        return f"no peer: GPUs do not read each other's memory: {', '.join(apart)}"
    return f"peer on {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}" if gpus else ""


def _gpus_of(provider: Provider) -> Iterator[int]:
    for index in itertools.count():
        try:
            provider.bus_id(index)
        except DeviceError:
            return
        yield index


class _Interface:
    """Bytes of a GPU, as ``torch.as_tensor`` takes them without a copy."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip
