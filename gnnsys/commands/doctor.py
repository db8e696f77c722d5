"""``gnnsys doctor``: what this machine offers, and what gnnsys uses because of it.

The doctor must print even when the install is broken, so this module imports only the standard
library; torch, rich and the C++ extension are imported inside the functions that look at them.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import importlib.util
import json as json_format
import mmap
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

from gnnsys.config.doctor import DoctorConfig
from gnnsys.errors import MissingFileError
from gnnsys.system.machine import (
    available_memory,
    cpu_flags,
    cpu_model,
    cpu_quota,
    meminfo,
    memory_limit,
    mount_of,
    queue_of,
    read_text,
    usable_cores,
)
from gnnsys.system.sizes import size_text

__all__ = ["Finding", "examine", "report", "run_command"]

State = Literal["ok", "missing", "warning", "broken"]
_Answer = tuple[State, str, str]  # state, found, effect
_Probe = tuple[str, str, Callable[[], _Answer]]  # area, name, probe

_URING_SETTING = Path("/proc/sys/kernel/io_uring_disabled")
_BLOCK = 4096  # bytes; satisfies O_DIRECT on disks with 512-byte and with 4 KiB sectors
_SMALL_SHM = 1 << 30  # bytes; containers often start with 64 MiB, too little for most features
_STYLES = {"ok": "green", "missing": "dim", "warning": "yellow", "broken": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the doctor looked at.

    Args:
        area: part of the machine or install: install, cpu, memory, storage, gpu or optional.
        name: what was looked at, unique within a report.
        state: ``ok``; ``missing`` (gnnsys works without it); ``warning`` (slower than it could be,
            or not known because the probe failed); ``broken`` (gnnsys cannot run).
        found: what the machine offers, with units.
        effect: what gnnsys does because of it, or what to do to get the better path.

    Example:
        >>> Finding("cpu", "cores", "ok", "8 cores", "8 threads run at once").state
        'ok'
    """

    area: str
    name: str
    state: State
    found: str
    effect: str


def examine(path: str | os.PathLike[str] = ".", probe: bool = False) -> list[Finding]:
    """Looks at the install and the machine; a probe that fails becomes a ``warning``.

    Args:
        path: folder whose disk is examined; a file of 4096 bytes is written there and removed.
        probe: measure how fast it is, with a file of 256 MiB, and keep what was found.

    Returns:
        One finding per probe, always the same ones in the same order.

    Example:
        >>> [finding.name for finding in examine() if finding.area == "cpu"]
        ['processor', 'cores']
    """
    return [_ask(area, name, ask) for area, name, ask in _probes(path, probe)]


def report(findings: Sequence[Finding], *, json: bool = False, file: TextIO | None = None) -> int:
    """Prints findings: a table on a terminal, one line each elsewhere, or JSON.

    Args:
        findings: what `examine` returned.
        json: print one document ``{"findings": [...], "broken": bool}`` instead.
        file: where to print; None is standard output.

    Returns:
        The exit code: 1 if any finding is ``broken``, else 0.

    Example:
        >>> report([Finding("cpu", "cores", "ok", "8 cores", "8 threads run at once")])
        ok      cpu       cores            8 cores -> 8 threads run at once
        0
    """
    out = sys.stdout if file is None else file
    broken = any(finding.state == "broken" for finding in findings)
    if json:
        document = {"findings": [asdict(finding) for finding in findings], "broken": broken}
        print(json_format.dumps(document, indent=2), file=out)
    elif not _print_table(findings, out):
        for f in findings:
            line = f"{f.state:<8}{f.area:<10}{f.name:<16} {f.found} -> {f.effect}"
            print(_printable(line, out), file=out)
    return 1 if broken else 0


def run_command(config: DoctorConfig) -> int:
    """Prints what it found; returns 0, or 1 if the install is broken."""
    if not os.path.isdir(config.path):
        raise MissingFileError(
            f"--path {config.path}: no such folder; name one on the disk to examine"
        )
    return report(examine(config.path, config.probe), json=config.json)


def _probes(path: str | os.PathLike[str], probe: bool) -> list[_Probe]:
    own_sampler = "not needed: gnnsys samples neighbours with its own C++ code"
    text = "gnnsys convert reads CSV, other text and Parquet"
    graphbolt = "gnnsys convert reads and writes GraphBolt's folders"
    ogb = "downloads OGB's datasets, whose raw files gnnsys convert reads without it"
    board = "gnnsys train writes curves for TensorBoard into the folder of --out"
    return [
        ("install", "Python", _python),
        ("install", "gnnsys._core", _core),
        ("install", "torch", partial(_required, "torch", "runs the models")),
        ("install", "torch_geometric", partial(_required, "torch_geometric", "models, batches")),
        ("install", "numpy", partial(_required, "numpy", "reads and writes .npy files")),
        ("cpu", "processor", _processor),
        ("cpu", "cores", _cores),
        ("memory", "memory", _memory),
        ("memory", "locked memory", _locked_memory),
        ("memory", "/dev/shm", _shared_memory),
        ("memory", "shared cache", _shared_cache),
        ("memory", "huge pages", _huge_pages),
        ("storage", "disk", partial(_disk, path)),
        ("storage", "disk speed", partial(_disk_speed, path, probe)),
        ("storage", "O_DIRECT", partial(_direct_io, path)),
        ("storage", "io_uring", _io_uring),
        ("gpu", "GPUs", _gpus),
        ("gpu", "nvcc", _nvcc),
        ("gpu", "CUDA calls", _cuda_calls),
        ("gpu", "rows of host memory", partial(_ways, probe)),
        ("gpu", "IOMMU", _iommu),
        ("optional", "pyarrow", partial(_optional, "pyarrow", text, "'gnnsys[convert]'")),
        ("optional", "pyyaml", partial(_optional, "yaml", graphbolt, "'gnnsys[convert]'")),
        ("optional", "ogb", partial(_optional, "ogb", ogb, "'gnnsys[ogb]'")),
        ("optional", "tensorboard", partial(_optional, "tensorboard", board, "tensorboard")),
        ("optional", "pyg_lib", partial(_optional, "pyg_lib", own_sampler)),
        ("optional", "torch_sparse", partial(_optional, "torch_sparse", own_sampler)),
        (
            "optional",
            "dgl",
            partial(_optional, "dgl", "opens what gnnsys convert --to graphbolt writes"),
        ),
    ]


def _ask(area: str, name: str, probe: Callable[[], _Answer]) -> Finding:
    state: State
    try:
        state, found, effect = probe()
    except Exception as error:  # the report must be complete whatever one probe meets
        state, found, effect = "warning", _said(error), "not known: this probe failed"
    return Finding(area, name, state, " ".join(found.split()), effect)


def _python() -> _Answer:
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    state: State = "ok" if platform.system() == "Linux" else "warning"
    return state, f"{platform.python_version()} on {system}", "gnnsys is made for Linux"


def _core() -> _Answer:
    rebuild = "gnnsys cannot run: install it again so that Python and C++ come from one build"
    try:
        core = importlib.import_module("gnnsys._core")
        sets = ", ".join(core.isas())
    except Exception as error:  # a failed import can raise anything, and each means broken
        return "broken", _said(error), rebuild
    python, built = importlib.metadata.version("gnnsys"), getattr(core, "__version__", None)
    if built is not None and built != python:
        return "broken", f"C++ extension {built}, Python files {python}", rebuild
    return "ok", f"version {python}, kernels: {sets}", "gathers rows and samples neighbours"


def _required(module: str, effect: str) -> _Answer:
    try:
        return "ok", str(importlib.import_module(module).__version__), effect
    except Exception as error:  # a failed import can raise anything, and each means broken
        return "broken", _said(error), f"gnnsys cannot run: install {module}"


def _processor() -> _Answer:
    names = {"avx2": "avx2", "avx512f": "avx512f", "asimd": "neon", "sve": "sve", "sve2": "sve2"}
    flags, model = cpu_flags(), cpu_model()
    found = ", ".join([model, *(names[flag] for flag in names if flag in flags)])
    try:
        core = importlib.import_module("gnnsys._core")
    except Exception:  # the finding "gnnsys._core" holds the reason
        return "warning", found, "not used: gnnsys._core cannot be imported"
    used = core.isa()
    if used == "generic" and "avx2" in core.isas():
        return "warning", found, "gather and sampling use generic code although avx2 is there"
    return "ok", found, f"gather and sampling use {used} code"


def _cores() -> _Answer:
    allowed, quota = usable_cores(), cpu_quota()
    found = f"{os.cpu_count()} logical, {allowed} allowed by affinity"
    if quota is None or quota >= allowed:
        return "ok", found, f"{allowed} threads run at once"
    threads = max(1, int(quota))
    return (
        "warning",
        f"{found}, {quota:g} by the cgroup CPU quota",
        f"torch starts a thread per core and is throttled: set OMP_NUM_THREADS={threads}",
    )


def _memory() -> _Answer:
    total, free, limit = meminfo("MemTotal"), meminfo("MemAvailable"), memory_limit()
    found = f"{size_text(total)}, {size_text(free)} available"
    if limit is not None and limit < total:
        found = f"{found}, cgroup limit {size_text(limit)}"
    usable = size_text(available_memory())
    return "ok", found, f"features beyond about {usable} belong in a file (FileStore)"


def _locked_memory() -> _Answer:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return "ok", "unlimited", "lets a GPU register all host memory (not used yet)"
    effect = "bounds the host memory a GPU could register (not used yet): see ulimit -l"
    return "ok", size_text(limit), effect


def _shared_memory() -> _Answer:
    disk = os.statvfs("/dev/shm")
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    found = f"{size_text(size)}, {size_text(free)} free"
    if free < _SMALL_SHM:
        return "warning", found, "little room for spawned workers: use num_workers=0 or enlarge it"
    return "ok", found, "spawned DataLoader workers get features there"


def _shared_cache() -> _Answer:
    from gnnsys.system.gpu.peer_memory import peers_in_words
    from gnnsys.system.shared_memory import sharing_refusal

    why = sharing_refusal()
    found = "; ".join(filter(None, [f"exchange: {why}" if why else "shm", peers_in_words()]))
    if why:
        return "warning", found, "ranks send each other the rows of their cache"
    return "ok", found, "ranks of this machine read each other's rows of their cache in place"


def _huge_pages() -> _Answer:
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    chosen = {
        name: re.search(r"\[(\w+)\]", read_text(folder / name))
        for name in ("enabled", "shmem_enabled")
    }
    found = ", ".join(f"{name}: {mode[1]}" for name, mode in chosen.items() if mode)
    if not found:
        return "missing", "the kernel has no transparent huge pages", "small pages are used"
    mode = chosen["enabled"]
    if mode is None or mode[1] == "never":
        return "warning", found, f"small pages are used: write madvise to {folder / 'enabled'}"
    return "ok", found, "gnnsys advises huge pages for its large allocations"


def _disk(path: str | os.PathLike[str]) -> _Answer:
    space, (kind, source) = os.statvfs(path), mount_of(path)
    found = f"{kind} on {source}, {size_text(space.f_bavail * space.f_frsize)} free"
    effect = "rows of larger files are read past the page cache, without read-ahead"
    queue = queue_of(os.stat(path).st_dev, source)
    if queue is None:
        return "ok", f"{found}, no block device", effect
    turning = {"0": "not rotational", "1": "rotational"}.get(read_text(queue / "rotational"), "")
    if "/virtio" in str(queue):  # guests see "rotational" whatever the disk is
        turning = "virtual"
    found = f"{found}, {turning}, read-ahead {read_text(queue / 'read_ahead_kb')} KiB"
    if turning == "rotational":
        return "warning", found, "random rows are slow on a spinning disk: prefer an SSD"
    return "ok", found, effect


def _disk_speed(path: str | os.PathLike[str], probe: bool) -> _Answer:
    from gnnsys.system import disk_probe

    if probe:
        profile = disk_probe.measure_folder(path)
        kept = "kept" if disk_probe.save(path, profile) else "not kept: no place to write it"
    else:
        found, kept = disk_probe.load(path), "kept"
        if found is None:
            effect = "128 reads are kept in flight: gnnsys doctor --probe finds the best number"
            return "missing", "not probed", effect
        profile = found
    return (
        "ok",
        f"{profile.iops:,.0f} random reads of 4 KiB a second, {profile.bandwidth / 1e6:,.0f} MB/s, "
        f"latency {profile.latency * 1e6:.0f} µs, measured {profile.when}, {kept}",
        f"{profile.depth} reads are kept in flight",
    )


def _direct_io(path: str | os.PathLike[str]) -> _Answer:
    handle, name = tempfile.mkstemp(prefix=".gnnsys-doctor-", dir=path)
    try:
        os.close(handle)
        same = _direct_round_trip(name)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        effect = "rows of files are read through the page cache, which fills memory"
        return "missing", f"refused: {error.strerror}", effect
    finally:
        os.unlink(name)
    if not same:
        return "warning", "what was read differs from what was written", "do not trust this disk"
    effect = "rows of files larger than a quarter of the memory are read past the page cache"
    return "ok", f"{_BLOCK} bytes written and read back", effect


def _direct_round_trip(name: str) -> bool:
    pattern = os.urandom(_BLOCK)
    handle = os.open(name, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, _BLOCK) as buffer:  # anonymous pages are aligned, bytes objects are not
            buffer[:] = pattern
            written = os.pwrite(handle, buffer, 0)
            buffer[:] = bytes(_BLOCK)
            read = os.preadv(handle, [buffer], 0)
            return written == read == _BLOCK and buffer[:] == pattern
    finally:
        os.close(handle)


def _io_uring() -> _Answer:
    core = importlib.import_module("gnnsys._core")
    setting = f"io_uring_disabled: {read_text(_URING_SETTING) or 'absent'}"
    if not core.has_uring:
        effect = "threads read files: install liburing-dev and build gnnsys again"
        return "warning", f"gnnsys was built without liburing, {setting}", effect
    code = core.find_uring_fault(2)
    if code == 0:
        return "ok", f"the kernel offers it, {setting}", "reads the rows of large files"
    found = f"{errno.errorcode.get(code, code)}: {os.strerror(code)}, {setting}"
    return "missing", found, "threads read the rows of large files, with more work of the CPU"


def _gpus() -> _Answer:
    import torch

    with warnings.catch_warnings(record=True) as said:  # torch warns why a driver is of no use
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        found = "; ".join(f"{card.name}, {size_text(card.total_memory)}" for card in cards)
        return "ok", found, "trains there"
    built = f"torch {torch.__version__} is built " + (
        f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    )
    found = "; ".join(["none", built, *(str(warning.message) for warning in said)])
    if said or any(Path("/dev").glob("nvidia[0-9]*")):
        return "warning", found, "trains on the CPU: see driver, torch build, CUDA_VISIBLE_DEVICES"
    return "missing", found, "trains on the CPU"


def _nvcc() -> _Answer:
    effect = "not needed: NVRTC compiles kernels when they are first used"
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "missing", "not on PATH", effect
    ran = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    version = re.search(r"release (\S+),", ran.stdout)
    return "ok", f"{version[1] if version else 'version unknown'} ({nvcc})", effect


def _cuda_calls() -> _Answer:
    from gnnsys.errors import DeviceError
    from gnnsys.system.gpu.provider import find_provider

    try:
        provider = find_provider()
    except DeviceError as error:
        return "missing", str(error), "rows are gathered by the CPU and then copied to a GPU"
    found = f"{provider.name}, NVRTC {provider.nvrtc}"
    return "ok", found, "compile and launch the kernels of a GPU"


def _ways(probe: bool) -> _Answer:
    import torch

    from gnnsys.memory.way_probe import measure_ways
    from gnnsys.system.gpu import kernel_device
    from gnnsys.system.gpu.way import load_ways, save_ways

    gpu = kernel_device("cuda") if torch.cuda.is_available() else None
    if gpu is None:
        return "missing", "no GPU that kernels reach", "rows are gathered by the CPU"
    profile, kept = load_ways(gpu.torch_device), "kept"
    if probe:
        profile = measure_ways(gpu)
        kept = "kept" if save_ways(gpu.torch_device, profile) else "not kept: no place to write it"
    if profile is None:
        effect = "kernels read rows of 64 B to 24 KiB in place: gnnsys doctor --probe measures"
        return "missing", "not probed", effect
    found = ", ".join(
        f"{size_text(each.row_bytes)}: {each.zero_copy / 1e9:.1f} and {each.staged / 1e9:.1f}"
        for each in profile.speeds
    )
    effect = "the faster way is taken, by the size of rows"
    return "ok", f"GB/s in place and copied: {found}, measured {profile.when}, {kept}", effect


def _iommu() -> _Answer:
    units = sorted(path.name for path in Path("/sys/class/iommu").glob("*"))
    if not units:
        return "ok", "off", "a GPU reads host memory without its translation"
    effect = "a GPU's reads of host memory may be slower: iommu=pt passes them through"
    return "ok", f"on: {', '.join(units)}", effect


def _optional(module: str, effect: str, install: str = "") -> _Answer:
    """Finds a package without importing it: importing dgl is slow and can crash.

    Args:
        effect: what there is with it.
        install: what pip is to install where it is missing.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # no origin: a mere folder of that name
        return "missing", f"not installed{install and ': pip install '}{install}", effect
    owners = importlib.metadata.packages_distributions().get(module, [])
    if not owners:  # Python 3.10 knows those alone that list their modules
        with suppress(importlib.metadata.PackageNotFoundError):
            return "ok", importlib.metadata.version(module), effect
    return "ok", ", ".join(map(importlib.metadata.version, owners)) or "version unknown", effect


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _printable(text: str, out: TextIO) -> str:
    """`text` with what the encoding of `out` lacks escaped: printing must not raise."""
    encoding = getattr(out, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _print_table(findings: Sequence[Finding], out: TextIO) -> bool:
    """Prints a table if `out` is a terminal and rich is there; says whether it did."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except Exception:  # a broken rich must not hide the findings: plain lines follow
        return False
    console = Console(file=out)
    if not console.is_terminal:
        return False
    table = Table("state", "what", "found, and what gnnsys does")
    area = ""
    for f in findings:
        if f.area != area:
            table.add_section()
            area = f.area
        cell = Text.assemble(_printable(f.found, out), "\n", (_printable(f.effect, out), "dim"))
        # on a narrow terminal long words are broken, not lost
        cell.overflow = "fold"
        name, state = Text(f.name, overflow="fold"), Text(f.state, _STYLES[f.state])
        table.add_row(state, name, cell)
    console.print(table)
    return True
