"""Who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REPORT = ["", "_charts", "_page", "_reader", "_run"]

# Layers from the bottom: a module imports from its own layer and from those below.
LAYERS = [
    {f"gnnsys.{name}" for name in ["errors", "counters", "rng", "_version", "_extension", "_core"]},
    {"gnnsys.machine"},
    {"gnnsys.files", "gnnsys.sizes"},
    {"gnnsys.disk_probe"},
    {"gnnsys.memory"},
    {"gnnsys.cache"},
    {"gnnsys.indexing", "gnnsys.unified_tensor", "gnnsys.feature_store"},
    {"gnnsys.message_passing"},
    {"gnnsys.loaders"},
    {"gnnsys.pipeline", "gnnsys.losses"},
    {"gnnsys.folder_format", "gnnsys.folder_writer", "gnnsys.folder_scores"},
    {"gnnsys.models", "gnnsys.doctor", "gnnsys.feature_options"}
    | {
        f"gnnsys.config{part}"
        for part in ["", "_cache", "_checks", "_cluster", "_data", "_doctor", "_parallel"]
    },
    {"gnnsys.dataset_folder"},
    {"gnnsys.layer_checks"},
    {"gnnsys.layerwise", "gnnsys.scores", "gnnsys.sampled_ids", "gnnsys.static_scores"},
    {"gnnsys.progress", "gnnsys.info", "gnnsys.report_text"},
    {f"gnnsys.{name}" for name in ["convert", "dataset", "feature_setup", "generate"]},
    {f"gnnsys.{name}" for name in ["checkpoint", "config_file", "feature_stats", "interrupts"]}
    | {f"gnnsys.{name}" for name in ["pipeline_steps", "ranks", "run_log", "staleness", "steps"]},
    {"gnnsys.hardware", "gnnsys.split_times", "gnnsys.parallel_text", "gnnsys.launch"},
    {"gnnsys.train", "gnnsys.train_result", "gnnsys.parallel_plan", "gnnsys.parallel_command"}
    | {"gnnsys.timeline_picture", "gnnsys.report_drawing", "gnnsys.report_style"},
    {f"gnnsys.{name}" for name in ["train_command", "predict", "score_command", "clustering"]}
    | {f"gnnsys.{name}" for name in ["estimate", "cache_plans"]}
    | {f"gnnsys.plan_{part}" for part in ["command", "picture", "text"]}
    | {f"gnnsys.report{part}" for part in REPORT},
    {"gnnsys.cli"},
]
PURE = {"gnnsys.errors", "gnnsys.counters", "gnnsys.rng", "gnnsys.machine"}


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


def layer(name: str) -> int | None:
    for place, members in enumerate(LAYERS):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return place
    return None


def test_every_module_has_a_layer_and_imports_only_downwards() -> None:
    for name, path in modules().items():
        if name in {"gnnsys", "gnnsys.__main__"}:
            continue
        own = layer(name)
        assert own is not None, f"{name} stands in no layer"
        for imported in imports(path):
            if imported.startswith("gnnsys"):
                below = layer(imported)
                assert below is not None, f"{name} imports {imported} from the lazy package"
                assert below <= own, f"{name} imports {imported}, which stands above it"


@pytest.mark.parametrize("name", sorted(PURE))
def test_leaves_import_only_the_standard_library_and_numpy(name: str) -> None:
    for imported in imports(modules()[name]):
        top = imported.split(".")[0]
        assert top == "numpy" or top in sys.stdlib_module_names, f"{name} imports {imported}"


def test_the_pipeline_imports_no_loader_and_no_cache() -> None:
    allowed = ("gnnsys.pipeline", "gnnsys.errors", "gnnsys.rng", "gnnsys._extension")
    for name, path in modules().items():
        if f"{name}.".startswith("gnnsys.pipeline."):
            ours = [each for each in imports(path) if each.startswith("gnnsys")]
            assert all(each.startswith(allowed) for each in ours), f"{name} imports {ours}"


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
    "command", ["import gnnsys", "from gnnsys.cli import main; main(['--version'])"]
)
def test_torch_is_not_imported_before_it_is_needed(command: str) -> None:
    check = f"import sys; {command}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_imports_no_torch() -> None:
    check = (
        "import sys\nfrom gnnsys.cli import main\n"
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
        "from gnnsys._extension import core"
    )
    done = subprocess.run([sys.executable, "-S", "-c", check], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install" in done.stderr
    assert "BuildError" in done.stderr
