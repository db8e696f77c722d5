"""Temporary folders: gone with their owner, also where it was killed; a live owner's is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gnnsys.system.scratch import ScratchFolder

_OWNER = """
import sys
from gnnsys.system.scratch import ScratchFolder
folder = ScratchFolder("layers-", sys.argv[1])
(folder.path / "rows.npy").write_bytes(b"x" * 1000)
print(folder.path, flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def start(place: Path) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def test_a_folder_goes_with_its_object(tmp_path: Path) -> None:
    folder = ScratchFolder("layers-", tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "sub").mkdir()
    del folder
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(
    tmp_path: Path,
) -> None:
    (killed, left), (live, used) = start(tmp_path), start(tmp_path)
    (tmp_path / "layers-of-mine.txt").write_text("no folder")
    (tmp_path / "other").mkdir()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (left / "rows.npy").exists()
    folder = ScratchFolder("layers-", tmp_path)
    kept = {"layers-of-mine.txt", "other", used.name, folder.path.name}
    assert set(names(tmp_path)) == kept
    assert (used / "rows.npy").exists()
    folder.close()
    live.communicate("")
    assert live.returncode == 0
    assert set(names(tmp_path)) == {"layers-of-mine.txt", "other"}


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    folder = ScratchFolder("layers-", tmp_path)
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.path.is_dir()
