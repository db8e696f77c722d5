"""Options of a training run as a TOML file, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_resumed", "config_to_toml", "read_config", "resumed_config"]

MAY_CHANGE = {
    "boundary_gradient_scale",
    "cache",
    "checkpoint_epochs",
    "checkpoint_minutes",
    "chunks",
    "config",
    "epochs",
    "eval_store",
    "history",
    "json",
    "memory",
    "order",
    "out",
    "parallel",
    "patience",
    "policy",
    "ranks",
    "resume",
    "root",
    "score",
    "shuffle_factor",
    "snapshot_period",
    "stages",
    "stats",
    "storage",
    "threads",
    "timeline",
    "trace",
    "victim_buffer",
    "ways",
    "window",
}
"""Options that do not change what a run has computed so far."""

_OF_THE_CALL = {
    "config",
    "json",
    "memory",
    "out",
    "ranks",
    "resume",
    "stats",
    "timeline",
    "trace",
}  # not part of the run
_NUMBERS_TOO = {"cache", "memory", "victim_buffer"}  # texts that a user may write as numbers


def config_to_toml(config: TrainConfig) -> str:
    """The options with every default filled in; those that are None stand as comments."""
    import tomli_w

    values = dataclasses.asdict(config.filled_in())
    values = {key: value for key, value in values.items() if key not in _OF_THE_CALL}
    known = {key: value for key, value in values.items() if value is not None}
    unset = [f"# {key} is not set\n" for key, value in values.items() if value is None]
    return str(tomli_w.dumps(known)) + "".join(unset)


def read_config(path: str | Path) -> TrainConfig:
    """Options from a TOML file.

    Raises:
        MissingFileError, FileFormatError: no such file, or not TOML.
        ArgumentError: an option that there is not, or a value of another type.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path}: not TOML ({error})") from error
    types = {
        name: inspect.formatannotation(hint)
        for name, hint in typing.get_type_hints(TrainConfig).items()
    }
    for key in _NUMBERS_TOO & values.keys():
        if type(values[key]) in (int, float):
            values[key] = str(values[key])
    for key, value in values.items():
        if key not in types or key in _OF_THE_CALL:
            known = ", ".join(sorted(set(types) - _OF_THE_CALL))
            raise ArgumentError(f"{path}: option {key!r} is unknown; expected one of {known}")
        _check_type(path, key, value, types[key])
    if "fanouts" in values:
        values["fanouts"] = tuple(values["fanouts"])
    for key in ("lr", "weight_decay", "dropout", "checkpoint_minutes", "boundary_gradient_scale"):
        if key in values:
            values[key] = float(values[key])
    return TrainConfig(**values)


def _check_type(path: str | Path, key: str, value: Any, declared: str) -> None:
    fits = {
        bool: "bool" in declared,
        int: "int" in declared or "float" in declared,
        float: "float" in declared,
        str: "str" in declared or "Literal" in declared,
        list: "tuple" in declared,
    }.get(type(value), False)
    if "Literal" in declared and isinstance(value, str):
        fits = any(quoted in declared for quoted in (f"'{value}'", f'"{value}"'))
    if not fits:
        raise ArgumentError(f"{path}: {key} is {value!r}, expected {declared}")


def resumed_config(run: str | Path) -> TrainConfig:
    """The options of the run in a folder, set to go on with it."""
    path = Path(run) / "config.toml"
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; --resume takes a folder that --out made")
    return dataclasses.replace(read_config(path), resume=str(run))


def check_resumed(config: TrainConfig) -> None:
    """Raises ArgumentError where a resumed run is asked for other options than it had."""
    before = resumed_config(config.resume or "")
    asked, had = (dataclasses.asdict(c.filled_in()) for c in (config, before))
    for key in asked.keys() - MAY_CHANGE:
        if asked[key] != had[key]:
            option = f"--{key.replace('_', '-')}"
            raise ArgumentError(
                f"{option} {asked[key]}: the run in {config.resume} has {had[key]}; leave it out, "
                "or start another run with --out"
            )
