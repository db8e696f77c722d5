"""``gnnsys train --parallel``: ranks in one process or several, checkpoints, errors."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_geometric.data import Data

from gnnsys.commands.cli import main
from gnnsys.pipeline import DeepModel, GNNPipe, deep_layers
from gnnsys.pipeline.schedule import Event, Kind, epoch_actions
from gnnsys.training.datasets import load_dataset
from gnnsys.training.trace_events import trace_file

TRAINING = ["--full-batch", "--layers", "6", "--hidden", "16", "--epochs", "6", "--seed", "3"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "community"
    sizes = ["--nodes", "600", "--features", "12"]
    assert main(["generate", "community", str(folder), *sizes]) == 0
    return str(folder)


def train(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["train", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "epoch"]


def test_processes_train_as_one_process_does(
    graph: str, tmp_path: Path, capsys, one_thread: None, start_ranks: Callable[..., Any]
) -> None:
    split = ["--parallel", "hybrid", "--stages", "2", "--ways", "2", "--chunks", "8"]
    options = [graph, "--model", "gcnii", "--snapshot-period", "2", *TRAINING, *split]
    one = train(capsys, *options, "--out", str(tmp_path / "one"))
    picture = tmp_path / "timeline.png"
    arguments = ["train", *options, "--out", str(tmp_path / "four"), "--timeline", str(picture)]
    script = f"import sys; from gnnsys.commands.cli import main; sys.exit(main({arguments!r}))"
    assert [status for status, *_ in start_ranks(script, 4).outputs()] == [0] * 4
    four = json.loads((tmp_path / "four" / "result.json").read_text())
    assert losses(tmp_path / "four") == losses(tmp_path / "one")
    weights = load_file(tmp_path / "four" / "model.safetensors")
    assert all(
        torch.equal(value, weights[name])
        for name, value in load_file(tmp_path / "one" / "model.safetensors").items()
    )
    for kind in ("layer", "graph", "weight"):
        assert four["parallel"]["sent"][kind] == one["parallel"]["sent"][kind] > 0
    assert len(four["parallel"]["peak_rss"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Ranks have written their parts, of which one process makes the same run.
    run, again = tmp_path / "four", tmp_path / "one"
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    assert content["model"] == content["optimizer"] == {}
    names = content["state_files"]
    assert len(names) == 4
    assert {path.name for path in run.glob("state-*")} == {*names}
    assert (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    for each in (run, again):
        train(capsys, "--resume", str(each), "--epochs", str(len(losses(each)) + 2))
    assert losses(run) == losses(again)
    assert not list(run.glob("state-*"))


def test_ranks_that_gnnsys_starts_train_as_one_process_does(
    graph: str, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [graph, "--model", "gcn", *TRAINING, "--parallel", "pipeline", "--epochs", "2"]
    assert main(["train", *options, "--ranks", "2", "--out", str(tmp_path / "two"), "--json"]) == 0
    two = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(two["parallel"]["peak_rss"]) == 2
    assert main(["train", *options, "--stages", "2", "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


def test_a_trace_holds_what_each_rank_did(graph: str, tmp_path: Path, capsys) -> None:
    split = ["--parallel", "hybrid", "--stages", "2", "--ways", "2", "--chunks", "8"]
    files = ["--timeline", str(tmp_path / "trace.json"), "--out", str(tmp_path / "run")]
    train(capsys, graph, "--model", "gcn", *TRAINING, "--order", "fixed", *split, *files)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == json.loads((tmp_path / "run" / "timeline.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for rank in range(4):
        done = [event for event in events if event["pid"] == event["tid"] == rank]
        planned = epoch_actions(rank // 2, 2, list(range(4)))
        assert [(event["name"], event["args"].get("chunk", -1)) for event in done] == [
            (action.kind.value, action.chunk) for action in planned if action.kind is not Kind.STEP
        ]
        for one, next_one in itertools.pairwise(done):  # a microsecond's millionth for rounding
            assert 0 <= one["ts"] + one["dur"] <= next_one["ts"] + 1e-6
    assert min(event["ts"] for event in events) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    spent = max(event["ts"] + event["dur"] for event in events)
    assert 0 < spent / 1e6 <= last["epoch_seconds"]
    names = [event["args"]["name"] for event in trace["traceEvents"] if "name" in event["args"]]
    assert names == [f"rank {rank}" for rank in range(4)]


def test_a_trace_has_the_spans_that_were_recorded() -> None:
    events = [
        Event(1, "forward", 3, 0.25, 0.5),
        Event(0, "receive backward", 0, 1.0, 1.0000015),
        Event(0, "sync", -1, 2.0, 4.5),
    ]
    trace = json.loads(trace_file(events, "a title"))
    told = [event for event in trace.pop("traceEvents") if event["ph"] == "X"]
    assert [(e["pid"], e["name"], e["args"], e["cat"]) for e in told] == [
        (1, "forward", {"chunk": 3}, "compute"),
        (0, "receive backward", {"chunk": 0}, "wait"),
        (0, "sync", {}, "sync"),
    ]
    spans = [(e["ts"], e["dur"]) for e in told]
    assert np.allclose(spans, [(250_000, 250_000), (1_000_000, 1.5), (2_000_000, 2_500_000)])
    assert trace == {"displayTimeUnit": "ms", "otherData": {"title": "a title"}}


def test_a_resumed_run_repeats_the_bits(graph: str, tmp_path: Path, capsys) -> None:
    split = ["--parallel", "pipeline", "--stages", "3", "--chunks", "6", "--snapshot-period", "4"]
    options = [graph, "--model", "resgcn", *TRAINING, *split]
    train(capsys, *options, "--out", str(tmp_path / "whole"))
    train(capsys, *options, "--epochs", "3", "--out", str(tmp_path / "parts"))
    assert sorted(path.name for path in (tmp_path / "parts").glob("snapshot*")) == [
        f"snapshot-0-{rank}-of-3.safetensors" for rank in range(3)
    ]
    train(capsys, "--resume", str(tmp_path / "parts"), "--epochs", "6", "--stages", "2")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert main(["report", str(tmp_path / "parts")]) == 0
    page = (tmp_path / "parts" / "report.html").read_text()
    assert "Staleness" in page
    assert "the stalest layer" in page
    name = "model.safetensors"
    assert (tmp_path / "parts" / name).stat().st_size == (tmp_path / "whole" / name).stat().st_size
    whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_a_run_goes_on_from_a_checkpoint_whose_snapshot_is_one_file(
    graph: str, tmp_path: Path, capsys
) -> None:
    split = ["--parallel", "pipeline", "--stages", "3", "--chunks", "6", "--snapshot-period", "4"]
    options = [graph, "--model", "resgcn", *TRAINING, *split]
    train(capsys, *options, "--out", str(tmp_path / "whole"))
    run = tmp_path / "run"
    train(capsys, *options, "--epochs", "3", "--out", str(run))
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    whole: dict[str, torch.Tensor] = {}
    for name in checkpoint["snapshot"]:
        shard = load_file(run / name)
        nodes = shard.pop("nodes")
        for layer, rows in shard.items():
            whole.setdefault(layer, torch.full((600, rows.shape[1]), torch.nan))[nodes] = rows
        (run / name).unlink()
    assert not any(rows.isnan().any() for rows in whole.values())
    save_file(whole, run / "snapshot-0.safetensors")
    torch.save(checkpoint | {"snapshot": "snapshot-0.safetensors"}, run / "checkpoint.pt")
    train(capsys, "--resume", str(run), "--epochs", "6")
    assert losses(run) == losses(tmp_path / "whole")


def test_a_run_goes_on_under_another_split(graph: str, tmp_path: Path, capsys, caplog) -> None:
    run = str(tmp_path / "run")
    options = [graph, "--model", "gcn", "--lr", "0.005", *TRAINING]
    train(capsys, *options, "--parallel", "hybrid", "--stages", "2", "--ways", "2", "--out", run)
    again = ["--resume", run, "--epochs", "8", "--parallel", "graph", "--stages", "1"]
    result = train(capsys, *again, "--ways", "3", "--chunks", "3")
    assert result["epochs"] == 8
    assert "goes on with ways 2 -> 3, chunks 16 -> 3: its losses" in caplog.text
    assert result["parallel"]["chunks"] == 3
    result = train(capsys, "--resume", run, "--epochs", "9", "--ways", "1", "--chunks", "1")
    assert result["epochs"] == 9


def test_predictions_are_those_of_the_one_process_model(graph: str, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    split = ["--parallel", "pipeline", "--stages", "2", "--chunks", "4"]
    result = train(capsys, graph, "--model", "gcnii", *TRAINING, *split, "--out", str(run))
    assert main(["predict", str(run)]) == 0
    dataset = load_dataset(graph)
    layers = deep_layers(
        "gcnii",
        in_channels=12,
        hidden=16,
        out_channels=dataset.task.outputs,
        layers=6,
    )
    model = DeepModel(layers).eval()
    model.load_state_dict(load_file(run / "model.safetensors"))
    x = dataset.features.materialize()
    with torch.no_grad():
        scores = model(x, dataset.edge_index())
    found = np.load(run / "predictions" / "scores.npy")
    np.testing.assert_allclose(found, scores.numpy(), rtol=1e-4, atol=1e-5)
    classes = np.load(run / "predictions" / "predictions.npy")
    assert (classes == found.argmax(1)).all()
    right = (
        (torch.from_numpy(classes) == dataset.node_task.labels)[dataset.node_task.test]
        .float()
        .mean()
    )
    assert right.item() == pytest.approx(result["test_acc"], abs=1e-6)
    assert np.load(run / "predictions" / "embeddings.npy").shape == (600, 16)
    data = Data(x=x, edge_index=dataset.edge_index(), y=dataset.node_task.labels)
    data.train_mask = torch.isin(torch.arange(600), dataset.node_task.train)
    pipe = GNNPipe(layers, data, stages=3, ways=2)
    pipe.load_state_dict(model.state_dict())
    torch.testing.assert_close(pipe.evaluate(), scores, rtol=1e-4, atol=1e-5)
    dataset.close()


def test_deep_models_train_on_the_full_graph_by_themselves(graph: str, capsys) -> None:
    alone = train(capsys, graph, "--model", "gcnii", *TRAINING)
    split = train(
        capsys, graph, "--model", "gcnii", *TRAINING, "--parallel", "graph", "--ways", "3"
    )
    assert split["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunks", "10", "--ways", "4", "--stages", "2"], r"--chunks 10 % --ways 4 != 0"),
        (["--stages", "9", "--ways", "2"], r"--stages 9 > --layers 6"),
        (["--ranks", "6", "--stages", "2", "--ways", "2"], r"2 \* --ways 2 != world size\(6\)"),
        (["--model", "gat"], r"expected a model of gcn, sage, gcnii, resgcn"),
        (["--precision", "bf16"], r"trains in fp32"),
        (["--snapshot-period", "0"], r"--snapshot-period 0: expected at least 1"),
        (["--timeline", "a.pdf"], r"expected a name in .png, .html or .json"),
        (["--timeline", "no/where.png"], r"--timeline .*no/where.png: cannot be written"),
        (["--chunks", "700", "--ways", "2"], r"chunks\(700\) > vertices\(600\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(graph: str, capsys, options, message) -> None:
    arguments = ["train", graph, "--model", "gcn", *TRAINING, "--parallel", "hybrid", *options]
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(message, told), told
