"""The benchmark of clustering, on few epochs."""

from __future__ import annotations

import json
from pathlib import Path


def test_runs_are_lines_of_a_table_and_not_done_twice(
    real_graphs: Path, tmp_path: Path, run_entry
) -> None:
    out = tmp_path / "runs.jsonl"
    options = ["--root", str(real_graphs), "--datasets", "dblp", "--epochs", "1", "--out", str(out)]
    options += ["--variants", "no warm-up", "cca-ssg", "--seeds", "1"]
    for _ in range(2):
        done = run_entry("clustering.py", *options)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["variant"] for line in lines] == ["no warm-up", "cca-ssg"]
    done = run_entry("clustering.py", "--table", "--out", str(out))
    acc = [100 * line["selected"]["acc"] for line in lines]
    assert "| dblp | SDCN, published | | | 68.05 | 39.50 | 39.15 | 67.71 | |" in done.stdout
    for line, value in zip(lines, acc, strict=True):
        assert f"| dblp | {line['variant']} | 1 | {line['selected']['epoch']} | {value:.2f} |" in (
            done.stdout
        )
