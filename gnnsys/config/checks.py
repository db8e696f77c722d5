"""What the options of several commands are checked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from gnnsys.errors import ArgumentError
from gnnsys.system.sizes import parse_bytes

__all__ = [
    "FANOUTS",
    "FIRST_FANOUTS",
    "check_bytes",
    "check_least",
    "check_numbers",
    "check_seed",
    "given_options",
    "parse_fanouts",
    "written",
]

_LEAST = -(1 << 63)
_BEYOND = {"seed": 1 << 64}
_FLOAT32_MOST = 3.4028235e38
_MOST = {"checkpoint_minutes": math.inf}  # never

FIRST_FANOUTS = (15, 10, 5)
"""Default fanouts of the first hops; further hops take the last."""


def check_bytes(name: str, text: str | None) -> int | None:
    """The bytes of an option; None where it was not given.

    >>> check_bytes("memory", "2GB")
    2147483648

    Raises:
        ArgumentError: not a number of bytes above 0.
    """
    if text is None:
        return None
    found = parse_bytes(text, f"--{name}")
    if found == 0:
        raise ArgumentError(f"--{name} {text}: expected more than 0 bytes, such as 10GB")
    return found


def check_least(config: Any, least: int, *names: str) -> None:
    """Raises ArgumentError where one of these options was given and is below the least.

    >>> from types import SimpleNamespace
    >>> check_least(SimpleNamespace(ranks=None, batch_size=3), 1, "ranks", "batch_size")
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ArgumentError(f"--{name.replace('_', '-')} {value}: expected at least {least}")


def check_numbers(config: Any) -> None:
    """Raises ArgumentError where an option's number is one that nothing can count with.

    >>> from gnnsys.config.score import ScoreConfig
    >>> check_numbers(ScoreConfig(dataset="g", batch_size=1 << 20))
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        option = f"--{field.name.replace('_', '-')} {value}"
        if isinstance(value, int) and not _LEAST <= value < _BEYOND.get(field.name, 1 << 63):
            raise ArgumentError(f"{option}: expected a number of 64 bits")
        if isinstance(value, float) and not abs(value) <= _MOST.get(field.name, _FLOAT32_MOST):
            raise ArgumentError(f"{option}: expected a number that float32 can hold")


def check_seed(seed: int, most: int = (1 << 64) - 1) -> None:
    """Raises ArgumentError for a seed that random numbers cannot be drawn by."""
    if not 0 <= seed <= most:
        raise ArgumentError(f"--seed {seed}: expected a whole number from 0 to {most}")


def given_options(config: Any, names: Iterable[str]) -> list[str]:
    """Those of the options that are not at their defaults; one rank is as none given.

    >>> from gnnsys.config.train import TrainConfig
    >>> given_options(TrainConfig(dataset="g", ranks=1, pack=True), ["ranks", "pack", "trace"])
    ['pack']
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    given = [name for name in names if getattr(config, name) != defaults[name]]
    return [name for name in given if name != "ranks" or config.ranks != 1]


def written(config: Any, name: str) -> str:
    """An option and its value, as they stand on the command line.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(ranks=2, full_batch=True)
    >>> written(config, "ranks"), written(config, "full_batch")
    ('--ranks 2', '--full-batch')
    """
    value = getattr(config, name)
    return f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}"


def parse_fanouts(words: Iterable[int | str]) -> tuple[int, ...]:
    """Fanouts as they stand on the command line, between spaces or commas.

    >>> parse_fanouts(["15,10", "5"]), parse_fanouts([15, -1])
    ((15, 10, 5), (15, -1))
    """
    split = " ".join(map(str, words)).replace(",", " ").split()
    text = ",".join(split)
    try:
        fanouts = tuple(map(int, split))
    except ValueError:
        fanouts = ()
    if not fanouts:
        raise ArgumentError(
            f"--fanouts {text}: expected numbers, one for each hop, such as 15,10,5"
        )
    if any(fanout < -1 or fanout == 0 or fanout >= 1 << 24 for fanout in fanouts):
        raise ArgumentError(
            f"--fanouts {text}: each is -1 (all neighbours) or at least 1, below 2^24"
        )
    return fanouts


FANOUTS = PrimitiveConstructorSpec[Any](
    nargs="*",
    metavar="INT [INT ...]",
    instance_from_str=parse_fanouts,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [str(fanout) for fanout in value or [None]],
)
"""How every command takes ``--fanouts``: numbers between spaces or commas."""
