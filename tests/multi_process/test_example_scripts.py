"""The scripts that users start from, as they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gnnsys.generate import generate_community

SCRIPTS = Path(__file__).parents[2] / "scripts"
# What Slurm has on a node, of which this machine is one.
SLURM = {"srun": 'exec "$@"', "scontrol": "echo localhost"}


def test_the_batch_file_trains_by_two_ranks_that_score_every_test_node(tmp_path: Path) -> None:
    generate_community(tmp_path / "graph", nodes=3000, classes=4, features=16, signal=0.5)
    (tmp_path / "scripts").symlink_to(SCRIPTS)
    for name, does in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_NNODES": "1", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here"}
    done = subprocess.run(
        ["bash", "scripts/train_multi_gpu.slurm", "graph", "--epochs", "5"],
        cwd=tmp_path,
        env={
            **os.environ, **job, "OMP_NUM_THREADS": "1",
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(", ")[0] for line in lines] == [
        f"epoch {epoch}: 750 test nodes" for epoch in range(1, 6)
    ]
    assert float(lines[-1].split()[-1]) > 0.6  # of four classes
