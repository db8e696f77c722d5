"""Options about links to be predicted, and how they fit each other and the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gnnsys.choices import METRICS
from gnnsys.config.checks import check_least, given_options, written
from gnnsys.config.times import TimeOptions
from gnnsys.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = [
    "HARD_TARGETS",
    "LinkOptions",
    "LinkTraining",
    "check_link_run",
    "check_links",
    "check_without_links",
    "evaluates_exactly",
    "link_training",
    "parse_edge_type",
]

HARD_TARGETS = 32
"""Of a source that hard negatives are drawn from, at most."""

_REFUSED = (
    "full_batch", "parallel", "ranks", "cooperative", "class_weights", "loss", "static_shapes",
    "compile", "pack",
)  # fmt: skip
"""Options that must be at their defaults."""


@dataclass(kw_only=True, slots=True)
class LinkOptions(TimeOptions):
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkTraining:
    """``LinkOptions`` with the defaults filled in."""

    decoder: Literal["dot", "distmult"]
    negatives: int
    """Drawn for each link; 0 for in-batch."""
    sampling: Literal["uniform", "degree", "hard", "in-batch"]
    loss: Literal["bce", "bpr", "infonce"]
    candidates: int | None
    """None for all."""


def link_training(config: LinkOptions) -> LinkTraining:
    """How a run on links trains.

    >>> link_training(LinkOptions(negatives=4)).loss
    'bpr'
    """
    in_batch = config.negative_sampling == "in-batch"
    return LinkTraining(
        decoder=config.decoder or "dot",
        negatives=0 if in_batch else config.negatives or 1,
        sampling=config.negative_sampling or "uniform",
        loss="infonce" if in_batch else config.link_loss or "bpr",
        candidates=config.eval_candidates,
    )


def evaluates_exactly(config: TrainConfig, timed: bool) -> bool:
    """Whether links are judged by embeddings with all neighbours.

    Args:
        config: of the run.
        timed: whether neighbours are to be no newer than links.

    Raises:
        UnsupportedError: both are asked for.

    >>> from gnnsys.config.train import TrainConfig
    >>> evaluates_exactly(TrainConfig(dataset="shop", task="link"), timed=True)
    False
    """
    if config.eval == "layerwise" and timed:
        raise UnsupportedError(
            f"--eval layerwise: the links of {config.dataset} have times, but layers take all "
            "neighbours, also later ones; give sampled or auto"
        )
    return config.eval == "layerwise" or (config.eval == "auto" and not timed)


def parse_edge_type(text: str, option: str = "--target") -> tuple[str, str, str]:
    """An edge type as an option names it.

    >>> parse_edge_type("user,buys,item")
    ('user', 'buys', 'item')

    Raises:
        ArgumentError: another number of names.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(parts):
        raise ArgumentError(
            f"{option} {text}: expected an edge type, SRC,REL,DST, such as user,buys,item"
        )
    return parts[0], parts[1], parts[2]


def check_links(config: TrainConfig) -> None:
    """Raises ArgumentError or UnsupportedError for options that do not fit each other; whether a
    task of the folder is one of links is known later."""
    check_least(config, 1, "negatives", "eval_candidates")
    _check_negatives(config)
    if config.task == "node":
        check_without_links(config)
    elif config.task == "link":
        if config.target is not None:
            parse_edge_type(config.target)
        check_link_run(config)


def check_without_links(config: TrainConfig) -> None:
    """Raises ArgumentError for options about links where none are to be predicted."""
    of_others = {each.name for each in dataclasses.fields(TimeOptions)}
    own = [each.name for each in dataclasses.fields(LinkOptions) if each.name not in of_others]
    for name in given_options(config, own):
        raise ArgumentError(
            f"{written(config, name)}: goes with --task link, or with a task of links"
        )


def check_link_run(config: TrainConfig) -> None:
    """Raises ArgumentError or UnsupportedError for options that a run on links cannot have."""
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
            f"--metric {metric}: --task {config.task} is of links; expected one of "
            f"{', '.join(METRICS['links'])}"
        )
    if config.eval_candidates is not None and metric.startswith(("recall@", "ndcg@")):
        raise ArgumentError(
            f"--metric {metric} --eval-candidates {config.eval_candidates}: is of the best of all "
            "candidates; leave one of them out"
        )


def _check_others(config: TrainConfig) -> None:
    for name in given_options(config, _REFUSED):
        raise UnsupportedError(
            f"{written(config, name)}: is not for links, but --task {config.task} is of them; "
            "leave one of them out"
        )
    if config.sums != "plain":
        raise UnsupportedError(
            f"--sums {config.sums}: takes the degrees of the graph, but the links of a batch are "
            "no edges of it; leave it out"
        )
    if config.sampler == "gpu":
        raise UnsupportedError("--sampler gpu: draws no links; give cpu or auto")
    if config.eval == "neighborhoods":
        raise ArgumentError(
            "--eval neighborhoods: links are ranked among all nodes, which layerwise computes; "
            "give it, or sampled"
        )
