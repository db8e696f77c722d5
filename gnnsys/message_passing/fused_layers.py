"""``fuse``: layers of PyG that sum their neighbours' rows without writing a message for each edge.

A layer whose ``message`` is ``x_j`` or ``weight * x_j`` and whose aggregation is a sum or a mean
gets a class of its own, derived from the one it had, in which ``propagate`` does both at once. It
remains an instance of its class, with its parameters, hooks and name; where a call is not one that
the operator takes, that class's own ``propagate`` is used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation

from gnnsys.compat import (
    STEPS,
    TEMPLATE_PROPAGATE,
    has_own_propagate,
    is_transformed,
    propagate_by_messages,
    set_by_hand,
    set_size,
    shows_messages,
    sizes_of,
)
from gnnsys.errors import DTypeError, RowIndexError
from gnnsys.message_passing.attention_layers import attention_forward, can_attend
from gnnsys.message_passing.derived import Derived, derive
from gnnsys.message_passing.gcn_layers import GCNForward, is_gcn
from gnnsys.message_passing.linear import skip_zero_rows, zero_rows
from gnnsys.message_passing.messages import Message, read_message
from gnnsys.message_passing.neighbors import neighbors_of
from gnnsys.message_passing.sums import SUMMED_DTYPES, can_sum, sum_neighbors

__all__ = ["FuseReport", "FusedLayer", "fuse"]

_Model = TypeVar("_Model", bound=Module)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """What ``fuse`` made of one message-passing layer."""

    name: str
    """Of the layer in its model; "" for the model itself."""

    kind: str
    """Name of its class."""

    reason: str
    """Why it was left alone; "" where it was fused."""


@dataclass(frozen=True, slots=True)
class FuseReport:
    """The message-passing layers of a model; ``print`` shows them as a table."""

    layers: tuple[FusedLayer, ...]

    @property
    def fused(self) -> tuple[FusedLayer, ...]:
        """The layers that are fused."""
        return tuple(layer for layer in self.layers if not layer.reason)

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} of {len(self.layers)} message-passing layers are fused"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            told = f"left alone: {layer.reason}" if layer.reason else "fused"
            lines.append(f"  {layer.name:<{width}}  {layer.kind}: {told}")
        return "\n".join(lines)


class _Fuse(Protocol):
    """A function that has another one, ``report``."""

    def __call__(self, model: _Model) -> _Model: ...

    def report(self, model: Module) -> FuseReport: ...


def fuse_report(model: Module) -> FuseReport:
    """Which layers of a model are fused, and why the others are not.

    Says of a model that was not fused yet what ``fuse`` will leave alone.

    Raises:
        DTypeError: not a ``torch.nn.Module``.

    >>> from torch_geometric.nn import GAT
    >>> print(fuse.report(fuse(GAT(8, 16, num_layers=1))))
    1 of 1 message-passing layers are fused
      convs.0  GATConv: fused
    """
    return FuseReport(
        tuple(
            FusedLayer(name, type(layer).__name__, _standing(layer))
            for name, layer in _layers(model)
        )
    )


def _with_report(function: Any) -> _Fuse:
    function.report = fuse_report
    return cast(_Fuse, function)


@_with_report
def fuse(model: _Model) -> _Model:
    """Makes layers sum their neighbours' rows directly, in place.

    Knows layers whose message is the source's row or a weight of the edge times it, summed or
    averaged over each target: SAGEConv, GINConv, GraphConv, GCNConv, GATConv, GATv2Conv and
    others of PyG, and layers of your own whose ``message`` says so literally. A GCNConv adds self
    loops and normalises once for all layers that are given the same tensors of edges. GATConv,
    GATv2Conv and TransformerConv (without features of edges) write no rows for their attention,
    either; under torch.compile the first two sum natively alone, and the last is PyG's. Leaves all
    other layers alone; ``gnnsys.fuse.report(model)`` tells which. Outputs and gradients stay the
    same up to the rounding of sums; what is dropped of attention is drawn for edges in another
    order. Works on any ``edge_index`` on the CPU or a CUDA device and under torch.compile; finds
    what a loader of gnnsys knows of the edges of its batches.

    Args:
        model: with layers of ``torch_geometric.nn.MessagePassing`` in it, or one itself.

    Returns:
        The same model. Its parameters, ``state_dict`` and hooks are as they were; pickling it
        whole needs gnnsys to read it again.

    Raises:
        DTypeError: not a ``torch.nn.Module``.

    >>> from torch_geometric.nn import GraphSAGE
    >>> model = fuse(GraphSAGE(8, 16, num_layers=2, out_channels=4))
    >>> model(torch.ones(3, 8), torch.tensor([[0, 1], [1, 2]])).shape
    torch.Size([3, 4])
    """
    for _, layer in _layers(model):
        if not _reason(layer):
            derive(layer, _Fused)
            skip_zero_rows(layer)
    return model


def _layers(model: Module) -> Iterator[tuple[str, MessagePassing]]:
    if not isinstance(model, Module):
        raise DTypeError(f"model: a {type(model).__name__}, expected a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, MessagePassing):
            yield name, module


def _standing(layer: MessagePassing) -> str:
    if isinstance(layer, _Fused):
        name = set_by_hand(layer)
        return _told_of(name) if name else ""
    return _reason(layer) or "not asked for yet"


def _told_of(name: str) -> str:
    return f"its {name} is set on the layer itself, not on its class"


def _reason(layer: MessagePassing) -> str:
    """Why a layer is not to be fused; "" where it is."""
    if isinstance(layer, _Fused):
        return "is fused already"
    kind: Any = type(layer)
    if type(layer.aggr_module) not in (SumAggregation, MeanAggregation):
        return f"aggregates by {layer.aggr}, neither sum nor mean"
    for name in STEPS:
        if name in layer.__dict__:
            return _told_of(name)
    for name in ("aggregate", "update"):
        if getattr(kind, name) is not getattr(MessagePassing, name):
            return f"has its own {name}"
    if has_own_propagate(layer):
        return "has its own propagate"
    if _message_of(kind) is None and not can_attend(layer):
        return "its message is not literally x_j, or a weight times x_j"
    return ""


@functools.cache
def _message_of(kind: Any) -> Message | None:
    return read_message(kind.message)


# The fused layer ---------------------------------------------------------------------------------


class _Fused(Derived):
    _message: Message | None

    @classmethod
    def _members(cls, kind: Any) -> dict[str, Any]:
        # In the class itself, lest PyG writes one from its template when a layer is unpickled.
        # Under the other name PyG looks for it when it stops explaining a layer.
        propagate = cls.propagate
        members = {
            "_message": _message_of(kind),
            "propagate": propagate,
            TEMPLATE_PROPAGATE: propagate,
        }
        forward = GCNForward.forward if is_gcn(kind) else attention_forward(kind)
        return members if forward is None else members | {"forward": forward}

    def propagate(self: Any, edge_index: Any, *args: Any, **kwargs: Any) -> Tensor:
        """See ``MessagePassing.propagate``."""
        message = self._message
        if message and not args and type(edge_index) is Tensor and not shows_messages(self):
            found = _propagate(self, message, edge_index, **kwargs)
            if found is not None:
                return found
        result: Tensor = propagate_by_messages(self._base, self, edge_index, *args, **kwargs)
        return result


def _propagate(
    layer: MessagePassing, message: Message, edge_index: Tensor, size: Any = None, **kwargs: Any
) -> Tensor | None:
    """What ``propagate`` gives, or None for inputs that the operator does not take."""
    source, target = (0, 1) if layer.flow == "source_to_target" else (1, 0)
    sizes = sizes_of(layer, edge_index, size)
    x: Any = kwargs.get(message.rows)
    if isinstance(x, (tuple, list)):
        if target != 1 and x[0] is not x[1]:
            return None  # PyG itself has two opinions on which of the pair is gathered
        if isinstance(x[1], Tensor):
            set_size(layer, sizes, 1, x[1])
        x = x[0]
    if not can_sum(x) or edge_index.dtype != torch.int64 or edge_index.device != x.device:
        return None
    if x.dim() not in (2, 3) or layer.node_dim not in (0, -x.dim()):
        return None
    set_size(layer, sizes, source, x)
    num_nodes = sizes[target] if sizes[target] is not None else sizes[source]
    weight = kwargs.get(message.weight) if message.weight is not None else None
    if weight is not None:
        weight = _as_weight(message, weight, x, edge_index.size(1))
        if weight is None:
            return None
        dtype = torch.promote_types(weight.dtype, x.dtype)
        x, weight = x.to(dtype), weight.to(dtype)
    elif message.weight is not None and not message.optional:
        return None
    if x.dtype not in SUMMED_DTYPES:
        return None
    mean = type(layer.aggr_module) is MeanAggregation
    if not mean and type(layer.aggr_module) is not SumAggregation:
        return None
    if torch.compiler.is_compiling():
        return sum_neighbors(x, edge_index, weight, num_nodes=num_nodes, to=target, mean=mean)
    counts = None if is_transformed() else _counts(edge_index)
    if counts is None or counts[target] > num_nodes or counts[source] > x.size(0):
        return None  # of edges that leave the rows, PyG tells in its own words
    sums = sum_neighbors(x, edge_index, weight, num_nodes=num_nodes, to=target, mean=mean)
    if counts[target] < num_nodes:
        zero_rows.remember(sums, counts[target])
    return sums


def _as_weight(message: Message, weight: Any, x: Tensor, edges: int) -> Tensor | None:
    """(E, 1) or (E, H), or None where weights multiply rows in another way than by their heads."""
    if not can_sum(weight) or weight.device != x.device:
        return None
    factor = message.factor(weight)
    if factor.dim() != x.dim() or factor.size(0) != edges or factor.size(-1) != 1:
        return None
    if factor.dim() == 3 and factor.size(1) not in (1, x.size(1)):
        return None
    return factor.reshape(edges, factor.size(1) if factor.dim() == 3 else 1)


def _counts(edge_index: Tensor) -> tuple[int, int] | None:
    """Sources and targets up to the last that has an edge; None where one is negative."""
    try:
        return neighbors_of(edge_index).counts
    except RowIndexError:
        return None
