"""The benchmark of clustering, on few epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scipy.sparse

NODES = 100


@pytest.fixture
def part_of_dblp(real_graphs: Path, tmp_path: Path) -> Path:
    """A root with the first nodes of dblp and what lies between them: all of it takes minutes."""
    source, folder = real_graphs / "DeepClustering" / "dblp", tmp_path / "DeepClustering" / "dblp"
    folder.mkdir(parents=True)
    rows = scipy.sparse.load_npz(source / "dblp_feat.npz")[:NODES]
    scipy.sparse.save_npz(folder / "dblp_feat.npz", rows)
    labels = (source / "dblp_label.txt").read_text().splitlines()[:NODES]
    (folder / "dblp_label.txt").write_text("\n".join(labels))
    edges = (source / "dblp_graph.txt").read_text().splitlines()
    inside = [edge for edge in edges if max(map(int, edge.split())) < NODES]
    (folder / "dblp_graph.txt").write_text("\n".join(inside))
    return tmp_path


def test_runs_are_lines_of_a_table_and_not_done_twice(
    part_of_dblp: Path, tmp_path: Path, run_entry
) -> None:
    out = tmp_path / "runs.jsonl"
    options = ["--root", str(part_of_dblp), "--datasets", "dblp", "--epochs", "1", "--seeds", "1"]
    options += ["--variants", "no warm-up", "no reconstruction", "--out", str(out)]
    for _ in range(2):
        done = run_entry("clustering.py", *options)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["variant"] for line in lines] == ["no warm-up", "no reconstruction"]
    done = run_entry("clustering.py", "--table", "--out", str(out))
    acc = [100 * line["selected"]["acc"] for line in lines]
    assert "| dblp | SDCN, published | | | 68.05 | 39.50 | 39.15 | 67.71 | |" in done.stdout
    for line, value in zip(lines, acc, strict=True):
        assert f"| dblp | {line['variant']} | 1 | {line['selected']['epoch']} | {value:.2f} |" in (
            done.stdout
        )
