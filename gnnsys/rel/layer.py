"""What the drop-in layers share: whether a call is theirs, how its program is run, what is said."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from gnnsys.compat import (
    has_hooks,
    has_own_propagate,
    is_of_library,
    is_transformed,
    shows_messages,
    write_own_propagate,
)
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.message_passing.sums import SUMMED_DTYPES, can_sum
from gnnsys.rel.dtypes import why_not_autocast
from gnnsys.rel.execute import run
from gnnsys.rel.explain import Explanation, explain
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.passes import PASSES, optimise
from gnnsys.rel.program import Counts, Program
from gnnsys.rel.segments import BACKENDS
from gnnsys.system.once import warn_once

__all__ = ["Call", "RelationalLayer", "check_graph", "run_uncompiled", "typed_graph"]

_Layer = TypeVar("_Layer", bound="RelationalLayer")

_log = logging.getLogger(__name__)

_MOST_PROGRAMS = 256
"""Kept of one layer's options, for graphs of different sizes."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer is to compute: a program without passes, of this graph and these values."""

    program: Program
    graph: RelationalGraph
    values: Mapping[str, Tensor]


class RelationalLayer:
    """Stands before a layer of PyG, whose forward becomes a program.

    Args:
        args, kwargs: those of PyG's layer.
        passes: of ``gnnsys.rel.passes.PASSES``, those by which programs are made cheaper.
        backend: of ``gnnsys.rel.segments.BACKENDS``, what multiplies by the weights of types.

    Raises:
        ArgumentError: a pass or a backend that there is not.
    """

    _pyg: Any
    """PyG's class."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        write_own_propagate(cls)

    def __init__(
        self, *args: Any, passes: Sequence[str] = PASSES, backend: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._choose(passes, backend)

    def _choose(self, passes: Sequence[str], backend: str) -> None:
        unknown = [name for name in passes if name not in PASSES]
        if unknown:
            raise ArgumentError(f"passes: {unknown[0]!r}, expected of {', '.join(PASSES)}")
        if backend not in BACKENDS:
            raise ArgumentError(f"backend: {backend!r}, expected one of {', '.join(BACKENDS)}")
        self.passes = tuple(passes)
        self.backend = backend

    @classmethod
    def from_pyg(
        cls: type[_Layer], conv: Any, *, passes: Sequence[str] = PASSES, backend: str = "auto"
    ) -> _Layer:
        """A layer that shares the parameters of one of PyG: what trains one trains both.

        Inner layers, and with them what is done to these later, are shared as well; hooks of the
        layer itself are copied, as is whether it trains.

        Args:
            conv: the layer of PyG, or of this class; stays as it is.
            passes, backend: as of the class.

        Raises:
            DTypeError: a layer of another class, or of a user's class that is derived from it.
            ArgumentError: a pass or a backend that there is not.
        """
        if not isinstance(conv, cls._pyg) or not is_of_library(type(conv)):
            raise DTypeError(
                f"conv: a {type(conv).__module__}.{type(conv).__name__}, expected a "
                f"torch_geometric.nn.{cls._pyg.__name__}"
            )
        made = cls.__new__(cls)
        # Dictionaries (of parameters, modules, hooks) are copied, what is in them is shared.
        made.__dict__ = {
            name: copy.copy(value) if isinstance(value, dict) else value
            for name, value in conv.__dict__.items()
        }
        made._choose(passes, backend)
        return made

    def explain_program(self, *args: Any, **kwargs: Any) -> Explanation:
        """Rows, FLOPs and bytes of the layer's program before and after each of its passes.

        (PyG's ``explain`` says whether an explainer looks at the layer.)

        Args:
            args, kwargs: those of a call.

        Raises:
            ArgumentError: a call that goes to PyG's own forward, or one that ``forward`` refuses.
        """
        call = self._call(*args, **kwargs)
        if isinstance(call, str):
            raise ArgumentError(f"this call has no program, but PyG's own forward: {call}")
        return explain(call.program, call.graph.counts(), self.passes)

    def _call(self, *args: Any, **kwargs: Any) -> Call | str:
        """What a call of the layer computes; why PyG's own forward takes it where it does."""
        raise NotImplementedError

    def _run(self: Any, call: Call) -> Tensor:
        program = _optimised(call.program, call.graph, self.passes)
        training: bool = self.training
        return run(program, call.graph, call.values, backend=self.backend, training=training)

    def _say(self, reason: str, edges: Any) -> None:
        if isinstance(edges, RelationalGraph):
            raise ArgumentError(f"a RelationalGraph in a call for PyG's own forward: {reason}")
        warn_once(_log, "%s: computed by PyG's own forward: %s", type(self).__name__, reason)

    def _why_not_these(self: Any, rows: Sequence[Any], edges: Sequence[Any]) -> str:
        """Why PyG's own forward takes these; "" where a program does."""
        kind: Any = type(self)
        own = _own_methods(kind, self._pyg)
        if own:
            return f"the class has its own {own}"
        if has_own_propagate(self):
            return "the layer has its own propagate"
        if shows_messages(self):
            return (
                "a hook, an explanation, decomposed_layers or a function that is set on the layer "
                "looks at single messages"
            )
        if self.flow != "source_to_target":
            return f"flow={self.flow!r} is not source_to_target"
        if is_transformed():
            return "torch transforms the call (torch.func, forward-mode derivatives or tracing)"
        for each in edges:
            if each is None or isinstance(each, RelationalGraph):
                continue
            if _is_plain(each) and each.is_floating_point():
                raise DTypeError(
                    f"edge_index or edge_type: {each.dtype}, expected torch.int64; call .long()"
                )
            if not _is_plain(each) or each.dtype != torch.int64:
                return f"edges are {_kind_of(each)}, not a plain tensor of int64"
        for each in rows:
            if not _is_plain(each) or not can_sum(each):
                return f"rows are {_kind_of(each)}, not a plain tensor on the CPU or a CUDA device"
            if each.dtype not in SUMMED_DTYPES and each.dtype != torch.int64:
                return f"rows are {_kind_of(each)}, not of float32, float64 or bfloat16"
        return why_not_autocast(next(self.parameters()).device.type)

    @staticmethod
    def _why_not_read(**linears: Any) -> str:
        """Why PyG's own forward calls these, whose weights a program reads; "" where none does."""
        for name, linear in linears.items():
            if not is_of_library(type(linear)):
                return f"{name} is no layer of PyG"
            if has_hooks(linear):
                return f"a hook or a forward of its own is in {name}"
        return ""

    @staticmethod
    def _check_rows(name: str, x: Tensor, width: int, dtype: torch.dtype) -> None:
        if x.dim() != 2 or x.size(1) != width or not x.is_floating_point():
            raise ArgumentError(
                f"{name}: {x.dtype} of shape {tuple(x.shape)}, expected floats of (rows, {width})"
            )
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise DTypeError(
                f"{name}: {x.dtype}, but the layer's parameters are {dtype}; convert either"
            )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_uncompiled(forward: Callable[..., Any], *args: Any) -> Any:
    """The result of a class's own forward, which torch.compile does not look into."""
    return forward(*args)


def typed_graph(
    edge_index: Any, edge_type: Any, num_relations: int, *rows: int, one: bool
) -> RelationalGraph:
    """The graph of a call with these numbers of sources and targets, or of one set of nodes."""
    if isinstance(edge_index, RelationalGraph):
        if edge_type is not None:
            raise ArgumentError(
                "edge_type: given beside a RelationalGraph, which has types; omit it"
            )
        return check_graph(edge_index, num_relations, *rows)
    if edge_type is None:
        raise ArgumentError("edge_type: missing, expected (edges,) int64, a type for each edge")
    return RelationalGraph.of(
        edge_index,
        edge_type,
        num_relations=num_relations,
        num_sources=rows[0],
        num_targets=None if one else rows[1],
    )


def check_graph(graph: RelationalGraph, *sizes: int) -> RelationalGraph:
    """A graph that was given, which must have these relations, sources and targets."""
    found = (graph.num_relations, graph.num_sources, graph.num_targets)
    if found != sizes:
        raise ArgumentError(
            f"edge_index: a RelationalGraph of {found} relations, sources and targets, expected "
            f"{sizes}"
        )
    return graph


@functools.cache
def _own_methods(kind: Any, pyg: Any) -> str:
    """Methods of messages that a class derived from a drop-in overrides."""
    names = ("message", "aggregate", "update", "message_and_aggregate", "edge_update")
    return " and ".join(name for name in names if getattr(kind, name) is not getattr(pyg, name))


def _is_plain(x: Any) -> bool:
    return type(x) in (Tensor, Parameter) and x.layout == torch.strided


def _kind_of(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    return f"a {type(x).__name__} of {x.layout}, {x.dtype}, on {x.device}"


def _optimised(program: Program, graph: RelationalGraph, passes: tuple[str, ...]) -> Program:
    """Decided by about how many rows there are, so that similar mini-batches share a program."""
    if not passes:
        return program
    counts = graph.counts()
    rough = Counts(*(_rounded(getattr(counts, name)) for name in Counts.__slots__))
    known: dict[Any, Program] = program.kept.setdefault("optimised", {})
    made = known.get((rough, passes))
    if made is None:
        if len(known) >= _MOST_PROGRAMS:
            known.clear()
        made = known[rough, passes] = optimise(program, rough, passes)
    return made


def _rounded(count: int) -> int:
    """To three binary digits."""
    digits = max(0, count.bit_length() - 3)
    return count >> digits << digits
