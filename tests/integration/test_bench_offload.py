"""The benchmark of offloaded activations, on a small graph."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_ways_take_turns_and_compute_the_same(
    tmp_path: Path, real_graphs: Path, run_entry, check_report
) -> None:
    report = tmp_path / "offload.json"
    options = ["--quick", "--root", str(real_graphs), "--dataset", "cora", "--models", "deep"]
    options += ["--depths", "3", "--hidden", "16", "--sides", "gnnsys disk", "--threads", "1"]
    done = run_entry("offload.py", *options, "--json", str(report))
    assert done.returncode == 0, done.stderr
    (case,) = check_report(report, "offload")["cases"]
    assert [one["name"] for one in case["implementations"]] == ["plain", "gnnsys disk"]
    assert "predicted MiB" in done.stdout


def test_a_way_that_computes_something_else_is_found(bench) -> None:
    offload = importlib.import_module("offload")

    class Peer:
        def ask(self, request):
            return {"digests": {"loss": "a", "weight": "another"}}

    training = object.__new__(offload.Training)
    training._digests = {0: {"loss": "a", "weight": "b"}}
    figures = offload.Figures(model="deep", depth=3, side="gnnsys disk")
    with pytest.raises(offload.CheckError, match=r"disk, step 1: 1 of 2 .*: weight$"):
        training._step(Peer(), figures, 0)
    again = offload.Figures(model="deep", depth=3, side="checkpoint")
    training._step(Peer(), again, 0)
    assert not again.same_bits


def test_verdicts_tell_what_was_met(bench) -> None:
    offload = importlib.import_module("offload")

    def figures(side, seconds, peak, stats=()):
        return offload.Figures(
            model="deep", depth=32, side=side, plain_bytes=1000, seconds=seconds, peak_bytes=[peak],
            stats=list(stats),
        )  # fmt: skip

    stats = {"peak": 500, "seconds": 2.0, "predicted_peak": 520, "predicted_seconds": 1.4}
    told = offload.verdicts(
        [
            figures("plain", [1.0, 2.0, 4.0], 2000),
            figures("gnnsys shrink", [1.2, 2.4, 8.0], 1200, [stats]),
            figures("checkpoint", [1.5, 2.4, 5.0], 1200),
        ]
    )
    start = "deep, 32 layers, gnnsys shrink: "
    assert [line.removeprefix(start) for line in told] == [
        "activations down 50.0% (at least 45%: met), peak of the process 40.0% (MISSED), "
        "1.20 x plain time (at most 1.3: met)",
        "predicted peak +4.0% (at most 5%: met)",
        "predicted seconds -30.0% (at most 25%: MISSED)",
        "1.00 x the memory and 1.00 x the time of checkpoints (better in one at equal other: "
        "MISSED)",
    ]
