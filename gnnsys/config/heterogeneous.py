"""Which options of ``gnnsys train`` graphs with several node or edge types take."""

from __future__ import annotations

from gnnsys.config.checks import given_options, written
from gnnsys.config.train import TrainConfig
from gnnsys.config.user_model import is_user_model
from gnnsys.errors import ArgumentError, UnsupportedError

__all__ = ["HETERO_MODELS", "check_heterogeneous", "check_homogeneous"]

HETERO_MODELS = ("rgcn", "rgat", "hgt", "sage", "gat")
"""Models of heterogeneous graphs, beside those of users."""
_OF_TYPES = ("rgcn", "rgat", "hgt")
"""Those among them that have no meaning without types."""
_REFUSED = (
    "full_batch", "parallel", "ranks", "cooperative", "sampler", "eval_reads", "static_shapes",
    "compile", "pack", "trace", "victim_buffer", "topology", "topology_memory",
)  # fmt: skip
"""Options that must be at their defaults."""


def check_heterogeneous(config: TrainConfig) -> None:
    """Raises ArgumentError or UnsupportedError for options that a run on a heterogeneous dataset
    folder cannot have.

    >>> check_heterogeneous(TrainConfig(dataset="papers", model="hgt"))
    >>> check_heterogeneous(TrainConfig(dataset="g", model="gin"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    gnnsys.errors.ArgumentError: --model gin: g is heterogeneous; expected rgcn, rgat, ...
    """
    if config.model not in HETERO_MODELS and not is_user_model(config.model):
        raise ArgumentError(
            f"--model {config.model}: {config.dataset} is heterogeneous; expected "
            f"{', '.join(HETERO_MODELS)}, or PACKAGE.MODULE:FACTORY for one of your own"
        )
    if config.eval == "neighborhoods":
        raise UnsupportedError(
            f"--eval neighborhoods: is for homogeneous graphs, but {config.dataset} is "
            "heterogeneous; give layerwise or sampled"
        )
    if config.device == "simt":
        raise UnsupportedError(
            f"--device simt: does not take heterogeneous graphs ({config.dataset}); give cpu"
        )
    for name in given_options(config, _REFUSED):
        raise UnsupportedError(
            f"{written(config, name)}: is for homogeneous graphs, but {config.dataset} is "
            "heterogeneous; leave it out"
        )


def check_homogeneous(config: TrainConfig) -> None:
    """Raises ArgumentError for a model, or embeddings, of types on a graph that has none."""
    for name in ("embeddings", "embedding_optimizer"):
        value = getattr(config, name)
        if value not in ("auto", "sparse_adam"):
            raise ArgumentError(
                f"--{name.replace('_', '-')} {value}: is for node types without features of "
                f"heterogeneous dataset folders, but {config.dataset} has nodes of one type; leave "
                "it out"
            )
    if config.model in _OF_TYPES:
        raise ArgumentError(
            f"--model {config.model}: is for heterogeneous dataset folders, but {config.dataset} "
            "has nodes and edges of one type; give sage, gcn, gat or gin"
        )
