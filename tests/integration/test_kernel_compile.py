"""The kernels compiled for GPUs, and what of them the compiler made: no GPU or driver is needed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.glob("tests/cuda/*/*.cu"))
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
COPIES = re.compile(r"(gather_rows|move_\w+_slots)I5uint4Li\d+ENS0_4Copy")
"""Mangled names of kernels that copy words of 16 bytes."""
PRODUCTS = re.compile(r"(segment_matmul|sum_outer_products)I(fxLi4|NS0_6BFloatEiLi8)E")
"""Those of kernels that multiply such words."""
LOADS_IN_FLIGHT = 4

Once = Callable[[str, Callable[[Path], None]], Path]


def tool(name: str) -> Path:
    """A program or library of the nvidia-cuda-* packages."""
    spec = importlib.util.find_spec("nvidia")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = [
        path
        for root in spec.submodule_search_locations
        for path in Path(root).glob(f"cu*/*/{name}")
    ]
    assert found, f"{name}: not installed"
    return found[0]


class Nvrtc:
    """The part of NVRTC's interface that compiles one source (its documentation, "Compilation")."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(tool("libnvrtc.so.13")))

    def compile(self, source: str, name: str, options: list[str]) -> tuple[bytes, str]:
        """A cubin and the log."""
        call, program = self._library, ctypes.c_void_p()
        code = call.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        )
        assert code == 0, code
        texts = [option.encode() for option in options]
        code = call.nvrtcCompileProgram(program, len(texts), (ctypes.c_char_p * len(texts))(*texts))
        log = self._read("ProgramLog", program).rstrip(b"\0").decode()
        assert code == 0, log
        cubin = self._read("CUBIN", program)
        assert call.nvrtcDestroyProgram(ctypes.byref(program)) == 0
        return cubin, log

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        assert getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(self._library, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.raw


@pytest.fixture(scope="module")
def cubins(once: Once) -> dict[tuple[str, str], Path]:
    """A file for each source and architecture, and beside it the log and the instructions."""

    def make(folder: Path) -> None:
        nvrtc = Nvrtc()
        for source in SOURCES:
            for architecture in ARCHITECTURES:
                cubin, log = nvrtc.compile(
                    source.read_text(),
                    source.name,
                    [f"-arch={architecture}", "-std=c++20", f"-I{CSRC}", "-default-device"],
                )
                path = folder / f"{source.stem}-{architecture}.cubin"
                path.write_bytes(cubin)
                path.with_suffix(".log").write_text(log)
                done = subprocess.run(
                    [tool("nvdisasm"), "-c", path], capture_output=True, timeout=120, check=True
                )
                path.with_suffix(".sass").write_bytes(done.stdout)

    folder = once("cubins", make)
    return {
        (source.stem, architecture): folder / f"{source.stem}-{architecture}.cubin"
        for source in SOURCES
        for architecture in ARCHITECTURES
    }


def kernels_of(cubin: Path) -> Iterator[tuple[str, list[str]]]:
    """Names and instructions."""
    sass = cubin.with_suffix(".sass").read_text()
    for part in re.split(r"^\.text\.", sass, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        yield name, re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?(.*?)\s*;", body, re.MULTILINE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_kernels_keep_everything_in_registers(
    source: Path, architecture: str, cubins: dict[tuple[str, str], Path]
) -> None:
    cubin = cubins[source.stem, architecture]
    assert cubin.with_suffix(".log").read_text() == ""
    done = subprocess.run(
        [tool("cuobjdump"), "-res-usage", cubin], capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    usage = re.findall(r"Function (\w+):\s*\n\s*(.*)", done.stdout)
    kernels = dict(kernels_of(cubin))
    assert kernels
    assert kernels.keys() == {name for name, _ in usage}
    for name, used in usage:
        numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", used)}
        assert (numbers["STACK"], numbers["LOCAL"]) == (0, 0), name
    for name, instructions in kernels.items():
        local = [line for line in instructions if line.startswith(("LDL", "STL"))]
        assert not local, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_are_16_bytes_wide_and_several_at_a_time(
    architecture: str, cubins: dict[tuple[str, str], Path]
) -> None:
    seen = 0
    for (_, compiled_for), cubin in cubins.items():
        if compiled_for != architecture:
            continue
        for name, instructions in kernels_of(cubin):
            if not COPIES.search(name):
                continue
            seen += 1
            wide = [
                line.split()[0][:3]
                for line in instructions
                if re.match(r"(LDG|STG)\.E\.(\w+\.)*128", line)
            ]
            assert "STG" in wide, name
            assert wide[: wide.index("STG")].count("LDG") >= LOADS_IN_FLIGHT, name
    assert seen >= 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_of_16_bytes_and_their_sums_lie_in_registers(
    architecture: str, cubins: dict[tuple[str, str], Path]
) -> None:
    kernels = dict(kernels_of(cubins["relational", architecture]))
    names = [name for name in kernels if PRODUCTS.search(name)]
    assert len(names) == 4
    for name in names:
        words = [line.split()[0] for line in kernels[name]]
        assert any(re.match(r"LDG\.E\.(\w+\.)*128", word) for word in words), name
        # 16 terms at a time, each of 4 rows and 4 columns.
        assert words.count("LDS.128") >= 2 * 16, name
        assert words.count("FFMA") >= 16 * 16, name


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_nvcc_takes_the_same_sources(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-arch=sm_90", "-Xptxas", "-v", "-cubin", f"-I{CSRC}", source,
         "-o", tmp_path / "kernels.cubin"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spilt = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert spilt
    assert set(spilt) == {("0", "0")}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_makes_programs_of_checks(tmp_path: Path) -> None:
    done = subprocess.run(
        [CSRC.parent / "scripts/build_drivers", tmp_path, "philox"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"ARCH": "sm_90"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["philox"]
