"""Locked files: who has one, and looking at it."""

from __future__ import annotations

import fcntl
import os
import platform
import threading
from pathlib import Path

from gnnsys.system.files import is_locked, lock_file, lock_holder


def test_a_file_is_locked_as_long_as_the_lock_is_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    lock = lock_file(path)
    assert lock is not None
    with lock:
        assert is_locked(path)
        assert lock_file(path) is None
        assert lock_holder(path) == f"process {os.getpid()} on {platform.node()}"
    assert not is_locked(path)


def test_a_look_at_a_lock_does_not_keep_it_from_being_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    look = path.open("rb")
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.05, look.close).start()
    lock = lock_file(path)
    assert lock is not None
    assert look.closed
    lock.close()
