"""Modules that cannot be run chunk by chunk, by their kind."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn import norm as pyg_norm

from gnnsys.compat import NORM_WITH_STATISTICS
from gnnsys.errors import ArgumentError, UnsupportedError

__all__ = ["check_modules"]

_NORMS_OVER_VERTICES = (
    NORM_WITH_STATISTICS,
    pyg_norm.BatchNorm,
    pyg_norm.DiffGroupNorm,
    pyg_norm.GraphNorm,
    pyg_norm.GraphSizeNorm,
    pyg_norm.HeteroBatchNorm,
    pyg_norm.InstanceNorm,
    pyg_norm.MeanSubtractionNorm,
    pyg_norm.PairNorm,
)


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Raises for modules that mix the rows of vertices or share parameters."""
    if not modules:
        raise ArgumentError("layers: an empty list; expected a graph layer at least")
    owners: dict[int, int] = {}
    for number, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"layer {number}: a {type(module).__name__}, expected a module")
        for parameter in module.parameters():
            other = owners.setdefault(id(parameter), number)
            if other != number:
                raise UnsupportedError(
                    f"layers {other} and {number} ({type(module).__name__}) share a parameter, but "
                    "may lie on different ranks; give each its own"
                )
        for part in module.modules():
            _check_part(part, f"layer {number} ({type(module).__name__})")


def _check_part(part: nn.Module, where: str) -> None:
    kind = type(part).__name__
    if isinstance(part, _NORMS_OVER_VERTICES) or (
        isinstance(part, pyg_norm.LayerNorm) and part.mode == "graph"
    ):
        raise UnsupportedError(
            f"{where}: {kind} normalises over vertices, which pass chunk by chunk; use "
            "torch.nn.LayerNorm"
        )
    if getattr(part, "cached", False):
        raise UnsupportedError(
            f"{where}: cached=True keeps one graph, but every chunk has its own; leave it out"
        )
    if getattr(part, "flow", "source_to_target") != "source_to_target":
        raise UnsupportedError(f"{where}: flow={part.flow!r}; expected 'source_to_target'")
    draws = isinstance(part, MessagePassing | nn.MultiheadAttention)
    dropout = getattr(part, "dropout", 0) if draws else 0
    if isinstance(dropout, float) and dropout > 0:
        raise UnsupportedError(
            f"{where}: dropout={dropout} inside {kind} draws numbers that depend on the chunks; "
            "use dropout=0 and a torch.nn.Dropout in the list"
        )
