"""Passes that move linears: behind what multiplies their result, and to the side of fewer rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gnnsys.rel.program import Counts, Domain, Instruction, Program, Shape
from gnnsys.rel.rewriting import Rewriter, pruned

__all__ = ["choose_sides", "reorder_linears"]

_WEIGHTS = {Domain.ETYPE, Domain.NTYPE, Domain.ONE}
_PAIRS_OF = {Domain.SRC: Domain.SRC_ETYPE, Domain.DST: Domain.DST_ETYPE}
_VIEWS = ("reshape", "at_source", "at_target")

_PRODUCTS_PER_SUMMAND = 8
"""How many products of a linear take as long as reading and adding one number: measured."""


# (x W) w = x (W w) --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Product:
    """An inner or a linear that multiplies a linear's result with a weight."""

    linear: int
    fold: Instruction
    """Multiplies the two weights: its inputs are numbers of the old program."""


def reorder_linears(program: Program, counts: Counts, *, sides: bool = True) -> Program:
    """(x W) w becomes x (W w) where that is less: R K N + M K < M K N.

    For W (R, K, N) and M rows of x W; with several columns of w, for as many. Where something else
    needs x W as well, M K N is not saved, but what the product with w costs: M N, and as much to
    add up the derivatives of x W.

    Args:
        sides: ``choose_sides`` comes next, and so a sum that it will move does not need x W.
    """
    found = ((n, _product(program, n)) for n in range(len(program.instructions)))
    products = {number: product for number, product in found if product is not None}
    readers = _readers(program)
    out = Rewriter(program)
    for number in range(len(program.instructions)):
        product = products.get(number)
        if product is not None:
            others = readers[product.linear] - products.keys()
            stays = not all(sides and _will_move(program, each, counts) for each in others)
            if _is_less(program, number, product, counts, stays=stays):
                _write_product(out, number, product)
                continue
        out.copy(number)
    return pruned(out.program())


def _product(program: Program, number: int) -> _Product | None:
    made = program.instructions[number]
    if made.op == "inner":
        for values, weight in (made.inputs, made.inputs[::-1]):
            linear = _linear_below(program, values, ("reshape",))
            if linear is not None and program.instructions[weight].domain in _WEIGHTS:
                return _inner_product(program, values, linear, weight)
    elif made.op == "linear":
        values, weight = made.inputs
        read = program.instructions[values]
        if read.op == "linear" and program.instructions[weight].domain in _WEIGHTS:
            first = program.instructions[read.inputs[1]]
            shape = (*first.shape[:-1], made.shape[-1])
            return _fold(program, "fold_linear", values, weight, shape)
    return None


def _inner_product(program: Program, values: int, linear: int, weight: int) -> _Product | None:
    """The fold is (K, H) of W (K, H * C), and (B, K, 1) of blocks (B, K, N)."""
    first = program.instructions[program.instructions[linear].inputs[1]].shape
    heads = program.instructions[values].shape[:-1]
    if len(first) == 2:
        return _fold(program, "fold_inner", linear, weight, (first[0], math.prod(heads)))
    if heads == first[:1]:
        return _fold(program, "fold_inner", linear, weight, (*first[:2], 1))
    return None


def _fold(program: Program, op: str, linear: int, weight: int, shape: Shape) -> _Product | None:
    first = program.instructions[linear].inputs[1]
    domains = {program.instructions[each].domain for each in (first, weight)} - {Domain.ONE}
    if program.instructions[linear].domain in _WEIGHTS or len(domains) > 1:
        return None
    domain = next(iter(domains), Domain.ONE)
    return _Product(linear, Instruction(op, (first, weight), domain, shape))


def _is_less(
    program: Program, number: int, product: _Product, counts: Counts, *, stays: bool
) -> bool:
    first, weight = (program.instructions[each].shape for each in product.fold.inputs)
    rows = counts.rows(program.instructions[product.linear].domain)
    columns = weight[-1] if product.fold.op == "fold_linear" else 1
    fold = counts.rows(product.fold.domain) * math.prod(first) * columns
    saved = 2 * math.prod(weight) if stays else math.prod(first)
    return fold + rows * math.prod(product.fold.shape) < rows * saved


def _write_product(out: Rewriter, number: int, product: _Product) -> None:
    old = out.old.instructions[number]
    x = out.number[out.old.instructions[product.linear].inputs[0]]
    weights = tuple(out.number[each] for each in product.fold.inputs)
    fold = out.write(replace(product.fold, inputs=weights))
    wide = product.fold.shape
    made = out.write(Instruction("linear", (x, fold), old.domain, (*wide[:-2], wide[-1])))
    out.number[number] = out.write(Instruction("reshape", (made,), old.domain, old.shape))


# The side of fewer rows ---------------------------------------------------------------------------


def choose_sides(program: Program, counts: Counts) -> Program:
    """Moves linears behind or before what is linear, to where they have the fewest rows.

    - The sum of weight * (x W) over a target's edges of one type is (the sum of weight * x) W: one
      row for each pair of a target and a type, which are then summed into targets;
    - inner(y, x W) is inner(y W^T, x): one row for each pair of y's end and a type.

    Without types, the same for each target. Both only if nothing else needs x W, and unless sums
    then take longer than the linear saves: over edges if x is wider than x W, and over pairs.
    """
    readers = _readers(program)
    out = Rewriter(program)
    for number, instruction in enumerate(program.instructions):
        moved = _move_of(program, number, counts)
        if moved is None or len(readers[moved.linear]) > 1:
            out.copy(number)
        elif instruction.op == "sum":
            _write_sum_first(out, number, moved)
        else:
            _write_transposed(out, number, moved)
    return pruned(out.program())


@dataclass(frozen=True, slots=True)
class _Move:
    linear: int
    other: int | None
    """The weight of a sum, or what the inner multiplies x W with."""
    domain: Domain
    """Where the linear comes to."""


def _will_move(program: Program, number: int, counts: Counts) -> bool:
    read = number < len(program.instructions)  # not the caller of the program
    return read and _move_of(program, number, counts) is not None


def _move_of(program: Program, number: int, counts: Counts) -> _Move | None:
    """How to move the linear that this instruction reads, if that makes fewer rows."""
    op = program.instructions[number].op
    if op not in ("sum", "inner"):
        return None
    move = (_move_of_sum if op == "sum" else _move_of_inner)(program, number)
    if move is None:
        return None
    linear = program.instructions[move.linear]
    read, wide = (math.prod(program.instructions[each].shape) for each in linear.inputs)
    made, rows = math.prod(linear.shape), counts.rows(move.domain)
    saved = (counts.rows(linear.domain) - rows) * wide
    in_pairs = op == "sum" and move.domain is Domain.DST_ETYPE
    more = counts.edges * (read - made) + (rows * made if in_pairs else 0)
    return move if saved > _PRODUCTS_PER_SUMMAND * max(more, 0) else None


def _move_of_sum(program: Program, number: int) -> _Move | None:
    values, *weights = program.instructions[number].inputs
    linear = _linear_below(program, values, _VIEWS)
    if linear is None:
        return None
    made = program.instructions[linear]
    wide = program.instructions[made.inputs[1]]
    for each in weights:  # one weight for all that the linear mixes
        of_weight = program.instructions[each].shape
        in_blocks = len(wide.shape) == 3 and made.shape == program.instructions[values].shape
        if math.prod(of_weight) != 1 and not (in_blocks and of_weight == made.shape[:1]):
            return None
    domain = {Domain.ETYPE: Domain.DST_ETYPE, Domain.ONE: Domain.DST}.get(wide.domain)
    return _Move(linear, next(iter(weights), None), domain) if domain else None


def _write_sum_first(out: Rewriter, number: int, move: _Move) -> None:
    old = out.old.instructions[number]
    linear = out.old.instructions[move.linear]
    x, weight = (out.number[each] for each in linear.inputs)
    shape = out.instructions[x].shape
    inputs = [_seen_from_edges(out, x, number)]
    if move.other is not None:
        inputs.append(_scalar_or_blocks(out, out.number[move.other], linear.shape))
    summed = out.write(Instruction("sum", tuple(inputs), move.domain, shape))
    made = out.write(Instruction("linear", (summed, weight), move.domain, linear.shape))
    made = out.write(Instruction("reshape", (made,), move.domain, old.shape))
    if move.domain is Domain.DST_ETYPE:
        made = out.write(Instruction("sum_pairs", (made,), Domain.DST, old.shape))
    out.number[number] = made


def _scalar_or_blocks(out: Rewriter, weight: int, shape: Shape) -> int:
    made = out.instructions[weight]
    if made.shape == () or (len(shape) == 2 and made.shape == shape[:1]):
        return weight
    return out.write(Instruction("reshape", (weight,), made.domain, ()))


def _seen_from_edges(out: Rewriter, x: int, number: int) -> int:
    """x, or what the edges of the sum see of it, if the linear was computed at nodes."""
    made = out.instructions[x]
    if made.domain in (Domain.NODE, Domain.SRC, Domain.DST) and made.op not in _VIEWS[1:]:
        below = out.old.instructions[number].inputs[0]
        while out.old.instructions[below].op == "reshape":
            below = out.old.instructions[below].inputs[0]
        seen = out.old.instructions[below]
        return out.write(Instruction(seen.op, (x,), seen.domain, made.shape))
    return x


def _move_of_inner(program: Program, number: int) -> _Move | None:
    inputs = program.instructions[number].inputs
    for values, other in (inputs, inputs[::-1]):
        made, read = program.instructions[values], program.instructions[other]
        if made.op == "linear" and read.domain in _PAIRS_OF and _is_typed(program, made):
            return _Move(values, other, _PAIRS_OF[read.domain])
    return None


def _is_typed(program: Program, linear: Instruction) -> bool:
    return program.instructions[linear.inputs[1]].domain is Domain.ETYPE


def _write_transposed(out: Rewriter, number: int, move: _Move) -> None:
    linear = out.old.instructions[move.linear]
    x, weight = (out.number[each] for each in linear.inputs)
    assert move.other is not None
    wide = out.instructions[weight]
    turned = (*wide.shape[:-2], wide.shape[-1], wide.shape[-2])
    transposed = out.write(Instruction("transpose", (weight,), wide.domain, turned))
    shape = out.instructions[x].shape
    read = (out.number[move.other], transposed)
    made = out.write(Instruction("linear", read, move.domain, shape))
    old = out.old.instructions[number]
    out.number[number] = out.write(replace(old, inputs=(x, made)))


# What both look for -------------------------------------------------------------------------------


def _linear_below(program: Program, number: int, views: tuple[str, ...]) -> int | None:
    """The linear whose result this value is, seen through views."""
    while program.instructions[number].op in views:
        number = program.instructions[number].inputs[0]
    return number if program.instructions[number].op == "linear" else None


def _readers(program: Program) -> list[set[int]]:
    """For each value the instructions that read it, through views, too."""
    uses = program.uses()
    found: list[set[int]] = [set() for _ in uses]
    for number in reversed(range(len(uses))):
        for each in uses[number]:
            viewed = program.instructions[each].op in _VIEWS
            found[number] |= found[each] if viewed else {each}
        if number == program.result:
            found[number].add(len(uses))
    return found
