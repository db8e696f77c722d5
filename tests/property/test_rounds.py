"""Rounds of a shared cache: who is told that nothing is new has nothing to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.shared.rounds import Rounds

ONE = np.array([3], np.int32)


def drain(rounds: Rounds) -> int:
    """Makes all rounds that can be made; returns how many."""
    count = 0
    while rounds.next_round() is not None:
        count += 1
    return count


def state(rounds: Rounds) -> Any:
    """What is due, and over."""
    due = [rounds.is_due(number) for number in range(rounds.made)]
    return due, [rounds.are_over(stream) for stream in range(4)]


@given(st.integers(1, 4), st.integers(0, 2), st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_new_is_told(world: int, prefetch: int, data: st.DataObject) -> None:
    rounds = Rounds(world, prefetch)
    announced = [[0] for _ in range(world)]  # batches of each stream of a rank; the last is open
    reached = [(0, 0)] * world
    for _ in range(data.draw(st.integers(0, 25), "messages")):
        rank = data.draw(st.integers(0, world - 1), "rank")
        mine, before = announced[rank], state(rounds)
        stream, (at, index) = len(mine) - 1, reached[rank]
        what = data.draw(st.sampled_from(["add", "add", "end", "reach", "reach"]), "what")
        if what == "add":
            is_new = rounds.add(rank, stream, mine[-1], ONE)
            mine[-1] += 1
            assert is_new == (drain(rounds) > 0)
        elif what == "end":
            rounds.end(rank, stream, mine[-1])
            mine.append(0)
            drain(rounds)
        elif index < mine[at] or at < stream:
            reached[rank] = at, index = (at, index + 1) if index < mine[at] else (at + 1, 0)
            if not rounds.reach(rank, at, index):
                assert state(rounds) == before
