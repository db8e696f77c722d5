"""``gnnsys train --static-shapes`` and ``--compile``: the losses of a run without them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, BuildError
from gnnsys.loaders import static_shapes
from gnnsys.training.loop import TrainResult, run_training

pytestmark = pytest.mark.usefixtures("one_thread")


def train(root: Path, **options: Any) -> TrainResult:
    given = {"epochs": 3, "batch_size": 32, "fanouts": (10, 10), "lr": 0.001, "eval_every": 3}
    return run_training(TrainConfig(dataset="cora", root=str(root), **{**given, **options}))


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


@pytest.mark.parametrize("model", ["sage", "gcn", "gat", "gin"])
def test_padding_leaves_losses_as_they_are_and_is_told(real_graphs: Path, model: Any) -> None:
    options = {"model": model, "dropout": 0.0}
    plain = train(real_graphs, **options)
    padded = train(real_graphs, static_shapes=True, **options)
    assert losses(padded) == pytest.approx(losses(plain), rel=1e-6)
    assert padded.counters.as_dict() == plain.counters.as_dict()  # no row of padding was read
    told = padded.as_dict()["padding"]
    assert told["nodes"][0] == 33
    assert len(told["edges"]) == 2
    assert 0 < told["node_share"] < 1
    assert 0 < told["edge_share"] < 1
    assert plain.as_dict()["padding"] == {}


def test_a_compiled_model_is_compiled_once(
    real_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    options = {"dropout": 0.0, "epochs": 1}
    compiled = train(real_graphs, compile=True, static_shapes=True, **options)
    assert counter.frame_count == 1
    assert losses(compiled) == pytest.approx(losses(train(real_graphs, **options)), rel=1e-6)
    torch._dynamo.reset()
    counter.clear()
    train(real_graphs, compile=True, **options)
    assert counter.frame_count > 1


def test_a_resumed_run_pads_as_the_run_before(
    real_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without headroom later epochs have larger batches, and dropout's draws depend on the shapes.
    monkeypatch.setattr(static_shapes, "_HEADROOM", 0.0)
    monkeypatch.setattr(static_shapes, "_MULTIPLE", 1)
    whole = train(real_graphs, static_shapes=True, epochs=4)
    first = train(real_graphs, static_shapes=True, epochs=2, out=str(tmp_path / "run"))
    assert first.padding["nodes"] != whole.padding["nodes"]
    config = dataclasses.replace(resumed_config(tmp_path / "run"), epochs=4)
    assert losses(run_training(config)) == losses(whole)


def test_compiling_without_a_compiler_is_refused(
    real_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"--compile: .* no-such-compiler is not on PATH"):
        train(real_graphs, compile=True)


@pytest.mark.parametrize("option", ["static_shapes", "compile"])
def test_is_refused_for_the_full_batch(option: str) -> None:
    named = option.replace("_", "-")
    with pytest.raises(ArgumentError, match=f"--{named}: is for mini-batches"):
        TrainConfig(dataset="cora", full_batch=True, **{option: True})
