"""Accuracy of ``gnnsys train`` under two sets of options, over several seeds.

By default float32 on uniformly sampled batches against bfloat16 on LABOR-sampled ones, which change
the arithmetic and the sampled distribution. The difference is that of runs of the same seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import describe_environment
from harness import BenchError, check_json, run_entry
from options import make_parser, positive
from report import write_json

from gnnsys.commands.cli import main as gnnsys_command

_COMMUNITY = ["--nodes", "20000"]
_PUBMED_TRAINING = ["--epochs", "50", "--eval-every", "5"]
_COMMUNITY_TRAINING = ["--epochs", "5"]
_EXAMPLES = """
ROOT/PubMed/raw holds the dataset as PyG downloads it; without --pubmed only the generated community
graph is trained on. Scores are those of the test nodes at the best validation score. 10 seeds of
both take about 10 minutes on 2 cores.

examples:
  python scripts/bench/accuracy.py --pubmed data --json accuracy.json
  python scripts/bench/accuracy.py --seeds 3 --changed "--sampling labor" --train "--epochs 2"
"""


def run_gnnsys(*arguments: str) -> str:
    """What a command of gnnsys prints; it runs in this process, which is faster to start.

    Raises:
        BenchError: it fails; its message has gone to standard error.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            status = gnnsys_command(arguments)
    except SystemExit as exit:  # an option that there is not
        status = exit.code
    if status:
        raise BenchError(f"gnnsys {shlex.join(arguments)}: exit status {status}")
    return printed.getvalue()


def train(dataset: str, options: Sequence[str], seed: int) -> float:
    """The test accuracy of a run."""
    printed = run_gnnsys("train", dataset, *options, "--seed", str(seed), "--json")
    return json.loads(printed.splitlines()[-1])["test_acc"]


def compare(name: str, dataset: str, sides: dict[str, list[str]], seeds: range) -> dict[str, Any]:
    """Trains each side with every seed and prints how they compare."""
    scores: dict[str, list[float]] = {side: [] for side in sides}
    for seed in seeds:
        for side, options in sides.items():
            scores[side].append(train(dataset, options, seed))
        last = ", ".join(f"{side} {values[-1]:.4f}" for side, values in scores.items())
        print(f"{name}, seed {seed}: {last}", flush=True)
    summary = summarize(scores)
    for side, values in summary["sides"].items():
        print(f"{name}: {side:8} mean {values['mean']:.4f}, std {values['std']:.4f}")
    difference, error = summary["difference"], summary["standard_error"]
    print(f"{name}: changed - base = {difference:+.4f}, standard error {error:.4f}", flush=True)
    options = {side: shlex.join(given) for side, given in sides.items()}
    return {"dataset": name, "options": options, "scores": scores, **summary}


def summarize(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Mean and standard deviation of "base" and "changed", the mean of their differences seed by
    seed, and its standard error std / sqrt(seeds).
    """
    differences = [
        changed - base for base, changed in zip(scores["base"], scores["changed"], strict=True)
    ]
    return {
        "sides": {
            side: {"mean": statistics.mean(values), "std": statistics.stdev(values)}
            for side, values in scores.items()
        },
        "difference": statistics.mean(differences),
        "standard_error": statistics.stdev(differences) / math.sqrt(len(differences)),
    }


def run(options: argparse.Namespace) -> None:
    """Trains as the options say."""
    with tempfile.TemporaryDirectory() as scratch:
        graph = str(Path(scratch) / "community")
        of_graph = [*_COMMUNITY, *shlex.split(options.community)]
        run_gnnsys("generate", "community", graph, *of_graph)
        jobs = [("community", graph, _COMMUNITY_TRAINING)]
        if options.pubmed is not None:
            root = str(options.pubmed.absolute())
            jobs.insert(0, ("PubMed", "pubmed", ["--root", root, *_PUBMED_TRAINING]))
        extra = {"base": shlex.split(options.base), "changed": shlex.split(options.changed)}
        results = []
        for name, dataset, training in jobs:
            shared = [*training, *shlex.split(options.train)]
            sides = {side: [*shared, *given] for side, given in extra.items()}
            results.append(compare(name, dataset, sides, range(options.seeds)))
    if options.json is not None:
        described = {
            "format": 1,
            "benchmark": "accuracy",
            "environment": describe_environment(),
            "results": results,
        }
        write_json(options.json, described)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("accuracy.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--pubmed", type=Path, metavar="ROOT", help="folder of the datasets; trains on PubMed too")
    add("--seeds", type=positive, default=10, help="runs of each side, at least 2; default 10")
    add("--base", default="", metavar="OPTIONS", help="of one side's gnnsys train; default none")
    add(
        "--changed",
        default="--sampling labor --precision bf16",
        metavar="OPTIONS",
        help="of the other side's; default '--sampling labor --precision bf16'",
    )
    add("--train", default="", metavar="OPTIONS", help="further options of both")
    add("--community", default="", metavar="OPTIONS", help="of gnnsys generate community")
    add("--json", type=Path, metavar="FILE", help="write scores and environment to FILE")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        raise BenchError("--seeds 1 < 2: one run has no spread")
    check_json(options.json)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return run_entry("accuracy.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
