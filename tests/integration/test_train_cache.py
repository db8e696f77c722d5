"""``gnnsys train`` over a feature cache: the same losses, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

import gnnsys
from gnnsys.cache.plan import POLICIES
from gnnsys.cache.trace import read_trace
from gnnsys.commands.cli import main
from gnnsys.commands.report import write_report
from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.dataset.importance import store_score
from gnnsys.errors import GnnsysError
from gnnsys.features.options import FeatureOptions
from gnnsys.features.setup import choose_cache
from gnnsys.generate import generate_community
from gnnsys.training.checkpoint import load_checkpoint
from gnnsys.training.loop import TrainResult, run_training

OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 128,
    "hidden": 16,
    "fanouts": (4, 3),
    "seed": 5,
}
NODES, FEATURES = 1000, 16
IN_MEMORY: dict[str, Any] = {"cache": "none", "storage": "mmap"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph that a GNN learns."""
    path = tmp_path_factory.mktemp("data") / "g"
    return generate_community(path, nodes=NODES, classes=4, features=FEATURES, degree=8, signal=0.2)


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    config = TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)
    return run_training(config)


@pytest.fixture(scope="module")
def in_memory(folder: Path) -> dict[str, TrainResult]:
    """Trained without a cache, by the kind of evaluation."""
    return {kind: train(folder, eval=kind, **IN_MEMORY) for kind in ("layerwise", "sampled")}


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        ("0.1", "hybrid", "auto", "0", "uring", "layerwise"),
        ("0.1", "hybrid", "auto", "0", "pread", "sampled"),
        ("8KB", "hybrid", 1, "4KB", "pread", "layerwise"),
        ("100", "hybrid-pvp", 8, "8KB", "uring", "sampled"),
        ("0.1", "lookahead", 4, "0", "mmap", "layerwise"),
        ("0.1", "lru", 0, "0", "pread", "sampled"),
        ("0.1", "lfu", "auto", "4KB", "uring", "layerwise"),
        ("0.1", "static", 2, "0", "auto", "sampled"),
        ("0.1", "sieve", 16, "0", "pread", "layerwise"),
        ("0.1", "s3fifo", 3, "0", "uring", "sampled"),
        ("1.0", "hybrid", "auto", "0", "uring", "layerwise"),
        ("0", "hybrid", "auto", "4KB", "pread", "sampled"),
        ("none", "hybrid", "auto", "0", "uring", "sampled"),
    ],
)
def test_losses_are_bit_identical_whatever_serves_the_features(
    folder: Path, in_memory: dict[str, TrainResult], values: tuple[Any, ...]
) -> None:
    names = ("cache", "policy", "window", "victim_buffer", "storage", "eval")
    options = dict(zip(names, values, strict=True))
    expected, result = in_memory[options["eval"]], train(folder, **options)
    assert result.history == expected.history
    asked = sum(served.rows for served in expected.counters.tiers().values())
    tiers = result.counters.tiers()
    assert sum(served.rows for served in tiers.values()) == asked
    assert sum(served.bytes for served in tiers.values()) == asked * FEATURES * 4
    if "hits" in result.reads:
        by_tier = [result.counters.served(tier).rows for tier in ("cache", "victim", "file")]
        counted = [result.reads[name] for name in ("hits", "victim_hits", "reads")]
        # Layers read their targets in one pass, which is no batch of the cache.
        passes = asked - result.reads["rows"]
        assert by_tier == [*counted[:2], counted[2] + passes]
        assert passes == 0 or options["eval"] == "layerwise"


def test_every_policy_of_the_planner_can_be_chosen() -> None:
    assert set(get_args(get_type_hints(TrainConfig)["policy"])) == set(POLICIES)


@pytest.mark.parametrize("score", ["none", "degree", "pagerank", "presample"])
def test_losses_do_not_depend_on_the_score(folder: Path, score: Any) -> None:
    cached = train(folder, cache="0.1", score=score, epochs=1)
    assert cached.history == train(folder, epochs=1, **IN_MEMORY).history


def test_a_resumed_run_may_read_in_another_way_and_its_counts_add_up(
    folder: Path, tmp_path: Path
) -> None:
    whole = train(folder, eval="sampled", **IN_MEMORY)
    first = train(folder, tmp_path / "run", epochs=1, eval="sampled", cache="0.1")
    config = dataclasses.replace(
        resumed_config(tmp_path / "run"), epochs=2, policy="lru", storage="pread", cache="100"
    )
    result = run_training(config)
    assert result.history == whole.history
    for tier, served in first.counters.tiers().items():
        assert result.counters.served(tier).rows > served.rows
    rows = [sum(r.counters.as_dict()["rows"].values()) for r in (result, whole)]
    assert rows[0] == rows[1]
    assert result.reads["rows"] == rows[0]
    assert load_checkpoint(tmp_path / "run").state.reads == result.reads


# What is chosen -----------------------------------------------------------------------------------


def test_auto_takes_nine_tenths_of_what_is_left_where_the_features_do_not_fit_in_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_cache(FeatureOptions(), 901, 1000) == ("900", "auto")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "900 bytes, 90 % of the 1000 that are left" in record.message
    assert choose_cache(FeatureOptions(storage="pread"), 900, 1000) == (None, "pread")
    assert choose_cache(FeatureOptions(), 900, 1000) == (None, "mmap")
    assert choose_cache(FeatureOptions(policy="lru"), 900, 1000) == ("900", "auto")
    assert choose_cache(FeatureOptions(), 900, 500, left=1000) == (None, "mmap")
    assert choose_cache(FeatureOptions(), 501, 0) == ("0", "auto")
    assert choose_cache(FeatureOptions(), 901, 1000, beside=1800) == ("900", "auto")
    assert choose_cache(FeatureOptions(), 901, 1000, beside=1801) == (None, "auto")
    assert choose_cache(FeatureOptions(policy="lru"), 901, 1000, beside=1801) == ("900", "auto")


def test_the_stored_score_is_used_and_a_missing_one_computed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = generate_community(tmp_path / "g", nodes=500, classes=2, features=4, degree=4)
    caplog.set_level(logging.INFO, logger="gnnsys.features.setup")
    train(other, cache="50", epochs=1)
    assert "--score auto: computed in" in caplog.text
    store_score(other, {NODE_TYPE: np.arange(500, dtype=np.uint16)}, "presample")
    caplog.clear()
    train(other, cache="50", epochs=1)
    train(other, cache="50", epochs=1, score="presample")
    assert "computed" not in caplog.text
    train(other, cache="50", epochs=1, score="degree")
    assert "--score degree: computed in" in caplog.text


@pytest.mark.parametrize(
    ("dataset", "options", "says"),
    [
        ("cora", {"cache": "1GB"}, "--cache 1GB: for features in a file, but cora has its in"),
        ("actor", {"storage": "pread", "window": 3}, "--window 3 --storage pread: for features"),
        ("demo", {"trace": "/nowhere/t", "cache": "9"}, "--trace /nowhere/t: cannot be written"),
    ],
)
def test_options_that_cannot_be_met_are_one_error(
    dataset: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(GnnsysError, match=says):
        run_training(TrainConfig(dataset=dataset, epochs=1, **options))


# What is told -------------------------------------------------------------------------------------


def test_stats_are_printed_recorded_and_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ["--batch-size", "128", "--hidden", "16", "--fanouts", "4", "3", "--epochs", "2"]
    options = ["--cache", "0.1", "--storage", "pread", "--stats", "--eval", "sampled"]
    assert main(["train", str(folder), "--out", str(run), *small, *options]) == 0
    told = capsys.readouterr().out
    for name in ("served by cache", "served by file", "and not kept", "disk reads", "pages read"):
        assert name in told
    result = json.loads((run / "result.json").read_text())
    reads = result["reads"]
    assert reads["hits"] == result["rows"]["cache"]
    assert reads["reads"] == result["rows"]["file"]
    assert reads["requests"] > 0
    assert 0 < reads["bytes_read"] <= reads["pages"] * 4096
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = {record["kind"] for record in records if "reads" in record}
    assert kinds == {"step", "epoch"}
    page = write_report(run).read_text()
    for title in ("Hit ratio by tier", "Disk reads", "Time waited for reads"):
        assert f"<h3>{title}" in page


def test_a_file_without_a_cache_counts_its_reads(folder: Path) -> None:
    result = train(folder, epochs=1, cache="none", storage="pread")
    assert set(result.reads) == {"requests", "pages", "bytes_read", "io_wait_seconds"}
    assert result.reads["requests"] > 0
    assert train(folder, epochs=1, **IN_MEMORY).reads == {}


def test_a_trace_holds_the_ids_of_every_batch_in_order(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    train(folder, epochs=2, eval_every=2, cache="0.1", trace=str(path))
    trace = read_trace(path)
    assert trace.num_rows == NODES
    dataset = gnnsys.open_dataset(folder)
    loader = gnnsys.NeighborLoader(
        dataset.stores(), [4, 3], input_nodes=dataset.split("train"), batch_size=128, shuffle=True,
        seed=OPTIONS["seed"],
    )  # fmt: skip
    batches = [batch.n_id for epoch in range(2) for batch in loader]
    for ids, expected in zip(trace, batches, strict=False):
        assert torch.equal(torch.from_numpy(np.array(ids)), expected)
    assert len(trace) > len(batches)  # the evaluation's follow


def test_predict_gives_the_same_through_a_cache(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run", epochs=1)
    run = str(tmp_path / "run")
    assert main(["predict", run]) == 0
    other = ["--out", str(tmp_path / "cached"), "--cache", "0.1", "--storage", "pread"]
    assert main(["predict", run, *other]) == 0
    for name in ("scores.npy", "embeddings.npy"):
        one, two = (path / name for path in (tmp_path / "run" / "predictions", tmp_path / "cached"))
        assert one.read_bytes() == two.read_bytes()
