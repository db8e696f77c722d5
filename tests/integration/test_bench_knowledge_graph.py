"""The benchmark of knowledge graphs, on a small one."""

from __future__ import annotations

import json
from pathlib import Path


def write_facts(folder: Path) -> None:
    """A ring in which relation b is two steps of relation a."""
    facts = [(n, "a", (n + 1) % 30) for n in range(30)]
    facts += [(n, "b", (n + 2) % 30) for n in range(30)]
    lines = [f"e{head}\t{relation}\te{tail}\n" for head, relation, tail in facts]
    for name, part in (("train", lines[:54]), ("valid", lines[54:57]), ("test", lines[57:])):
        (folder / f"{name}.txt").write_text("".join(part))


def test_both_sides_learn_and_are_judged_alike(tmp_path: Path, run_entry) -> None:
    write_facts(tmp_path)
    sizes = ["--epochs", "12", "--seeds", "1", "--batch-size", "40", "--channels", "8"]
    done = run_entry(
        "knowledge_graph.py", str(tmp_path), *sizes, "--json", str(tmp_path / "out.json")
    )
    assert done.returncode == 0, done.stderr
    assert "30 entities, 2 relations; facts: train 54, valid 3, test 3" in done.stdout
    told = json.loads((tmp_path / "out.json").read_text())
    assert [each["side"] for each in told["runs"]] == ["mini-batches", "full graph"]
    for each in told["runs"]:
        assert each["losses"][-1] < 0.9 * each["losses"][0]
        assert 0 < each["mrr"] <= 1


def test_a_folder_without_facts_is_told(tmp_path: Path, run_entry) -> None:
    done = run_entry("knowledge_graph.py", str(tmp_path))
    assert done.returncode == 2
    assert "train.txt: no such file" in done.stderr
