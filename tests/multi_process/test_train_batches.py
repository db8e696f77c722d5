"""Training on mini-batches by ranks that are processes: the steps, losses and scores of one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gnnsys import NeighborLoader
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.generate import generate_community
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.loop import run_training
from gnnsys.training.mini_batch import MiniBatch
from gnnsys.training.models import make_model

SIZE = 32
OPTIONS: dict[str, Any] = {
    "hidden": 8, "fanouts": (4, 3), "batch_size": SIZE, "seed": 3, "threads": 1, "device": "cpu",
}  # fmt: skip
STEPS: dict[str, Any] = {**OPTIONS, "dropout": 0.0, "eval": "sampled"}
VARIANTS: dict[str, dict[str, Any]] = {
    "gat": {**STEPS, "model": "gat"},
    "gin": {**STEPS, "model": "gin"},
    "padded": {**STEPS, "static_shapes": True, "compile": True},
    "bf16": {**STEPS, "precision": "bf16"},
}

IN_FLOAT64 = """
    import dataclasses
    import torch
    from torch_geometric.data import Data
    from gnnsys.training.datasets import load_dataset
    from gnnsys.unified_tensor import unified

    def in_float64(folder):
        dataset = load_dataset(folder)
        x = unified(dataset.features.materialize().double(), device="cpu")
        source = Data(x=x, edge_index=dataset.edge_index(), y=dataset.node_task.labels)
        return dataclasses.replace(dataset, tables=dict(node=x), source=source)
"""
STEPS_OF_RANKS = (
    IN_FLOAT64
    + """
    import functools
    import os
    from gnnsys.config.resolve import resolve
    from gnnsys.config.train import TrainConfig
    from gnnsys.errors import ArgumentError
    from gnnsys.ranks.group import check_alike, join_ranks, on_all_ranks
    from gnnsys.training.models import make_model
    from gnnsys.ranks import liveness
    from gnnsys.training.pipeline_steps import make_steps

    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    torch.compile = functools.partial(torch.compile, backend="eager")
    run = join_ranks("cpu", lambda: resolve(TrainConfig(dataset={graph!r}, **{options!r})))
    dataset = in_float64({graph!r})
    torch.manual_seed(3)
    steps = make_steps(run, dataset, make_model(run, dataset).double(), None)
    losses = [steps.train(batch)[0] for epoch in range(2) for batch in steps.batches(epoch, 0)]
    logits = torch.cat(list(steps.logits(dataset.node_task.val)))
    torch.save([losses, steps.weights(), logits, steps.facts()], os.environ["RANK"])
    x = torch.tensor([[1.0], [float("nan") if os.environ["RANK"] == "1" else 0.0]])
    print("bad:", steps.inputs(Data(x=x, n_id=torch.tensor([5, 7]))).n_id.tolist())
    try:
        check_alike({{"--seed": 1, "--lr": 0.1 * int(os.environ["RANK"])}})
    except ArgumentError as error:
        print(error)
    try:
        on_all_ranks(lambda: load_dataset({graph!r} if os.environ["RANK"] == "0" else "nosuch"))
    except ArgumentError as error:
        print(error)
    for name, options in {variants!r}.items():
        run = resolve(TrainConfig(dataset={graph!r}, **options))
        torch.manual_seed(3)
        model = make_model(run, dataset)
        if name != "bf16":
            model = model.double()
        steps = make_steps(run, dataset if name != "bf16" else load_dataset({graph!r}), model, None)
        losses = [steps.train(batch)[0] for batch in steps.batches(0, 0)]
        torch.save([losses, steps.weights()], name + os.environ["RANK"])
    from gnnsys.errors import StorageError
    from gnnsys.training.datasets import NodeDataset

    def fail(dataset):
        raise StorageError("the disk failed")

    print("to fail", flush=True)
    if not {variants!r}:
        raise SystemExit
    if os.environ["RANK"] == "2":
        NodeDataset.served = fail  # which the loader's threads call
    for batch in steps.batches(1, 0):
        steps.train(batch)
"""
)

RUNS = """
    import json, os, shutil, signal, time

    if os.environ["RANK"] == "1":  # its clocks have nothing to do with those of rank 0
        time.time, time.monotonic = lambda: 0.0, lambda now=time.monotonic: now() - 1e6
    from gnnsys.config.file import resumed_config
    from gnnsys.config.train import TrainConfig
    from gnnsys.loaders import lookahead_loader, static_shapes
    from gnnsys.training.loop import run_training

    def interrupt(epoch, done, total):
        assert total == {batches}
        if os.environ["RANK"] == "1" and (epoch, done) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    # Each rank pads as its own batches of the first epoch turn out to need.
    static_shapes._HEADROOM, static_shapes._MULTIPLE = 0.0, 1
    lookahead_loader._MOST_MEASURED = 1

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


def loader_of(dataset: NodeDataset, size: int, epoch: int) -> NeighborLoader:
    loader = NeighborLoader(
        dataset.source, [4, 3], dataset.node_task.train, batch_size=size, shuffle=True, seed=3
    )
    loader.set_epoch(epoch)
    return loader


def steps_of_one(
    dataset: NodeDataset, model: torch.nn.Module, size: int, world: int, epochs: int = 2
) -> Iterator[float]:
    """Losses of steps whose gradient is the mean over the seeds of some batches, by torch alone."""
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for epoch in range(epochs):
        batches = list(loader_of(dataset, size, epoch))
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


@pytest.mark.parametrize("cooperative", [False, True])
def test_steps_of_ranks_are_those_of_one_that_averages_or_joins_their_batches(
    graph: str, start_ranks, tmp_path: Path, one_thread: None, cooperative: bool
) -> None:
    ranks_here = 2 if cooperative else 3
    size, world = (2 * SIZE, 1) if cooperative else (SIZE, ranks_here)
    variants = {} if cooperative else VARIANTS
    script = STEPS_OF_RANKS.format(
        graph=graph,
        options={**STEPS, "cooperative": cooperative},
        variants=variants,
    )
    ranks = start_ranks(script, ranks_here)
    names: dict[str, Any] = {}
    exec(dedent(IN_FLOAT64), names)
    dataset = names["in_float64"](graph)
    run = resolve(TrainConfig(dataset=graph, **STEPS))
    # In the last step the ranks but the first have no batch, or the last one no seeds.
    left = len(dataset.node_task.train) % (ranks_here * SIZE)
    assert 0 < left <= SIZE

    def made(options: dict[str, Any]) -> torch.nn.Module:
        torch.manual_seed(3)
        return make_model(resolve(TrainConfig(dataset=graph, **options)), dataset).double()

    model = made(STEPS)
    losses = list(steps_of_one(dataset, model, size, world))
    others = {name: made(VARIANTS[name]) for name in variants if name != "bf16"}
    expected = {
        name: list(steps_of_one(dataset, other, size, world, 1)) for name, other in others.items()
    }
    for rank, (status, told, errors) in enumerate(ranks.outputs()):
        assert told.splitlines()[-1:] == ["to fail"], errors
        found, weights, logits, facts = torch.load(tmp_path / "0" / str(rank))
        assert found == pytest.approx(losses, rel=1e-6)
        assert_close(weights, model)
        one = MiniBatch(run, dataset, model)
        model.load_state_dict(weights)
        assert torch.equal(logits, torch.cat(list(one.logits(dataset.node_task.val))))
        assert "bad: [7]" in told
        if cooperative:
            rows = sum(len(batch.n_id) for batch in loader_of(dataset, size, epoch=1))
            assert facts["joint"]["rows"] == rows
            assert 0 < facts["joint"]["rows_received"] < rows
        assert "rank 1 has --lr 0.1 != 0.0 of rank 0: start all ranks with the same" in told
        assert "\nrank 1: dataset 'nosuch' is unknown" in told
        for name, other in others.items():
            found, weights = torch.load(tmp_path / "0" / f"{name}{rank}")
            assert found == pytest.approx(expected[name], rel=1e-6)
            assert_close(weights, other)
        assert status == (1 if variants else 0)
        if variants:
            found, weights = torch.load(tmp_path / "0" / f"bf16{rank}")
            of_first = torch.load(tmp_path / "0" / "bf160")
            assert found == of_first[0]
            assert all(torch.equal(weights[name], of_first[1][name]) for name in weights)
            assert found == pytest.approx(losses[: len(found)], rel=0.05)
            failure = (
                "StorageError: the disk failed" if rank == 2 else "RankFailedError: rank 2 of 3"
            )
            assert failure in errors


def assert_close(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    for name, weight in model.state_dict().items():
        assert torch.allclose(weights[name], weight, rtol=1e-6, atol=1e-9), name


def losses_of(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "epoch"]


def test_a_run_of_ranks_goes_on_from_the_middle_of_an_epoch(
    graph: str, start_ranks, tmp_path: Path, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "epochs": 2, "static_shapes": True}
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
    for counts in ("rows", "bytes"):  # of which each rank has its part
        first, second = (rank[counts]["file"] for rank in whole["ranks"])
        assert first + second == one[counts]["file"] > first > 0
    assert 0 < whole["peak_rss"] < sum(rank["memory"]["peak"] for rank in whole["ranks"])
    folder = tmp_path / "0"
    assert losses_of(folder / "parts") == losses_of(folder / "whole") == losses
    # One process takes over what two began.
    done = []
    rest = run_training(
        resumed_config(folder / "other"), on_batch=lambda epoch, batch, _: done.append(batch)
    )
    assert done == [*range(3, batches + 1)]
    assert len(rest.history) == 2
    assert "goes on with ranks 2 -> 1: its losses are then not those" in caplog.text


SCORED_AT_THE_END = """
    import os, signal, time
    from pathlib import Path
    from gnnsys.config.train import TrainConfig
    from gnnsys.ranks import liveness
    from gnnsys.training.loop import run_training
    from gnnsys.training.rank_steps import RankSteps

    liveness.Liveness.__init__.__defaults__ = (0.1, 4.0, 30.0)
    RankSteps.test_at_end = property(lambda steps: True, lambda steps, value: None)
    Path(os.environ["RANK"]).write_text(str(os.getpid()))
    asked = []

    def interrupt_the_other(what, done, total):
        if what.startswith("test") and not asked:
            asked.append(what)
            os.kill(int(Path("1").read_text()), signal.SIGTERM)
            time.sleep(2.0)

    config = TrainConfig(dataset={graph!r}, **{options!r}, epochs=1, eval="layerwise")
    print(run_training(config, on_evaluation=interrupt_the_other).reason, *asked)
"""


def test_a_signal_to_any_rank_ends_the_exact_scoring_at_the_end(graph: str, start_ranks) -> None:
    ranks = start_ranks(SCORED_AT_THE_END.format(graph=graph, options=OPTIONS), 2)
    (status, first, errors), (_, second, _) = ranks.outputs()
    assert status == 0, errors
    assert first.startswith("interrupted test, ")
    assert second == "interrupted\n"


STARTED_AGAIN = """
    import os
    from gnnsys.config.train import TrainConfig
    from gnnsys.training.loop import run_training

    os.environ["TORCHELASTIC_RESTART_COUNT"] = "{restarts}"
    run_training(TrainConfig(dataset={graph!r}, out={out!r}, **{options!r}))
"""


def test_ranks_started_again_after_a_kill_have_the_losses_of_an_undisturbed_run(
    graph: str, start_ranks, tmp_path: Path
) -> None:
    epochs = 12
    options = {"graph": graph, "options": {**OPTIONS, "epochs": epochs}}
    run, whole = tmp_path / "run", tmp_path / "whole"
    killed = start_ranks(STARTED_AGAIN.format(**options, out=str(run), restarts=0), 2)
    while not (run / "checkpoint.pt").exists():
        assert killed.processes[0].alive(), killed.outputs()
        time.sleep(0.01)
    for process in killed.processes:
        process.kill()
    assert not (run / "result.json").exists()
    started = [
        start_ranks(STARTED_AGAIN.format(**options, out=str(out), restarts=restarts), 2)
        for out, restarts in ((run, 1), (whole, 0))
    ]
    for ranks in started:
        assert [status for status, _, _ in ranks.outputs()] == [0, 0]
    assert len(losses_of(run)) == epochs
    assert losses_of(run) == losses_of(whole)


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
        ({"trace": "ids"}, UnsupportedError, "--trace: ranks do not record their batches; one"),
        (
            {"cooperative": True, "compile": True},
            UnsupportedError,
            "--cooperative --compile: joint batches are not padded yet",
        ),
        ({"full_batch": True}, ArgumentError, "2 ranks train on the full graph with --parallel"),
        (
            {"full_batch": True, "cooperative": True, "parallel": "graph"},
            ArgumentError,
            "--cooperative: is for mini-batches; leave it or --full-batch out",
        ),
        (
            {"cooperative": True, "share_cache": "none"},
            ArgumentError,
            "--cooperative --share-cache none: each row of a joint batch is read by one rank",
        ),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace", "t"], "--trace: ranks do not record"),
        (["--cooperative", "--compile"], "--cooperative --compile: joint batches"),
        (["--share-cache", "peer"], "--share-cache peer: is of a cache in the memory of GPUs"),
    ],
)
def test_options_are_looked_at_before_ranks_are_started(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(os.environ, "RANK", raising=False)
    monkeypatch.setattr("gnnsys.ranks.launch.run_ranks", lambda *_, **__: pytest.fail("started"))
    assert main(["train", "demo", "--ranks", "2", "--device", "cpu", *options]) == 2
    assert f"gnnsys: error: {message}" in capsys.readouterr().err


def test_a_process_by_itself_is_not_several_ranks() -> None:
    with pytest.raises(
        ArgumentError, match="--ranks 2: this process is by itself; start the ranks"
    ):
        resolve(TrainConfig(dataset="demo", ranks=2))
