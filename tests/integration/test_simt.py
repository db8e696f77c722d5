"""The GPU's kernels, executed on the CPU under sanitizers, and damaged ones, which must be seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gnnsys.system.records import read_toml

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of cmake, ninja
COMMON = ["-std=c++20", "-w", "-ffp-contract=off"]
FLAGS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
MUTANTS = read_toml(CSRC / "tests/cuda/mutants.toml", "mutants", "")["mutant"]

Once = Callable[[str, Callable[[Path], None]], Path]

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason="needs a C++ compiler, as an install from sources does"
)


@pytest.fixture(scope="module")
def build(once: Once) -> Path:
    def make(folder: Path) -> None:
        run(["cmake", "-G", "Ninja", "-S", CSRC / "tests/simt", "-B", folder])
        run(["cmake", "--build", folder, "-j", str(len(os.sched_getaffinity(0)))])
        for name, flags in FLAGS.items():  # headers of damaged checks, compiled once
            header = folder / name / "standard.hpp"
            header.parent.mkdir()
            shutil.copy(CSRC / "tests/simt/standard.hpp", header)
            run([COMPILER, *COMMON, *flags, "-x", "c++-header", header, "-o", f"{header}.gch"])

    return once("simt", make)


def run(command: list[str | Path]) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=600,
        env=os.environ | {"PATH": PATH},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_kernels_compute_what_their_references_do_in_every_schedule(build: Path) -> None:
    jobs = str(len(os.sched_getaffinity(0)))
    run(["ctest", "--test-dir", build, "--output-on-failure", "-j", jobs])


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["name"] for mutant in MUTANTS])
def test_a_damaged_kernel_is_seen(mutant: dict[str, str], build: Path, tmp_path: Path) -> None:
    shutil.copytree(CSRC / "cuda", tmp_path / "cuda")
    damaged = tmp_path / "cuda" / mutant["file"]
    text = damaged.read_text()
    assert text.count(mutant["old"]) == 1
    damaged.write_text(text.replace(mutant["old"], mutant["new"]))
    program = tmp_path / "check"
    source = CSRC / f"tests/cuda/{mutant['check']}_check.cpp"
    library = build / f"libsimt_{mutant['build']}.a"
    paths = [f"-I{folder}" for folder in (tmp_path, CSRC / "tests", CSRC / "include")]
    flags = [*COMMON, *FLAGS[mutant["build"]], "-include", build / mutant["build"] / "standard.hpp"]
    run([COMPILER, *flags, *paths, source, library, "-o", program])
    seen = subprocess.run([program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert seen.returncode != 0, "the damage was not seen"
    assert mutant["says"] in seen.stderr + seen.stdout, seen.stderr[-2000:]
