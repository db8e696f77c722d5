"""Commands where the machine refuses something: one line, exit status 2, and nothing left."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gnnsys
from gnnsys.commands.arguments import CONFIGS
from gnnsys.commands.cli import main
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.generate import generate_community
from gnnsys.ranks.environment import rank_of_process, rank_on_machine, world_around
from gnnsys.system.threads import num_threads

_TRAIN = ["train", "g", "--epochs", "1", "--fanouts", "3", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of work, with a dataset ``g``."""
    monkeypatch.chdir(tmp_path)
    generate_community("g", nodes=60, features=4, degree=3)
    return tmp_path


def run_each(commands: list[list[str]], before: str, folder: Path, **options: Any) -> list[int]:
    """Exit statuses of commands that one process runs, after the lines ``before``."""
    script = f"""
import json, sys
{before}
from gnnsys.commands.cli import main
statuses = []
for command in {commands!r}:
    try:
        statuses.append(main(command))
    except SystemExit as end:
        statuses.append(end.code)
with open("statuses.json", "w") as file:
    json.dump(statuses, file)
sys.stdout.flush()
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=folder, timeout=200, **options)
    statuses: list[int] = json.loads((folder / "statuses.json").read_text())
    assert len(statuses) == len(commands), ran
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("buffered", [False, True])
def test_a_full_standard_output_is_one_error(folder: Path, buffered: bool) -> None:
    for number, command in enumerate([["info", "g", "--json"], ["info", "g"]]):
        environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
        with open("/dev/full", "w") as full, open("errors.txt", "w") as errors:
            statuses = run_each([command], "", folder, stdout=full, stderr=errors, env=environment)
        assert statuses == [2], number
        (line,) = Path("errors.txt").read_text().splitlines()
        assert line.startswith("gnnsys: error: standard output, or a file: No space left on device")


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_a_command_silently(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone, open("errors.txt", "w") as errors:
        statuses = run_each(
            [["info", "g", "--json"]], "", folder, stdout=gone, stderr=errors
        ) + run_each([["info", "g"]], "", folder, stdout=gone, stderr=errors)
    assert statuses == [141, 141]
    assert Path("errors.txt").read_text() == ""


@pytest.mark.slow
def test_letters_that_the_output_lacks_are_written_as_escapes(folder: Path) -> None:
    (folder / "g").rename(folder / "gr\u00fcn\u2192")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with open("told.txt", "w") as told:
        statuses = run_each(
            [["info", "gr\u00fcn\u2192"], ["info", "n\u00f6"]], "", folder, stdout=told,
            stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    assert statuses == [0, 2]
    text = Path("told.txt").read_text(encoding="ascii")
    assert r"gr\xfcn\u2192" in "".join(text.split())  # lines break anywhere in a long path
    assert r"gnnsys: error: n\xf6/graph.json: no such file" in text


@pytest.mark.slow
def test_a_sandbox_that_refuses_advice_and_affinity_changes_nothing(
    folder: Path, refuse_calls: Callable[..., str]
) -> None:
    refusal = refuse_calls({"madvise": errno.EPERM, "sched_getaffinity": errno.EPERM})
    command = [*_TRAIN, "--json", "--memory", "3GB"]
    # torch's compiler asks for the affinity, too, unless it is told a number.
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    told = []
    for before in ("", "import torch" + refusal):
        with open("told.txt", "w") as out, open("errors.txt", "w") as errors:
            statuses = run_each(
                [command, ["doctor"]], before, folder, stdout=out, stderr=errors, env=environment
            )
        assert statuses == [0, 0], Path("errors.txt").read_text()
        told.append(json.loads(Path("told.txt").read_text().splitlines()[0]))
    assert told[0]["loss"] == told[1]["loss"]


# In this process ---------------------------------------------------------------------------------


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error with which a command ends."""
    capsys.readouterr()
    try:
        status: Any = main(arguments)
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("gnnsys: error: ")]
    assert (status, len(lines)) == (2, 1), errors
    return lines[0]


@pytest.fixture(params=["pipe", "socket", "folder", "loop"])
def in_place(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Puts something that is no file at a path; says what an error calls it."""
    sockets = []

    def put(path: Path) -> str:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
            return "a named pipe, no file"
        if request.param == "socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(os.path.relpath(path))  # its name has few letters
            return "a socket, no file"
        if request.param == "folder":
            path.mkdir()
            return "a folder, no file"
        path.symlink_to(path.name)
        return "cannot be opened (Too many levels of symbolic links)"

    yield put
    for each in sockets:
        each.close()


def test_what_is_no_file_is_refused_and_not_waited_for(
    folder: Path, in_place: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    what = in_place(folder / "options.toml")
    assert what in ended([*_TRAIN, "--config", "options.toml"], capsys)
    what = in_place(folder / "x.npy")
    with pytest.raises(FileFormatError, match=r"x\.npy: .*") as found:
        gnnsys.unified(folder / "x.npy")
    assert what in str(found.value)
    what = in_place(folder / "g" / "graph.json")
    assert what in ended(["info", "g"], capsys)
    assert not (folder / "run").exists()


def test_options_may_come_through_a_pipe_of_the_shell(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"epochs = 2\nfanouts = [3, 2]\n")
    os.close(writing)
    assert main(["train", "g", "--config", f"/dev/fd/{reading}", "--json"]) == 0
    os.close(reading)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 2


def test_an_error_before_training_leaves_no_folder_of_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.load("g/labels.npy")
    labels[7] = 2
    header = Path("g/labels.npy").read_bytes()[: -labels.nbytes]
    Path("g/labels.npy").write_bytes(header + labels.tobytes())  # of the size that it had
    assert "g/labels.npy: checksum 0" in ended([*_TRAIN, "--out", "run"], capsys)
    assert not Path("run").exists()
    Path("own").mkdir()
    Path("own/graph").write_text("mine")
    assert "own: holds files already" in ended([*_TRAIN, "--out", "own"], capsys)
    assert Path("own/graph").read_text() == "mine"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("text", ["abc", "-1", "", "1.5"])
def test_ranks_that_are_no_numbers_are_named(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, text)
    ask = {"RANK": rank_of_process, "WORLD_SIZE": world_around, "LOCAL_RANK": rank_on_machine}
    with pytest.raises(ArgumentError, match=f"{name}={text!r}, expected a number from 0 on"):
        ask[name]()


_NUMBERS = [
    (command, field.name, value)
    for command in ("train", "cluster", "plan", "score", "predict")
    for field in dataclasses.fields(CONFIGS[command])
    for kind, values in [("int", [1 << 64, -(1 << 63) - 1]), ("float", ["nan", "1e39"])]
    if str(field.type).split(" | ")[0] == kind
    for value in values
    if (field.name, value) != ("checkpoint_minutes", "1e39")  # which is never
]


@pytest.mark.parametrize(("command", "name", "value"), _NUMBERS)
def test_numbers_that_nothing_can_count_with_are_refused(
    command: str, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIGS[command]
    kind = int if isinstance(value, int) else float
    with pytest.raises(ArgumentError, match=f"--{name.replace('_', '-')} "):
        config(**{"run" if command == "predict" else "dataset": "g", name: kind(value)})


def test_a_long_word_of_a_file_is_cut_in_its_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("0 1\n" + "1" * 500_000 + " 2\n", "x" * 500_000):
        Path("e.txt").write_text(text)
        told = ended(["convert", "e.txt", "new", "--header", "no", "--ids", "dense"], capsys)
        assert told.startswith("gnnsys: error: e.txt: ")
        assert len(told) < 500


@pytest.mark.parametrize("threads", [-1, 1 << 17, 1 << 63])
def test_absurd_numbers_of_threads_are_refused(threads: int) -> None:
    with pytest.raises(ArgumentError, match=f"threads: {threads}"):
        num_threads(threads)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("can't start new thread"), "the system starts no more threads"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "starts no more threads"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Any) -> int:
        raise error

    monkeypatch.setattr("gnnsys.commands.info.run_command", fail)
    assert told in ended(["info", "g"], capsys)
