"""Examples that users read do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gnnsys

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(gnnsys.__path__, "gnnsys.")
    if module.name != "gnnsys.__main__"
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_have_an_example() -> None:
    for name in set(gnnsys.__all__) - {"__version__"}:
        public = getattr(gnnsys, name)
        has_example = ">>>" in public.__doc__ or "gnnsys.unified" in public.__doc__
        assert has_example, f"{name} shows no example"


def test_readme_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert "'rows': {'host':" in capsys.readouterr().out


def test_examples_of_the_loaders_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "loaders.md").read_text()
    batches, fused, static, times = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(batches, "loaders.md", "exec"), names)
    assert names["out"].shape == (5000 % 512, 8)
    exec(compile(fused, "loaders.md", "exec"), {})
    assert f"```\n{capsys.readouterr().out}```" in text
    exec(compile(static, "loaders.md", "exec"), names)
    assert names["batch"].num_sampled_nodes[0] == names["seeds"] == 513
    exec(compile(times, "loaders.md", "exec"), names)
    with pytest.raises(gnnsys.errors.LeakageError, match="'y' of"):
        gnnsys.check_leakage(names["batch"], names["data"], "time", known_at={"y": "y_time"})


def test_the_example_of_the_feature_caches_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "feature-cache.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "feature-cache.md", "exec"), names)
    served = names["x"].counters.as_dict()["rows"]
    assert names["stats"].rows == served["cache"] + served["file"]
    assert "rows came from memory" in capsys.readouterr().out


def test_the_examples_of_the_offload_page_run() -> None:
    text = (ROOT / "docs" / "offload.md").read_text()
    training, planning = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(training, "offload.md", "exec"), names)
    stats = names["stats"]
    assert 0 < stats.peak <= 8 << 20 < stats.plain
    assert stats.stored > 0
    exec(compile(planning, "offload.md", "exec"), names)
    assert names["plan"].peak <= 256 << 20 < names["profile"].plain


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "scripts/bench/README.md"])
def test_paths_that_documents_name_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(r"\b(?:scripts|tests|csrc)/[\w./]+[\w]", text)
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert named or linked
    for path in [*named, *linked]:
        if path.endswith("ENTRY.py"):  # stands for any
            continue
        assert (ROOT / path).exists(), f"{name} names {path}"


PAGES = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(PAGES)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_and_names_that_documents_name_exist(name: str) -> None:
    for dotted in set(re.findall(r"\bgnnsys(?:\.[A-Za-z_]\w*)+", (ROOT / name).read_text())):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{name} names {dotted}: {error}")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_commands_that_documents_name_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / link).exists(), f"{name} links {link}"
    folders = "gnnsys|loaders|cache|pipeline|scripts|csrc|tests"
    for path in re.findall(rf"`((?:{folders})/[\w./]*\w/?)`", text):
        assert (ROOT / path).exists(), f"{name} names {path}"
    commands = {path.stem for path in (ROOT / "gnnsys" / "commands").glob("*.py")}
    code = re.findall(r"```(?:bash)?\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    lines = "\n".join(part for parts in code for part in parts)
    for command in set(re.findall(r"^gnnsys ([a-z]+)", lines, re.MULTILINE)):
        assert command in commands, f"{name} names the command gnnsys {command}"


def test_the_picture_of_the_architecture_shows_the_imports() -> None:
    script = ROOT / "scripts" / "draw_architecture.py"
    drawn = subprocess.run(
        [sys.executable, script, "--print"], capture_output=True, text=True, check=True
    ).stdout
    committed = (ROOT / "docs" / "architecture.svg").read_text()
    assert drawn == committed, "run scripts/draw_architecture.py: rooms or their imports changed"
