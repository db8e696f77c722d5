"""Options about the times of seeds, nodes and edges, and how they fit others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gnnsys.config.checks import check_least, given_options, written
from gnnsys.config.optimisation import OptimisationOptions
from gnnsys.errors import ArgumentError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["TimeOptions", "check_timed", "check_timed_links", "check_times", "check_untimed"]

_OF_TIMES = ("temporal", "time_window", "last_n")
_REFUSED = (
    "full_batch", "parallel", "ranks", "cooperative", "static_shapes", "pack", "trace", "topology",
    "topology_memory",
)  # fmt: skip
"""Options that must be at their defaults where seeds have times."""


@dataclass(kw_only=True, slots=True)
class TimeOptions(OptimisationOptions):
    """Which neighbours of a seed with a time are sampled. Stands on the options before it, for a
    class with slots has one base with fields."""

    temporal: Literal["uniform", "last"] = "uniform"
    """Which neighbours are drawn of those that are no later than their seed: any of them, evenly,
    or the last. Nodes and edges of types without times are never later."""

    time_window: int | None = None
    """Neighbours are at most this much older than their seed, in the unit of the folder's times
    (microseconds in those of relational databases)."""

    last_n: int | None = None
    """Of those neighbours, the newest this many of a node alone may be drawn."""

    ignore_times: bool = False
    """Sample neighbours that are later than their seed, too. Changes nothing where a folder has no
    times."""


def check_times(config: TrainConfig) -> None:
    """Raises ArgumentError for options of times that do not fit each other."""
    check_least(config, 0, "time_window")
    check_least(config, 1, "last_n")
    given = _given(config)
    if config.ignore_times and given:
        raise ArgumentError(f"--ignore-times: {given} says how to take them; leave one of them out")
    if config.temporal == "last" and config.sampling == "labor":
        raise ArgumentError(
            "--temporal last: takes the last neighbours, of which --sampling labor draws none; "
            "leave one of them out"
        )


def check_timed(config: TrainConfig) -> None:
    """Raises ArgumentError for options that a run cannot have whose seeds have times.

    >>> from gnnsys.config.train import TrainConfig
    >>> check_timed(TrainConfig(dataset="shop", eval="layerwise"))
    Traceback (most recent call last):
        ...
    gnnsys.errors.ArgumentError: --eval layerwise: computes a node once for all times, but the \
seeds of shop have each their own; give sampled, or --ignore-times
    """
    if config.eval not in ("auto", "sampled"):
        raise ArgumentError(
            f"--eval {config.eval}: computes a node once for all times, but the seeds of "
            f"{config.dataset} have each their own; give sampled, or --ignore-times"
        )
    refused = given_options(config, _REFUSED)
    if config.sampler == "gpu":
        refused.append("sampler")
    if config.sums == "scaled":  # by degrees that count later neighbours
        refused.append("sums")
    _refuse(config, refused, "seeds")


def check_timed_links(config: TrainConfig) -> None:
    """Raises ArgumentError for options that a run cannot have whose links have times.

    >>> from gnnsys.config.train import TrainConfig
    >>> check_timed_links(TrainConfig(dataset="shop", task="link", topology="read"))
    Traceback (most recent call last):
        ...
    gnnsys.errors.ArgumentError: --topology read: does not go with the times of the links of \
shop; leave it out, or give --ignore-times
    """
    _refuse(config, given_options(config, ("trace", "topology", "topology_memory")), "links")


def _refuse(config: TrainConfig, names: list[str], whose: str) -> None:
    for name in names:
        raise ArgumentError(
            f"{written(config, name)}: does not go with the times of the {whose} of "
            f"{config.dataset}; leave it out, or give --ignore-times"
        )


def check_untimed(config: TrainConfig) -> None:
    """Raises ArgumentError for options of times in a run whose seeds have none."""
    if given := _given(config):
        raise ArgumentError(
            f"{given}: is for seeds with times, but those of {config.dataset} have none; leave it "
            "out, or convert the dataset with times"
        )


def _given(config: TrainConfig) -> str:
    """The first option of times that was given; an empty text without one."""
    given = given_options(config, _OF_TIMES)
    return written(config, given[0]) if given else ""
