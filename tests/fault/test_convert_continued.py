"""Conversions that are killed, anywhere, go on to the same bytes; another one does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnsys.convert import arrays, edge_files, text
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.errors import ArgumentError, StorageError

PAIRS = np.random.default_rng(0).integers(0, 10, (2, 60))


class Killed(BaseException):
    """Stands for a signal: no ``except Exception`` handles it."""


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of a few edges and rows, as large files have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_files, "_BLOCK_EDGES", 8)
        patch.setattr(arrays, "_BLOCK_BYTES", 64)
        patch.setattr(text, "_BLOCK_BYTES", 64)
        yield


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an edge list and all that goes with it, and ``out`` for what is made."""
    draw = np.random.default_rng(1)
    np.save(tmp_path / "e.npy", PAIRS)
    np.save(tmp_path / "x.npy", draw.standard_normal((10, 4)))
    np.save(tmp_path / "y.npy", np.arange(10) % 3)
    np.save(tmp_path / "w.npy", draw.random(60))
    np.save(tmp_path / "w2.npy", draw.random(60))
    (tmp_path / "out").mkdir()
    return tmp_path


def convert(place: Path, options: ConvertOptions | None = None, **other: Any) -> Path:
    given = {
        "edges": place / "e.npy",
        "features": place / "x.npy",
        "labels": place / "y.npy",
        "edge_weight": str(place / "w.npy"),
        "random_split": (0.5, 0.2, 0.3),
    }
    described = EdgeListSpec(name="some", **{**given, **other})
    return convert_edge_list(described, place / "out" / "g", options or ConvertOptions())


def contents(folder: Path) -> dict[str, bytes]:
    """All files, by their place in the folder."""
    return {
        str(place.relative_to(folder)): place.read_bytes()
        for place in sorted(folder.rglob("*"))
        if place.is_file()
    }


def stop_at(step: str) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == step:
            raise Killed

    return progress


@pytest.mark.parametrize("step", ["read edges", "indptr", "split edges", "indices", "features"])
@pytest.mark.parametrize("memory", [1, 300, 2000, 1 << 30])
def test_a_killed_conversion_goes_on_with_other_memory_and_threads(
    step: str, memory: int, place: Path
) -> None:
    expected = contents(convert(place))
    shutil.rmtree(place / "out" / "g")
    with small_blocks():
        with pytest.raises(Killed):
            convert(place, ConvertOptions(memory=300, progress=stop_at(step)))
        folder = convert(place, ConvertOptions(memory=memory, threads=2))
    assert contents(folder) == expected
    assert [found.name for found in (place / "out").iterdir()] == ["g"]


def touch(path: Path) -> dict[str, Any]:
    os.utime(path, (1, 1))
    return {}


def turn(path: Path) -> dict[str, Any]:
    np.save(path, PAIRS[::-1])
    return {}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dtype": lambda p: {"options": ConvertOptions(dtype="float16")},
    "undirected": lambda p: {"options": ConvertOptions(undirected=True)},
    "other weights": lambda p: {"edge_weight": str(p / "w2.npy")},
    "no weights": lambda p: {"edge_weight": None},
    "weights as times": lambda p: {"edge_weight": None, "edge_time": str(p / "w.npy")},
    "other shares": lambda p: {"random_split": (0.2, 0.5, 0.3)},
    "seed": lambda p: {"seed": 1},
    "names": lambda p: {"ids": "names", "features": None, "labels": None},
    "number of nodes": lambda p: {"num_nodes": 10},
    "features written again": lambda p: touch(p / "x.npy"),
    "other edges": lambda p: turn(p / "e.npy"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_source_or_option_does_not_continue(change: str, place: Path) -> None:
    with pytest.raises(Killed):
        convert(place, ConvertOptions(progress=stop_at("features")))
    before = contents(place / "out")
    changed = CHANGES[change](place)
    with pytest.raises(ArgumentError, match=r"g\.partial: an unfinished conversion of another so"):
        convert(place, **changed)
    assert contents(place / "out") == before


def test_columns_of_one_table_are_told_apart(place: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet is read through pyarrow")
    pytest.importorskip("pyarrow.parquet")
    columns = {"src": PAIRS[0], "dst": PAIRS[1], "a": PAIRS[0], "b": PAIRS[1]}
    pa.parquet.write_table(pa.table(columns), place / "e.parquet")
    options = ConvertOptions(progress=stop_at("edge_weight"))
    with pytest.raises(Killed):
        convert(place, options, edges=place / "e.parquet", edge_weight="a")
    with pytest.raises(ArgumentError, match="an unfinished conversion of another source"):
        convert(place, edges=place / "e.parquet", edge_weight="b")


def cut_short(file: Path) -> None:
    os.truncate(file, 20)


def overwrite(file: Path) -> None:
    with file.open("r+b") as content:
        content.write(np.full(16, 9, np.int32).tobytes())  # all edges of the first block


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [cut_short, overwrite, remove])
@pytest.mark.parametrize("memory", [300, 1 << 30])
def test_scratch_that_something_else_changed_is_one_error(
    damage: Callable[[Path], None], memory: int, place: Path
) -> None:
    with small_blocks():
        with pytest.raises(Killed):
            convert(place, ConvertOptions(memory=memory, progress=stop_at("indices")))
        (spool,) = (place / "out" / "g.partial" / "scratch").iterdir()
        damage(spool)
        with pytest.raises(StorageError, match=r"g\.partial/scratch.*start again"):
            convert(place, ConvertOptions(memory=memory))
    assert list((place / "out").iterdir()) == []


# Killed processes ---------------------------------------------------------------------------------

SERVER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from gnnsys.dataset import writer as folder_writer
from gnnsys.convert import arrays, csc, edge_files, text
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list

edge_files._BLOCK_EDGES, csc._BLOCK_EDGES = 80, 90
arrays._BLOCK_BYTES, text._BLOCK_BYTES, folder_writer._SAVE_BYTES = 200, 1000, 1000
folder_writer._BLOCK_BYTES = 500
source, target = Path(sys.argv[1]), Path(sys.argv[2])
SPECS = {
    "numbers": dict(edges=source / "e.npy", features=source / "x.npy", labels=source / "y.npy",
                    edge_weight=str(source / "w.csv"), random_split=(0.5, 0.2, 0.3)),
    "names": dict(edges=source / "e.csv", nodes=source / "n.csv", edge_time="t"),
}
TOUCH = {"write", "pwrite", "rename", "replace", "unlink", "mkdir", "rmdir", "open", "fsync"}
kind = sys.argv[3]
touches = 0


def convert(name, memory=5000):
    spec = EdgeListSpec(name="some", **SPECS[kind])
    options = ConvertOptions(memory=memory, threads=1, undirected=True)
    convert_edge_list(spec, target / name, options)


def watch(fatal):
    # Counts how often the disk is touched, and dies before a certain time.
    def count(frame, event, function):
        global touches
        if event == "c_call" and function.__name__ in TOUCH:
            touches += 1
            if touches == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def fork(memory=5000, fatal=None):
    child = os.fork()
    if child:
        return child
    try:
        if fatal:
            watch(fatal)
        convert("g", memory)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bytes_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def check():
    # What is made is whole; a kill after it got its name may have left the rest of the work.
    shutil.rmtree(target / "g.partial", ignore_errors=True)
    assert [f.name for f in target.iterdir()] == ["g"], list(target.iterdir())
    assert bytes_of(target / "g") == expected
    shutil.rmtree(target / "g")


begun = time.monotonic()
convert("whole")
length = time.monotonic() - begun
expected = bytes_of(target / "whole")
shutil.rmtree(target / "whole")
"""


def serve(place: Path, kind: str, work: str) -> str:
    """Runs work in a process that forks others and kills them; returns what it prints."""
    draw = np.random.default_rng(5)
    pairs = draw.integers(0, 30, (2, 300))
    np.save(place / "e.npy", pairs)
    np.save(place / "x.npy", draw.standard_normal((30, 5)))
    np.save(place / "y.npy", np.arange(30) % 3)
    (place / "w.csv").write_text("".join(f"{weight!r}\n" for weight in draw.random(300).tolist()))
    rows = "".join(f"n{a},n{b},{7 * t}\n" for t, (a, b) in enumerate(pairs.T.tolist()))
    (place / "e.csv").write_text("src,dst,t\n" + rows)
    nodes = "".join(f"n{node},c{node % 4},{node / 8}\n" for node in range(30))
    (place / "n.csv").write_text("id,label,f\n" + nodes)
    (place / "target").mkdir()
    (place / "serve.py").write_text(SERVER + textwrap.dedent(work))
    command = [sys.executable, "serve.py", str(place), str(place / "target"), kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["numbers", "names"])
@pytest.mark.parametrize(
    ("spread", "last"), [(12, 12), pytest.param(30, 30, marks=pytest.mark.slow)]
)
def test_killed_at_any_touch_of_the_disk_it_goes_on_to_the_same_bytes(
    kind: str, spread: int, last: int, tmp_path: Path
) -> None:
    """At times spread over the whole conversion, and at the last ones, when it gets its name.

    The spread ones begin anywhere, so that each run tries others.
    """
    pytest.importorskip("pyarrow", reason="text is read through pyarrow")
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    told = serve(
        tmp_path,
        kind,
        f"""
        watch(fatal=None)
        convert("g")
        sys.setprofile(None)
        total, touches = touches, 0
        check()
        step = total // {spread}
        begin = random.Random({seed}).randint(1, step)
        for fatal in [*range(begin, total, step), *range(total - {last}, total + 1)]:
            code = wait(fork(fatal=fatal))
            assert code == -9, (fatal, total, code)
            if not (target / "g").exists():
                assert wait(fork()) == 0, fatal
            check()
        print(total)
        """,
    )
    assert int(told) > 300


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_killed_again_and_again_after_any_time_it_ends_with_the_same_bytes(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="text is read through pyarrow")
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    told = serve(
        tmp_path,
        kind,
        f"""
        draw, kills = random.Random({seed}), 0
        while kills < 12:
            child = fork(memory=draw.choice([1, 500, 5000, 1 << 30]))
            time.sleep(draw.uniform(0, length))
            os.kill(child, signal.SIGKILL)
            code = wait(child)
            assert code in (0, -9), code
            kills += code == -9
            if (target / "g").exists():
                check()
        assert wait(fork()) == 0
        check()
        print(kills)
        """,
    )
    assert int(told) == 12


def test_the_second_of_two_processes_is_refused_until_the_first_is_dead(place: Path) -> None:
    (place / "first.py").write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from gnnsys.convert.common import ConvertOptions
            from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list

            def progress(what, done, total):
                if what == "indices":
                    print("at work", flush=True)
                    sys.stdin.read()

            place = Path(sys.argv[1])
            spec = EdgeListSpec(edges=place / "e.npy", name="some")
            convert_edge_list(spec, place / "out" / "g", ConvertOptions(progress=progress))
            """
        )
    )
    command = [sys.executable, "first.py", str(place)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=place)
    only_edges = {"features": None, "labels": None, "edge_weight": None, "random_split": None}
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == b"at work\n"
        with pytest.raises(
            ArgumentError, match=r"g\.partial: process \d+ on .* is writing it; wait"
        ):
            convert(place, **only_edges)
    finally:
        first.kill()
        first.communicate()
    assert json.loads((convert(place, **only_edges) / "graph.json").read_text())["name"] == "some"
    assert [found.name for found in (place / "out").iterdir()] == ["g"]
