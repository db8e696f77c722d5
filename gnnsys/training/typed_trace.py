"""A model of a heterogeneous graph followed once: what it does to the rows of each node type.

``torch.fx`` calls the model with stand-ins for rows and edges, so that whatever it is written with
(``HeteroConv``, ``HGTConv``, ``to_hetero``, modules of a user's) becomes a list of operations:
graph layers, which need the rows of neighbours, and others, each on rows of one node type. Owns
which operations there may be and how many graph layers lie below each.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx import Node, Proxy
from torch.fx.node import map_arg
from torch_geometric.nn import GCNConv, HeteroDictLinear, MessagePassing
from torch_geometric.nn.conv.hetero_conv import group
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import UnsupportedError
from gnnsys.training.layer_checks import (
    BIPARTITE,
    TYPED_LAYERS,
    aggregations_of,
    problem_of,
    told,
)
from gnnsys.training.model_layers import QUANTILES
from gnnsys.training.typed_convs import TYPED_CONVS

__all__ = ["TracedModel", "TypedConvolution"]

_TARGET = "gnnsys_target"
"""Under which the node type of a graph layer's outputs is noted, where it has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TypedConvolution:
    """The outputs of a graph layer for the nodes of one type."""

    conv: MessagePassing

    name: str
    """In the model."""

    target: NodeType
    """Type of the nodes that it computes."""

    own: Node
    """Value whose rows it takes of these nodes."""

    sources: dict[NodeType, Node]
    """Value whose rows it takes of their neighbours, by type."""

    relations: tuple[EdgeType, ...]
    """Along which these are neighbours."""


class TracedModel:
    """What a model computes of rows and edges, as ``torch.fx`` found it.

    A value is a ``Node`` of fx; those that are needed for the outputs are considered alone.

    Args:
        model: called as ``model(x_dict, edge_index_dict)``, in evaluation mode, with all its
            weights.
        node_types: keys of x_dict.
        edge_types: keys of edge_index_dict.

    Raises:
        UnsupportedError: a model that cannot be followed, a graph layer that may need more than a
            node's neighbours, or another operation on edges, or on rows of several types.
    """

    values: list[Node]
    """All that are needed, each after those that it is made of."""
    inputs: dict[Node, NodeType]
    """Rows that the model is given."""
    kinds: dict[Node, NodeType]
    """Whose rows a value holds, of every value that is made of rows."""
    depths: dict[Node, int]
    """Graph layers below it."""
    convolutions: dict[Node, TypedConvolution]
    constants: dict[Node, Any]
    """Values that are made of no rows."""
    outputs: dict[str, Node]
    """By key, or by node type where the model returns a tensor."""
    returns_dict: bool

    def __init__(
        self,
        model: torch.nn.Module,
        node_types: Sequence[NodeType],
        edge_types: Sequence[EdgeType],
    ) -> None:
        self._root = _Called(model, node_types, edge_types)
        self.inputs, self.kinds, self.depths = {}, {}, {}
        self.convolutions, self.constants = {}, {}
        self._edges: dict[Node, EdgeType] = {}
        graph = self._trace()
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        returned = next(node for node in graph.nodes if node.op == "output").args[0]
        needed = _needed(returned)
        self.values = [node for node in graph.nodes if node in needed]
        for node in self.values:
            self._note(node)
        self.returns_dict = isinstance(returned, dict)
        self.outputs = self._name_outputs(returned)

    def last_use(self, value: Node) -> float:
        """The largest depth at which a value is taken; infinite for an output."""
        if value in self.outputs.values():
            return math.inf
        return max((self.depths[user] for user in value.users if user in self.depths), default=0)

    def name_of(self, value: Node) -> str:
        """How an error calls a value: the module that makes it, with its options, or its name."""
        if value.op != "call_module":
            return str(value.name)
        module = self._root.get_submodule(str(value.target))
        return f"{_name_of(value)}, {told(module)}"

    def compute(self, value: Node, values: Mapping[Node, Any]) -> Any:
        """A value that is no graph layer's, of those that it is made of."""

        def given(arguments: Any) -> Any:
            return map_arg(arguments, lambda node: values[node])

        target, args, kwargs = value.target, given(value.args), given(value.kwargs)
        if value.op == "get_attr":
            return operator.attrgetter(str(target))(self._root)
        if value.op == "call_module":
            return self._root.get_submodule(str(target))(*args, **kwargs)
        if value.op == "call_method":
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        assert callable(target)
        return target(*args, **kwargs)

    def _trace(self) -> torch.fx.Graph:
        try:
            return _Tracer(autowrap_functions=(group,)).trace(self._root)
        except UnsupportedError:
            raise
        except Exception as error:  # whatever a user's forward raises on stand-ins
            raise UnsupportedError(
                f"model: {type(self._root.model).__name__} cannot be followed by torch.fx "
                f"({type(error).__name__}: {error}); its forward(x_dict, edge_index_dict) may "
                "neither look at values of rows nor loop over them, and its parts are modules"
            ) from error

    def _note(self, node: Node) -> None:
        """Notes what a value is made of."""
        if node.op in ("placeholder", "output"):
            return
        made_of = node.all_input_nodes
        if made_of and made_of[0] in self._placeholders:
            key = node.args[1]
            if made_of[0] is self._placeholders[0]:
                self.inputs[node] = self.kinds[node] = str(key)
                self.depths[node] = 0
            else:
                self._edges[node] = key
            return
        if isinstance(_module_of(self._root, node), MessagePassing):
            self._note_convolution(node)
            return
        if any(each in self._edges for each in made_of):
            raise UnsupportedError(
                f"model: {self.name_of(node)} works on edges; only graph layers of PyG may, those "
                "of the data as they are"
            )
        kinds = {self.kinds[each] for each in made_of if each in self.kinds}
        if len(kinds) > 1:
            raise UnsupportedError(
                f"model: {self.name_of(node)} brings rows of {_listed(kinds)} together; only graph "
                "layers may work on rows of several node types"
            )
        if kinds:
            self.kinds[node] = kinds.pop()
            self.depths[node] = max(self.depths[each] for each in made_of if each in self.depths)
        else:
            self.constants[node] = self.compute(node, self.constants)

    def _note_convolution(self, node: Node) -> None:
        conv = _module_of(self._root, node)
        problem = problem_of(conv, TYPED_LAYERS)
        if not problem and conv.flow != "source_to_target":
            problem = "has messages that flow from target to source; expected source_to_target"
        if not problem and isinstance(conv, GCNConv) and conv.cached:
            problem = "keeps the edges of its first call; use cached=False"
        if problem:
            raise self._refusal(node, problem)
        rows, edges = self._arguments(node, conv)
        target = node.meta.get(_TARGET, edges[0][-1] if edges else None)
        if not edges:
            raise self._refusal(node, f"has no edge type in the data that leads to {target!r}")
        if not isinstance(conv, TYPED_CONVS) and edges[0][0] != target and type(rows) is not tuple:
            raise self._refusal(node, f"takes one tensor for {edges[0]}, expected one of each end")
        if isinstance(conv, TYPED_CONVS):
            sources = {kind: each for kind, each in rows.items() if kind in {e[0] for e in edges}}
            own = rows[target]
        else:
            source, own = rows if isinstance(rows, tuple) else (rows, rows)
            sources = {edges[0][0]: source}
        for kind, each in (*sources.items(), (target, own)):
            if self.kinds.get(each) != kind:
                raise self._refusal(
                    node, f"takes what is not made of the rows of {kind!r} in x_dict as such rows"
                )
        pair = sources.get(target) is not own and not isinstance(conv, TYPED_CONVS)
        kinds = {type(each) for each in aggregations_of(conv.aggr_module)}
        if pair and (kinds & {*QUANTILES} or not isinstance(conv, BIPARTITE)):
            raise self._refusal(
                node, "does not take different rows of sources and targets in parts"
            )
        self.convolutions[node] = TypedConvolution(
            conv=conv, name=_name_of(node), target=target, own=own, sources=sources,
            relations=tuple(edges),
        )  # fmt: skip
        self.kinds[node] = target
        self.depths[node] = 1 + max(self.depths[each] for each in (own, *sources.values()))

    def _arguments(self, node: Node, conv: MessagePassing) -> tuple[Any, list[EdgeType]]:
        """What a graph layer takes rows from, as it is given them, and its edge types."""
        given = dict(inspect.signature(conv.forward).bind(*node.args, **node.kwargs).arguments)
        if isinstance(conv, TYPED_CONVS):
            edges = given["edge_index_dict"]
            for kind, each in edges.items():
                if self._edges.get(each) != kind:
                    raise self._refusal(node, f"takes other edges than the data's as {kind}")
            return given["x_dict"], list(edges)
        rows, edge = given.pop("x", None), given.pop("edge_index", None)
        others = [name for name, value in given.items() if value is not None]
        if others:
            raise self._refusal(node, f"is given {others[0]}; only rows and edges can be given")
        if not isinstance(edge, Node) or edge not in self._edges:
            raise self._refusal(node, "takes other edges than those of an edge type of the data")
        if isinstance(rows, (tuple, list)):
            rows = tuple(rows)
        return rows, [self._edges[edge]]

    def _refusal(self, node: Node, problem: str) -> UnsupportedError:
        return UnsupportedError(f"model: {self.name_of(node)}, {problem}")

    def _name_outputs(self, returned: Any) -> dict[str, Node]:
        outputs = dict(returned) if isinstance(returned, dict) else {"": returned}
        for key, each in outputs.items():
            if not isinstance(key, str) or not isinstance(each, Node) or each not in self.kinds:
                raise UnsupportedError(
                    f"model: returns {each!r}{f' as {key!r}' if key else ''}; expected rows of a "
                    "node type, or a dict of such"
                )
        if isinstance(returned, dict):
            return outputs
        return {self.kinds[returned]: returned}


class _Called(torch.nn.Module):
    """A model called with the rows and edges of all types."""

    def __init__(
        self,
        model: torch.nn.Module,
        node_types: Sequence[NodeType],
        edge_types: Sequence[EdgeType],
    ) -> None:
        super().__init__()
        self.model = model
        self.node_types, self.edge_types = [*node_types], [*edge_types]

    def forward(self, x: Any, edges: Any) -> Any:
        """What the model returns; rows that it returns as they came become values of their own."""
        returned = self.model(
            {kind: x[kind] for kind in self.node_types},
            {kind: edges[kind] for kind in self.edge_types},
        )
        if isinstance(returned, dict):
            return {key: _positive(each) for key, each in returned.items()}
        return _positive(returned)


def _positive(value: Any) -> Any:
    positive: Callable[[Any], Any] = torch.positive
    return positive(value) if isinstance(value, Proxy) else value


class _Tracer(torch.fx.Tracer):
    """Follows modules that hold graph layers or take edges, or rows of several types; others are
    one operation each, and so are functions that look at what kind of thing they are given."""

    def call_module(
        self,
        m: torch.nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """See ``torch.fx.Tracer``."""
        if isinstance(m, TYPED_CONVS):
            return self._call_by_type(m, *args, **kwargs)
        if isinstance(m, HeteroDictLinear):  # which may multiply the rows of all types at once
            (rows,) = (*args, *kwargs.values())
            return {kind: linear(rows[kind]) for kind, linear in m.lins.items() if kind in rows}
        if not isinstance(m, MessagePassing) and (
            any(isinstance(part, MessagePassing) for part in m.modules())
            or any(isinstance(each, dict) or _is_edges(each) for each in (*args, *kwargs.values()))
        ):
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _call_by_type(
        self, conv: Any, x_dict: dict[str, Any], edge_index_dict: dict[EdgeType, Any]
    ) -> dict[str, Any]:
        """A call for each type of nodes that get messages, with the edges that lead to it."""
        outputs = {}
        for kind in (each for each in x_dict if each in conv.dst_node_types):
            edges = {key: each for key, each in edge_index_dict.items() if key[-1] == kind}
            rows = {key: x_dict[key] for key in (kind, *(edge[0] for edge in edges))}
            call = self.create_proxy("call_module", self.path_of_module(conv), (rows, edges), {})
            call.node.meta[_TARGET] = kind
            outputs[kind] = call
        return outputs


def _is_edges(value: Any) -> bool:
    """Whether a stand-in is of the edges that the model is given."""
    if not isinstance(value, Proxy):
        return False
    made_of = value.node.all_input_nodes
    return bool(made_of) and made_of[0].op == "placeholder" and made_of[0].name == "edges"


def _module_of(root: torch.nn.Module, node: Node) -> Any:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name_of(node: Node) -> str:
    """Of a module in the user's model."""
    return str(node.target).removeprefix("model").removeprefix(".") or "itself"


def _needed(returned: Any) -> set[Node]:
    """The values that others are made of, and these."""
    found: set[Node] = set()
    waiting: list[Node] = []
    map_arg(returned, waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _listed(kinds: set[NodeType]) -> str:
    return " and ".join(map(repr, sorted(kinds)))
