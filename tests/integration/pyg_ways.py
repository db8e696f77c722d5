"""How a convolution of PyG is called: on one set of nodes or two, along edges or against them."""

from __future__ import annotations

import inspect
from typing import Any

from pyg_batches import CHANNELS
from pyg_exports import call, kinds_of_batches, make
from torch import nn
from torch_geometric.nn import MessagePassing, conv

USUAL, PAIR, REVERSED, REVERSED_PAIR = "usual", "pair", "reversed", "reversed-pair"


def ways(name: str) -> list[str]:
    """The ways in which PyG lets a convolution be called."""
    if kinds_of_batches(name) == ("typed",):
        return [USUAL]
    kind = getattr(conv, name)
    # HypergraphConv sets the flow of its two halves itself.
    flows = issubclass(kind, MessagePassing) and name != "HypergraphConv"
    pairs = "Tuple" in str(inspect.signature(kind.forward).parameters["x"].annotation)
    allowed = {USUAL: True, PAIR: pairs, REVERSED: flows, REVERSED_PAIR: flows and pairs}
    return [way for way in allowed if allowed[way]]


def make_conv(name: str, way: str, batch: Any) -> nn.Module:
    """A convolution for calls in one of its ways."""
    given: dict[str, Any] = {}
    if way in (PAIR, REVERSED_PAIR):
        for key, parameter in inspect.signature(getattr(conv, name).__init__).parameters.items():
            if key in ("in_channels", "channels") and "Tuple" in str(parameter.annotation):
                given[key] = (CHANNELS, CHANNELS)
    if way in (REVERSED, REVERSED_PAIR):
        given["flow"] = "target_to_source"
    return make(conv, name, batch, **given)


def call_conv(layer: nn.Module, batch: Any, way: str) -> Any:
    """Calls what ``make_conv`` made in the same way."""
    if way == PAIR:
        targets = sum(batch.num_sampled_nodes[:-1])  # nodes of the last hop are only sources
        return call(layer, batch, **{key: (batch[key], batch[key][:targets]) for key in _BY_NODE})
    if way == REVERSED_PAIR:
        return call(layer, batch, **{key: (batch[key], batch[key].flip(0)) for key in _BY_NODE})
    return call(layer, batch)


_BY_NODE = ("x", "pos", "normal")
