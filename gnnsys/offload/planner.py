"""Which saved storages leave memory: chosen by a step's profile, with the time that it will take.

Pure: neither tensors nor files. Wu et al.: "SSDTrain: An Activation Offloading Framework to SSDs
for Faster Large Language Model Training", arXiv 2408.10013, keeps what is saved last, as that is
needed first; here a model of the moves says what follows, by which the choice is improved where
sizes differ.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from gnnsys.errors import TooLargeError
from gnnsys.system.sizes import size_text

__all__ = ["SavedStorage", "StepPlan", "StepProfile", "plan_step", "simulate"]

_VISITS = 20_000
"""Storages of all simulations that improve a plan: 20 to 40 ms."""


@dataclass(frozen=True, slots=True)
class SavedStorage:
    """What forward saves for backward."""

    nbytes: int

    forward: float
    """Seconds of computing before it was saved, since the save before."""

    backward: float
    """Seconds of computing from its need until the next need."""

    small: int = 0
    """Bytes of masks and the like that were saved since the save before; they stay until backward
    needs what was saved before them."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """What a step saves, how long it computes and how fast storages move."""

    saved: tuple[SavedStorage, ...] = ()
    """In the order of saving; backward needs them in reverse."""

    small: int = 0
    """Bytes of masks and the like that were saved after the last storage."""

    turn: float = 0.0
    """Seconds of computing between the last save and the first need."""

    rest: float = 0.0
    """Seconds of all else."""

    write_bandwidth: float = math.inf
    """Bytes a second; infinite where it is not known."""

    read_bandwidth: float = math.inf
    """Bytes a second; infinite where it is not known."""

    @property
    def plain(self) -> int:
        """Bytes that are kept where nothing moves."""
        return self.small + sum(each.nbytes + each.small for each in self.saved)

    @property
    def least(self) -> int:
        """The least budget by which the step can run: one storage at a time."""
        small = least = 0
        for each in self.saved:
            small += each.small
            least = max(least, small + each.nbytes)
        return max(least, small + self.small)

    @property
    def computing(self) -> float:
        """Seconds of the step where nothing waits."""
        parts = sum(each.forward + each.backward for each in self.saved)
        return parts + self.turn + self.rest


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What leaves memory, and what follows from it."""

    stored: frozenset[int]
    """Indices of ``StepProfile.saved``."""

    written: int
    """Bytes that leave memory; as many come back."""

    peak: int
    """Bytes in memory at most."""

    stall: float
    """Seconds that computing waits for moves."""

    seconds: float
    """Of the step, with these."""


def simulate(profile: StepProfile, stored: Collection[int], budget: int | None) -> StepPlan | None:
    """Runs a step on paper: one writer and one reader, beside the computing.

    A storage is saved as soon as it fits the budget; one that is stored is then written, and leaves
    memory when that is done. Once all are saved, the stored ones come back in reverse, each as soon
    as it fits. A storage that backward has used is let go of.

    Args:
        profile: of the step.
        stored: indices of the storages that leave memory.
        budget: bytes that may be in memory; None for any number.

    Returns:
        what happens; None where the others do not fit the budget.

    >>> profile = StepProfile((SavedStorage(100, 1.0, 1.0),) * 3, 0, 0.0, 0.0, 50.0, 100.0)
    >>> simulate(profile, {0}, 200)
    StepPlan(stored=frozenset({0}), written=100, peak=200, stall=0.0, seconds=6.0)
    >>> simulate(profile, {2}, 200) is None
    True
    """
    run = _Run(profile, frozenset(stored), math.inf if budget is None else budget)
    if not run.forward():
        return None
    run.backward()
    written = sum(profile.saved[i].nbytes for i in run.stored)
    return StepPlan(run.stored, written, run.peak, run.stall, profile.computing + run.stall)


class _Run:
    """A step under way."""

    def __init__(self, profile: StepProfile, stored: frozenset[int], budget: float) -> None:
        self.profile, self.stored, self.budget = profile, stored, budget
        self.now = self.stall = 0.0
        self.live = self.peak = 0
        self._writes: deque[tuple[float, int]] = deque()  # (end, index): under way or to come
        self._away: list[int] = []  # written, ascending
        self._ready: dict[int, float] = {}  # index: when it is back
        self._reader = 0.0  # when it has done all that it was asked for
        self._turned = False

    def forward(self) -> bool:
        """Whether all could be saved."""
        writer = 0.0
        for i, storage in enumerate(self.profile.saved):
            self._advance(self.now + storage.forward)
            if not self._save(storage.small) or not self._save(storage.nbytes):
                return False
            if i in self.stored:
                writer = max(writer, self.now) + storage.nbytes / self.profile.write_bandwidth
                self._writes.append((writer, i))
        return self._save(self.profile.small)

    def _save(self, nbytes: int) -> bool:
        """Whether there is room, now or later."""
        while self.live + nbytes > self.budget:
            if not self._writes:
                return False
            self._wait_until(self._writes[0][0])
        self._enter(nbytes)
        return True

    def backward(self) -> None:
        """Needs all in reverse."""
        self._turned = True
        self._load()
        self._advance(self.now + self.profile.turn)
        self._let_go(self.profile.small)
        for i in reversed(range(len(self.profile.saved))):
            if self._writes and self._writes[-1][1] == i:
                self._writes.pop()  # still in memory
                self._load()
            elif i in self.stored:
                self._wait_until(self._ready.pop(i))
            storage = self.profile.saved[i]
            self._advance(self.now + storage.backward)
            self._let_go(storage.nbytes + storage.small)

    def _let_go(self, nbytes: int) -> None:
        self.live -= nbytes
        self._load()

    def _advance(self, until: float) -> None:
        """Goes on to a time, by which writes end."""
        while self._writes and self._writes[0][0] <= until:
            self.now, i = self._writes.popleft()
            self.live -= self.profile.saved[i].nbytes
            self._away.append(i)
            self._load()
        self.now = until

    def _wait_until(self, when: float) -> None:
        self.stall += max(0.0, when - self.now)
        self._advance(max(when, self.now))

    def _load(self) -> None:
        """Asks for those that are needed next, as far as they fit."""
        while self._turned and self._away and not self._writes:
            nbytes = self.profile.saved[self._away[-1]].nbytes
            if self.live + nbytes > self.budget:
                return
            self._enter(nbytes)
            self._reader = max(self._reader, self.now) + nbytes / self.profile.read_bandwidth
            self._ready[self._away.pop()] = self._reader

    def _enter(self, nbytes: int) -> None:
        self.live += nbytes
        self.peak = max(self.peak, self.live)


def plan_step(profile: StepProfile, budget: int | None) -> StepPlan:
    """The plan by which a step takes the least time, and of those one that writes least.

    The first storages that are saved leave memory, as many as must: they have the most time for it.
    That is the best choice where all are of one size; where they are not, all choices among the
    ones around the border are tried: of up to 10 storages all there are.

    Args:
        profile: of the step.
        budget: bytes that may be in memory; None for any number.

    Raises:
        TooLargeError: a storage does not fit the budget.

    >>> profile = StepProfile((SavedStorage(100, 1.0, 1.0),) * 3, 0, 0.0, 0.0, 50.0, 100.0)
    >>> plan_step(profile, 200).stored
    frozenset({0})
    """
    if budget is not None and budget < profile.least:
        raise TooLargeError(
            f"activations: backward needs {size_text(profile.least)} in memory at once > budget of "
            f"{size_text(budget)}; give a larger budget"
        )
    stored = _first(profile, budget)
    plan = simulate(profile, range(stored), budget)
    assert plan is not None
    if not stored or len({each.nbytes for each in profile.saved}) == 1:
        return plan
    return _improve(profile, plan, budget)


def _first(profile: StepProfile, budget: int | None) -> int:
    """How many of the first storages have to leave memory, where the others stay."""
    kept = profile.plain - sum(each.nbytes for each in profile.saved)
    left = math.inf if budget is None else budget - kept
    for count in range(len(profile.saved), 0, -1):
        left -= profile.saved[count - 1].nbytes
        if left < 0:
            return count
    return 0


def _improve(profile: StepProfile, plan: StepPlan, budget: int | None) -> StepPlan:
    """The best of all choices among storages around the border between stored and kept."""
    count, border = len(profile.saved), len(plan.stored)
    width = min(count, int(math.log2(max(1, _VISITS // count))))
    start = max(0, min(border - width // 2, count - width))
    for bits in range(1 << width):
        chosen = {start + i for i in range(width) if bits >> i & 1}
        other = simulate(profile, chosen.union(range(start)), budget)
        if other is not None and _cost(other) < _cost(plan):
            plan = other
    return plan


def _cost(plan: StepPlan) -> tuple[float, int]:
    return round(plan.stall, 9), plan.written
