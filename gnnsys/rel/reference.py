"""Programs run row by row, as plainly as they are written: what executors must agree with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.program import Domain, Instruction, Program

__all__ = ["run_reference"]

Key = Hashable
"""Of a row: a node, an edge's place among those given, a type, or (target, edge type)."""

Rows = dict[Key, Tensor]


def run_reference(program: Program, graph: RelationalGraph, values: Mapping[str, Tensor]) -> Tensor:
    """What a program returns, by loops over rows and edges, in float64; nothing is dropped.

    For small graphs: torch differentiates it one row at a time.

    Args:
        program: as its builder made it.
        graph: whose edges it is run over.
        values: by the names that the program gives them, those of edges in the given order.

    Returns:
        (rows, *shape) float64, those of edges in the given order.

    Raises:
        ArgumentError: a program that passes have changed.

    >>> from gnnsys.rel.program import Builder
    >>> layer = Builder()
    >>> x, w = layer.nodes("x", 1), layer.weight("w", 1, 1, by="etype")
    >>> rgcn = layer.build(layer.sum(layer.linear(layer.at_source(x), w)))
    >>> graph = RelationalGraph(
    ...     torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1]), num_relations=2, num_sources=2
    ... )
    >>> x, w = torch.tensor([[1.0], [2.0]]), torch.tensor([[[10.0]], [[100.0]]])
    >>> run_reference(rgcn, graph, {"x": x, "w": w}).tolist()
    [[0.0], [210.0]]
    """
    machine = _Machine(graph, values)
    for instruction in program.instructions:
        machine.run(instruction)
    rows = machine.rows[program.result]
    instruction = program.instructions[program.result]
    if not rows:
        return torch.zeros(0, *instruction.shape, dtype=torch.float64)
    result = torch.stack([*rows.values()])
    return result[0] if instruction.domain is Domain.ONE else result


class _Machine:
    def __init__(self, graph: RelationalGraph, values: Mapping[str, Tensor]) -> None:
        self.given = values
        ends = zip(graph.source.tolist(), graph.target.tolist(), strict=True)
        places = zip(graph.order.tolist(), ends, graph.edge_type.tolist(), strict=True)
        self.edges = {place: (*both, kind) for place, both, kind in sorted(places)}
        """Of each edge its source, target and type."""
        self.kind_of_node = [
            kind for kind, count in enumerate(graph.node_ptr.diff().tolist()) for _ in range(count)
        ]
        pairs = sorted({(kind, target) for _, target, kind in self.edges.values()})
        self.keys: dict[Domain, list[Any]] = {
            Domain.NODE: [*range(graph.num_sources)],
            Domain.SRC: [*range(graph.num_sources)],
            Domain.DST: [*range(graph.num_targets)],
            Domain.EDGE: [*self.edges],
            Domain.DST_ETYPE: [(target, kind) for kind, target in pairs],
            Domain.ETYPE: [*range(graph.num_relations)],
            Domain.NTYPE: [*range(len(graph.node_ptr) - 1)],
            Domain.ONE: [()],
        }
        self.domains: list[Domain] = []
        self.rows: list[Rows] = []

    def run(self, instruction: Instruction) -> None:
        op, domain = instruction.op, instruction.domain
        over_edges = {"softmax": self._softmax, "sum": self._sum}.get(op)
        if over_edges is not None:
            rows = over_edges(instruction)
        elif instruction.name:
            rows = self._given(instruction)
        elif op == "reciprocal_degree":
            rows = self._reciprocal_degrees()
        elif op in ("at_source", "at_target") and domain is Domain.EDGE:
            x = self.rows[instruction.inputs[0]]
            end = 0 if op == "at_source" else 1
            rows = {edge: x[ends[end]] for edge, ends in self.edges.items()}
        elif op in _OF_ROWS:
            rows = {key: self._of_row(instruction, key) for key in self.keys[domain]}
        else:
            raise ArgumentError(
                f"program: has {op!r} on {domain.value}, as passes write it; give the one that was "
                "built"
            )
        self.domains.append(domain)
        self.rows.append(rows)

    def _given(self, instruction: Instruction) -> Rows:
        value = self.given[instruction.name].double()
        keys = self.keys[instruction.domain]
        return {(): value} if keys == [()] else dict(zip(keys, value, strict=True))

    def _reciprocal_degrees(self) -> Rows:
        degrees: dict[Key, int] = defaultdict(int)
        for _, target, kind in self.edges.values():
            degrees[target, kind] += 1
        return {
            pair: torch.tensor(1 / degrees[pair], dtype=torch.float64)
            for pair in self.keys[Domain.DST_ETYPE]
        }

    def _of_row(self, instruction: Instruction, key: Key) -> Tensor:
        inputs = [self._read(each, instruction.domain, key) for each in instruction.inputs]
        return _OF_ROWS[instruction.op](instruction, *inputs)

    def _softmax(self, instruction: Instruction) -> Rows:
        edges_of: dict[Key, list[Key]] = defaultdict(list)
        for edge, (_, target, kind) in self.edges.items():
            edges_of[target if instruction.within is Domain.DST else (target, kind)].append(edge)
        rows: Rows = {}
        for edges in edges_of.values():
            logits = [self._read(instruction.inputs[0], Domain.EDGE, edge) for edge in edges]
            rows |= zip(edges, torch.stack(logits).softmax(0), strict=True)
        return {edge: rows[edge] for edge in self.edges}

    def _sum(self, instruction: Instruction) -> Rows:
        zero = torch.zeros(instruction.shape, dtype=torch.float64)
        rows: Rows = dict.fromkeys(self.keys[Domain.DST], zero)
        for edge, (_, target, _) in self.edges.items():
            x, *weight = (self._read(each, Domain.EDGE, edge) for each in instruction.inputs)
            for factor in weight:
                x = x * factor.reshape(factor.shape + (1,) * (x.dim() - factor.dim()))
            rows[target] = rows[target] + x
        return rows

    def _read(self, number: int, domain: Domain, key: Any) -> Tensor:
        """The row of a value that a row of another domain sees."""
        return self.rows[number][self._seen(self.domains[number], domain, key)]

    def _seen(self, read: Domain, domain: Domain, key: Any) -> Key:
        if read is Domain.ONE:
            return ()
        if read is Domain.NTYPE is not domain:
            return self.kind_of_node[key]
        if domain is Domain.EDGE and read is not Domain.EDGE:
            _, target, kind = self.edges[key]
            return kind if read is Domain.ETYPE else (target, kind)
        if domain is Domain.DST_ETYPE and read is Domain.ETYPE:
            return key[1]
        return key


_OF_ROWS: dict[str, Callable[..., Tensor]] = {
    "linear": lambda made, x, w: (x.unsqueeze(-2) @ w).squeeze(-2),
    "inner": lambda made, a, b: (a * b).sum(-1),
    "add": lambda made, a, b: a + b,
    "mul": lambda made, a, b: a * b,
    "scale": lambda made, a: a * made.numbers[0],
    "leaky_relu": lambda made, a: torch.where(a > 0, a, a * made.numbers[0]),
    "relu": lambda made, a: torch.where(a > 0, a, 0),
    "exp": lambda made, a: a.exp(),
    "dropout": lambda made, a: a,
    "reshape": lambda made, a: a.reshape(made.shape),
    "concat": lambda made, *parts: torch.cat(parts, -1),
    "slice": lambda made, a: a[..., int(made.numbers[0]) : int(made.numbers[1])],
}
"""What becomes of one row."""
