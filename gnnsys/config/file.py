"""Options of a training run as a TOML file, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from gnnsys.choices import DATASET_NAMES, EVAL_STORES
from gnnsys.config.checks import parse_fanouts
from gnnsys.config.run_files import CONFIG
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.system.names import nearest
from gnnsys.system.records import as_record, read_toml

__all__ = [
    "CHANGES_LOSSES",
    "OF_THE_CALL",
    "check_place",
    "check_resumed",
    "config_to_toml",
    "read_config",
    "resumed_config",
]

# What a resumed run may be given anew. call: no part of the run; losses: the losses to come are
# others; speed: nothing that was computed, and nothing that will be, is another.
_RESUMED_WITH: dict[str, Literal["call", "losses", "speed"]] = {
    **dict.fromkeys(
        (
            "config", "data", "json", "memory", "out", "ranks", "resume", "stats", "timeline",
            "trace",
        ),
        "call",
    ),
    **dict.fromkeys(
        ("ways", "chunks", "snapshot_period", "boundary_gradient_scale", "order", "shuffle_factor"),
        "losses",
    ),
    **dict.fromkeys(
        (
            "cache", "checkpoint_epochs", "checkpoint_minutes", "epochs", "eval_store", "history",
            "nan_loss", "parallel", "patience", "policy", "root", "score", "stages", "storage",
            "threads", "victim_buffer", "window",
        ),
        "speed",
    ),
}  # fmt: skip
OF_THE_CALL = {name for name, changes in _RESUMED_WITH.items() if changes == "call"}
"""Options that are no part of the run."""

CHANGES_LOSSES = tuple(name for name, changes in _RESUMED_WITH.items() if changes == "losses")
"""Options that a resumed run may change, but not without changing what comes."""

_NUMBERS_TOO = {"cache", "memory", "victim_buffer"}  # texts that a user may write as numbers


def config_to_toml(config: TrainConfig) -> str:
    """The options with every default filled in; those that are None stand as comments."""
    import tomli_w

    values = dataclasses.asdict(config.filled_in())
    values = {key: value for key, value in values.items() if key not in OF_THE_CALL}
    known = {key: value for key, value in values.items() if value is not None}
    unset = [f"# {key} is not set\n" for key, value in values.items() if value is None]
    return str(tomli_w.dumps(known)) + "".join(unset)


def read_config(path: str | Path) -> TrainConfig:
    """Options from a TOML file; relative paths in it are beside that file.

    Raises:
        MissingFileError, FileFormatError: no such file, or not TOML.
        ArgumentError: an option that there is not, or a value of another type.
    """
    values = read_toml(Path(path), str(path), "name a file of options")
    known = {each.name for each in dataclasses.fields(TrainConfig)} - OF_THE_CALL
    for key in values.keys() - known:
        meant = nearest(key.replace("-", "_"), known)
        raise ArgumentError(
            f"{path}: option {key!r} is unknown"
            f"{meant or '; expected one of ' + ', '.join(sorted(known))}"
        )
    for key in _NUMBERS_TOO & values.keys():
        if type(values[key]) in (int, float):
            values[key] = str(values[key])
    if isinstance(values.get("fanouts"), str):
        values["fanouts"] = parse_fanouts([values["fanouts"]])
    config = as_record(values, TrainConfig, str(path), "mend it", ArgumentError)
    beside = Path(path).parent
    if config.dataset and config.dataset not in DATASET_NAMES:
        config.dataset = str(beside / config.dataset)
    if "root" in values:
        config.root = str(beside / config.root)
    if config.eval_store not in EVAL_STORES:
        config.eval_store = str(beside / config.eval_store)
    return config


def resumed_config(run: str | Path) -> TrainConfig:
    """The options of the run in a folder, set to go on with it."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; --resume takes a folder that --out made")
    return dataclasses.replace(read_config(path), resume=str(run))


def check_place(dataset: str, run: str | None, option: str) -> None:
    """Raises MissingFileError, naming the option that mends it, where a run's dataset has moved."""
    if os.path.isabs(dataset) and not os.path.isdir(dataset):
        raise MissingFileError(
            f"{dataset}: no such folder, where the dataset of {run} was; {option} PLACE says where "
            "it is now"
        )


def check_resumed(config: TrainConfig) -> None:
    """Raises ArgumentError where a resumed run is asked for other options than it had."""
    before = resumed_config(config.resume or "")
    if config.data is None:
        check_place(config.dataset, config.resume, "--data")
    asked, had = (dataclasses.asdict(c.filled_in()) for c in (config, before))
    moved = {"dataset"} if config.data else set()  # the checkpoint says whether it is the same
    for key in asked.keys() - _RESUMED_WITH.keys() - moved:
        if asked[key] != had[key]:
            option = f"--{key.replace('_', '-')}"
            raise ArgumentError(
                f"{option} {asked[key]}: the run in {config.resume} has {had[key]}; leave it out, "
                "or start another run with --out"
            )
