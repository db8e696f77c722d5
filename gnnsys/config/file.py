"""Options of a run as a TOML file, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from gnnsys.choices import DATASET_NAMES, NO_FOLDERS
from gnnsys.config.checks import parse_fanouts
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.offload import offload_folder
from gnnsys.config.run_files import CONFIG
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.system.names import nearest
from gnnsys.system.records import as_record, read_toml

__all__ = [
    "CHANGES_LOSSES",
    "COMMAND",
    "OF_THE_CALL",
    "check_place",
    "check_resumed",
    "check_unchanged",
    "config_to_toml",
    "fixed_options",
    "read_config",
    "resumed_config",
    "resumed_options",
]

COMMAND = "command"
"""What a file of options has before them, unless they are of ``gnnsys train``."""

_Config = TypeVar("_Config", bound="TrainConfig | ClusterConfig")
_COMMANDS: dict[type, str] = {TrainConfig: "train", ClusterConfig: "cluster"}

# What a resumed run may be given anew. call: no part of the run; losses: the losses to come are
# others; speed: nothing that was computed, and nothing that will be, is another, but scores by the
# rounding of sums, which eval_reads makes in another order.
_Changes = dict[str, Literal["call", "losses", "speed"]]
_TRAIN_RESUMED_WITH: _Changes = {
    **dict.fromkeys(
        (
            "config", "data", "json", "max_restarts", "memory", "out", "ranks", "resume", "stats",
            "timeline", "trace",
        ),
        "call",
    ),
    **dict.fromkeys(
        ("ways", "chunks", "snapshot_period", "boundary_gradient_scale", "order", "shuffle_factor"),
        "losses",
    ),
    **dict.fromkeys(
        (
            "activation_budget", "cache", "checkpoint_epochs", "checkpoint_minutes", "epochs",
            "eval_reads", "eval_store", "history", "nan_loss", "offload", "pack", "pack_folder",
            "pack_space", "parallel", "patience", "policy", "root", "score", "share_cache",
            "stages", "storage", "threads", "topology", "topology_memory", "victim_buffer",
            "window",
        ),
        "speed",
    ),
}  # fmt: skip
_RESUMED_WITH: dict[type, _Changes] = {
    TrainConfig: _TRAIN_RESUMED_WITH,
    ClusterConfig: {
        **dict.fromkeys(("assign", "data", "json", "out", "resume", "run"), "call"),
        **dict.fromkeys(("checkpoint_minutes", "plot", "root", "seeds", "threads"), "speed"),
    },
}
OF_THE_CALL = {
    name for each in _RESUMED_WITH.values() for name, changes in each.items() if changes == "call"
}
"""Options that are no part of the run."""

CHANGES_LOSSES = tuple(name for name, changes in _TRAIN_RESUMED_WITH.items() if changes == "losses")
"""Options that a resumed run may change, but not without changing what comes."""

_NUMBERS_TOO = {
    "activation_budget", "cache", "memory", "pack_space", "topology_memory", "victim_buffer",
}  # fmt: skip
"""Texts that a user may write as numbers."""


def config_to_toml(config: TrainConfig | ClusterConfig) -> str:
    """The options with every default filled in; those that are None stand as comments."""
    import tomli_w

    values = dataclasses.asdict(config.filled_in())
    values = {key: value for key, value in values.items() if key not in OF_THE_CALL}
    known = {key: value for key, value in values.items() if value is not None}
    unset = [f"# {key} is not set\n" for key, value in values.items() if value is None]
    command = {} if isinstance(config, TrainConfig) else {COMMAND: _COMMANDS[type(config)]}
    return str(tomli_w.dumps(command | known)) + "".join(unset)


def read_config(path: str | Path) -> TrainConfig:
    """Options from a TOML file; relative paths in it are beside that file.

    Raises:
        MissingFileError, FileFormatError: no such file, or not TOML.
        ArgumentError: an option that there is not, or a value of another type.
    """
    return _read_options(Path(path), TrainConfig)


def _read_options(path: Path, kind: type[_Config]) -> _Config:
    values = read_toml(path, str(path), "name a file of options")
    command, wanted = values.pop(COMMAND, "train"), _COMMANDS[kind]
    if command != wanted:
        raise ArgumentError(
            f"{path}: has options of gnnsys {command}, expected those of gnnsys {wanted}"
        )
    known = {each.name for each in dataclasses.fields(kind)} - OF_THE_CALL
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
    config = as_record(values, kind, str(path), "mend it", ArgumentError)
    if isinstance(config, TrainConfig) and config.dataset not in ("", *DATASET_NAMES):
        config.dataset = str(path.parent / config.dataset)
    if "root" in values:
        config.root = str(path.parent / config.root)
    if isinstance(config, TrainConfig):
        for name in ("eval_store", "embeddings"):
            if getattr(config, name) not in NO_FOLDERS:
                setattr(config, name, str(path.parent / getattr(config, name)))
        if offload_folder(config.offload) is not None:
            config.offload = str(path.parent / config.offload)
    if isinstance(config, TrainConfig) and config.pack_folder is not None:
        config.pack_folder = str(path.parent / config.pack_folder)
    return config


def resumed_config(run: str | Path) -> TrainConfig:
    """The options of the training run in a folder, set to go on with it."""
    return resumed_options(run, TrainConfig)


def resumed_options(run: str | Path, kind: type[_Config]) -> _Config:
    """Likewise, of a run of any kind."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; --resume takes a folder that --out made")
    return dataclasses.replace(_read_options(path, kind), resume=str(run))


def check_place(dataset: str, run: str | None, option: str) -> None:
    """Raises MissingFileError, naming the option that mends it, where a run's dataset has moved."""
    if os.path.isabs(dataset) and not os.path.isdir(dataset):
        raise MissingFileError(
            f"{dataset}: no such folder, where the dataset of {run} was; {option} PLACE says where "
            "it is now"
        )


def fixed_options(config: TrainConfig | ClusterConfig) -> dict[str, Any]:
    """Those, filled in, that a resumed run cannot change."""
    values = dataclasses.asdict(config.filled_in())
    changeable = _RESUMED_WITH[type(config)]
    return {key: value for key, value in values.items() if key not in changeable}


def check_resumed(config: TrainConfig | ClusterConfig) -> None:
    """Checks a run that is to go on.

    Raises:
        ArgumentError: it is asked for other options than it had.
        MissingFileError: its dataset is not where it was.
    """
    check_unchanged(config)
    if config.data is None:
        check_place(config.dataset, config.resume, "--data")


def check_unchanged(config: TrainConfig | ClusterConfig) -> None:
    """Raises ArgumentError where a resumed run is asked for other options than it had."""
    before = resumed_options(config.resume or "", type(config))
    asked, had = fixed_options(config), fixed_options(before)
    moved = {"dataset"} if config.data else set()  # the checkpoint says whether it is the same
    for key in asked.keys() - moved:
        if asked[key] != had[key]:
            option = f"--{key.replace('_', '-')}"
            raise ArgumentError(
                f"{option} {asked[key]}: the run in {config.resume} has {had[key]}; leave it out, "
                "or start another run with --out"
            )
