"""Programs run over a graph, instruction by instruction, with operators of torch.

What a program needs is worked out once: each instruction becomes one function of what is run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.message_passing.sums import dot_neighbors, sum_neighbors
from gnnsys.rel.dtypes import of_one_dtype
from gnnsys.rel.fusing import ends_of_inner, terms_of_softmax
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.program import Domain, Instruction, Program
from gnnsys.rel.rows import (
    Find,
    edges_between,
    reciprocal_degrees,
    reciprocal_degrees_of_edges,
    row_map,
    rows_of,
    types_of_nodes,
)
from gnnsys.rel.segments import BACKENDS, segment_matmul

__all__ = ["run"]

# A value is a tensor (rows of its domain, *shape); of the domain ONE it is (*shape).


@dataclass(slots=True)
class _Run:
    graph: RelationalGraph
    given: Mapping[str, Tensor]
    backend: str
    training: bool
    values: list[Any]
    """Of the instructions so far; None once nothing reads them any more."""


_Step = Callable[[_Run], Tensor]


def run(
    program: Program,
    graph: RelationalGraph,
    values: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    training: bool = False,
) -> Tensor:
    """What the program returns for these inputs and weights; torch differentiates it.

    Args:
        program: of a builder, or as ``optimise`` made it.
        graph: whose edges the program is run over.
        values: by the names that the program gives them: inputs (rows, *shape), those of edges in
            the order of the edges given, and weights. Floats are of one element type; under
            torch.autocast all but float64 are cast to its.
        backend: of ``segment_matmul``.
        training: whether dropout drops.

    Returns:
        (rows, *shape) of the result's domain; those of edges in the order of the edges given, those
        of pairs in that of ``graph.sources_of_types`` and ``graph.targets_of_types``.

    Raises:
        ArgumentError: a value that is missing or has another shape; a program over one set of nodes
            for a graph that has two; an unknown backend.
        DTypeError: floats of several element types, or of one that is not summed.

    >>> from gnnsys.rel.program import Builder
    >>> layer = Builder()
    >>> x, w = layer.nodes("x", 1), layer.weight("w", 1, 1, by="etype")
    >>> rgcn = layer.build(layer.sum(layer.linear(layer.at_source(x), w)))
    >>> graph = RelationalGraph(
    ...     torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1]), num_relations=2, num_sources=2
    ... )
    >>> x, w = torch.tensor([[1.0], [2.0]]), torch.tensor([[[10.0]], [[100.0]]])
    >>> run(rgcn, graph, {"x": x, "w": w}).tolist()
    [[0.0], [210.0]]
    """
    steps: list[tuple[_Step, tuple[int, ...]]] | None = program.kept.get("steps")
    if steps is None:
        steps = program.kept["steps"] = _steps(program)
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: {backend!r}, expected one of {', '.join(BACKENDS)}")
    given = of_one_dtype({key: values[key] for key in program.given() if key in values})
    state = _Run(graph, given, backend, training, [])
    kind = graph.source.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):  # given is cast; all else is of its dtype
            result = _take_steps(steps, state, program.result)
    else:
        result = _take_steps(steps, state, program.result)
    of_edges = program.instructions[program.result].domain is Domain.EDGE
    return graph.to_given(result) if of_edges else result


def _take_steps(steps: list[tuple[_Step, tuple[int, ...]]], state: _Run, result: int) -> Tensor:
    made = state.values
    for step, frees in steps:
        made.append(step(state))
        for each in frees:
            made[each] = None
    found: Tensor = made[result]
    return found


def _steps(program: Program) -> list[tuple[_Step, tuple[int, ...]]]:
    frees = program.frees or ((),) * len(program.instructions)
    makers = [_MAKERS[each.op](program, each) for each in program.instructions]
    return list(zip(makers, frees, strict=True))


# Rows of other domains ----------------------------------------------------------------------------


def _read(program: Program, number: int, domain: Domain) -> _Step:
    """A value with one row for each of this domain: copied from its own, unless it lives there."""
    made = program.instructions[number]
    if made.domain is Domain.ONE and domain is not Domain.ONE:
        return lambda run: run.values[number].expand(rows_of(run.graph, domain), *made.shape)
    if made.op == "reciprocal_degree" and domain is Domain.EDGE:
        return lambda run: reciprocal_degrees_of_edges(run.graph, _like(run))
    return _mapped(number, made.domain, domain)


def _like(run: _Run) -> Tensor:
    """A value that was given, of the dtype that all floats have."""
    for each in run.given.values():
        if each.is_floating_point():
            return each
    raise ArgumentError(
        "values: the program reads no floats, whose element type reciprocal degrees would have; "
        "multiply them with a weight"
    )


def _mapped(number: int, read: Domain, domain: Domain) -> _Step:
    find = row_map(read, domain)
    if find is None:
        return lambda run: run.values[number]
    return lambda run: run.values[number].index_select(0, find(run.graph))


# What is given ------------------------------------------------------------------------------------


def _given(program: Program, made: Instruction) -> _Step:
    name, domain, shape = made.name, made.domain, made.shape

    def step(run: _Run) -> Tensor:
        value = run.given.get(name)
        if value is None:
            raise ArgumentError(f"values: {name!r} is missing; the program reads it")
        expected = shape if domain is Domain.ONE else (rows_of(run.graph, domain), *shape)
        if value.shape != expected:
            raise ArgumentError(
                f"values: {name!r} has shape {tuple(value.shape)}, expected {expected}: a row for "
                f"each {domain.value}"
            )
        return run.graph.from_given(value) if domain is Domain.EDGE else value

    return step


def _reciprocal_degree(program: Program, made: Instruction) -> _Step:
    return lambda run: reciprocal_degrees(run.graph, _like(run))


# Of each row --------------------------------------------------------------------------------------


def _at(program: Program, made: Instruction) -> _Step:
    end = Domain.SRC if made.op == "at_source" else Domain.DST
    return _mapped(made.inputs[0], end, made.domain)


def _linear(program: Program, made: Instruction) -> _Step:
    x, weight = made.inputs
    by, read = program.instructions[weight].domain, program.instructions[x].domain
    if by is Domain.ONE:
        return _linear_of_one_type(_read(program, x, made.domain), weight, len(made.shape))
    if made.domain is by:
        rows = _read(program, x, by)
        return lambda run: torch.matmul(rows(run).unsqueeze(-2), run.values[weight]).squeeze(-2)
    ptr = _PTR[made.domain]
    find = row_map(read, made.domain)
    if not made.fused or find is None:
        rows = _mapped(x, read, made.domain)
        return lambda run: segment_matmul(
            rows(run), run.values[weight], ptr(run.graph), backend=run.backend
        )

    def gathered(run: _Run) -> Tensor:
        return segment_matmul(
            run.values[x], run.values[weight], ptr(run.graph), find(run.graph), backend=run.backend
        )

    narrow = len(made.shape) == 1 and 0 < made.shape[0] <= _NARROW
    if not narrow or read not in (Domain.SRC, Domain.DST) or made.domain is Domain.EDGE:
        return gathered
    products = _products_with_types(x, weight, types_of_nodes(made.domain))
    return lambda run: products(run) if run.backend == "auto" else gathered(run)


_NARROW = 4
"""Columns up to which the product with a pair's type is a dot product for each of them."""


def _products_with_types(x: int, weight: int, types_of: Find) -> _Step:
    """Each node's row meets the types of its edges: neither it nor its derivative is copied."""

    def step(run: _Run) -> Tensor:
        edges = types_of(run.graph)
        columns = run.values[weight].unbind(-1)
        products = [dot_neighbors(each, run.values[x], edges) for each in columns]
        return products[0] if len(products) == 1 else torch.cat(products, 1)

    return step


def _linear_of_one_type(rows: _Step, weight: int, dimensions: int) -> _Step:
    if dimensions == 1:
        return lambda run: rows(run) @ run.values[weight]
    return lambda run: torch.einsum("...bk,bkn->...bn", rows(run), run.values[weight])


_PTR: dict[Domain, Callable[[RelationalGraph], Tensor]] = {
    Domain.NODE: lambda graph: graph.node_ptr,
    Domain.DST: lambda graph: graph.node_ptr,
    Domain.EDGE: lambda graph: graph.edge_ptr,
    Domain.SRC_ETYPE: lambda graph: graph.sources_of_types.ptr,
    Domain.DST_ETYPE: lambda graph: graph.targets_of_types.ptr,
}


def _inner(program: Program, made: Instruction) -> _Step:
    ends = ends_of_inner(program, made) if made.fused else None
    if ends is not None:
        a, b = (program.instructions[each].domain for each in ends)
        if b is Domain.ETYPE:
            return _inner_of_types(made, *ends)
        return _dot(made, *ends, edges_between(a, b))
    a_rows, b_rows = (_read(program, each, made.domain) for each in made.inputs)
    return lambda run: (a_rows(run) * b_rows(run)).sum(-1)


def _dot(made: Instruction, source: int, target: int, edges: Find) -> _Step:
    heads = math.prod(made.shape)

    def step(run: _Run) -> Tensor:
        products = dot_neighbors(run.values[source], run.values[target], edges(run.graph), heads)
        return products.reshape(len(products), *made.shape)

    return step


def _inner_of_types(made: Instruction, rows: int, weight: int) -> _Step:
    ptr = _PTR[made.domain]
    return lambda run: segment_matmul(
        run.values[rows],
        run.values[weight].unsqueeze(-1),
        ptr(run.graph),
        backend=run.backend,
    ).squeeze(-1)


def _binary(program: Program, made: Instruction) -> _Step:
    operator = torch.add if made.op == "add" else torch.mul
    a, b = (_read_to_broadcast(program, each, made) for each in made.inputs)
    return lambda run: operator(a(run), b(run))


def _read_to_broadcast(program: Program, number: int, to: Instruction) -> _Step:
    """With rows that broadcast against those of ``to``."""
    made = program.instructions[number]
    if made.domain is Domain.ONE:  # has no dimension of rows
        return lambda run: run.values[number]
    step = _read(program, number, to.domain)
    padded = (1,) * (len(to.shape) - len(made.shape)) + made.shape
    return step if padded == made.shape else lambda run: _reshape_rows(step(run), padded)


def _reshape_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(x.size(0), *shape)


def _unary(program: Program, made: Instruction) -> _Step:
    x = _read(program, made.inputs[0], made.domain)
    function = _UNARY[made.op](*made.numbers)
    return lambda run: function(x(run))


_UNARY: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "scale": lambda number: lambda x: x * number,
    "leaky_relu": lambda slope: lambda x: F.leaky_relu(x, slope),
    "relu": lambda: torch.relu,
    "exp": lambda: torch.exp,
    "slice": lambda first, end: lambda x: x[..., first:end],
    "transpose": lambda: lambda x: x.transpose(-1, -2),
}


def _dropout(program: Program, made: Instruction) -> _Step:
    x, (p,) = _read(program, made.inputs[0], made.domain), made.numbers
    return lambda run: F.dropout(x(run), p, run.training)


def _reshape(program: Program, made: Instruction) -> _Step:
    x, shape = _read(program, made.inputs[0], made.domain), made.shape
    if made.domain is Domain.ONE:
        return lambda run: x(run).reshape(shape)
    return lambda run: _reshape_rows(x(run), shape)


def _concat(program: Program, made: Instruction) -> _Step:
    parts = [_read(program, each, made.domain) for each in made.inputs]
    return lambda run: torch.cat([part(run) for part in parts], -1)


# Products of weights ------------------------------------------------------------------------------


def _fold_linear(program: Program, made: Instruction) -> _Step:
    first, second = made.inputs
    return lambda run: torch.matmul(run.values[first], run.values[second])


def _fold_inner(program: Program, made: Instruction) -> _Step:
    """Of (K, H * C) and (H, C): (K, H); of blocks (B, K, N) and (B, N): (B, K, 1)."""
    first, second = made.inputs
    shape = program.instructions[second].shape
    if len(made.shape) == 3:
        return lambda run: torch.matmul(run.values[first], run.values[second].unsqueeze(-1))
    heads = (made.shape[-1], shape[-1])

    def step(run: _Run) -> Tensor:
        by_head = run.values[first].unflatten(-1, heads).transpose(-2, -3)
        weight = run.values[second].unsqueeze(-1)
        weight = weight if shape[:-1] else weight.unsqueeze(-3)
        return torch.matmul(by_head, weight).squeeze(-1).transpose(-1, -2)

    return step


# Over the edges of a target -----------------------------------------------------------------------


def _softmax(program: Program, made: Instruction) -> _Step:
    logits = _read(program, made.inputs[0], Domain.EDGE)
    within = made.within or Domain.DST
    find = row_map(within, Domain.EDGE)
    assert find is not None

    def step(run: _Run) -> Tensor:
        z, of_edge = logits(run), find(run.graph)
        empty = z.new_zeros(rows_of(run.graph, within), *made.shape)
        wide = of_edge.reshape(-1, *(1,) * len(made.shape)).expand(z.shape)
        top = empty.scatter_reduce(0, wide, z.detach(), "amax", include_self=False)
        z = (z - top.index_select(0, of_edge)).exp()
        return z / empty.index_add(0, of_edge, z).index_select(0, of_edge)

    return step


def _edge_softmax(program: Program, made: Instruction) -> _Step:
    within = made.within or Domain.DST
    source, target, rest = terms_of_softmax(program, made)
    from_ = Domain.SRC if source is None else program.instructions[source].domain
    edges = edges_between(from_, within)
    of_target = None if target is None else _read(program, target, within)
    others = [_read(program, each, Domain.EDGE) for each in rest]
    slope = made.numbers[0] if made.numbers else None
    heads = (math.prod(made.shape),)

    def step(run: _Run) -> Tensor:
        parts = [_reshape_rows(each(run), heads) for each in others]
        shares = edge_softmax(
            edges(run.graph),
            num_targets=rows_of(run.graph, within),
            logits=functools.reduce(torch.add, parts) if parts else None,
            source=None if source is None else _reshape_rows(run.values[source], heads),
            target=None if of_target is None else _reshape_rows(of_target(run), heads),
            negative_slope=slope,
        )
        return _reshape_rows(shares, made.shape)

    return step


def _sum(program: Program, made: Instruction) -> _Step:
    x, *weights = made.inputs
    of_weight = program.instructions[weights[0]].shape if weights else ()
    weight = _read(program, weights[0], Domain.EDGE) if weights else None
    if not made.fused:
        return _sum_of_edges(made, _read(program, x, Domain.EDGE), weight, of_weight)
    read = program.instructions[x].domain
    read = Domain.EDGE if read is Domain.ONE else read
    rows, edges = _read(program, x, read), edges_between(read, made.domain)
    mean = (
        weight is not None
        and program.instructions[weights[0]].op == "reciprocal_degree"
        and made.domain is Domain.DST_ETYPE
    )
    heads = math.prod(of_weight)
    wide = (heads, math.prod(made.shape) // heads) if heads > 1 else (math.prod(made.shape),)

    def step(run: _Run) -> Tensor:
        summed = sum_neighbors(
            _reshape_rows(rows(run), wide),
            edges(run.graph),
            None if weight is None or mean else _reshape_rows(weight(run), (heads,)),
            num_nodes=rows_of(run.graph, made.domain),
            mean=mean,
        )
        return _reshape_rows(summed, made.shape)

    return step


def _sum_of_edges(
    made: Instruction, rows: _Step, weight: _Step | None, of_weight: tuple[int, ...]
) -> _Step:
    find = row_map(made.domain, Domain.EDGE)
    assert find is not None
    padded = of_weight + (1,) * (len(made.shape) - len(of_weight))

    def step(run: _Run) -> Tensor:
        x = rows(run)
        if weight is not None:
            x = x * _reshape_rows(weight(run), padded)
        empty = x.new_zeros(rows_of(run.graph, made.domain), *made.shape)
        return empty.index_add(0, find(run.graph), x)

    return step


def _sum_pairs(program: Program, made: Instruction) -> _Step:
    (x,), wide = made.inputs, (math.prod(made.shape),)

    def step(run: _Run) -> Tensor:
        graph = run.graph
        rows = _reshape_rows(run.values[x], wide)
        summed = sum_neighbors(rows, graph.pair_nodes, num_nodes=graph.num_targets)
        return _reshape_rows(summed, made.shape)

    return step


_MAKERS: dict[str, Callable[[Program, Instruction], _Step]] = {
    **dict.fromkeys(("nodes", "sources", "targets", "edges", "weight"), _given),
    **dict.fromkeys(("at_source", "at_target"), _at),
    **dict.fromkeys(("add", "mul"), _binary),
    **dict.fromkeys(_UNARY, _unary),
    "reciprocal_degree": _reciprocal_degree,
    "linear": _linear,
    "inner": _inner,
    "dropout": _dropout,
    "reshape": _reshape,
    "concat": _concat,
    "fold_linear": _fold_linear,
    "fold_inner": _fold_inner,
    "softmax": _softmax,
    "edge_softmax": _edge_softmax,
    "sum": _sum,
    "sum_pairs": _sum_pairs,
}
