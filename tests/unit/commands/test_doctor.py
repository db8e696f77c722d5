"""The doctor against the machine it runs on: each probe has an oracle that is not the doctor."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import pty
import re
import resource
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

import gnnsys.commands.doctor as doctor
from gnnsys.commands.doctor import Finding, examine, report
from gnnsys.system import disk_probe, machine
from gnnsys.system.shared_memory import SharedMemory, map_shared

NAMES = [
    "Python", "gnnsys._core", "torch", "torch_geometric", "numpy", "processor", "cores",
    "memory", "locked memory", "/dev/shm", "shared cache", "huge pages", "disk", "disk speed",
    "O_DIRECT", "io_uring", "GPUs", "nvcc", "CUDA calls", "rows of host memory", "IOMMU",
    "pyarrow", "pyyaml", "ogb", "tensorboard", "pyg_lib", "torch_sparse", "dgl",
]  # fmt: skip
REQUIRED = ["gnnsys._core", "torch", "torch_geometric", "numpy"]
SAMPLE = [
    Finding("cpu", "cores", "ok", "8 logical, 8 allowed by affinity", "8 threads run at once"),
    Finding("gpu", "torch_geometric", "missing", "none [Errno 2] [/bold]", "trains on the CPU"),
    Finding("memory", "/dev/shm", "warning", "64 MiB, 60 MiB free", "little room"),
]
BROKEN = Finding("install", "torch", "broken", "ModuleNotFoundError", "gnnsys cannot run")
UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examined")


@pytest.fixture(scope="module")
def findings(folder: Path) -> dict[str, Finding]:
    return by_name(examine(folder))


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def sizes(text: str) -> list[float]:
    """The sizes in `text`, in bytes; they are printed with four digits."""
    found = re.findall(r"([\d.e+]+) (bytes|[KMGT]iB)", text)
    return [float(number) * UNITS[unit] for number, unit in found]


def text_of(found: list[Finding], **options: bool) -> tuple[str, int]:
    out = io.StringIO()
    code = report(found, file=out, **options)
    return out.getvalue(), code


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # from "/", so that the installed package is imported and not the source tree
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )


def run_refused(refusal: str, script: str, *arguments: str) -> str:
    ran = run_python(refusal + script, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_probe_answers_once_on_one_line(findings: dict[str, Finding], folder: Path) -> None:
    assert list(findings) == NAMES
    for finding in findings.values():
        assert finding.state in ("ok", "missing", "warning", "broken")
        for text in (finding.area, finding.found, finding.effect):
            assert text.strip() == text
            assert len(text.splitlines()) == 1


def test_a_working_install_is_not_broken(findings: dict[str, Finding]) -> None:
    assert [finding for finding in findings.values() if finding.state == "broken"] == []
    assert report(list(findings.values()), file=io.StringIO()) == 0


def test_the_machine_probes_all_work_here(findings: dict[str, Finding]) -> None:
    failed = [each for each in findings.values() if each.effect == "not known: this probe failed"]
    assert failed == []


def test_importing_the_doctor_imports_only_the_standard_library() -> None:
    script = """
import sys
before = set(sys.modules)
import gnnsys.commands.doctor
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names))
"""
    assert run_python(script).stdout == "['gnnsys']\n"


@pytest.mark.parametrize("module", REQUIRED)
def test_a_required_module_that_cannot_be_imported_is_broken(
    module: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = by_name(examine(folder))
    assert list(found) == NAMES
    assert found[module].state == "broken"
    assert module in found[module].found
    text, code = text_of(list(found.values()))
    assert code == 1
    assert all(f" {name} " in text for name in NAMES)


def test_the_command_prints_everything_when_the_install_is_broken(folder: Path) -> None:
    script = f"""
import sys
for module in {REQUIRED}:
    sys.modules[module] = None
from gnnsys.commands.doctor import run_command
from gnnsys.config.doctor import DoctorConfig
sys.exit(run_command(DoctorConfig(path=sys.argv[1], json=True)))
"""
    ran = run_python(script, str(folder))
    assert ran.returncode == 1, ran.stderr
    document = json.loads(ran.stdout)
    assert document["broken"] is True
    states = {each["name"]: each["state"] for each in document["findings"]}
    assert list(states) == NAMES
    assert [name for name, state in states.items() if state == "broken"] == REQUIRED


def test_an_extension_of_another_version_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import gnnsys._core

    monkeypatch.setattr(gnnsys._core, "__version__", "0.0.0.other", raising=False)
    state, found, effect = doctor._core()
    assert state == "broken"
    assert "0.0.0.other" in found
    assert importlib.metadata.version("gnnsys") in found
    assert "install it again" in effect


def test_elsewhere_than_on_a_terminal_each_finding_is_one_plain_line() -> None:
    text, code = text_of(SAMPLE)
    assert code == 0
    for line, finding in zip(text.splitlines(), SAMPLE, strict=True):
        assert line.startswith(finding.state)
        assert all(part in line for part in (finding.name, finding.found, finding.effect))
    assert "\x1b" not in text


def test_json_is_one_document_with_every_field() -> None:
    text, code = text_of([*SAMPLE, BROKEN], json=True)
    assert code == 1
    document = json.loads(text)
    assert document.keys() == {"findings", "broken"}
    assert document["broken"] is True
    assert [Finding(**each) for each in document["findings"]] == [*SAMPLE, BROKEN]


def test_text_that_the_output_cannot_encode_is_escaped() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    report([Finding("storage", "disk", "ok", "caf\u00e9 \udcff", "reads")], file=out)
    out.seek(0)
    assert r"caf\xe9 \udcff" in out.read()


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_terminal_of_any_width_loses_no_character(width: int) -> None:
    text = on_terminal("", width)
    assert "\x1b[" in text  # colours: this was the table
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).split("\n")
    assert max(map(len, lines)) <= width
    for finding in SAMPLE:
        assert without_spaces(finding.name) in column(lines, 1)
        assert without_spaces(finding.found + finding.effect) in column(lines, 2)


def test_without_rich_a_terminal_gets_the_plain_lines() -> None:
    text = on_terminal("sys.modules['rich'] = sys.modules['rich.console'] = None", 80)
    assert text == text_of(SAMPLE)[0]


def on_terminal(before: str, width: int) -> str:
    """What `report` prints on a terminal of that many columns."""
    script = (
        f"import sys\nfrom gnnsys.commands.doctor import *\n{before}\nsys.exit(report({SAMPLE}))"
    )
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")
    }
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=terminal,
        stdout=terminal,
        cwd="/",
        env={**environment, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    read = bytearray()
    while True:
        try:
            chunk = os.read(main_end, 1 << 16)
        except OSError:  # Linux says so when the last writer has closed
            break
        if not chunk:
            break
        read += chunk
    os.close(main_end)
    assert child.wait(timeout=60) == 0
    return read.decode().replace("\r\n", "\n")


def column(lines: list[str], index: int) -> str:
    """One column of a printed table, its rows joined and without spaces."""
    rows = [re.split("[│┃]", line)[1:-1] for line in lines]
    return without_spaces("".join(cells[index] for cells in rows if cells))


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("module", ["torch", "torch_geometric", "numpy"])
def test_versions_are_those_of_the_installed_packages(
    module: str, findings: dict[str, Finding]
) -> None:
    version = sys.modules[module].__version__
    assert findings[module].found == version
    assert version.startswith(importlib.metadata.version(module).partition("+")[0])


def test_core_names_the_kernels_it_can_run(findings: dict[str, Finding]) -> None:
    import gnnsys._core

    assert all(isa in findings["gnnsys._core"].found for isa in gnnsys._core.isas())
    assert gnnsys._core.isa() in findings["processor"].effect


def test_python_and_kernel_are_named(findings: dict[str, Finding]) -> None:
    uname = subprocess.run(["uname", "-srm"], capture_output=True, text=True, check=True).stdout
    assert all(word in findings["Python"].found for word in uname.split())
    assert findings["Python"].found.startswith(platform.python_version())


def test_cores_agree_with_psutil(findings: dict[str, Finding]) -> None:
    allowed = len(psutil.Process().cpu_affinity())
    expected = f"{psutil.cpu_count()} logical, {allowed} allowed by affinity"
    assert findings["cores"].found.startswith(expected)


def test_affinity_lowers_the_allowed_cores() -> None:
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from gnnsys.commands import doctor
print(doctor._cores())
"""
    assert "1 allowed by affinity" in run_python(script).stdout


def test_cpu_flags_are_those_torch_sees(findings: dict[str, Finding]) -> None:
    seen = torch.backends.cpu.get_cpu_capability()  # DEFAULT, AVX2 or AVX512 on x86-64
    for name in ("avx2", "avx512"):
        if seen.lower() == name:
            assert name in findings["processor"].found


def test_memory_agrees_with_psutil(findings: dict[str, Finding]) -> None:
    total, available, *limit = sizes(findings["memory"].found)
    assert total == pytest.approx(psutil.virtual_memory().total, rel=1e-3)
    assert available == pytest.approx(psutil.virtual_memory().available, abs=0.3 * total)
    assert all(each < total for each in limit)


GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "v2": ("0::/a/b", {"a/b/F2": "L2", "F2": "", "a/F2": "max"}),
    "v2, the parent is tighter": ("0::/a/b", {"a/F2": "L2", "a/b/F2": "loose", "F2": "max"}),
    "v2, inside a container": ("0::/", {"F2": "L2"}),
    "v2, outside the namespace": ("0::/../x", {"F2": "L2"}),
    "v1": ("3:cpuacct,C:/a\n2:pids:/p", {"C/a/F1": "L1", "C/p/F1": "L0"}),
    "v1, inside a container": ("3:C:/docker/a", {"C/F1": "L1"}),
    "v1 and v2 side by side": ("3:C:/a\n0::/u", {"C/a/F1": "L1", "unified/u/x": ""}),
}


def make_group(
    layout: str, controller: str, names: dict[str, str], folder: Path
) -> tuple[Path, Path]:
    lines, files = GROUPS[layout]
    for name, text in files.items():
        where = name.replace("C/", f"{controller}/")
        limit = names.get(text, text)
        for short in ("F1", "F2"):
            where = where.replace(short, names[short])
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).write_text(limit + "\n")
    (folder / "cgroup").write_text(lines.replace("C:", f"{controller}:") + "\n")
    return folder / "cgroup", folder


@pytest.mark.parametrize("layout", GROUPS)
def test_memory_limit_is_the_tightest_cgroup(layout: str, tmp_path: Path) -> None:
    names = {"F1": "memory.limit_in_bytes", "F2": "memory.max"}
    limits = {"L0": "5", "L1": "8192", "L2": "8192", "loose": "16384"}
    own, top = make_group(layout, "memory", names | limits, tmp_path)
    assert machine.memory_limit(own, top) == 8192


@pytest.mark.parametrize("layout", GROUPS)
def test_cpu_quota_is_the_tightest_cgroup(layout: str, tmp_path: Path) -> None:
    names = {"F1": "cpu.cfs_quota_us", "F2": "cpu.max", "max": "max 100000"}
    limits = {"L0": "5", "L1": "150000", "L2": "150000 100000", "loose": "400000 100000"}
    own, top = make_group(layout, "cpu", names | limits, tmp_path)
    for quota in list(tmp_path.rglob("cpu.cfs_quota_us")):
        (quota.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(own, top) == 1.5


def test_no_cgroup_limit_is_none(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("3:cpu:/\n0::/\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota(own, tmp_path) is None
    assert machine.memory_limit(own, tmp_path) is None


def test_locked_memory_is_the_soft_limit(findings: dict[str, Finding]) -> None:
    ulimit = subprocess.run(["bash", "-c", "ulimit -l"], capture_output=True, text=True, check=True)
    text = ulimit.stdout.strip()
    if text == "unlimited":
        assert findings["locked memory"].found == "unlimited"
    else:
        [limit] = sizes(findings["locked memory"].found)
        assert limit == pytest.approx(int(text) * 1024, rel=1e-3)


def test_a_lowered_locked_memory_limit_is_seen() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, hard))
    try:
        assert doctor._locked_memory()[1] == "4 KiB"
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def test_shared_memory_agrees_with_psutil(findings: dict[str, Finding]) -> None:
    size, free = sizes(findings["/dev/shm"].found)
    usage = psutil.disk_usage("/dev/shm")
    assert size == pytest.approx(usage.total, rel=1e-3)
    assert free == pytest.approx(usage.free, rel=0.1, abs=1 << 26)
    assert (findings["/dev/shm"].state == "warning") == (free < 1 << 30)


def test_what_keeps_ranks_from_sharing_memory_is_told(findings: dict[str, Finding]) -> None:
    memory = SharedMemory.create("gnnsys-test", 1 << 40)  # most of which is never touched
    memory.bytes[[0, -1]] = 1, 2
    assert map_shared(memory.where, 1 << 40)[[0, 1, -1]].tolist() == [1, 0, 2]
    with pytest.raises(FileNotFoundError, match="is another one here"):
        map_shared((*memory.where[:2], memory.where[2] + 1), 1)
    assert findings["shared cache"].found == "shm"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        state, found, _ = doctor._shared_cache()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (state, found) == ("warning", "exchange: [Errno 24] Too many open files")


def test_huge_pages_name_the_bracketed_mode(findings: dict[str, Finding]) -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists():
        assert findings["huge pages"].state == "missing"
        return
    [mode] = [word[1:-1] for word in setting.read_text().split() if word.startswith("[")]
    assert f"enabled: {mode}" in findings["huge pages"].found
    assert (findings["huge pages"].state == "warning") == (mode == "never")


def df(folder: Path | str, *columns: str) -> list[str]:
    command = ["df", f"--output={','.join(columns)}", "-B1", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[1].split()


@pytest.mark.parametrize("where", ["examined", "/dev/shm", "/proc"])
def test_file_system_device_and_space_agree_with_df(where: str, folder: Path) -> None:
    place = folder if where == "examined" else where
    kind, source, free = df(place, "fstype", "source", "avail")
    state, found, _ = doctor._disk(place)
    assert found.startswith(f"{kind} on {source}, ")
    expected = 0 if free == "-" else int(free)  # df prints a dash where there are no blocks
    assert sizes(found)[0] == pytest.approx(expected, rel=0.01, abs=1 << 24)
    if where != "examined":
        assert state == "ok"
        assert found.endswith("no block device")


def test_read_ahead_agrees_with_lsblk(findings: dict[str, Finding], folder: Path) -> None:
    [source] = df(folder, "source")
    if shutil.which("lsblk") is None or not os.path.exists(source):
        pytest.skip("no lsblk, or the folder is on no block device")
    ran = subprocess.run(["lsblk", "-dnro", "RA", source], capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip(f"lsblk does not know {source}")
    assert f"read-ahead {ran.stdout.strip()} KiB" in findings["disk"].found


def test_the_speed_of_a_probed_disk_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_probe, "LEAST_BYTES", 8 << 20)
    assert doctor._disk_speed(tmp_path, False)[:2] == ("missing", "not probed")
    state, found, effect = doctor._disk_speed(tmp_path, True)
    assert state == "ok"
    profile = disk_probe.load(tmp_path)
    assert profile is not None
    assert profile.iops > 0
    assert 0 < profile.latency < 1
    assert profile.bandwidth > 0
    assert f"{profile.iops:,.0f} random reads" in found
    assert effect == f"{profile.depth} reads are kept in flight"
    assert doctor._disk_speed(tmp_path, False) == (state, found, effect)
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]


def test_a_profile_that_cannot_be_kept_or_read_is_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    profile = disk_probe.DiskProfile(1, 1, 1, 1, "now", "this one")
    assert not disk_probe.save(tmp_path, profile)
    assert disk_probe.load(tmp_path) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert disk_probe.save(tmp_path, profile)
    assert disk_probe.load(tmp_path) == profile
    [kept] = (tmp_path / "other" / "gnnsys" / "disks").iterdir()
    kept.write_text("{")
    assert disk_probe.load(tmp_path) is None


def test_the_examined_folder_is_left_empty(findings: dict[str, Finding], folder: Path) -> None:
    assert findings["O_DIRECT"].state in ("ok", "missing")
    assert list(folder.iterdir()) == []


def test_refused_direct_io_is_missing_and_leaves_nothing_behind(
    refuse_calls: Callable[..., str], tmp_path: Path
) -> None:
    script = "from gnnsys.commands import doctor\nprint(doctor._direct_io(sys.argv[1]))"
    refusal = refuse_calls({"openat": errno.EINVAL}, argument=2, mask=os.O_DIRECT)
    answer = run_refused(refusal, script, str(tmp_path))
    assert answer.startswith("('missing', 'refused: Invalid argument'")
    assert list(tmp_path.iterdir()) == []


def test_another_direct_io_error_is_a_warning_and_leaves_nothing_behind(
    refuse_calls: Callable[..., str], tmp_path: Path
) -> None:
    script = """
from functools import partial
from gnnsys.commands import doctor
print(doctor._ask("storage", "O_DIRECT", partial(doctor._direct_io, sys.argv[1])))
"""
    answer = run_refused(refuse_calls({"pwrite64": errno.EIO}), script, str(tmp_path))
    assert "state='warning'" in answer
    assert "[Errno 5]" in answer
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["absent", "/proc", "a file"])
def test_a_place_that_cannot_be_written_is_a_warning_not_an_exception(
    place: str, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    found = by_name(examine(tmp_path / place))
    assert list(found) == NAMES
    assert found["O_DIRECT"].state == "warning"
    assert re.match(r"\w+Error: \[Errno \d+\]", found["O_DIRECT"].found)
    assert report(list(found.values()), file=io.StringIO()) == 0


def test_io_uring_agrees_with_the_kernel_settings(findings: dict[str, Finding]) -> None:
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    disabled = setting.read_text().strip() if setting.exists() else "absent"
    assert f"io_uring_disabled: {disabled}" in findings["io_uring"].found
    status = Path("/proc/self/status").read_text()
    if disabled == "2":
        assert findings["io_uring"].state == "missing"
    elif disabled == "0" and re.search(r"^Seccomp:\s*0$", status, re.MULTILINE):
        assert findings["io_uring"].state == "ok"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_refused_io_uring_gives_the_reason(code: int, refuse_calls: Callable[..., str]) -> None:
    script = "from gnnsys.commands import doctor\nprint(doctor._io_uring())"
    answer = run_refused(refuse_calls({"io_uring_setup": code}), script)
    assert answer.startswith(f"('missing', '{errno.errorcode[code]}: {os.strerror(code)}")


@pytest.mark.parametrize("probe", [doctor._io_uring, lambda: doctor._direct_io(".")])
def test_probes_leave_no_file_open(
    probe: Callable[[], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = os.listdir("/proc/self/fd")
    probe()
    assert os.listdir("/proc/self/fd") == before


def test_gpus_are_those_torch_finds(findings: dict[str, Finding]) -> None:
    finding = findings["GPUs"]
    if not torch.cuda.is_available():
        assert finding.state in ("missing", "warning")
        assert finding.found.startswith(f"none; torch {torch.__version__} is built ")
        assert "trains on the CPU" in finding.effect
        return
    assert finding.state == "ok"
    cards = finding.found.split("; ")
    assert len(cards) == torch.cuda.device_count()
    for index, card in enumerate(cards):
        assert card.startswith(torch.cuda.get_device_name(index))
        [size] = sizes(card)
        assert size == pytest.approx(torch.cuda.mem_get_info(index)[1], rel=0.02)


def test_hidden_gpus_are_not_found() -> None:
    script = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from gnnsys.commands import doctor
print(doctor._gpus())
"""
    ran = run_python(script)
    assert re.match(r"\('(missing|warning)', 'none; torch ", ran.stdout), ran.stderr


@pytest.mark.parametrize(
    ("body", "state", "found"),
    [
        (None, "missing", "not on PATH"),
        ("echo 'Cuda compilation tools, release 12.4, V12.4.131'", "ok", "12.4 "),
        ("echo something else", "ok", "version unknown"),
        ("exit 3", "warning", "CalledProcessError"),
    ],
)
def test_nvcc_is_what_path_offers(
    body: str | None, state: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if body is not None:
        (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor._ask("gpu", "nvcc", doctor._nvcc)
    assert finding.state == state
    assert finding.found.startswith(found)


OPTIONAL = ["pyarrow", "pyyaml", "ogb", "tensorboard", "pyg_lib", "torch_sparse", "dgl"]


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_packages_agree_with_the_import_system(
    name: str, findings: dict[str, Finding]
) -> None:
    module = {"pyyaml": "yaml"}.get(name, name)
    owner = next(
        (
            each
            for each in importlib.metadata.distributions()
            if any(path.parts[:1] == (module,) for path in each.files or ())
        ),
        None,
    )
    assert (findings[name].state == "ok") == (owner is not None)
    if owner is not None:
        assert owner.version in findings[name].found
    assert findings[name].effect


@pytest.mark.parametrize(
    ("module", "install", "package"),
    [
        ("pyarrow", "'gnnsys[convert]'", "pyarrow"),
        ("yaml", "'gnnsys[convert]'", "pyyaml"),
        ("ogb", "'gnnsys[ogb]'", "ogb"),
        ("tensorboard", "tensorboard", "tensorboard"),
    ],
)
def test_a_missing_package_is_told_with_the_extra_that_has_it(
    module: str, install: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # nothing is found
    monkeypatch.delitem(sys.modules, module, raising=False)
    (probe,) = [
        each for each in doctor._probes(".", False) if module in getattr(each[2], "args", ())
    ]
    finding = doctor._ask(*probe)
    assert finding.state == "missing"
    assert finding.found == f"not installed: pip install {install}"
    monkeypatch.undo()
    lines = importlib.metadata.requires("gnnsys") or []
    extra = re.search(r"\[(\w+)\]", install)
    marks = [line for line in lines if re.split(r"[^\w.-]", line)[0] == package]
    assert (
        any(f"extra == '{extra[1]}'" in line.replace('"', "'") for line in marks)
        if extra
        else marks
    )


def test_json_has_the_optional_packages_and_what_they_unlock(folder: Path) -> None:
    text, _ = text_of(examine(folder), json=True)
    told = {each["name"]: each for each in json.loads(text)["findings"]}
    assert "GraphBolt" in told["pyyaml"]["effect"]
    assert told["pyarrow"]["found"] == importlib.metadata.version("pyarrow")


def test_an_optional_package_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashes").mkdir()
    (tmp_path / "crashes" / "__init__.py").write_text("raise SystemExit('imported')\n")
    information = tmp_path / "crashes_cuda-9.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: crashes-cuda\nVersion: 9.9")
    (information / "top_level.txt").write_text("crashes\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._optional("crashes", "not used yet") == ("ok", "9.9", "not used yet")
    assert "crashes" not in sys.modules


def test_a_mere_folder_is_not_an_optional_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._optional("only_a_folder", "")[0] == "missing"
