"""Who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Rooms from the bottom: folders, and the modules beside them. A room imports those above its line
# in this list, and of its own line.
FLOORS = [
    ["choices", "errors", "counters", "rng", "_version", "_core", "compat"],
    ["system"],
    ["memory", "ranks", "pages"],
    ["cache"],
    ["unified_tensor", "feature_store"],
    ["message_passing", "nn", "offload"],
    ["loaders", "losses", "pipeline", "rel"],
    ["dataset"],
    ["features", "convert", "generate"],
    ["config"],
    ["training"],
    ["clustering", "plan", "report"],
    ["commands"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FACE = {"gnnsys", "gnnsys.__main__"}
PURE = {"gnnsys.choices", "gnnsys.errors", "gnnsys.counters", "gnnsys.rng", "gnnsys.system.machine"}


def modules() -> dict[str, Path]:
    folders = {"gnnsys": ROOT / "gnnsys"}
    folders |= {f"gnnsys.{name}": ROOT / name for name in ("loaders", "cache", "pipeline")}
    found = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str:
    return name.split(".")[1]


def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports, in functions and for type checkers, too."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name not in FACE:
            ours = (each for each in imports(path) if each.startswith("gnnsys."))
            found.setdefault(room(name), set()).update(map(room, ours))
    return found


def test_rooms_import_only_what_stands_below() -> None:
    for name, imported in arrows().items():
        assert name in FLOOR, f"gnnsys.{name} stands on no floor"
        for other in imported:
            assert other in FLOOR, f"gnnsys.{name} imports {other} from the lazy package"
            assert FLOOR[other] <= FLOOR[name], f"gnnsys.{name} imports {other}, above it"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter({name: found - {name} for name, found in arrows().items()})
    assert [*order.static_order()]  # raises CycleError, which names the circle


def test_gnnsys_has_few_rooms() -> None:
    inside = {path.name for path in (ROOT / "gnnsys").iterdir()}
    assert len(inside - {"__pycache__", "py.typed"}) <= 29


def test_no_private_name_is_imported_from_another_module() -> None:
    for name, path in modules().items():
        for imported in imports(path):
            last = imported.rsplit(".", 1)[-1]
            private = last.startswith("_") and not last.startswith("__")
            assert not (imported.startswith("gnnsys.") and private and last != "_core"), (
                f"{name} imports {imported}"
            )


@pytest.mark.parametrize("name", sorted(PURE))
def test_leaves_import_only_the_standard_library_and_numpy(name: str) -> None:
    for imported in imports(modules()[name]):
        top = imported.split(".")[0]
        assert top == "numpy" or top in sys.stdlib_module_names, f"{name} imports {imported}"


def test_the_pipeline_imports_no_loader_and_no_cache() -> None:
    allowed = {"pipeline", "ranks", "system", "errors", "rng", "compat"}
    assert arrows()["pipeline"] <= allowed


def test_no_public_function_has_the_name_of_a_module() -> None:
    import gnnsys
    import gnnsys.cache
    import gnnsys.message_passing
    import gnnsys.pipeline

    names = {name.rsplit(".", 1)[-1] for name in modules()}
    packages = (gnnsys, gnnsys.cache, gnnsys.message_passing, gnnsys.pipeline)
    assert not names & {name for package in packages for name in package.__all__}


@pytest.mark.parametrize("package", ["gnnsys.cache", "gnnsys.pipeline"])
def test_a_package_hands_on_all_its_public_names(package: str) -> None:
    module = import_module(package)
    assert [getattr(module, name).__name__ for name in module.__all__] == [*module.__all__]


@pytest.mark.parametrize(
    "command", ["import gnnsys", "from gnnsys.commands.cli import main; main(['--version'])"]
)
def test_torch_is_not_imported_before_it_is_needed(command: str) -> None:
    check = f"import sys; {command}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_tables_are_converted_and_described_without_torch(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target\n0,1\n1,2\n")
    check = (
        "import sys\nfrom gnnsys.commands.cli import main\n"
        "assert main(['convert', 'edges.csv', 'ring', '--json']) == 0\n"
        "assert main(['info', 'ring', '--verify']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=tmp_path)
    assert (tmp_path / "ring" / "graph.json").is_file()


def test_help_imports_no_torch() -> None:
    check = (
        "import sys\nfrom gnnsys.commands.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gnnsys train demo" in done.stdout


def test_a_checkout_that_was_not_built_says_what_to_run() -> None:
    # -S leaves out site-packages, and with it the installed package: only the checkout is seen.
    check = (
        "import importlib.machinery, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from gnnsys.system.extension import core"
    )
    done = subprocess.run([sys.executable, "-S", "-c", check], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install" in done.stderr
    assert "BuildError" in done.stderr
