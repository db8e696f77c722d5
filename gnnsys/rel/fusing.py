"""What is computed without written-out copies of rows: marked here, and read by the executor."""

from __future__ import annotations

from dataclasses import replace

from gnnsys.rel.program import Domain, Instruction, Program
from gnnsys.rel.rewriting import Rewriter, pruned

__all__ = ["SoftmaxTerms", "ends_of_inner", "fuse_groups", "terms_of_softmax"]

_SOURCES = (Domain.SRC, Domain.SRC_ETYPE)
_TARGETS = (Domain.DST, Domain.DST_ETYPE)

SoftmaxTerms = tuple[int | None, int | None, list[int]]
"""What is read in the rows of sources, in those of targets, and the rest: for each edge."""


def fuse_groups(program: Program) -> Program:
    """Marks what is computed without written-out copies of the rows that it reads.

    - linear: gathers rows as it multiplies with the matrix of their type; sum reads rows of nodes
      and of pairs in place; inner, those of both ends of an edge, or of values and of types;
    - add + leaky_relu + softmax become one ``edge_softmax``, marked if it copies no row.
    """
    uses = program.uses()
    out = Rewriter(program)
    for number, instruction in enumerate(program.instructions):
        if instruction.op == "softmax":
            terms, slope = _terms(program, uses, instruction)
            made = replace(instruction, op="edge_softmax", inputs=tuple(terms), numbers=slope)
            _, _, rest = terms_of_softmax(program, made)
            fused = all(program.instructions[each].domain is Domain.EDGE for each in rest)
            inputs = tuple(out.number[each] for each in terms)
            out.number[number] = out.write(replace(made, inputs=inputs, fused=fused))
        else:
            out.copy(number, fused=_is_fused(program, instruction))
    return pruned(out.program())


def _is_fused(program: Program, made: Instruction) -> bool:
    match made.op:
        case "linear":
            return program.instructions[made.inputs[1]].domain is not Domain.ONE
        case "inner":
            return ends_of_inner(program, made) is not None
        case "sum":
            return program.instructions[made.inputs[0]].domain is not Domain.ONE
    return False


def ends_of_inner(program: Program, made: Instruction) -> tuple[int, int] | None:
    """The values whose rows are multiplied where they lie, and in which order.

    Of a source and of a target; or those of the result's rows, and a weight of edge types.
    """
    for first, second in (made.inputs, made.inputs[::-1]):
        a, b = program.instructions[first].domain, program.instructions[second].domain
        if a in _SOURCES and b in _TARGETS:
            return first, second
        if a is made.domain and b is Domain.ETYPE is not a:
            return first, second
    return None


def terms_of_softmax(program: Program, made: Instruction) -> SoftmaxTerms:
    """How an ``edge_softmax`` reads its inputs."""
    rest = list(made.inputs)
    targets = _TARGETS if made.within is Domain.DST_ETYPE else (Domain.DST,)
    return _take(program, rest, _SOURCES), _take(program, rest, targets), rest


def _take(program: Program, numbers: list[int], domains: tuple[Domain, ...]) -> int | None:
    """Removes the first value of these domains."""
    for each in numbers:
        if program.instructions[each].domain in domains:
            numbers.remove(each)
            return each
    return None


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
