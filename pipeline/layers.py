"""Layers that can be run chunk by chunk: one aggregation each, or none.

A model is a list, as of ``torch.nn.Sequential``, of modules that take ``x`` and of those that take
``x`` and ``edge_index``. The latter become ``GraphLayer``: what a vertex hands its neighbours, what
it makes of theirs, and what follows. Rows of neighbours are read in one place only, so that a stage
may take them from elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv, GCNConv, SAGEConv

from gnnsys.errors import UnsupportedError
from gnnsys.pipeline.dropout import KeyedDropout
from gnnsys.pipeline.edges import Edges
from gnnsys.pipeline.layer_checks import check_modules

__all__ = ["ConvLayer", "GCN2Layer", "GCNLayer", "GraphLayer", "Share", "Shared", "as_layers"]

Shared = dict[str, Tensor]
"""Tensors that later layers read besides x, (n, ...) of the same vertices, by name."""


class GraphLayer(nn.Module):
    """A layer with one aggregation over the edges. n vertices read m sources.

    >>> class Sum(GraphLayer):
    ...     def aggregate(self, sources, targets, edges, shared):
    ...         return edges.sum(sources)
    >>> from gnnsys.pipeline.edges import full_edges
    >>> Sum()(torch.eye(2), full_edges(torch.tensor([[0], [1]]), 2, "plain")).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """

    kind: str = "plain"
    """Which edges ``aggregate`` is given: "plain", as they are, or "gcn", with self loops and
    normalised as in GCN."""

    def before(self, x: Tensor, shared: Shared) -> Tensor:
        """(n, in) to the (n, width) rows that neighbours read."""
        return x

    def aggregate(self, sources: Tensor, targets: Tensor, edges: Edges, shared: Shared) -> Tensor:
        """Rows (m, width) of the sources to n rows of the targets.

        Args:
            targets: (n, width), the same values as ``sources[:n]``.
        """
        raise NotImplementedError

    def after(self, out: Tensor, x: Tensor, shared: Shared) -> Tensor:
        """What ``aggregate`` gave and the layer's input, (n, in), to its output, (n, out)."""
        return out

    def forward(self, x: Tensor, edges: Edges, shared: Shared | None = None) -> Tensor:
        """All vertices of a graph at once."""
        shared = {} if shared is None else shared
        rows = self.before(x, shared)
        return self.after(self.aggregate(rows, rows, edges, shared), x, shared)


class Share(nn.Module):
    """Lets later layers read x, as it is here, by a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(n, C), unchanged."""
        return x

    def extra_repr(self) -> str:
        return repr(self.name)


class GCNLayer(GraphLayer):
    """PyG's ``GCNConv``: linear before the neighbours are summed, bias after."""

    def __init__(self, conv: GCNConv) -> None:
        super().__init__()
        self.conv = conv
        self.kind = "gcn" if conv.normalize else "plain"

    def before(self, x: Tensor, shared: Shared) -> Tensor:
        return self.conv.lin(x)

    def aggregate(self, sources: Tensor, targets: Tensor, edges: Edges, shared: Shared) -> Tensor:
        return edges.sum(sources)

    def after(self, out: Tensor, x: Tensor, shared: Shared) -> Tensor:
        return out if self.conv.bias is None else out + self.conv.bias


class GCN2Layer(GraphLayer):
    """PyG's ``GCN2Conv`` (GCNII; Chen, Wei, Huang, Ding, Li, ICML 2020), with x_0 shared."""

    def __init__(self, conv: GCN2Conv) -> None:
        super().__init__()
        self.conv = conv
        self.kind = "gcn" if conv.normalize else "plain"

    def aggregate(self, sources: Tensor, targets: Tensor, edges: Edges, shared: Shared) -> Tensor:
        return edges.sum(sources)

    def after(self, out: Tensor, x: Tensor, shared: Shared) -> Tensor:
        conv = self.conv
        out, x_0 = (1 - conv.alpha) * out, conv.alpha * shared["x_0"]
        if conv.weight2 is None:
            out = out + x_0
            return torch.addmm(out, out, conv.weight1, beta=1 - conv.beta, alpha=conv.beta)
        return torch.addmm(out, out, conv.weight1, beta=1 - conv.beta, alpha=conv.beta) + (
            torch.addmm(x_0, x_0, conv.weight2, beta=1 - conv.beta, alpha=conv.beta)
        )


class SAGELayer(GraphLayer):
    """PyG's ``SAGEConv`` with the mean or the sum of neighbours."""

    def __init__(self, conv: SAGEConv) -> None:
        super().__init__()
        self.conv = conv

    def aggregate(self, sources: Tensor, targets: Tensor, edges: Edges, shared: Shared) -> Tensor:
        out = edges.sum(sources)
        if self.conv.aggr == "mean":
            out = out / edges.counts(out.dtype).clamp_(min=1).to(out.dtype)[:, None]
        return out

    def after(self, out: Tensor, x: Tensor, shared: Shared) -> Tensor:
        conv = self.conv
        out = conv.lin_l(out)
        if conv.root_weight:
            out = out + conv.lin_r(x)
        return nn.functional.normalize(out, dim=-1) if conv.normalize else out


class ConvLayer(GraphLayer):
    """Any module that takes a pair of sources and targets, as bipartite PyG convolutions do.

    It is called as ``conv((sources, targets), edge_index)``, with ``edge_weight`` if the graph has
    weights and it takes them, and with shared tensors of the targets for its other parameters.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        names = list(inspect.signature(conv.forward).parameters)
        self._takes_weight = "edge_weight" in names
        self._shared = _extra_arguments(conv)

    def aggregate(self, sources: Tensor, targets: Tensor, edges: Edges, shared: Shared) -> Tensor:
        arguments: dict[str, Any] = {name: shared[name] for name in self._shared}
        if self._takes_weight and edges.weight is not None:
            arguments["edge_weight"] = edges.weight
        return self.conv((sources, targets), edges.index, **arguments)


def as_layers(modules: Sequence[nn.Module]) -> nn.ModuleList:
    """Turns a list of modules into layers that can be run chunk by chunk.

    PyG convolutions become graph layers; ``torch.nn.Dropout``, also inside a module that takes x
    alone, becomes ``KeyedDropout``. Modules are not copied.

    Args:
        modules: in order; each takes x, or x and edge_index.

    Raises:
        ArgumentError, UnsupportedError: a module that mixes vertices or draws numbers of its own,
            by its place in the list and its class.

    >>> as_layers([GCNConv(4, 8), nn.ReLU(), nn.Dropout(), SAGEConv(8, 2)])
    ModuleList(
      (0): GCNLayer(
        (conv): GCNConv(4, 8)
      )
      (1): ReLU()
      (2): KeyedDropout(p=0.5, layer=0)
      (3): SAGELayer(
        (conv): SAGEConv(8, 2, aggr=mean)
      )
    )
    """
    check_modules(modules)
    layers = nn.ModuleList(_as_layer(number, module) for number, module in enumerate(modules))
    dropouts = [part for part in layers.modules() if isinstance(part, KeyedDropout)]
    for number, dropout in enumerate(dropouts):
        dropout.layer = number
    return layers


def _as_layer(number: int, module: nn.Module) -> nn.Module:
    if isinstance(module, GraphLayer):
        return _key_dropout(module)
    if "edge_index" not in inspect.signature(module.forward).parameters:
        return _key_dropout(module)
    for part in module.modules():
        if isinstance(part, nn.Dropout) and part.p > 0:
            raise UnsupportedError(
                f"layer {number} ({type(module).__name__}): has a Dropout inside, whose mask would "
                "depend on the chunks; put it into the list, before or after"
            )
    if isinstance(module, GCNConv | GCN2Conv):
        _check_gcn(number, module)
        return GCNLayer(module) if isinstance(module, GCNConv) else GCN2Layer(module)
    if _is_plain_sage(module):
        return SAGELayer(module)
    return ConvLayer(module)


def _key_dropout(module: nn.Module) -> nn.Module:
    """Replaces ``torch.nn.Dropout`` in a module, or itself."""
    if isinstance(module, nn.Dropout):
        return KeyedDropout(module.p)
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, KeyedDropout(child.p))
        else:
            _key_dropout(child)
    return module


def _check_gcn(number: int, conv: GCNConv | GCN2Conv) -> None:
    wrong = (
        "add_self_loops=False"
        if conv.normalize and not conv.add_self_loops
        else "improved=True"
        if getattr(conv, "improved", False)
        else f"aggr={conv.aggr!r}"
        if conv.aggr not in ("add", "sum")
        else None
    )
    if wrong:
        raise UnsupportedError(
            f"layer {number} ({type(conv).__name__}): {wrong} cannot be run chunk by chunk; use "
            "the default, or normalize=False with weights of your own"
        )


def _is_plain_sage(module: nn.Module) -> bool:
    return type(module) is SAGEConv and module.aggr in ("mean", "add", "sum") and not module.project


def _extra_arguments(conv: nn.Module) -> tuple[str, ...]:
    """Parameters of forward that have no default, but for x and edge_index."""
    parameters = list(inspect.signature(conv.forward).parameters.values())[1:]
    return tuple(
        each.name
        for each in parameters
        if each.default is each.empty
        and each.name != "edge_index"
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    )
