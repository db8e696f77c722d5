"""What a program costs before and after each pass: rows, arithmetic and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from gnnsys.rel.fusing import terms_of_softmax
from gnnsys.rel.passes import PASSES, optimise
from gnnsys.rel.program import Counts, Domain, Instruction, Program

__all__ = ["Cost", "Explanation", "cost_of", "explain"]

_GIVEN = ("nodes", "sources", "targets", "edges", "weight")
_KEPT = (*_GIVEN, "reciprocal_degree")
_VIEWS = ("reshape", "slice", "transpose")
_OVER_EDGES = ("sum", "softmax", "edge_softmax")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run of a program, forward.

    What is given to it is not counted, nor what the graph keeps: indices and reciprocal degrees.
    """

    rows: int
    """Of all values that are computed."""
    flops: int
    bytes: int
    """Written: values, and copies of rows of other domains."""
    peak_bytes: int
    """Of these, held at once at most where no derivative is asked for."""


@dataclass(frozen=True)
class Explanation:
    """The costs after each pass, the first without any."""

    costs: dict[str, Cost]
    program: Program = field(repr=False)
    """After the last pass."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the costs by pass, and the program's lines."""
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        return {"costs": costs, "program": str(self.program).splitlines()}

    def __str__(self) -> str:
        head = ("pass", "rows", "FLOPs", "bytes", "peak bytes")
        lines: list[tuple[str, ...]] = [head]
        for name, cost in self.costs.items():
            numbers = (cost.rows, cost.flops, cost.bytes, cost.peak_bytes)
            lines.append((name, *(f"{each:,}" for each in numbers)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
            for name, *cells in lines
        ]
        return "\n".join([*table, "", str(self.program)])


def explain(
    program: Program, counts: Counts, passes: Iterable[str] = PASSES, *, element_size: int = 4
) -> Explanation:
    """What a program costs after each of these passes; print it for a table.

    Args:
        program: as a builder made it.
        counts: of the graph.
        passes: any of ``PASSES``.
        element_size: bytes of a number.

    >>> from gnnsys.rel.program import Builder
    >>> layer = Builder()
    >>> x, w = layer.nodes("x", 64), layer.weight("w", 64, 32, by="etype")
    >>> rgcn = layer.build(layer.sum(layer.linear(layer.at_source(x), w)))
    >>> counts = Counts(9, 9, edges=50, source_pairs=20, target_pairs=30, edge_types=3)
    >>> print(explain(rgcn, counts, ["infer", "compact", "fuse"]))
    pass     rows    FLOPs   bytes  peak bytes
    none      109  206,400  20,352      20,352
    infer     109  206,400  20,352      20,352
    compact    29   83,520  15,232      10,112
    fuse       29   83,520   3,712       3,712
    <BLANKLINE>
    %0 : node x 64 = nodes x
    %1 : etype x 64 x 32 = weight w
    %2 : src x 64 = at_source %0
    %3 : (src, etype) x 32 = linear %2, %1 (fused)
    %4 : dst x 32 = sum %3 (fused)
    return %4
    """
    chosen = tuple(passes)
    costs = {"none": cost_of(program, counts, element_size)}
    made = program
    for number, each in enumerate(PASSES):
        if each in chosen:
            upto = [name for name in PASSES[: number + 1] if name in chosen]
            made = optimise(program, counts, upto)
            costs[each] = cost_of(made, counts, element_size)
    optimise(program, counts, chosen)  # says which pass does not exist
    return Explanation(costs, made)


def cost_of(program: Program, counts: Counts, element_size: int = 4) -> Cost:
    """What one run of a program costs, forward."""
    rows = flops = 0
    written, copied = [], []
    for each in program.instructions:
        new = each.op not in _KEPT and not _is_view(each)
        rows += counts.rows(each.domain) if new else 0
        flops += _flops(program, each, counts)
        size = counts.rows(each.domain) * math.prod(each.shape) if new else 0
        written.append(size * element_size)
        copied.append(_copied(program, each, counts) * element_size)
    peak = _peak(program, written, copied)
    return Cost(rows, flops, sum(written) + sum(copied), peak)


def _is_view(made: Instruction) -> bool:
    return made.op in _VIEWS or (
        made.op in ("at_source", "at_target") and made.domain is not Domain.EDGE
    )


def _flops(program: Program, made: Instruction, counts: Counts) -> int:
    rows, size = counts.rows(made.domain), math.prod(made.shape)
    read = [math.prod(program.instructions[each].shape) for each in made.inputs]
    match made.op:
        case "linear":
            return 2 * rows * read[1]
        case "inner" | "fold_inner":
            return 2 * rows * read[0]
        case "fold_linear":
            return 2 * rows * read[0] * made.shape[-1]
        case "sum":
            return counts.edges * size * len(made.inputs)
        case "sum_pairs":
            return counts.target_pairs * size
        case "softmax":
            return 4 * counts.edges * size
        case "edge_softmax":
            return (3 + len(made.inputs) + len(made.numbers)) * counts.edges * size
        case "add" | "mul" | "scale" | "leaky_relu" | "relu" | "exp" | "dropout":
            return rows * size
    return 0


def _copied(program: Program, made: Instruction, counts: Counts) -> int:
    """Elements of the rows of other domains that are written out for each row that reads them."""
    if made.op in ("at_source", "at_target", "sum_pairs"):
        return 0  # whose rows are what they write, or are read in place
    on = Domain.EDGE if made.op in _OVER_EDGES else made.domain
    total = 0
    for operand in (program.instructions[each] for each in _read_row_by_row(program, made)):
        in_place = {operand.domain, on} <= {Domain.NODE, Domain.SRC, Domain.DST}
        kept = operand.op == "reciprocal_degree" and on is Domain.EDGE
        if operand.domain not in (on, Domain.ONE) and not (in_place or kept):
            total += counts.rows(on) * math.prod(operand.shape)
    return total + _products(program, made, counts)


def _read_row_by_row(program: Program, made: Instruction) -> tuple[int, ...]:
    """The inputs that are copied, unless they have the rows at hand."""
    if made.op == "edge_softmax":
        return tuple(terms_of_softmax(program, made)[2])
    if made.fused:
        return made.inputs[1:] if made.op == "sum" else ()
    return made.inputs[:1] if made.op == "linear" else made.inputs


def _products(program: Program, made: Instruction, counts: Counts) -> int:
    """Elements of what is written out before it is summed."""
    match made.op:
        case "sum" if not made.fused and len(made.inputs) == 2:
            return counts.edges * math.prod(made.shape)
        case "inner" if not made.fused:
            width = math.prod(program.instructions[made.inputs[0]].shape)
            return counts.rows(made.domain) * width
        case "edge_softmax":
            sums = len(terms_of_softmax(program, made)[2]) - 1
            return max(sums, 0) * counts.edges * math.prod(made.shape)
    return 0


def _peak(program: Program, written: list[int], copied: list[int]) -> int:
    """Views keep what they look at; without liveness, all is kept."""
    frees = program.frees or ((),) * len(written)
    owner: list[int] = []
    views = [0] * len(written)
    held = peak = 0
    for number, made in enumerate(program.instructions):
        owner.append(owner[made.inputs[0]] if _is_view(made) else number)
        views[owner[number]] += 1
        held += written[number]
        peak = max(peak, held + copied[number])
        for each in frees[number]:
            views[owner[each]] -= 1
            held -= written[owner[each]] if views[owner[each]] == 0 else 0
    return peak
