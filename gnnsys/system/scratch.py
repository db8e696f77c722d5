"""Temporary folders of which a killed process leaves none for long. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["ScratchFolder", "reclaim_scratch"]


class ScratchFolder:
    """A temporary folder, removed with this object or at the end of the process.

    What processes that were killed left under the same prefix beside it is removed first: a live
    one has its folder locked. Where the file system has no locks, it is left alone.

    Args:
        prefix: of its name.
        parent: folder to make it in; None for that of temporary files.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, prefix: str, parent: str | os.PathLike[str] | None = None) -> None:
        reclaim_scratch(prefix, parent)
        place = Path(parent if parent is not None else tempfile.gettempdir())
        handle = None
        while handle is None:  # another process may have taken it for left behind
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            handle = _lock(self.path)
        self._remove = weakref.finalize(self, _end, self.path, handle, os.getpid())

    def close(self) -> None:
        """Removes the folder."""
        self._remove()


def _end(path: Path, handle: int, process: int) -> None:
    if process == os.getpid():  # a forked child has only inherited it
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """An open folder that no other process takes; None where it is another's, or gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # no locks: others cannot have it either
        return handle
    if path.exists():
        return handle
    os.close(handle)
    return None


def reclaim_scratch(prefix: str, parent: str | os.PathLike[str] | None = None) -> None:
    """Removes the folders that killed processes left; see ``ScratchFolder``."""
    place = Path(parent if parent is not None else tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for each in [each for each in os.scandir(place) if each.name.startswith(prefix)]:
            _remove_unlocked(Path(each.path))


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
