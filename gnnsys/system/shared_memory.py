"""Memory that several processes of a machine map, without a name that could be left behind."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from errno import EOVERFLOW

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import ResourceError
from gnnsys.system.huge_pages import map_aligned

__all__ = ["SharedMemory", "map_shared", "sharing_refusal"]


@dataclass(frozen=True)
class SharedMemory:
    """Memory that this process made, all zeros, taken as it is written to.

    It lives as long as somebody maps it: nothing is left of processes that were killed, and the
    size of /dev/shm is no limit, since memfd_create(2) has no file there.
    """

    bytes: NDArray[np.uint8]
    """(bytes,) of it."""

    where: tuple[int, int, int]
    """Process, descriptor and number of the file, for ``map_shared`` in another process."""

    @classmethod
    def create(cls, name: str, nbytes: int) -> SharedMemory:
        """New memory.

        Args:
            name: shown in /proc/PID/maps.
            nbytes: at most; what is not written to takes no memory.

        Raises:
            ResourceError: the system refuses it.
        """
        with ExitStack() as held:
            try:
                descriptor = os.memfd_create(name)
                held.callback(os.close, descriptor)
                os.ftruncate(descriptor, max(1, nbytes))
                mapped = map_aligned(descriptor, nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
            except (OSError, OverflowError) as error:
                raise ResourceError(
                    getattr(error, "errno", EOVERFLOW),
                    f"{nbytes} bytes of shared memory: {getattr(error, 'strerror', error)}",
                ) from error
            memory = cls(mapped, (os.getpid(), descriptor, os.fstat(descriptor).st_ino))
            weakref.finalize(memory, held.pop_all().close)
        return memory


def map_shared(
    where: tuple[int, int, int], nbytes: int, writable: bool = False
) -> NDArray[np.uint8]:
    """(bytes,) of what another process made by ``SharedMemory.create``.

    Raises:
        OSError: this process may not, or does not see the other one.
    """
    process, descriptor, number = where
    own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR if writable else os.O_RDONLY)
    try:
        if os.fstat(own).st_ino != number:
            raise FileNotFoundError(f"process {process} is another one here")
        return map_aligned(own, nbytes, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    finally:
        os.close(own)


def sharing_refusal() -> str:
    """Why processes of this user cannot map each other's memory here, or "" where they can.

    >>> isinstance(sharing_refusal(), str)
    True
    """
    try:
        memory = SharedMemory.create("gnnsys-doctor", 1)
    except ResourceError as error:
        return str(error.__cause__)
    process, descriptor, _ = memory.where
    look = f"open('/proc/{process}/fd/{descriptor}', 'rb')"
    done = subprocess.run([sys.executable, "-ISc", look], capture_output=True, check=False)
    return "" if done.returncode == 0 else done.stderr.decode().strip().rpartition("\n")[2]
