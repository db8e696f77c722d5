"""What passes share: programs written anew, and what is read after what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gnnsys.rel.program import Instruction, Program

__all__ = ["Rewriter", "last_uses", "pruned"]


class Rewriter:
    """Writes a program anew, instruction by instruction, from the first on."""

    def __init__(self, program: Program) -> None:
        self.old = program
        self.instructions: list[Instruction] = []
        self.number: dict[int, int] = {}
        """For each number of the old program that of the value that stands for it."""

    def write(self, instruction: Instruction) -> int:
        """Adds an instruction whose inputs have new numbers; returns its own."""
        self.instructions.append(instruction)
        return len(self.instructions) - 1

    def copy(self, number: int, **changes: Any) -> int:
        """Adds the old instruction of this number, with changes."""
        old = self.old.instructions[number]
        inputs = tuple(self.number[each] for each in old.inputs)
        self.number[number] = self.write(replace(old, inputs=inputs, **changes))
        return self.number[number]

    def program(self) -> Program:
        """Of which nothing is inferred yet."""
        return Program(tuple(self.instructions), self.number[self.old.result])


def pruned(program: Program) -> Program:
    """Without the instructions whose values nothing reads."""
    needed = {program.result}
    for number in reversed(range(len(program.instructions))):
        if number in needed:
            needed |= set(program.instructions[number].inputs)
    out = Rewriter(program)
    for number in sorted(needed):
        out.copy(number)
    return out.program()


def last_uses(program: Program) -> tuple[tuple[int, ...], ...]:
    """For each instruction the values that it is the last to read."""
    last: dict[int, int] = {}
    for number, instruction in enumerate(program.instructions):
        for each in instruction.inputs:
            last[each] = number
    ends: list[list[int]] = [[] for _ in program.instructions]
    for each, number in last.items():
        if each != program.result:
            ends[number].append(each)
    return tuple(map(tuple, ends))
