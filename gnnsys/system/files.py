"""Files: arrays mapped, bytes written whole, at offsets, atomically; each fault is one error."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import math
import mmap
import os
import platform
import stat
import time
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import FileFormatError, GnnsysError, MissingFileError, StorageError
from gnnsys.system.once import warn_once

__all__ = [
    "HEADER_BYTES",
    "NPY_FAULTS",
    "advise",
    "append_file",
    "as_storage_error",
    "check_file",
    "check_folder_of",
    "is_locked",
    "lock_file",
    "lock_holder",
    "map_npy",
    "npy_header",
    "read_file",
    "read_text_file",
    "replace_file",
    "replace_npy",
    "replacing",
    "sync",
    "write_at",
    "write_whole",
]

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOOK_SECONDS = 0.5
"""More than it takes to look whether a file is locked, which locks it for a moment."""

HEADER_BYTES = 4096
"""The .npy header is padded to this, so that rows of whole pages are aligned to pages."""

NPY_FAULTS = (ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError)
"""What numpy raises for a damaged .npy header: it parses it as Python and sorts its keys."""

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}

_WAYS_OUT = {
    errno.ENOSPC: "make room on that disk, or write to another",
    errno.EDQUOT: "make room on that disk, or write to another",
    errno.EFBIG: "raise the limit of the size of a file (ulimit -f), or write less",
    errno.EMFILE: "raise the number of open files (ulimit -n), or close some",
}


@contextmanager
def as_storage_error(path: Path) -> Iterator[None]:
    """Turns an OSError inside the ``with`` into one StorageError that names the file."""
    try:
        yield
    except GnnsysError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "choose a place that can be written")
        raise StorageError(f"{path}: cannot be written ({error.strerror}); {way_out}") from error


def check_file(path: Path) -> None:
    """Raises FileFormatError where something else than a file is there: a folder, a named pipe, a
    device. Who opens a pipe waits for a writer. What is under /dev stands for what a shell connects
    to it, and may be a pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and path.is_relative_to("/dev")):
        raise FileFormatError(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'a device')}, no file")


def read_text_file(path: Path, what: str) -> str:
    """The UTF-8 text of a file.

    Args:
        what: it is to be, as in "not {what}".

    Raises:
        FileNotFoundError, NotADirectoryError: it is not there.
        FileFormatError: it cannot be read, or is not UTF-8.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not {what} ({error})") from error


def advise(area: mmap.mmap, advice: int) -> None:
    """``madvise`` where the system permits it: it changes speed only."""
    with suppress(OSError):
        area.madvise(advice)


def check_folder_of(path: Path, name: str = "") -> None:
    """Raises StorageError where a file cannot be written because of its folder.

    Args:
        name: what the error calls the file. Default: its path.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StorageError(f"{name or path}: cannot be written (no such folder); make it first")
    if not os.access(folder, os.W_OK):
        raise StorageError(
            f"{name or path}: cannot be written (not permitted, or read-only); name another folder"
        )


def lock_file(path: Path) -> BinaryIO | None:
    """Opens a file that one process at a time has; None while another has it.

    The lock goes when the file is closed. Whoever has it may remove the file or its folder. It says
    who that is: ``lock_holder``. Where the file system has no locks, there is none, which is told.
    """
    deadline = time.monotonic() + _LOOK_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_file(path)
        file = open(path, "ab")  # noqa: SIM115  (for the caller to close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_SECONDS / 20)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warn_once(
                _log, "%s: the file system has no locks (%s): nothing keeps a second process out",
                path.parent, error.strerror,
            )  # fmt: skip
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()
            return file
        file.close()  # removed after it was opened here: others would make it anew


def lock_holder(path: Path) -> str:
    """Who has the lock, or had it last: process 123 on host."""
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def is_locked(path: Path) -> bool:
    """Whether a process has the lock, wherever it runs; False where the file system has none."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def map_npy(path: Path, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
    """A .npy file, mapped: processes that do so have its pages in memory once.

    Args:
        path: of the file.
        mode: "r": read-only; "c": what is written stays in this process's memory.

    Raises:
        MissingFileError, FileFormatError: it is not there, or not a whole array.
    """
    check_file(path)
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except (*NPY_FAULTS, OSError) as error:
        raise FileFormatError(f"{path}: not a whole .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path}: a .npz archive, expected a .npy array")
    return array


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """A .npy header of version 1.0 (numpy.lib.format), padded to HEADER_BYTES.

    An array without elements gets the shortest one: numpy before 2 cannot map a file of nothing but
    whole pages of header.
    """
    words = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    magic: bytes = np.lib.format.magic(1, 0)
    shortest = len(magic) + 2 + len(words) + 1
    length = (HEADER_BYTES if math.prod(shape) else -(-shortest // 64) * 64) - len(magic) - 2
    return magic + length.to_bytes(2, "little") + words.encode().ljust(length - 1) + b"\n"


def write_whole(file: FileIO, data: bytes | memoryview) -> None:
    """Writes all of ``data`` to an unbuffered file."""
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]


def write_at(path: Path, offset: int, array: NDArray[Any]) -> None:
    """Writes an array at a byte offset; the file is made where it is not there."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    with as_storage_error(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            while len(data):
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(handle)


def append_file(path: Path, offset: int, arrays: Sequence[NDArray[Any]]) -> int:
    """Writes arrays one after another from ``offset`` on and returns where they end."""
    for array in arrays:
        write_at(path, offset, array)
        offset += array.nbytes
    return offset


def read_file(path: Path, dtype: np.dtype[Any], count: int, offset: int) -> NDArray[Any]:
    """Reads ``count`` elements at a byte offset.

    Raises:
        StorageError: the file has not that many.
    """
    if count == 0:
        return np.empty(0, dtype)
    try:
        found = np.fromfile(path, dtype, count=count, offset=offset)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); start again") from error
    if len(found) != count:
        end = offset + count * dtype.itemsize
        raise StorageError(f"{path}: was changed and ends before byte {end}; start again")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write the new content of ``path`` to, which takes its place at the end of ``with``.

    Whoever reads ``path`` finds the old or the new content, whole; after an error, the old one,
    unless its folder cannot be brought to the disk. After the ``with``, no power cut undoes it.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        with as_storage_error(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):  # where it could not be made, the first error is told
            temporary.unlink()
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Gives ``path`` new content at once; see ``replacing``."""
    with replacing(path) as file:
        file.write(data)


def replace_npy(path: Path, array: NDArray[Any]) -> None:
    """``replace_file`` with an array, as ``np.save`` writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    replace_file(path, buffer.getvalue())


def sync(path: Path) -> None:
    """Brings a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
