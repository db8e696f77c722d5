"""Training on mini-batches by ranks that are processes: the steps, losses and scores of one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gnnsys import NeighborLoader
from gnnsys.config.file import resumed_config
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.generate import generate_community
from gnnsys.training.loop import run_training
from gnnsys.training.models import make_model
from gnnsys.training.steps import MiniBatch
from gnnsys.training.task import NodeDataset

SIZE = 32
OPTIONS: dict[str, Any] = {
    "hidden": 8, "fanouts": (4, 3), "batch_size": SIZE, "seed": 3, "threads": 1, "device": "cpu",
}  # fmt: skip
STEPS: dict[str, Any] = {**OPTIONS, "dropout": 0.0, "eval": "sampled"}

IN_FLOAT64 = """
    import dataclasses
    import torch
    from torch_geometric.data import Data
    from gnnsys.training.task import load_dataset
    from gnnsys.unified_tensor import unified

    def in_float64(folder):
        dataset = load_dataset(folder)
        x = unified(dataset.features.materialize().double(), device="cpu")
        source = Data(x=x, edge_index=dataset.edge_index(), y=dataset.labels)
        return dataclasses.replace(dataset, features=x, source=source)
"""
STEPS_OF_RANKS = (
    IN_FLOAT64
    + """
    import os
    from gnnsys.config.resolve import resolve
    from gnnsys.config.train import TrainConfig
    from gnnsys.errors import ArgumentError
    from gnnsys.ranks.group import check_alike, join_ranks
    from gnnsys.training.models import make_model
    from gnnsys.training.pipeline_steps import make_steps

    run = resolve(TrainConfig(dataset={graph!r}, **{options!r}))
    join_ranks("cpu")
    dataset = in_float64({graph!r})
    torch.manual_seed(3)
    steps = make_steps(run, dataset, make_model(run, dataset).double(), None)
    losses = [steps.train(batch)[0] for epoch in range(2) for batch in steps.batches(epoch, 0)]
    logits = torch.cat(list(steps.logits(dataset.val)))
    torch.save([losses, steps.weights(), logits], os.environ["RANK"])
    x = torch.tensor([[1.0], [float("nan") if os.environ["RANK"] == "1" else 0.0]])
    print("bad:", steps.inputs(Data(x=x, n_id=torch.tensor([5, 7]))).n_id.tolist())
    try:
        check_alike({{"--seed": 1, "--lr": 0.1 * int(os.environ["RANK"])}})
    except ArgumentError as error:
        print(error)
"""
)

RUNS = """
    import json, os, shutil, signal
    from gnnsys.config.file import resumed_config
    from gnnsys.config.train import TrainConfig
    from gnnsys.training.loop import run_training

    def interrupt(epoch, done, total):
        assert total == {batches}
        if os.environ["RANK"] == "1" and (epoch, done) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    def train(out, **callbacks):
        return run_training(TrainConfig(dataset={graph!r}, out=out, **{options!r}), **callbacks)

    whole, broken = train("whole"), train("parts", on_batch=interrupt)
    assert broken.reason == "interrupted"
    if os.environ["RANK"] == "0":
        shutil.copytree("parts", "other")
    run_training(resumed_config("parts"))
    print(json.dumps([whole.as_dict(), [record.loss for record in whole.history]]))
"""

ENDLESS = """
    import os, signal
    from gnnsys.config.train import TrainConfig
    from gnnsys.ranks import liveness
    from gnnsys.training.loop import run_training

    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    options = {options!r} | {{"epochs": 10**6}}
    if {early!r} and os.environ["RANK"] == "1":
        from gnnsys.training import loop
        loop.make_model = lambda *arguments: os.kill(os.getpid(), signal.SIGSTOP)
    run_training(
        TrainConfig(dataset={graph!r}, **options),
        on_batch=lambda *_: print("training", flush=True),
    )
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "community"
    return str(generate_community(folder, nodes=400, classes=4, features=8, degree=6, signal=0.5))


def steps_of_one(dataset: NodeDataset, model: torch.nn.Module, world: int) -> Iterator[float]:
    """Losses of steps whose gradient is the mean over the seeds of some batches, by torch alone."""
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    loader = NeighborLoader(
        dataset.source, [4, 3], dataset.train, batch_size=SIZE, shuffle=True, seed=3
    )
    for _ in range(2):
        batches = list(loader)
        assert len(batches) % world
        for first in range(0, len(batches), world):
            losses, seeds = [], 0
            for batch in batches[first : first + world]:
                seeds += batch.batch_size
                out = model(batch.x, batch.edge_index)[: batch.batch_size]
                losses.append(F.cross_entropy(out, batch.y[: len(out)], reduction="sum"))
            adam.zero_grad()
            loss = torch.stack(losses).sum() / seeds
            loss.backward()
            adam.step()
            yield loss.item()


def test_steps_of_ranks_are_those_of_one_that_averages_their_batches(
    graph: str, start_ranks, tmp_path: Path, one_thread: None
) -> None:
    world = 2
    ranks = start_ranks(STEPS_OF_RANKS.format(graph=graph, options=STEPS), world)
    names: dict[str, Any] = {}
    exec(dedent(IN_FLOAT64), names)
    dataset = names["in_float64"](graph)
    run = resolve(TrainConfig(dataset=graph, **STEPS))
    torch.manual_seed(3)
    model = make_model(run, dataset).double()
    losses = list(steps_of_one(dataset, model, world))
    for rank, (status, told, errors) in enumerate(ranks.outputs()):
        assert status == 0, errors
        found, weights, logits = torch.load(tmp_path / "0" / str(rank))
        assert found == pytest.approx(losses, rel=1e-6)
        for name, weight in model.state_dict().items():
            assert torch.allclose(weights[name], weight, rtol=1e-6, atol=1e-9), name
        one = MiniBatch(run, dataset, model)
        model.load_state_dict(weights)
        assert torch.equal(logits, torch.cat(list(one.logits(dataset.val))))
        assert "bad: [7]" in told
        assert "rank 1 has --lr 0.1 != 0.0 of rank 0: start all ranks with the same" in told


def losses_of(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "epoch"]


def test_a_run_of_ranks_goes_on_from_the_middle_of_an_epoch(
    graph: str, start_ranks, tmp_path: Path, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "epochs": 2}
    batches = 7
    ranks = start_ranks(RUNS.format(graph=graph, options=options, batches=batches), 2)
    one = run_training(TrainConfig(dataset=graph, **options)).as_dict()
    (status, told, errors), *others = ranks.outputs()
    assert (status, [other[0] for other in others]) == (0, [0]), errors
    whole, losses = json.loads(told.splitlines()[-1])
    # Together they read what one process reads for the same batches, and evaluate once.
    for counts in ("rows", "bytes"):
        assert whole[counts] == one[counts]
    assert losses == json.loads(others[0][1].splitlines()[-1])[1]
    folder = tmp_path / "0"
    assert losses_of(folder / "parts") == losses_of(folder / "whole") == losses
    # One process takes over what two began.
    done = []
    rest = run_training(
        resumed_config(folder / "other"), on_batch=lambda epoch, batch, _: done.append(batch)
    )
    assert done == [*range(3, batches + 1), *range(1, batches + 1)]
    assert len(rest.history) == 2
    assert "goes on with ranks 2 -> 1: its losses are then not those" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_stops_ends_the_other(
    graph: str, start_ranks, number: signal.Signals
) -> None:
    ranks = start_ranks(ENDLESS.format(graph=graph, options=OPTIONS, early=False), 2)
    first, second = ranks.processes
    second.wait_for("training")
    second.send_signal(number)
    status, _, errors = first.outcome()
    assert status == 1
    assert "RankFailedError: rank 1 of 2 is gone or no longer answers" in errors


def test_a_rank_that_stops_before_the_first_step_ends_the_other(graph: str, start_ranks) -> None:
    ranks = start_ranks(ENDLESS.format(graph=graph, options=OPTIONS, early=True), 2)
    status, _, errors = ranks.processes[0].outcome()
    assert status == 1
    assert "RankFailedError: rank 1 of 2 is gone or no longer answers" in errors


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"cache": "1MB"}, UnsupportedError, "--cache 1MB: caches of several ranks are not shared"),
        ({"policy": "lru"}, UnsupportedError, "--policy lru: caches of several ranks are not"),
        ({"compile": True}, UnsupportedError, "--compile: is not offered on several ranks yet"),
        ({"full_batch": True}, ArgumentError, "2 ranks train on the full graph with --parallel"),
        ({"ranks": 3}, ArgumentError, r"--ranks 3 != world size\(2\): leave it out under torchrun"),
    ],
)
def test_options_that_ranks_do_not_take_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: type, message: str
) -> None:
    monkeypatch.setitem(os.environ, "RANK", "0")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(kind, match=message):
        resolve(TrainConfig(dataset="demo", **options))


def test_a_process_by_itself_is_not_several_ranks() -> None:
    with pytest.raises(
        ArgumentError, match="--ranks 2: this process is by itself; start the ranks"
    ):
        resolve(TrainConfig(dataset="demo", ranks=2))
