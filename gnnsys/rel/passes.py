"""Passes over programs: each makes an equal program that does less.

After Hector (Wu et al., ASPLOS 2024): compaction, linear reordering, and what makes them possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from gnnsys.errors import ArgumentError
from gnnsys.rel.fusing import fuse_groups
from gnnsys.rel.linears import choose_sides, reorder_linears
from gnnsys.rel.program import Counts, Domain, Instruction, Program
from gnnsys.rel.rewriting import Rewriter, last_uses, pruned

__all__ = [
    "PASSES",
    "check_compaction",
    "compact",
    "infer_dependences",
    "merge_equal",
    "optimise",
]

PASSES = ("infer", "compact", "reorder", "side", "cse", "fuse", "liveness")
"""In the order in which ``optimise`` runs them."""

_FIXED_BY = {
    Domain.SRC: frozenset({"source"}),
    Domain.DST: frozenset({"target"}),
    Domain.SRC_ETYPE: frozenset({"source", "etype"}),
    Domain.DST_ETYPE: frozenset({"target", "etype"}),
}
_AT = {Domain.SRC: "at_source", Domain.DST: "at_target"}


def optimise(program: Program, counts: Counts, passes: Iterable[str] = PASSES) -> Program:
    """An equal program after these passes, which run in the order of ``PASSES``.

    Args:
        program: as a builder made it.
        counts: of the graph, or of one like it: by them linears are moved.
        passes: any of ``PASSES``. ``compact`` does nothing without ``infer``.

    Raises:
        ArgumentError: a pass that does not exist.

    >>> from gnnsys.rel.program import Builder
    >>> layer = Builder()
    >>> x, w = layer.nodes("x", 64), layer.weight("w", 64, 32, by="etype")
    >>> rgcn = layer.build(layer.sum(layer.linear(layer.at_source(x), w)))
    >>> counts = Counts(9, 9, edges=50, source_pairs=20, target_pairs=30, edge_types=3)
    >>> print(optimise(rgcn, counts))
    %0 : node x 64 = nodes x
    %1 : etype x 64 x 32 = weight w
    %2 : src x 64 = at_source %0
    %3 : (src, etype) x 32 = linear %2, %1 (fused)
    %4 : dst x 32 = sum %3 (fused)
    return %4
    """
    chosen = tuple(passes)
    for each in chosen:
        if each not in PASSES:
            raise ArgumentError(f"passes: there is no {each!r}; expected some of {PASSES}")
    apply = _appliers(counts, chosen)
    for each in PASSES:
        if each in chosen:
            program = apply[each](program)
    return program


def _appliers(counts: Counts, chosen: tuple[str, ...]) -> dict[str, Callable[[Program], Program]]:
    return {
        "infer": infer_dependences,
        "compact": compact,
        "reorder": lambda program: reorder_linears(program, counts, sides="side" in chosen),
        "side": lambda program: choose_sides(program, counts),
        "cse": merge_equal,
        "fuse": fuse_groups,
        "liveness": lambda program: replace(program, frees=last_uses(program)),
    }


# Dependences and compaction -----------------------------------------------------------------------


def infer_dependences(program: Program) -> Program:
    """Notes of each value which of an edge's source, target, type and the edge itself fix it."""
    found: list[frozenset[str]] = []
    for instruction in program.instructions:
        inherited = frozenset[str]().union(*(found[each] for each in instruction.inputs))
        found.append(_dependences(instruction, inherited))
    return replace(program, dependences=tuple(found))


def _dependences(instruction: Instruction, inherited: frozenset[str]) -> frozenset[str]:
    match instruction.op:
        case "at_source":
            return frozenset({"source"})
        case "at_target":
            return frozenset({"target"})
        case "reciprocal_degree":
            return frozenset({"target", "etype"})
        case "weight" if instruction.domain is Domain.ETYPE:
            return frozenset({"etype"})
        case "edges":
            return frozenset({"edge"})
        case "softmax":  # of all edges of the target, whatever its logits depend on
            return inherited | {"target", "edge"}
        case "dropout" if instruction.domain is Domain.EDGE:  # each edge draws its own
            return inherited | {"edge"}
        case "sum":
            return frozenset()
    return inherited


def compact(program: Program) -> Program:
    """Computes what one end and the type of an edge fix once for each such pair.

    A value of each edge moves to the pairs of source and type (or target and type) iff its
    dependences are among these, and to the nodes if they are one end alone. The result stays.

    Args:
        program: with dependences; without, nothing is known of it, and nothing moves.
    """
    known = program.dependences
    if known is None:
        return program
    out = Rewriter(program)
    for number, instruction in enumerate(program.instructions):
        domain = Domain.EDGE
        if instruction.domain is Domain.EDGE and number != program.result:
            domain = next((to for to, fixed in _FIXED_BY.items() if known[number] <= fixed), domain)
        if domain is Domain.EDGE:
            out.copy(number)
        elif domain in _AT and instruction.op != _AT[domain]:
            _compute_at_nodes(out, number, domain)
        else:
            out.copy(number, domain=domain)
    return infer_dependences(pruned(out.program()))


def check_compaction(program: Program, number: int, domain: Domain) -> None:
    """Checks that a value of each edge could be computed once for each row of this domain.

    Args:
        program: with dependences or without.
        number: of the value.
        domain: of nodes, or of their pairs with an edge type.

    Raises:
        ArgumentError: the value depends on more, or there is no such value or domain.
    """
    known = program.dependences or infer_dependences(program).dependences
    assert known is not None
    if not 0 <= number < len(known) or domain not in _FIXED_BY:
        raise ArgumentError(
            f"compaction of %{number} to {domain.value}: expected the number of a value, and a "
            "domain of nodes or of their pairs with an edge type"
        )
    more = known[number] - _FIXED_BY[domain]
    if program.instructions[number].domain is Domain.EDGE and more:
        made = program.instructions[number].text(number)
        raise ArgumentError(
            f"illegal compaction: `{made}` depends on {' and '.join(sorted(more))}, too, and so "
            f"has no one value for each {domain.value}; leave it on its edges"
        )


def _compute_at_nodes(out: Rewriter, number: int, end: Domain) -> None:
    """f(at_source(x), …) becomes at_source(f(x, …))."""
    old = out.old.instructions[number]
    operands = []
    for each in (out.number[each] for each in old.inputs):
        made = out.instructions[each]
        operands.append(made.inputs[0] if made.op == _AT[end] else each)
    read = {out.instructions[each].domain for each in operands} - {Domain.ONE}
    domain = next(iter(read)) if len(read) == 1 else end
    made_there = out.write(replace(old, inputs=tuple(operands), domain=domain))
    seen = Instruction(_AT[end], (made_there,), end, old.shape)
    out.number[number] = out.write(seen)


# Equal values -------------------------------------------------------------------------------------


def merge_equal(program: Program) -> Program:
    """Computes equal values once, and reshapes nothing to the shape that it has."""
    out = Rewriter(program)
    made: dict[Instruction, int] = {}
    for number, instruction in enumerate(program.instructions):
        inputs = tuple(out.number[each] for each in instruction.inputs)
        if instruction.op == "reshape":
            read = out.instructions[inputs[0]]
            if (read.domain, read.shape) == (instruction.domain, instruction.shape):
                out.number[number] = inputs[0]
                continue
        commutes = instruction.op in ("add", "mul", "inner")
        key = replace(instruction, inputs=tuple(sorted(inputs)) if commutes else inputs)
        if instruction.op == "dropout" or key not in made:  # two dropouts draw differently
            made[key] = out.copy(number)
        out.number[number] = made[key]
    return pruned(out.program())
