"""Damaged files of datasets and runs: one error and nothing left, or the result of whole ones."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnsys.commands.cli import main
from gnnsys.generate import generate_community

_COUNT = 30
"""Files that are damaged of each kind."""

_ABSURD = [
    None, True, -1, 0, 1, 2**31, 2**40, 2**63, 2**64, -(2**63), 1e300, 0.5, float("nan"),
    "", "x", "1", "../../x", "é\0", [], {}, [1], {"a": 1},
]  # fmt: skip
_TOML_VALUES = [
    "-1", "0", "9223372036854775808", "99999999999999999999", "1e999", "nan", "''", "'x'", "[]",
    "{}", "true", "1979-05-27", "[[1]]", "['a']", "{ a = 1 }",
]  # fmt: skip

_TRAIN = ["train", "g", "--epochs", "1", "--json"]
_ON_DATA = [
    ["info", "g"],
    ["info", "g", "--verify"],
    [*_TRAIN, "--out", "new"],
    [*_TRAIN, "--cache", "20", "--eval", "sampled"],
    [*_TRAIN, "--full-batch", "--model", "gcn"],
    ["predict", "run", "--out", "p"],
    ["plan", "g", "--json"],
    ["score", "g"],
    [
        "cluster", "g", "--k", "3", "--pretrain-epochs", "1", "--warm-epochs", "1", "--epochs", "1",
        "--json",
    ],
]  # fmt: skip
_ON_RUN = [
    ["train", "--resume", "run", "--epochs", "3", "--json"],
    ["predict", "run", "--out", "p"],
    ["report", "run"],
]
_ON_PIPELINE = [["train", "--resume", "pipe", "--epochs", "3", "--json"]]
_KINDS: dict[str, tuple[str, list[list[str]]]] = {
    "graph.json": ("g/graph.json", _ON_DATA),
    "arrays": ("g/*.npy", _ON_DATA),
    "checkpoint": ("run/checkpoint.pt", _ON_RUN[:1]),
    "weights": ("run/model.safetensors", _ON_RUN[1:2]),
    "snapshots": ("pipe/snapshot-*", _ON_PIPELINE),
    "options": ("run/config.toml", [*_ON_RUN, [*_TRAIN, "--config", "run/config.toml"]]),
    "metrics": ("run/metrics.jsonl", _ON_RUN[2:]),
    "timeline": ("pipe/timeline.json", [["report", "pipe"]]),
}

Call = Callable[[list[str]], tuple[Any, str]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a run on it, and one in a pipeline, which any copy may stand for."""
    folder = tmp_path_factory.mktemp("originals")
    before = os.getcwd()
    os.chdir(folder)
    try:
        generate_community("g", nodes=200, features=6, degree=4, seed=1)
        few = ["train", "g", "--epochs", "2"]
        deep = ["--full-batch", "--model", "gcn", "--layers", "4", "--hidden", "8"]
        assert main([*few, "--out", "run"]) == 0
        assert main([*few, *deep, "--parallel", "pipeline", "--stages", "2", "--out", "pipe"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line here; gives its exit status and its errors."""

    def run(arguments: list[str]) -> tuple[Any, str]:
        capsys.readouterr()
        try:
            status: Any = main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException as error:  # a traceback, to whoever calls the command
            status = repr(error)
        captured = capsys.readouterr()
        (Path("out.txt")).write_text(captured.out)
        return status, captured.err

    return run


def in_copy(originals: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of all files, as the folder of work."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in ("g", "run", "pipe"):
        shutil.copytree(originals / name, place / name)
    for path in place.glob("*/*"):
        if path.name in ("config.toml", "metrics.jsonl"):
            path.write_text(path.read_text().replace(str(originals), str(place)))
    monkeypatch.chdir(place)
    return place


def outcome() -> tuple[Any, ...]:
    """What a command gave that is the same each time: losses, scores, predictions."""
    lines = Path("out.txt").read_text().splitlines()
    told: dict[str, Any] = {}
    if lines and lines[-1].startswith("{"):
        told = json.loads(lines[-1])
    kept = {key: told[key] for key in sorted(told) if re.search("loss|acc|epoch|nmi", key)}
    kept = {key: value for key, value in kept.items() if "seconds" not in key}
    return kept, [path.read_bytes() for path in sorted(Path("p").glob("*.npy"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_a_damaged_file_is_one_error_or_changes_nothing(
    kind: str, originals: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, commands = _KINDS[kind]
    whole = {}
    for command in commands:
        in_copy(originals, tmp_path / "copy", monkeypatch)
        status, errors = call(command)
        assert status == 0, errors
        whole[" ".join(command)] = outcome()
    faults = []
    refused = 0
    for seed in range(_COUNT):
        rng = random.Random(f"{kind} {seed}")
        place = in_copy(originals, tmp_path / "copy", monkeypatch)
        path = rng.choice(sorted(place.glob(pattern)))
        how = damage(path, rng)
        command = commands[seed % len(commands)]
        before = set(files_of(place))
        status, errors = call(command)
        refused += status == 2
        fault = judged(status, errors, whole[" ".join(command)], command, path)
        left = set(files_of(place)) - before - {place / "out.txt"}
        if status == 2 and left:
            fault = f"left {sorted(left)}"
        if fault:
            faults.append(f"{seed}: {path.name}, {how}: {' '.join(command)}: {fault}")
    assert not faults, "\n".join(faults)
    assert refused > _COUNT // 4  # the damage is such that it is noticed


def judged(
    status: Any, errors: str, whole: tuple[Any, ...], command: list[str], path: Path
) -> str | None:
    """What is wrong with the end of a command, if something is."""
    if status == 2:
        told = [line for line in errors.splitlines() if line.startswith("gnnsys: error: ")]
        return None if len(told) == 1 and "Traceback" not in errors else f"told {errors!r}"
    if status != 0:
        return f"ended with {status}: {errors}"
    if command[0] == "report" and path.suffix == ".jsonl":
        lines = path.read_bytes().split(b"\n")[:-1]  # the last may be cut off
        return None if all(map(is_record, lines)) else "what is no JSON was accepted"
    if command[0] in ("train", "predict", "cluster") and outcome() != whole:
        return f"accepted, with {outcome()[0]} in place of {whole[0]}"
    return None


def is_record(line: bytes) -> bool:
    """Whether a line of metrics.jsonl is an object with a kind."""
    try:
        return isinstance(json.loads(line)["kind"], str)
    except (ValueError, TypeError, KeyError):
        return False


def files_of(folder: Path) -> Iterator[Path]:
    """Files of a folder, but those of TensorBoard, which it names by time."""
    return (path for path in folder.rglob("*") if "tensorboard" not in path.parts)


# Damage ------------------------------------------------------------------------------------------


def damage(path: Path, rng: random.Random) -> str:
    """Damages a file, or puts something else in its place; says how."""
    ways: list[Callable[[Path, random.Random], str]] = [another, bytes_of]
    ways += {".json": [json_of] * 4, ".jsonl": [line_of] * 3, ".toml": [toml_of] * 4}.get(
        path.suffix, [array_of] * 3 if path.suffix == ".npy" else [bytes_of] * 3
    )
    return rng.choice(ways)(path, rng)


def another(path: Path, rng: random.Random) -> str:
    how = rng.choice(["missing", "folder", "pipe", "loop"])
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    return how


def bytes_of(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(["cut", "empty", "zeros", "some zeros", "bit", "head", "other", "longer"])
    place = rng.randrange(len(data))
    if how == "cut":
        del data[place:]
    elif how == "empty":
        data.clear()
    elif how == "zeros":
        data = bytearray(len(data))
    elif how == "some zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif how == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif how == "head":
        data[place % 128] = rng.randrange(256)
    elif how == "other":
        data = bytearray(rng.randbytes(len(data)))
    elif how == "longer":
        data += rng.randbytes(17)
    path.write_bytes(data)
    return f"{how} at {place}"


def json_of(path: Path, rng: random.Random) -> str:
    content, how = mutated(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(content))
    return how


def line_of(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    content, how = mutated(json.loads(lines[number]), rng)
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number + 1}: {how}"


def mutated(content: Any, rng: random.Random) -> tuple[Any, str]:
    """Content of which one part is missing, or something absurd."""
    *way, last = rng.choice([trail for trail in trails(content) if trail])
    owner = content
    for key in way:
        owner = owner[key]
    if rng.random() < 0.25:
        del owner[last]
        return content, f"without {[*way, last]}"
    owner[last] = rng.choice(_ABSURD)
    return content, f"{[*way, last]} = {owner[last]!r}"


def trails(content: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield trail
    if isinstance(content, dict):
        for key in content:
            yield from trails(content[key], (*trail, key))
    elif isinstance(content, list):
        for number in range(len(content)):
            yield from trails(content[number], (*trail, number))


def toml_of(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = rng.choice([n for n, line in enumerate(lines) if line and line[0].isalpha()])
    key = lines[number].partition("=")[0]
    values = [f"{key}= {value}" for value in _TOML_VALUES]
    lines[number] = rng.choice([*values, "x", "= 1", "[a", lines[number] * 2])
    path.write_text("\n".join(lines))
    return lines[number]


def array_of(path: Path, rng: random.Random) -> str:
    array = np.load(path)
    how = rng.choice(["dtype", "shape", "fewer", "value", "npz", "objects"])
    if how == "dtype":
        kinds = ["S3", "U2", "complex64", "bool", "float16", "int8", "uint64", "M8[s]", ">i8"]
        array = array.astype(rng.choice(kinds))
    elif how == "shape":
        array = rng.choice([array[None], array[..., None], array[:0], array.reshape(-1)[0]])
    elif how == "fewer":
        array = array[: rng.randrange(len(array))]
    elif how == "value":
        values = [-1, 2**31 - 1, 300] if array.dtype.kind == "i" else [np.nan, np.inf, 1e38]
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(values)
    if how == "npz":
        with open(path, "wb") as file:
            np.savez(file, array)
    elif how == "objects":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        np.save(path, array)
    return f"{how}: {array.dtype} {array.shape}"
