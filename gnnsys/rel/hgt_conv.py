"""``HGTConv`` of PyG as a program: attention with matrices of node types and of edge types."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.dense.linear import is_uninitialized_parameter

from gnnsys.errors import ArgumentError
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.layer import Call, RelationalLayer, check_graph, run_uncompiled
from gnnsys.rel.program import Builder, Program

__all__ = ["HGTConv"]

# N nodes of all types, T edge types; H heads of C channels.


class HGTConv(RelationalLayer, torch_geometric.nn.HGTConv):
    """A drop-in for PyG's ``HGTConv``: its parameters and results, with all edge types at once.

    Keys and values of a node are multiplied by the matrices of an edge type (Hu et al.,
    "Heterogeneous Graph Transformer", WWW 2020) once for each distinct (source, edge type), not
    for all nodes that the type might start from; the factor ``p_rel / sqrt(C)`` of the logits is
    multiplied into the keys' matrices. The softmax goes over the edges of all types into a target.

    ``edge_index_dict`` may also be a ``RelationalGraph`` with the node and edge types in the order
    of ``metadata``; the order of a dict does not matter (PyG's takes the matrices of other types
    where it is not that of ``metadata``). Results have the element type of the rows and parameters:
    float32, float64 or bfloat16. Under torch.compile the layer runs uncompiled, between two graphs.
    ``flow="target_to_source"``, sparse matrices of edges, hooks on messages and explainers get
    PyG's own forward, which a warning says once.

    Args:
        args, kwargs: those of ``torch_geometric.nn.HGTConv``.
        passes: of ``gnnsys.rel.passes.PASSES``, those by which the program is made cheaper.
        backend: of ``gnnsys.rel.segments.BACKENDS``, what multiplies by the matrices of types.

    Raises:
        ArgumentError: an unknown pass or backend; in a call, edges of a type that is not in
            ``metadata`` or whose nodes are missing, rows of another width.
        DTypeError: in a call, rows of another element type than the parameters.
        RowIndexError: in a call, a node that its type does not have.

    >>> metadata = (["author", "paper"], [("author", "writes", "paper")])
    >>> conv = HGTConv(4, 8, metadata, heads=2)
    >>> x_dict = {"author": torch.ones(3, 4), "paper": torch.ones(2, 4)}
    >>> edges = {("author", "writes", "paper"): torch.tensor([[0, 1, 2], [0, 0, 1]])}
    >>> {name: tuple(rows.shape) for name, rows in conv(x_dict, edges).items()}
    {'paper': (2, 8)}
    """

    _pyg = torch_geometric.nn.HGTConv

    propagate_type: ClassVar = {"k": Tensor, "q": Tensor, "v": Tensor, "edge_attr": Tensor}
    """As PyG's own forward calls ``propagate``, which PyG reads in the source of the class else."""

    def forward(
        self, x_dict: Mapping[str, Tensor], edge_index_dict: Any
    ) -> dict[str, Tensor | None]:
        """See ``torch_geometric.nn.HGTConv.forward``."""
        if torch.compiler.is_compiling():
            compiled: dict[str, Tensor | None] = run_uncompiled(
                HGTConv.forward, self, x_dict, edge_index_dict
            )
            return compiled
        call = self._call(x_dict, edge_index_dict)
        if isinstance(call, str):
            self._say(call, edge_index_dict)
            result: dict[str, Tensor | None] = super().forward(x_dict, edge_index_dict)
            return result
        return self._finish(self._run(call), x_dict, call.graph)

    def _call(self, x_dict: Mapping[str, Tensor], edge_index_dict: Mapping[Any, Any]) -> Call | str:
        made = isinstance(edge_index_dict, RelationalGraph)
        edges = [edge_index_dict] if made else [*edge_index_dict.values()]
        reason = self._why_not_these([*x_dict.values()], edges)
        reason = reason or self._why_not_read(k_rel=self.k_rel, v_rel=self.v_rel)
        if reason:
            return reason
        x_dict = self._of_known_types(x_dict)
        graph = self._graph(x_dict, edge_index_dict)
        parts = [rows.tensor_split(3, 1) for rows in self.kqv_lin(x_dict).values()]
        k, q, v = (
            torch.cat(rows).unflatten(1, (self.heads, -1)) for rows in zip(*parts, strict=True)
        )
        scale = torch.cat([self.p_rel["__".join(each)] for each in self.edge_types])  # (T, H)
        k_rel = self._by_type(self.k_rel.weight) * (scale / math.sqrt(k.size(2)))[:, :, None, None]
        values = {"k": k, "q": q, "v": v, "k_rel": k_rel, "v_rel": self._by_type(self.v_rel.weight)}
        return Call(_program(self.heads, k.size(2)), graph, values)

    def _graph(self, x_dict: Mapping[str, Tensor], edge_index_dict: Any) -> RelationalGraph:
        num_nodes = {name: rows.size(0) for name, rows in x_dict.items()}
        if not isinstance(edge_index_dict, RelationalGraph):
            device = next((rows.device for rows in x_dict.values()), None)
            return RelationalGraph.from_hetero(
                edge_index_dict, num_nodes, self.edge_types, device=device
            )
        sizes = edge_index_dict.node_ptr.diff().tolist()
        if sizes != [*num_nodes.values()]:
            raise ArgumentError(
                f"edge_index_dict: a RelationalGraph of {sizes} nodes by type, expected {num_nodes}"
            )
        return check_graph(edge_index_dict, len(self.edge_types), sum(sizes), sum(sizes))

    def _of_known_types(self, x_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In the order of the layer's node types; lazy parameters get their widths."""
        known = {name: x_dict[name] for name in self.kqv_lin.lins if name in x_dict}
        for name, rows in known.items():
            linear = self.kqv_lin.lins[name]
            if not is_uninitialized_parameter(linear.weight):
                width, dtype = linear.in_channels, linear.weight.dtype
                self._check_rows(f"x_dict[{name!r}]", rows, width, dtype)
        return known

    def _by_type(self, weight: Tensor) -> Tensor:
        """(T, H, C, C) of (H * T, C, C)."""
        return weight.unflatten(0, (self.heads, -1)).transpose(0, 1)

    def _finish(
        self, out: Tensor, x_dict: Mapping[str, Tensor], graph: RelationalGraph
    ) -> dict[str, Tensor | None]:
        """Of (N, H, C) sums, for each type that edges may lead to, what its nodes become."""
        sizes = graph.node_ptr.diff().tolist()
        names = [name for name in self.kqv_lin.lins if name in x_dict]
        sums = dict(zip(names, F.gelu(out.flatten(1)).split(sizes), strict=True))
        sums = {name: rows for name, rows in sums.items() if name in self.dst_node_types}
        made: dict[str, Tensor | None] = {}
        for name, rows in self.out_lin(sums).items():
            x = x_dict[name]
            if rows.size(1) == x.size(1):
                alpha = self.skip[name].sigmoid()
                rows = alpha * rows + (1 - alpha) * x
            made[name] = rows
        return made


@functools.cache
def _program(heads: int, channels: int) -> Program:
    build = Builder()
    k, q, v = (build.nodes(name, heads, channels) for name in "kqv")
    k_rel, v_rel = (build.weight(f"{name}_rel", heads, channels, channels) for name in "kv")
    logits = build.inner(build.at_target(q), build.linear(build.at_source(k), k_rel))
    message = build.linear(build.at_source(v), v_rel)
    return build.build(build.sum(message, build.softmax(logits)))
