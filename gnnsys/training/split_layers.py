"""Layers taken apart where they sum their neighbours, so that rows may come one after another.

A layer of PyG calls ``propagate`` once. What it hands over there is made of each source's row
alone, and what it does with the result, of that and of the target's row. Owns which layers are
known to be so: their messages are rows of sources, whose sum, mean, maximum or minimum they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch_geometric.nn import GCNConv, GraphConv, MessagePassing, SAGEConv
from torch_geometric.nn.aggr import (
    MaxAggregation,
    MeanAggregation,
    MinAggregation,
    SumAggregation,
)

from gnnsys.errors import UnsupportedError
from gnnsys.message_passing.messages import read_message

__all__ = ["SplitLayer", "split_convolution"]

_FOLDS = {
    SumAggregation: "sum", MeanAggregation: "mean", MaxAggregation: "max", MinAggregation: "min",
}  # fmt: skip
_AFTER = {SAGEConv: "lin_l", GraphConv: "lin_rel"}
"""Linear parts that come right after the sums, and might as well come before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitLayer:
    """``finish(own rows, fold of messages(rows of sources))``."""

    fold: str
    """sum, mean, max or min: of the messages of a node's in-neighbours; 0 where it has none."""

    messages: Callable[[Tensor], Tensor]
    """(n, columns) rows of sources to (n, width); the same tensor where these are the messages."""

    finish: Callable[[Tensor, Tensor], Tensor]
    """(n, columns) own rows of targets and (n, width) their folds, to the layer's outputs."""

    scale: Tensor | None = None
    """(nodes,) factors of each node's messages, and of its sum; None: 1."""

    loops: bool = False
    """Whether each node has one edge from itself, whatever the graph has."""


def split_convolution(
    conv: MessagePassing,
    name: str,
    after: Callable[[Tensor], Tensor],
    scale: Tensor | None = None,
) -> SplitLayer:
    """A layer of PyG taken apart.

    Args:
        conv: known to need a node's neighbours alone.
        name: in its model.
        after: what follows it, of (n, channels) outputs.
        scale: that of ``SplitLayer``, of a ``GCNConv`` that weighs edges by degrees.

    Raises:
        UnsupportedError: its neighbours' rows must be there together.
    """
    problem = _problem_of(conv)
    if problem:
        raise UnsupportedError(
            f"model: {name}, {_told(conv)}, {problem}, which reading rows in sequence cannot; read "
            "them as they are needed (mode='gather', --eval-reads gather)"
        )
    fold = _FOLDS[type(conv.aggr_module)]
    messages, inside, summed = _parts(conv, linear_fold=fold in ("sum", "mean"))

    def finish(own: Tensor, folded: Tensor) -> Tensor:
        return after(_call(conv, inside, lambda *arguments, **others: summed(folded), own))

    loops = scale is not None and bool(conv.add_self_loops)
    return SplitLayer(fold=fold, messages=messages, finish=finish, scale=scale, loops=loops)


def _parts(
    conv: MessagePassing, linear_fold: bool
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any], Callable[[Tensor], Tensor]]:
    """What makes messages, other members of the layer that ends it, and what comes between.

    Linear parts and folds change places where fewer columns are summed then.
    """
    if isinstance(conv, GCNConv):
        inside: dict[str, Any] = {"normalize": False}
        if linear_fold and _widens(conv.lin):
            return _same, inside, conv.lin
        return partial(_messages, conv, inside), inside, _same
    after = next((part for kind, part in _AFTER.items() if isinstance(conv, kind)), "")
    linear = getattr(conv, after, None)
    if linear is None or not linear_fold or is_lazy(linear.weight) or _widens(linear):
        return partial(_messages, conv, {}), {}, _same
    narrow = partial(F.linear, weight=linear.weight)
    inside = {after: _Bias(linear.bias)}
    return (lambda rows: narrow(_messages(conv, {}, rows))), inside, _same


def _problem_of(conv: MessagePassing) -> str:
    """Why a layer is not to be taken apart; "" where it is."""
    message = read_message(type(conv).message)
    if message is None or message.rows != "x" or not (message.weight is None or message.optional):
        return "makes messages of more than a source's row"
    if type(conv.aggr_module) not in _FOLDS:
        return f"aggregates by {_told(conv.aggr_module)}, neither sum, mean, max nor min"
    if (
        isinstance(conv, GCNConv)
        and conv.normalize
        and type(conv.aggr_module) is not SumAggregation
    ):
        return "weighs neighbours by degrees and does not sum them"
    if conv.flow == "target_to_source" and getattr(conv, "project", False):
        return "projects rows of sources, and its messages flow from target to source"
    return ""


def _told(part: Any) -> str:
    """A module as it describes itself, in one line."""
    return " ".join(str(part).split())


def _widens(linear: Any) -> bool:
    return not is_lazy(linear.weight) and linear.weight.shape[0] >= linear.weight.shape[1]


def _same(rows: Tensor) -> Tensor:
    return rows


class _Bias(torch.nn.Module):
    """What is left of a linear layer whose products were summed before."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self._bias = (bias,)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, width) rows with the bias added."""
        return rows if self._bias[0] is None else rows + self._bias[0]


class _HandedOver(Exception):
    """Carries what a layer gives to ``propagate`` out of it."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


def _call(
    conv: MessagePassing, inside: dict[str, Any], propagate: Callable[..., Tensor], rows: Tensor
) -> Tensor:
    """A layer on rows without edges, with another ``propagate`` and some other members."""
    same = object.__new__(type(conv))
    same.__dict__ = {**conv.__dict__, **inside, "propagate": propagate}
    out: Tensor = same(rows, torch.empty((2, 0), dtype=torch.int64, device=rows.device))
    return out


def _messages(conv: MessagePassing, inside: dict[str, Any], rows: Tensor) -> Tensor:
    def propagate(edge_index: Tensor, x: Any, **others: Any) -> Tensor:
        raise _HandedOver(x[0] if isinstance(x, tuple) else x)

    try:
        return _call(conv, inside, propagate, rows)
    except _HandedOver as found:
        return found.rows
