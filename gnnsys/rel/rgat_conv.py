"""``RGATConv`` of PyG as a program: attention over neighbours with a matrix for each edge type."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.typing import OptTensor

from gnnsys.errors import ArgumentError
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.layer import Call, RelationalLayer, run_uncompiled, typed_graph
from gnnsys.rel.program import Builder, Program, Value

__all__ = ["RGATConv"]

# S sources, D targets, E edges, T relations; K columns of x; H heads of C channels; L dimensions of
# queries and keys of each head, B blocks.


class RGATConv(RelationalLayer, torch_geometric.nn.RGATConv):
    """A drop-in for PyG's ``RGATConv``: its parameters, options and results, without E matrices.

    The messages ``x[s] @ weight[r]`` are weighted by the softmax, over the edges of a target (or
    over those of one relation), of ``leaky_relu(x[t] @ weight[r] @ q + x[s] @ weight[r] @ k)``
    (Busbridge et al., "Relational Graph Attention Networks", 2019). Each term depends on one end
    of an edge and on its relation, so that the passes compute it once for each distinct pair of
    them, queries and keys by ``weight[r] @ q`` and ``weight[r] @ k``.

    ``edge_index`` may also be a ``RelationalGraph``, without ``edge_type``. Results have the
    element type of the rows and parameters: float32, float64 or bfloat16. Under torch.compile the
    layer runs uncompiled, between two graphs. Another ``aggr`` than "add",
    ``flow="target_to_source"``, sparse matrices of edges, hooks on messages and explainers get
    PyG's own forward, which a warning says once.

    ``mod="f-additive"`` adds each message once more, unless its attention is zero. Attention that
    is so little that it is zero by rounding (about 1e-38 in float32) may be so here and not in PyG.

    Args:
        args, kwargs: those of ``torch_geometric.nn.RGATConv``.
        passes: of ``gnnsys.rel.passes.PASSES``, those by which the program is made cheaper.
        backend: of ``gnnsys.rel.segments.BACKENDS``, what multiplies by ``weight``.

    Raises:
        ArgumentError: an unknown pass or backend; in a call, types that are missing, rows of
            another width or number, features of edges without ``edge_dim``.
        DTypeError: in a call, rows of another element type than the parameters.
        RowIndexError: in a call, a type or a node outside its range.

    >>> conv = RGATConv(4, 8, num_relations=2, heads=2)
    >>> edge_index, edge_type = torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.tensor([0, 1, 0])
    >>> out, (_, alpha) = conv(torch.ones(3, 4), edge_index, edge_type, None, None, True)
    >>> out.shape, alpha.shape
    (torch.Size([3, 16]), torch.Size([3, 2]))
    """

    _pyg = torch_geometric.nn.RGATConv

    propagate_type: ClassVar = {"x": Tensor, "edge_type": OptTensor, "edge_attr": OptTensor}
    """As PyG's own forward calls ``propagate``, which PyG reads in the source of the class else."""

    def reset_parameters(self) -> None:
        """As PyG's, which leaves ``l2`` what was in its memory: weights would not be finite."""
        super().reset_parameters()
        torch.nn.init.constant_(self.l2, 1 / self.out_channels)

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_type: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: Any = None,
    ) -> Any:
        """See ``torch_geometric.nn.RGATConv.forward``."""
        given = (x, edge_index, edge_type, edge_attr, size)
        if torch.compiler.is_compiling():
            return run_uncompiled(RGATConv.forward, self, *given, return_attention_weights)
        reason = self._why_not(x, edge_index, edge_type, edge_attr=edge_attr)
        if reason:
            self._say(reason, edge_index)
            return super().forward(*given, return_attention_weights)
        graph = self._graph(x, edge_index, edge_type, size)
        values = self._values(x, edge_attr)
        options = self._options(values)
        if not isinstance(return_attention_weights, bool) and self.mod != "f-additive":
            return self._finish(self._run(Call(_program(options), graph, values)), graph)
        alpha = self._run(Call(_program(options, "attention"), graph, values))
        values["alpha"] = alpha
        if self.mod == "f-additive":
            values["alpha"] = torch.where(alpha > 0, alpha + 1, alpha)
        out = self._finish(self._run(Call(_program(options, "sums"), graph, values)), graph)
        if not isinstance(return_attention_weights, bool):
            return out
        return out, (edge_index, alpha.unflatten(1, (self.dim, -1)).transpose(1, 2).flatten(1))

    def _call(
        self,
        x: Any,
        edge_index: Any,
        edge_type: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: Any = None,
    ) -> Call | str:
        reason = self._why_not(x, edge_index, edge_type, edge_attr=edge_attr)
        if reason:
            return reason
        values = self._values(x, edge_attr)
        graph = self._graph(x, edge_index, edge_type, size)
        return Call(_program(self._options(values)), graph, values)

    # What is given --------------------------------------------------------------------------------

    def _why_not(self, x: Any, *edges: Any, edge_attr: Any = None) -> str:
        if type(self.aggr_module) is not SumAggregation:
            return f"aggr={self.aggr!r} is not add"
        rows = [*(x if isinstance(x, tuple) else (x,)), *([] if edge_attr is None else [edge_attr])]
        reason = self._why_not_these(rows, edges)
        if reason or edge_attr is None or self.lin_edge is None:
            return reason
        return self._why_not_read(lin_edge=self.lin_edge)

    def _graph(self, x: Any, edge_index: Tensor, edge_type: Any, size: Any) -> RelationalGraph:
        source, target = x if isinstance(x, tuple) else (x, x)
        self._check_rows("x", source, self.in_channels, self.q.dtype)
        self._check_rows("x", target, self.in_channels, self.q.dtype)
        rows = (source.size(0), target.size(0))
        if size is not None and any(a not in (None, b) for a, b in zip(size, rows, strict=True)):
            raise ArgumentError(f"size: {tuple(size)}, expected {rows}, the rows of x")
        return typed_graph(edge_index, edge_type, self.num_relations, *rows, one=source is target)

    def _values(self, x: Any, edge_attr: Tensor | None) -> dict[str, Tensor]:
        """Columns of queries and keys by dimension, then head: each dimension weighs one sum."""
        values = {"q": self._by_dimension(self.q), "k": self._by_dimension(self.k)}
        source, target = x if isinstance(x, tuple) else (x, x)
        if self.num_blocks is not None:
            source, target = (each.unflatten(1, (self.num_blocks, -1)) for each in (source, target))
        values |= (
            {"x": source} if not isinstance(x, tuple) else {"source": source, "target": target}
        )
        values["weight"] = self._weight()
        if self.mod == "additive":
            values["w"] = self.w
        if edge_attr is not None:
            values["edge"] = self._of_edges(edge_attr)
        return values

    def _weight(self) -> Tensor:
        """(T, K, H * C), or (T, B, K / B, H * C / B) of blocks."""
        weight: Tensor
        if self.num_bases is None:
            weight = self.weight
        else:
            weight = (self.att @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
        return weight

    def _of_edges(self, edge_attr: Tensor) -> Tensor:
        """(E, L * H): what the features of each edge add to (or multiply) its logits."""
        if self.lin_edge is None:
            raise ArgumentError("edge_attr: given to a layer without edge_dim; give it edge_dim=…")
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(1)
        self._check_rows("edge_attr", edge_attr, self.edge_dim, self.q.dtype)
        return edge_attr @ (self.lin_edge.weight.t() @ self._by_dimension(self.e))

    def _by_dimension(self, columns: Tensor) -> Tensor:
        """(H * C, H * L) to (H * C, L * H)."""
        if self.dim == 1:
            return columns
        return columns.unflatten(1, (self.heads, self.dim)).transpose(1, 2).flatten(1)

    def _options(self, values: dict[str, Tensor]) -> _Options:
        return _Options(
            width=self.in_channels,
            heads=self.heads,
            channels=self.out_channels,
            dims=self.dim,
            blocks=self.num_blocks,
            slope=self.negative_slope if self.attention_mode.startswith("additive") else None,
            within="target" if self.attention_mechanism == "across-relation" else "relation",
            dropout=self.dropout if self.mod not in _MODS else 0.0,
            adds=self.mod == "additive",
            edge="edge" in values,
            pair="x" not in values,
        )

    # What follows the sums ------------------------------------------------------------------------

    def _finish(self, out: Tensor, graph: RelationalGraph) -> Tensor:
        """Of (D, H, L * C)."""
        if self.mod in ("scaled", "f-scaled"):
            degree = torch.bincount(graph.edge_index[1], minlength=graph.num_targets)
            degree = degree.to(out.dtype).unsqueeze(1)
            if self.mod == "scaled":
                degree = self.activation(degree @ self.l1 + self.b1) @ self.l2 + self.b2  # (D, C)
            out = out.unflatten(2, (self.dim, -1)) * degree[:, None, None, :]
        out = out.flatten(1) if self.concat else out.mean(1).flatten(1)
        return out if self.bias is None else out + self.bias


_MODS = ("additive", "scaled", "f-additive", "f-scaled")


# Programs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Options:
    width: int
    heads: int
    channels: int
    dims: int
    blocks: int | None
    slope: float | None
    """Of the logits, which are sums; None for those that are products."""
    within: Literal["target", "relation"]
    dropout: float
    adds: bool
    """The messages once more, without attention, times a weight "w" of each channel."""
    edge: bool
    """Whether logits have a part of the edges."""
    pair: bool
    """Whether edges lead from one set of nodes to another."""


@functools.cache
def _program(options: _Options, part: Literal["all", "attention", "sums"] = "all") -> Program:
    """(L * H) attention of each edge, (H, L * C) sums of messages by a given "alpha", or both."""
    build = Builder()
    weight = build.weight(
        "weight", *_blocks(options, options.width, options.heads * options.channels)
    )
    source, target = _ends(build, options)
    message = _transformed(build, options, build.at_source(source), weight)
    if part == "sums":
        alpha = build.edges("alpha", options.dims * options.heads)
    else:
        of_target = _transformed(build, options, build.at_target(target), weight)
        alpha = build.softmax(_logits(build, options, message, of_target), options.within)
    if part == "attention":
        return build.build(alpha)
    message = build.reshape(message, options.heads, options.channels)
    if options.dropout:
        alpha = build.dropout(alpha, options.dropout)
    weights = build.split(alpha, [options.heads] * options.dims) if options.dims > 1 else [alpha]
    sums = [build.sum(message, each) for each in weights]
    if options.adds:
        unweighted = build.mul(build.sum(message), build.weight("w", options.channels, by=None))
        sums = [build.add(each, unweighted) for each in sums]
    return build.build(build.concat(*sums) if len(sums) > 1 else sums[0])


def _blocks(options: _Options, *sizes: int) -> tuple[int, ...]:
    """Sizes in blocks, behind their number; as they are where there are none."""
    if options.blocks is None:
        return sizes
    return (options.blocks, *(size // options.blocks for size in sizes))


def _ends(build: Builder, options: _Options) -> tuple[Value, Value]:
    rows = _blocks(options, options.width)
    if options.pair:
        return build.sources("source", *rows), build.targets("target", *rows)
    x = build.nodes("x", *rows)
    return x, x


def _transformed(build: Builder, options: _Options, x: Value, weight: Value) -> Value:
    product = build.linear(x, weight)
    if options.blocks is None:
        return product
    return build.reshape(product, options.heads * options.channels)


def _logits(build: Builder, options: _Options, of_source: Value, of_target: Value) -> Value:
    columns = options.dims * options.heads
    shape = (options.heads * options.channels, columns)
    query = build.linear(of_target, build.weight("q", *shape, by=None))
    key = build.linear(of_source, build.weight("k", *shape, by=None))
    join = build.mul if options.slope is None else build.add
    logits = join(query, key)
    if options.edge:
        logits = join(logits, build.edges("edge", columns))
    return logits if options.slope is None else build.leaky_relu(logits, options.slope)
