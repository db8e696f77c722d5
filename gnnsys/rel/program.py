"""A layer over typed edges as a program: each value is written once and lives on one domain.

After the intermediate representation of Hector (Wu et al., ASPLOS 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from gnnsys.errors import ArgumentError

__all__ = ["Builder", "Counts", "Domain", "Instruction", "Program", "Value"]

# B blocks, H heads, K channels read, N channels written. Shapes are those of one row of a value.

Shape = tuple[int, ...]


class Domain(Enum):
    """What a value has one row of."""

    NODE = "node"
    """The nodes, where both ends of the edges are of one set."""
    SRC = "src"
    DST = "dst"
    EDGE = "edge"
    SRC_ETYPE = "(src, etype)"
    """The distinct pairs of an edge's source and its type."""
    DST_ETYPE = "(dst, etype)"
    """The distinct pairs of an edge's target and its type."""
    ETYPE = "etype"
    NTYPE = "ntype"
    ONE = "one"
    """A single row that all others read: a weight without types."""


_OF_NODES = {Domain.NODE, Domain.SRC, Domain.DST}
_OF_EDGES = {Domain.EDGE, Domain.SRC_ETYPE, Domain.DST_ETYPE, Domain.ETYPE}
_BY = {"etype": Domain.ETYPE, "ntype": Domain.NTYPE, None: Domain.ONE}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows each domain has for one graph; what the passes decide by.

    >>> Counts(sources=5, targets=3, edges=9, source_pairs=7, target_pairs=4, edge_types=2).rows(
    ...     Domain.DST_ETYPE
    ... )
    4
    """

    sources: int
    targets: int
    edges: int
    source_pairs: int
    target_pairs: int
    edge_types: int
    node_types: int = 1

    def rows(self, domain: Domain) -> int:
        """Rows of a value on this domain."""
        return {
            Domain.NODE: self.sources,
            Domain.SRC: self.sources,
            Domain.DST: self.targets,
            Domain.EDGE: self.edges,
            Domain.SRC_ETYPE: self.source_pairs,
            Domain.DST_ETYPE: self.target_pairs,
            Domain.ETYPE: self.edge_types,
            Domain.NTYPE: self.node_types,
            Domain.ONE: 1,
        }[domain]


@dataclass(frozen=True, slots=True)
class Instruction:
    """What writes one value. Values are numbered as their instructions are."""

    op: str
    """``nodes sources targets edges weight`` read what is given, the others compute:
    ``at_source at_target linear inner add mul scale leaky_relu relu exp dropout reshape concat
    slice reciprocal_degree softmax sum``; passes also write

    - ``transpose W``: (..., K, N) to (..., N, K);
    - ``fold_inner W, a``: a weight v so that inner(x W, a) is x v; ``fold_linear W, q``: W q;
    - ``sum_pairs``: of pairs of a target and a type, over the pairs of each target;
    - ``edge_softmax``: the softmax of the sum of its inputs (of its leaky_relu, with a slope)."""

    inputs: tuple[int, ...]
    domain: Domain
    shape: Shape
    name: str = ""
    """Of what is given."""

    numbers: tuple[float, ...] = ()
    """Constants: the factor of scale, the slope of leaky_relu (of edge_softmax, where it has one),
    the p of dropout, the first and the end of slice in the last dimension."""

    within: Domain | None = None
    """Of softmax, DST or DST_ETYPE: whose edges sum to one."""

    fused: bool = False
    """Reads rows of other domains where they lie, without copies of them for each of its own."""

    def text(self, number: int) -> str:
        """``%3 : (src, etype) x 64 = linear %1, %2``."""
        where = " x ".join([self.domain.value, *map(str, self.shape)])
        words = [*(f"%{each}" for each in self.inputs), *map(_in_short, self.numbers)]
        if self.name:
            words.insert(0, self.name)
        if self.within is not None:
            words.append(f"within {self.within.value}")
        made = f"%{number} : {where} = {self.op} {', '.join(words)}".rstrip()
        return made + (" (fused)" if self.fused else "")


def _in_short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True, eq=False)
class Program:
    """A layer: immutable, told apart by object; ``Builder.build`` makes it, passes make others."""

    instructions: tuple[Instruction, ...]
    result: int
    """Number of the value that it returns."""

    dependences: tuple[frozenset[str], ...] | None = None
    """Of each value, once inferred: which of source, target, etype and edge fix it."""

    frees: tuple[tuple[int, ...], ...] | None = None
    """For each instruction the values that nothing reads after it, once known."""

    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """What executors have worked out of it."""

    def __str__(self) -> str:
        lines = [each.text(number) for number, each in enumerate(self.instructions)]
        return "\n".join([*lines, f"return %{self.result}"])

    def given(self) -> dict[str, Instruction]:
        """The inputs and weights by name."""
        return {each.name: each for each in self.instructions if each.name}

    def uses(self) -> list[list[int]]:
        """For each value the numbers of the instructions that read it, in order."""
        found: list[list[int]] = [[] for _ in self.instructions]
        for number, instruction in enumerate(self.instructions):
            for each in dict.fromkeys(instruction.inputs):
                found[each].append(number)
        return found


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A value of a program that is being built."""

    builder: Builder
    number: int
    domain: Domain
    shape: Shape


class Builder:
    """Writes a program, one value after another; each method returns the value it writes.

    Without passes, whatever is written between ``at_source`` or ``at_target`` and ``sum`` is
    computed for each edge. Shapes are those of one row. All methods raise ``ArgumentError`` for
    values whose shapes or domains do not go together.

    >>> layer = Builder()
    >>> x, w = layer.nodes("x", 64), layer.weight("w", 64, 32, by="etype")
    >>> message = layer.linear(layer.at_source(x), w)
    >>> print(layer.build(layer.sum(message, layer.reciprocal_degree())))
    %0 : node x 64 = nodes x
    %1 : etype x 64 x 32 = weight w
    %2 : edge x 64 = at_source %0
    %3 : edge x 32 = linear %2, %1
    %4 : (dst, etype) = reciprocal_degree
    %5 : dst x 32 = sum %3, %4
    return %5
    """

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []

    # What is given ------------------------------------------------------------------------------

    def nodes(self, name: str, *shape: int) -> Value:
        """An input (nodes, *shape) of a graph whose edges start and end at one set of nodes."""
        return self._input("nodes", name, Domain.NODE, shape)

    def sources(self, name: str, *shape: int) -> Value:
        """An input (sources, *shape) of a graph whose edges lead from one set to another."""
        return self._input("sources", name, Domain.SRC, shape)

    def targets(self, name: str, *shape: int) -> Value:
        """An input (targets, *shape) of a graph whose edges lead from one set to another."""
        return self._input("targets", name, Domain.DST, shape)

    def edges(self, name: str, *shape: int) -> Value:
        """An input (E, *shape), in the order of the edges given."""
        return self._input("edges", name, Domain.EDGE, shape)

    def weight(
        self, name: str, *shape: int, by: Literal["etype", "ntype"] | None = "etype"
    ) -> Value:
        """A parameter (types, *shape) with one slice for each type; by=None: *shape, one for all.

        Args:
            by: types of edges, or of nodes: then of values of ``nodes`` and of sums.
        """
        if by not in _BY:
            raise ArgumentError(f"by: expected 'etype', 'ntype' or None, got {by!r}")
        return self._input("weight", name, _BY[by], shape)

    def reciprocal_degree(self) -> Value:
        """1 / how many edges a target has of one type: the weights of a mean for each relation."""
        return self._write("reciprocal_degree", (), Domain.DST_ETYPE, ())

    # A node's value seen from its edges ---------------------------------------------------------

    def at_source(self, x: Value) -> Value:
        """For each edge the value of its source."""
        return self._at("at_source", x, Domain.SRC)

    def at_target(self, x: Value) -> Value:
        """For each edge the value of its target."""
        return self._at("at_target", x, Domain.DST)

    # Of each row --------------------------------------------------------------------------------

    def linear(self, x: Value, weight: Value) -> Value:
        """x (K,) times (K, N), or in blocks: (B, K) times (B, K, N), for the type of each row."""
        if weight.domain not in _BY.values():
            raise ArgumentError(
                f"linear: the weight lives on {weight.domain.value}, expected one of weight(...)"
            )
        read, wide = x.shape, weight.shape
        if len(wide) not in (2, 3) or read != wide[:-1]:
            raise ArgumentError(
                f"linear: x has rows {read} and the weight {wide}; expected (K,) and (K, N), or "
                "(B, K) and (B, K, N)"
            )
        return self._write_rows("linear", (x, weight), (*wide[:-2], wide[-1]))

    def inner(self, a: Value, b: Value) -> Value:
        """(H, C) and (H, C) to (H,): the sums over the last dimension of their products."""
        if a.shape != b.shape or len(a.shape) not in (1, 2):
            raise ArgumentError(
                f"inner: rows of {a.shape} and {b.shape}; expected two of the same (H, C) or (C,)"
            )
        return self._write_rows("inner", (a, b), a.shape[:-1])

    def add(self, a: Value, b: Value) -> Value:
        """a + b, broadcast as torch does."""
        return self._write_rows("add", (a, b), _broadcast("add", a.shape, b.shape))

    def mul(self, a: Value, b: Value) -> Value:
        """a * b, broadcast as torch does."""
        return self._write_rows("mul", (a, b), _broadcast("mul", a.shape, b.shape))

    def scale(self, a: Value, number: float) -> Value:
        """A times a constant."""
        return self._write_rows("scale", (a,), a.shape, number)

    def leaky_relu(self, a: Value, slope: float) -> Value:
        """A where it is above 0, else a times the slope."""
        return self._write_rows("leaky_relu", (a,), a.shape, slope)

    def relu(self, a: Value) -> Value:
        """A where it is above 0, else 0."""
        return self._write_rows("relu", (a,), a.shape)

    def exp(self, a: Value) -> Value:
        """E to the power of a."""
        return self._write_rows("exp", (a,), a.shape)

    def dropout(self, a: Value, p: float) -> Value:
        """While training, 0 with probability p, else a / (1 - p); drawn for each row of ``a``."""
        if not 0 <= p < 1:
            raise ArgumentError(f"dropout: p is {p}, expected at least 0 and below 1")
        return self._write_rows("dropout", (a,), a.shape, p)

    def reshape(self, a: Value, *shape: int) -> Value:
        """The same elements in rows of another shape."""
        if min(shape, default=0) < 0 or math.prod(shape) != math.prod(a.shape):
            raise ArgumentError(f"reshape: rows of {a.shape} do not have the elements of {shape}")
        return self._write_rows("reshape", (a,), shape)

    def concat(self, *values: Value) -> Value:
        """Values behind one another in their last dimension."""
        if not values or any(not each.shape for each in values):
            raise ArgumentError("concat: expected values of at least one dimension")
        first = values[0].shape[:-1]
        if any(each.shape[:-1] != first for each in values):
            shapes = ", ".join(str(each.shape) for each in values)
            raise ArgumentError(f"concat: rows of {shapes} differ before the last dimension")
        width = sum(each.shape[-1] for each in values)
        return self._write_rows("concat", values, (*first, width))

    def split(self, a: Value, sizes: Iterable[int]) -> tuple[Value, ...]:
        """The parts of the last dimension, of these sizes."""
        sizes = tuple(sizes)
        if not a.shape or min(sizes, default=0) < 0 or sum(sizes) != a.shape[-1]:
            raise ArgumentError(f"split: sizes {sizes} do not sum to the last of {a.shape}")
        parts, first = [], 0
        for size in sizes:
            shape = (*a.shape[:-1], size)
            parts.append(self._write_rows("slice", (a,), shape, first, first + size))
            first += size
        return tuple(parts)

    # Over the edges of a target -----------------------------------------------------------------

    def softmax(self, logits: Value, within: Literal["target", "relation"] = "target") -> Value:
        """Of logits (H,) or (): over the edges of a target, or over those of one type.

        The greatest is subtracted first, so that logits of any size stay finite.
        """
        if within not in ("target", "relation"):
            raise ArgumentError(f"within: expected 'target' or 'relation', got {within!r}")
        self._check_seen_from_edges("softmax", logits)
        if len(logits.shape) > 1:
            raise ArgumentError(f"softmax: logits of {logits.shape}, expected (H,) or ()")
        over = Domain.DST if within == "target" else Domain.DST_ETYPE
        return self._write("softmax", (logits,), Domain.EDGE, logits.shape, within=over)

    def sum(self, x: Value, weight: Value | None = None) -> Value:
        """The sum over the edges of each target; 0 where it has none.

        Args:
            weight: () or (H,), times x (H, C).
        """
        self._check_seen_from_edges("sum", x)
        if weight is None:
            return self._write("sum", (x,), Domain.DST, x.shape)
        self._check_seen_from_edges("sum", weight)
        if len(weight.shape) > 1 or x.shape[: len(weight.shape)] != weight.shape:
            raise ArgumentError(
                f"sum: a weight of {weight.shape} for rows of {x.shape}; expected (), or (H,) for "
                "(H, C)"
            )
        return self._write("sum", (x, weight), Domain.DST, x.shape)

    def build(self, result: Value) -> Program:
        """The program that returns this value."""
        self._check_mine(result)
        return Program(tuple(self._instructions), result.number)

    # Checks -------------------------------------------------------------------------------------

    def _input(self, op: str, name: str, domain: Domain, shape: Shape) -> Value:
        taken = {each.name for each in self._instructions}
        if not name or name in taken:
            raise ArgumentError(f"{op}: the name {name!r} is taken or empty; give another one")
        if min(shape, default=0) < 0:
            raise ArgumentError(f"{op}: {name} has rows of {shape}, expected no size below 0")
        one_set = {each.domain is Domain.NODE for each in self._instructions if _is_input(each)}
        if domain in _OF_NODES and (domain is not Domain.NODE) in one_set:
            raise ArgumentError(
                f"{op}: {name}: a program reads either nodes, or sources and targets"
            )
        ops = {op, *(each.op for each in self._instructions)}
        domains = {domain, *(each.domain for each in self._instructions)}
        if Domain.NTYPE in domains and ops & {"sources", "targets"}:
            raise ArgumentError(
                f"{op}: {name}: weights by ntype are of one set of nodes, but the program reads "
                "sources or targets; read nodes(...), or give weights by=None"
            )
        return self._write(op, (), domain, tuple(shape), name=name)

    def _at(self, op: str, x: Value, end: Domain) -> Value:
        if x.domain not in (Domain.NODE, end):
            raise ArgumentError(
                f"{op}: the value lives on {x.domain.value}, expected node or {end.value}"
            )
        return self._write(op, (x,), Domain.EDGE, x.shape)

    def _write_rows(
        self, op: str, inputs: tuple[Value, ...], shape: Shape, *numbers: float
    ) -> Value:
        domain = _join(op, {each.domain for each in inputs})
        return self._write(op, inputs, domain, shape, numbers=numbers)

    def _write(
        self,
        op: str,
        inputs: tuple[Value, ...],
        domain: Domain,
        shape: Shape,
        *,
        name: str = "",
        numbers: tuple[float, ...] = (),
        within: Domain | None = None,
    ) -> Value:
        for each in inputs:
            self._check_mine(each)
        read = tuple(each.number for each in inputs)
        self._instructions.append(Instruction(op, read, domain, shape, name, numbers, within))
        return Value(self, len(self._instructions) - 1, domain, shape)

    def _check_mine(self, value: Value) -> None:
        if value.builder is not self:
            raise ArgumentError("a value of another builder; build a program with one builder")

    def _check_seen_from_edges(self, op: str, value: Value) -> None:
        if value.domain not in _OF_EDGES | {Domain.ONE}:
            raise ArgumentError(
                f"{op}: the value lives on {value.domain.value}, which no edge sees; use at_source "
                "or at_target"
            )


def _is_input(instruction: Instruction) -> bool:
    return instruction.op in ("nodes", "sources", "targets")


def _join(op: str, domains: set[Domain]) -> Domain:
    """Where a row of each of them is known."""
    read = domains - {Domain.ONE}
    if len(read) <= 1:
        return next(iter(read), Domain.ONE)
    if read <= _OF_EDGES:
        return Domain.DST_ETYPE if Domain.EDGE not in read else Domain.EDGE
    if read <= {Domain.NODE, Domain.DST, Domain.NTYPE}:
        return Domain.DST if Domain.DST in read else Domain.NODE
    names = " and ".join(sorted(each.value for each in read))
    raise ArgumentError(
        f"{op}: values on {names} do not go together; at_source and at_target give a node's value "
        "to its edges, and what a node itself adds is added after the sum"
    )


def _broadcast(op: str, a: Shape, b: Shape) -> Shape:
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    padded = (1,) * (len(long) - len(short)) + short
    if any(m != n and 1 not in (m, n) for m, n in zip(long, padded, strict=True)):
        raise ArgumentError(f"{op}: rows of {a} and {b} cannot be broadcast")
    return tuple(n if m == 1 else m for m, n in zip(long, padded, strict=True))
