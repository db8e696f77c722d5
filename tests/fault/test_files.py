"""Files that are not what they should be: one clear error each, never a wild read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gnnsys
from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
)
from gnnsys.memory import FileStore

VALUES = np.arange(600, dtype=np.float32).reshape(100, 6)


def good(path: Path) -> None:
    np.save(path, VALUES)


def truncated(path: Path) -> None:
    good(path)
    os.truncate(path, path.stat().st_size - 1)


def without_data(path: Path) -> None:
    good(path)
    os.truncate(path, 128)


def within_the_header(path: Path) -> None:
    good(path)
    os.truncate(path, 40)


def longer(path: Path) -> None:
    good(path)
    with path.open("ab") as file:
        file.write(b"more")


def fortran(path: Path) -> None:
    np.save(path, np.asfortranarray(VALUES))


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def big_endian(path: Path) -> None:
    np.save(path, VALUES.astype(">f4"))


def text_dtype(path: Path) -> None:
    np.save(path, np.array(["a", "b"]))


def scalar(path: Path) -> None:
    np.save(path, np.float32(1))


def prose(path: Path) -> None:
    path.write_text("node,feature\n1,2\n")


def empty(path: Path) -> None:
    path.touch()


def lying_header(path: Path) -> None:
    good(path)
    data = path.read_bytes().replace(b"(100, 6)", b"(999, 6)")
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.mkdir()


def missing(path: Path) -> None:
    return


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (truncated, FileFormatError, "truncated"),
        (without_data, FileFormatError, "truncated"),
        (within_the_header, FileFormatError, "npy"),
        (longer, FileFormatError, "longer than its header says"),
        (fortran, FileFormatError, "ascontiguousarray"),
        (objects, DTypeError, "object"),
        (big_endian, DTypeError, ">f4"),
        (text_dtype, DTypeError, "U1"),
        (scalar, FileFormatError, "scalar"),
        (prose, FileFormatError, "not a .npy file"),
        (empty, FileFormatError, "not a .npy file"),
        (lying_header, FileFormatError, "truncated"),
        (folder, FileFormatError, "a folder"),
        (missing, MissingFileError, "no such file"),
    ],
)
def test_a_bad_file_raises_one_error_that_names_it(
    spoil: Callable[[Path], None], error: type[GnnsysError], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "features.npy"
    spoil(path)
    with pytest.raises(error) as caught:
        gnnsys.unified(path, device="cpu")
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_file_truncated_while_open_raises_and_does_not_kill_the_process(tmp_path: Path) -> None:
    good(tmp_path / "x.npy")
    x = gnnsys.unified(tmp_path / "x.npy", device="cpu")
    assert torch.equal(x[[99]], torch.from_numpy(VALUES[[99]]))
    os.truncate(tmp_path / "x.npy", 200)
    for use in [lambda: x[[99]], lambda: x.materialize(), lambda: x.sum()]:
        with pytest.raises(FileFormatError, match="truncated"):
            use()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    good(tmp_path / "x.npy")
    store = FileStore(tmp_path / "x.npy")
    rows = store.gather(torch.tensor([1]))
    store.close()
    for use in [lambda: store.gather(torch.tensor([1])), lambda: store.read_range(0, 1)]:
        with pytest.raises(ArgumentError, match="closed"):
            use()
    assert torch.equal(rows, torch.from_numpy(VALUES[[1]]))


def test_a_file_that_may_not_be_read_raises_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    good(path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(FileFormatError, match=r"x\.npy: cannot be opened \(Permission denied"):
            gnnsys.unified(path, device="cpu")
    finally:
        os.seteuid(user)


def test_raw_files_are_checked_against_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"head" + VALUES.tobytes())
    options = {"shape": (100, 6), "encoding": torch.float32, "offset": 4, "device": "cpu"}
    assert torch.equal(gnnsys.unified(path, **options).materialize(), torch.from_numpy(VALUES))
    with pytest.raises(FileFormatError, match="truncated"):
        gnnsys.unified(path, **{**options, "shape": (101, 6)})
    with pytest.raises(ArgumentError, match="encoding"):
        gnnsys.unified(path, **{**options, "encoding": None})


def test_bad_input_and_ctrl_c_leave_no_files(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "gnnsys", "train", "nothing", "--root", str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert list(scratch.glob("gnnsys*")) == []
    command[4] = "demo"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,  # in the checkout, -m would find the sources, which are not built
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(scratch.glob("gnnsys*/demo*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"gnnsys: interrupted" in told.splitlines()[-1]
    assert b"Traceback" not in told
    assert list(scratch.glob("gnnsys*")) == []
