"""What a device does for kernels, and where their sources and what is compiled of them lie."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gnnsys.system.extension import core
from gnnsys.system.files import as_storage_error

__all__ = ["SOURCES", "Argument", "Device", "Launch", "compiled", "source_hash"]

SOURCES = Path(core.__file__).parent / "_cuda"
"""Folder of the installed sources: ``cuda``, device code; ``simt``, which runs it on the CPU."""

Argument = ctypes.c_void_p | ctypes.c_int64 | ctypes.Structure
"""One argument of a kernel; a pointer is an address that the device reads."""


class Launch(NamedTuple):
    """How many threads a kernel runs on."""

    blocks: int
    threads: int
    """Of a block; a multiple of 32."""


class Device(Protocol):
    """Compiles kernels and launches them, in the order in which they are asked for."""

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
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "gnnsys/kernels" / name
    if not path.is_file():
        with as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / name
                make(made)
                os.replace(made, path)
    return path
