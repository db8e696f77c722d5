"""Options of the optimisation fit each other, and a model is named as it can be found."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gnnsys.config.file import config_to_toml, read_config
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"momentum": 0.5}, "--momentum 0.5: goes with --optimizer sgd; adam has its own"),
        ({"optimizer": "sgd", "momentum": 1.0}, "--momentum 1: expected at least 0 and below 1"),
        ({"lr_factor": 0.5}, "--lr-factor 0.5: goes with --lr-schedule step or plateau, not con"),
        ({"lr_every": 3, "lr_schedule": "cosine"}, "--lr-every 3: goes with --lr-schedule step"),
        ({"lr_every": 0, "lr_schedule": "step"}, "--lr-every 0: expected at least 1"),
        ({"lr_factor": 1.0, "lr_schedule": "step"}, "--lr-factor 1: expected above 0 and below 1"),
        ({"lr_min": 0.01, "lr_schedule": "cosine"}, "--lr-min 0.01: expected at least 0 and below"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs -1.0: expected at least 0"),
        (
            {"warmup_epochs": 5.0, "lr_schedule": "cosine", "epochs": 5},
            "--warmup-epochs 5: expected fewer than the 5 epochs",
        ),
        ({"clip_norm": 0.0}, "--clip-norm 0: expected above 0"),
        ({"class_weights": "1,x"}, "--class-weights 1,x: expected balanced, or numbers from 0"),
        ({"class_weights": "0,0"}, "--class-weights 0,0: expected balanced, or numbers from 0"),
        ({"class_weights": "1,-2"}, "--class-weights 1,-2: expected"),
        (
            {"clip_norm": 1.0, "model": "gcnii", "full_batch": True},
            "--clip-norm 1.0: the layers of a pipeline have no part in it; leave it or --model gcn",
        ),
        (
            {"class_weights": "balanced", "parallel": "graph", "full_batch": True},
            "--class-weights balanced: the layers of a pipeline",
        ),
        ({"model": "saga"}, "--model saga: expected one of sage, gcn, .* did you mean sage?"),
        ({"model": "nets.py:make it"}, "expected PACKAGE.MODULE:FACTORY, such as my_models:make"),
        ({"model": "nets:"}, "expected PACKAGE.MODULE:FACTORY"),
        ({"model": "nets:make", "static_shapes": True}, "--static-shapes --model nets:make: takes"),
        ({"model": "nets:make", "cooperative": True}, "--cooperative --model nets:make: takes"),
        ({"model": "nets:make", "eval_reads": "sequential"}, "--eval-reads sequential: is for"),
    ],
)
def test_options_that_do_not_fit_are_told_of(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told.replace("?", r"\?")):
        TrainConfig(dataset="demo", **options)


def test_a_run_of_the_options_of_another_may_have_other_epochs_and_schedules(tmp_path: Any) -> None:
    path = tmp_path / "config.toml"
    before = TrainConfig(dataset="demo", lr_schedule="cosine", epochs=7).filled_in()
    path.write_text(config_to_toml(before))
    config = read_config(path)
    assert config.lr_epochs is None
    assert dataclasses.replace(config, lr_schedule="constant").lr_schedule == "constant"


def test_a_model_of_ones_own_is_evaluated_on_samples_unless_asked_for() -> None:
    assert TrainConfig(dataset="demo", model="nets:make").eval == "sampled"
    assert TrainConfig(dataset="demo", model="nets:make", eval="layerwise").eval == "layerwise"
    assert TrainConfig(dataset="demo", model="sage").eval == "auto"
