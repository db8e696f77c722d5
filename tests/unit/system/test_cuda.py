"""What reaches CUDA, as far as it goes without a GPU: packages, NVRTC, a driver that is missing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gnnsys
from gnnsys.errors import ArgumentError, BuildError, DeviceError
from gnnsys.system.extension import core
from gnnsys.system.gpu.cuda import compile_kernel
from gnnsys.system.gpu.provider import PROVIDERS, Provider, find_provider
from gnnsys.system.gpu.way import Speed, WayProfile, faster_way

GATHER = ("cuda/rows/gather_rows.cuh", "gather_rows<uint4, 8, Copy<uint4>, i64>")
PLAN = ("cuda/cache/execute_plan.cuh", "move_into_slots<uint4, 8, Copy<uint4>>")


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    return find_provider(request.param)


@pytest.mark.parametrize("kernel", [GATHER, PLAN], ids=["gather", "plan"])
def test_both_compile_a_kernel_and_know_its_name(
    kernel: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for each in PROVIDERS:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / each))
        provider = find_provider(each)
        path = compile_kernel(provider, "sm_90", *kernel)
        name, _, cubin = path.read_bytes().partition(b"\0")
        assert cubin.startswith(b"\x7fELF")
        assert b".text." + name in cubin
        names.add(name)
        written = path.stat().st_mtime_ns
        assert compile_kernel(provider, "sm_90", *kernel) == path
        assert path.stat().st_mtime_ns == written
        assert compile_kernel(provider, "sm_80", *kernel) != path
    assert len(names) == 1


def test_what_does_not_compile_is_told_with_the_log_of_nvrtc(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=r"gather_rows<Wrong>: NVRTC \d+\.\d+: (.|\n)*Wrong"):
        compile_kernel(provider, "sm_90", GATHER[0], "gather_rows<Wrong>")
    with pytest.raises(BuildError, match="NVRTC"):
        compile_kernel(provider, "sm_1", *GATHER)
    assert not list(tmp_path.rglob("*.cubin"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("bind", (0,)),
        ("attribute", (1, 0)),
        ("load", (b"\x7fELF", "kernel")),
        ("register", (4096, 4096, 0)),
        ("unregister", (4096,)),
        ("allocate", (256,)),
        ("free", (4096,)),
        ("export", (4096,)),
        ("open", (bytes(64),)),
        ("close", (4096,)),
        ("can_read", (0, 1)),
        ("bus_id", (0,)),
    ],
)
def test_without_a_driver_every_call_says_so(
    provider: Provider, call: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(DeviceError, match=r"(?i)driver|libcuda"):
        getattr(provider, call)(*arguments)


def test_packages_that_are_missing_are_named_with_the_extras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert find_provider().name.startswith("cuda.bindings ")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"cupy: .*; bindings: .*pip install 'gnnsys\[cuda13\]'"):
        find_provider()


def test_a_broken_release_of_cupy_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = ModuleType("cupy")
    broken.__version__ = "14.1.0"
    monkeypatch.setitem(sys.modules, "cupy", broken)
    with pytest.raises(DeviceError, match=r"CuPy 14\.1\.0 is known to be broken"):
        find_provider("cupy")


def test_without_nvrtc_both_say_which_library_is_missing(tmp_path: Path) -> None:
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if each.name != "nvidia":
            (tmp_path / each.name).symlink_to(each)
    code = (
        f"import site; site.addsitedir({str(tmp_path)!r})\n"
        "from gnnsys.system.gpu.provider import find_provider\n"
        "find_provider()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120,
        cwd=tmp_path, env={**os.environ, "CUDA_PATH": "", "CUDA_HOME": "", "LD_LIBRARY_PATH": ""},
    )  # fmt: skip
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("gnnsys.errors.DeviceError: cupy: "), ran.stderr
    assert last.count("libnvrtc.so") >= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_error() -> None:
    rows = torch.ones(3, 2)
    with pytest.raises(ArgumentError, match="torch finds no CUDA device"):
        gnnsys.unified(rows, device="cuda")
    graph = torch.tensor([[0, 1], [1, 2]])
    from torch_geometric.data import Data

    with pytest.raises(ArgumentError, match="torch finds no such device"):
        gnnsys.NeighborSampler(Data(edge_index=graph, num_nodes=3), [1], device="cuda")


def test_the_way_that_was_faster_for_rows_of_about_that_size_is_taken() -> None:
    profile = WayProfile([Speed(64, 1.0, 2.0), Speed(512, 3.0, 2.0), Speed(32768, 3.0, 4.0)], "")
    ways = [faster_way(profile, size) for size in (4, 100, 300, 4000, 5000, 1 << 20)]
    assert ways == ["staged", "staged", "zero-copy", "zero-copy", "staged", "staged"]
    assert [faster_way(None, size) for size in (63, 64, 24 << 10, 25 << 10)] == [
        "staged", "zero-copy", "zero-copy", "staged",
    ]  # fmt: skip


class Pair(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int64), ("factor", ctypes.c_float), ("is_set", ctypes.c_bool))


def test_a_launch_passes_numbers_and_structures_by_value() -> None:
    seen: list[Any] = []
    words, pointers = [ctypes.c_uint] * 7, ctypes.POINTER(ctypes.c_void_p)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *words, ctypes.c_void_p, pointers, pointers)
    def call(function: int, *rest: Any) -> int:
        *shape, stream, places, extra = rest
        first, last = (ctypes.c_int64.from_address(places[i]).value for i in (0, 2))
        pair = Pair.from_address(places[1])
        assert not extra
        seen.append((function, shape, stream, first, last, pair.number, pair.factor, pair.is_set))
        return 7

    address = ctypes.cast(call, ctypes.c_void_p).value
    assert address is not None

    def launch(arguments: list[Any]) -> int:
        return core.launch_kernel(address, 5, 3, 64, 9, arguments)

    assert launch([-1, Pair(1 << 40, 0.5, True), (1 << 63) - 1]) == 7
    assert seen == [
        (5, [3, 1, 1, 64, 1, 1, 0], 9, -1, (1 << 63) - 1, 1 << 40, 0.5, True),
    ]
    for bad, error in (
        ([0] * 33, ArgumentError),
        ([(ctypes.c_char * 2000)()], ArgumentError),
        ([1.5], TypeError),
        ([1 << 64], RuntimeError),
    ):
        with pytest.raises(error):
            launch(bad)
    assert len(seen) == 1
