"""Passes over programs: each makes an equal program that does less.

After Hector (Wu et al., ASPLOS 2024): compaction, linear reordering, and what makes them possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from gnnsys.errors import ArgumentError
from gnnsys.rel.linears import choose_sides, reorder_linears
from gnnsys.rel.program import Counts, Domain, Instruction, Program
from gnnsys.rel.rewriting import Rewriter, last_uses, pruned

__all__ = [
    "PASSES",
    "compact",
    "fuse_groups",
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


def compact(program: Program, force: Mapping[int, Domain] | None = None) -> Program:
    """Computes what one end and the type of an edge fix once for each such pair.

    A value of each edge moves to the pairs of source and type (or target and type) iff its
    dependences are among these, and to the nodes if they are one end alone. The result stays.

    Args:
        program: with dependences; without, nothing is known of it, and nothing moves.
        force: values, by their numbers, that must move to these domains.

    Raises:
        ArgumentError: a forced compaction that is illegal, as its value depends on more.
    """
    known = program.dependences
    for number, domain in (force or {}).items():
        _check_legal(program, number, domain)
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


def _check_legal(program: Program, number: int, domain: Domain) -> None:
    known = program.dependences or infer_dependences(program).dependences
    assert known is not None
    if not 0 <= number < len(known) or domain not in _FIXED_BY:
        raise ArgumentError(
            f"force: %{number} onto {domain.value}: expected the number of a value, and a domain "
            "of nodes or of their pairs with an edge type"
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


# Fusion groups ------------------------------------------------------------------------------------


def fuse_groups(program: Program) -> Program:
    """Marks what is computed without written-out copies of the rows that it reads.

    - linear: gathers rows as it multiplies; sum and inner read rows of nodes and of pairs in place;
    - add + leaky_relu + softmax become one ``edge_softmax``.
    """
    uses = program.uses()
    out = Rewriter(program)
    for number, instruction in enumerate(program.instructions):
        if instruction.op == "softmax":
            terms, slope = _terms(program, uses, instruction)
            inputs = tuple(out.number[each] for each in terms)
            fused = replace(instruction, op="edge_softmax", inputs=inputs, numbers=slope)
            out.number[number] = out.write(replace(fused, fused=True))
        else:
            out.copy(number, fused=instruction.op in ("linear", "sum", "inner"))
    return pruned(out.program())


def _terms(
    program: Program, uses: list[list[int]], softmax: Instruction
) -> tuple[list[int], tuple[float, ...]]:
    """What the logits are the sum of, and the slope through which they go."""

    def only_read_here(number: int, op: str) -> bool:
        made = program.instructions[number]
        return made.op == op and made.domain is Domain.EDGE and len(uses[number]) == 1

    (logits,) = softmax.inputs
    slope: tuple[float, ...] = ()
    if only_read_here(logits, "leaky_relu"):
        slope = program.instructions[logits].numbers
        (logits,) = program.instructions[logits].inputs
    terms, left = [], [logits]
    while left:
        number = left.pop()
        parts = program.instructions[number].inputs
        shapes = {program.instructions[each].shape for each in parts}
        if only_read_here(number, "add") and shapes == {softmax.shape} and len(set(parts)) == 2:
            left += reversed(parts)
        else:
            terms.append(number)
    return terms, slope
