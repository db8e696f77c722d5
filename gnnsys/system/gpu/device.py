"""What a device does for kernels, and where their sources and what is compiled of them lie."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gnnsys.system.extension import core
from gnnsys.system.files import as_storage_error
from gnnsys.system.gpu.host_memory import Range
from gnnsys.system.gpu.peer_memory import PeerMemory
from gnnsys.system.profiles import user_cache

__all__ = [
    "SOURCES",
    "Argument",
    "Device",
    "Launch",
    "Mapping",
    "compiled",
    "source_hash",
]

SOURCES = Path(core.__file__).parent / "_cuda"
"""Folder of the installed sources: ``cuda``, device code; ``simt``, which runs it on the CPU."""

Argument = int | ctypes.Structure
"""One argument of a kernel: an address or another number of 64 bits, or a structure by value."""


class Launch(NamedTuple):
    """How many threads a kernel runs on."""

    blocks: int
    threads: int
    """Of a block; a multiple of 32."""


class Device(Protocol):
    """Compiles kernels and launches them, in the order in which they are asked for.

    Memory, copies, streams and events of the device are torch's.
    """

    torch_device: torch.device
    """Where the tensors lie that kernels read and write."""

    def kernel(self, header: str, instance: str) -> Any:
        """A kernel that is ready to be launched; compiled at the first call for it.

        Args:
            header: that defines it, in ``SOURCES``, such as ``cuda/rows/gather_rows.cuh``.
            instance: C++ name with its template arguments, of namespace ``gnnsys::cuda``.

        Raises:
            BuildError: it cannot be compiled.
        """

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Argument]) -> None:
        """Runs a kernel of this device.

        Args:
            kernel: of ``kernel()``.
            launch: on how many threads.
            arguments: one for each parameter, of its type.
        """

    def map_host(self, memory: Range) -> bool:
        """Lets kernels read memory of this process at its own addresses.

        Returns:
            Whether ``unmap_host`` is to be called once for it, before the memory is let go of.

        Raises:
            ResourceError: the limit of locked memory is too low.
            DeviceError: the device cannot read it.
        """

    def unmap_host(self, memory: Range) -> None:
        """Takes back a ``map_host``."""

    def peer_memory(self, nbytes: int) -> PeerMemory:
        """New memory of the device that kernels of other processes read, too.

        Raises:
            DeviceError, ResourceError: see ``PeerMemory``.
        """


class Mapping:
    """The memory of a CPU tensor, which a device reads while this object lives.

    Args:
        device: that is to read it.
        tensor: of which the whole storage is mapped; kept as ``tensor``.

    Raises:
        ResourceError, DeviceError: see ``Device.map_host``.
    """

    def __init__(self, device: Device, tensor: Tensor) -> None:
        self.tensor = tensor
        self._memory = memory = _storage_of(tensor)
        is_to_unmap = memory.nbytes > 0 and device.map_host(memory)
        self._end = weakref.finalize(
            self, _end, device if is_to_unmap else None, memory, tensor, os.getpid()
        )

    def is_of(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is still that which is mapped."""
        return _storage_of(tensor) == self._memory

    def close(self) -> None:
        """Ends it."""
        self._end()


def _end(device: Device | None, memory: Range, tensor: Tensor, process: int) -> None:
    if device is not None and process == os.getpid():  # a forked one has mapped nothing
        device.unmap_host(memory)
    del tensor  # not earlier


def _storage_of(tensor: Tensor) -> Range:
    storage = tensor.untyped_storage()
    return Range(storage.data_ptr(), storage.nbytes())


def source_hash(texts: Iterable[str]) -> str:
    """Of all installed sources and of what else decides what is compiled.

    >>> source_hash(["-O2"]) == source_hash(["-O2"]) != source_hash(["-O3"])
    True
    """
    found = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(SOURCES).as_posix().encode() + b"\0")
            found.update(path.read_bytes() + b"\0")
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()


def compiled(name: str, make: Callable[[Path], None]) -> Path:
    """A file of the cache of what was compiled; made where it is not there.

    The cache is ``gnnsys/kernels`` of ``$XDG_CACHE_HOME``, by default ``~/.cache``. Of processes
    that make the same file at once, each makes a whole one.

    Args:
        name: which says all that the content depends on.
        make: writes the content to a path that it is given.

    Raises:
        StorageError: it cannot be written.
    """
    path = user_cache() / "kernels" / name
    if not path.is_file():
        with as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / name
                make(made)
                os.replace(made, path)
    return path
