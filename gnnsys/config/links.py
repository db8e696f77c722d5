"""Options about links to be predicted, and how they fit each other and the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gnnsys.choices import METRICS
from gnnsys.config.checks import check_least
from gnnsys.config.optimisation import OptimisationOptions
from gnnsys.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["LinkOptions", "check_links", "link_defaults", "parse_edge_type"]

_REFUSED = (
    "full_batch", "parallel", "ranks", "cooperative", "class_weights", "loss", "static_shapes",
    "compile", "pack",
)  # fmt: skip
"""Options that must be at their defaults."""


@dataclass(kw_only=True, slots=True)
class LinkOptions(OptimisationOptions):
    """How links are scored, and told from others."""

    decoder: Literal["dot", "distmult"] | None = None
    """How the embeddings of both ends score a link: dot, their inner product; distmult, the same
    with a weight for each column, which is trained. Default: dot."""

    negatives: int | None = None
    """Other targets that are drawn for the source of each training link, none of which is a target
    of it in the training links. Default: 1."""

    negative_sampling: Literal["uniform", "degree", "hard", "in-batch"] | None = None
    """How they are drawn. uniform; degree: by degree^0.75 in the training links; hard: half of
    them, at least one, of the 32 that score highest by the weights before the epoch, from the
    second epoch on, the others uniformly; in-batch: none are drawn, the targets of a batch's other
    links are taken, with how often they are linked taken off. Default: uniform."""

    link_loss: Literal["bce", "bpr", "infonce"] | None = None
    """bce: binary cross entropy; bpr: a link is to score above its negatives, each by itself;
    infonce: above all of them, by a softmax, as in-batch always has it. Default: bpr."""

    eval_candidates: int | None = None
    """Other targets that a link to validate or test on is ranked among, drawn uniformly, the same
    in all epochs. Default: all nodes of the target's type."""


def link_defaults(config: TrainConfig) -> dict[str, object]:
    """The link options with the defaults filled in; those of other tasks as they are.

    >>> from gnnsys.config.train import TrainConfig
    >>> link_defaults(TrainConfig(dataset="g", task="link", negatives=4))["negatives"]
    4
    """
    given = {each.name: getattr(config, each.name) for each in _own_fields()}
    if config.task != "link":
        return given
    in_batch = config.negative_sampling == "in-batch"
    defaults = {
        "decoder": "dot",
        "negatives": None if in_batch else 1,
        "negative_sampling": "uniform",
        "link_loss": "infonce" if in_batch else "bpr",
    }
    return {name: defaults.get(name) if value is None else value for name, value in given.items()}


def parse_edge_type(text: str) -> tuple[str, str, str]:
    """An edge type as ``--target`` names it.

    >>> parse_edge_type("user,buys,item")
    ('user', 'buys', 'item')

    Raises:
        ArgumentError: another number of names.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(parts):
        raise ArgumentError(
            f"--target {text}: expected SRC,REL,DST with --task link, such as user,buys,item"
        )
    return parts[0], parts[1], parts[2]


def check_links(config: TrainConfig) -> None:
    """Raises ArgumentError or UnsupportedError for options that do not fit each other."""
    if config.task != "link":
        for each in _own_fields():
            value = getattr(config, each.name)
            if value is not None:
                raise ArgumentError(f"{_written(each.name, value)}: goes with --task link")
        if config.metric in METRICS["links"] and config.task == "node":
            raise ArgumentError(f"--metric {config.metric}: is of links; add --task link")
        return
    check_least(config, 1, "negatives", "eval_candidates")
    if config.target is not None:
        parse_edge_type(config.target)
    _check_negatives(config)
    _check_metric(config)
    _check_others(config)


def _check_negatives(config: TrainConfig) -> None:
    if config.negative_sampling != "in-batch":
        return
    if config.negatives is not None:
        raise ArgumentError(
            f"--negatives {config.negatives}: none are drawn with --negative-sampling in-batch; "
            "leave one of them out"
        )
    if config.link_loss not in (None, "infonce"):
        raise ArgumentError(
            f"--link-loss {config.link_loss}: --negative-sampling in-batch has a softmax over the "
            "targets of a batch; give infonce or leave it out"
        )


def _check_metric(config: TrainConfig) -> None:
    metric = config.metric
    if metric != "auto" and metric not in METRICS["links"]:
        raise ArgumentError(
            f"--metric {metric}: --task link is judged by one of {', '.join(METRICS['links'])}"
        )
    if config.eval_candidates is not None and metric.startswith(("recall@", "ndcg@")):
        raise ArgumentError(
            f"--metric {metric} --eval-candidates {config.eval_candidates}: is of the best of all "
            "candidates; leave one of them out"
        )


def _check_others(config: TrainConfig) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _REFUSED:
        value = getattr(config, name)
        if value != defaults[name] and not (name == "ranks" and value == 1):
            raise UnsupportedError(
                f"{_written(name, value)}: is for --task node; leave it or --task link out"
            )
    if config.sums != "plain":
        raise UnsupportedError(
            f"--sums {config.sums}: takes the degrees of the graph, but links of a batch are no "
            "edges of it; leave it out, or --task link"
        )
    if config.sampler == "gpu":
        raise UnsupportedError("--sampler gpu: draws no links; give cpu or auto")
    if config.eval == "neighborhoods":
        raise ArgumentError(
            "--eval neighborhoods: links are ranked among all nodes, which layerwise computes; "
            "give it, or sampled"
        )
    if config.score == "presample":
        raise UnsupportedError(
            "--score presample: samples around training nodes, not links; give degree"
        )


def _own_fields() -> list[dataclasses.Field[object]]:
    of_others = {each.name for each in dataclasses.fields(OptimisationOptions)}
    return [each for each in dataclasses.fields(LinkOptions) if each.name not in of_others]


def _written(name: str, value: object) -> str:
    return f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}"
