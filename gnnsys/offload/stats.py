"""What a step kept, moved and waited for, and the profile that the planner makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from gnnsys.offload.planner import SavedStorage, StepPlan, StepProfile

__all__ = ["StepClock", "StepStats"]


@dataclass(frozen=True, slots=True)
class StepStats:
    """Of one step: what lies between forward's first operator and backward's last.

    Bytes count distinct storages that the graph needs, not those that are there anyway: parameters
    and inputs.
    """

    plain: int = 0
    """Bytes that autograd would keep by itself."""

    kept: int = 0
    """Of these, bytes of storages that were kept by value; part of them was stored."""

    masked: int = 0
    """Bytes of tensors that bits stand for."""

    recomputed: int = 0
    """Bytes of tensors that operators make again in backward."""

    stored: int = 0
    """Bytes that were moved out."""

    loaded: int = 0
    """Bytes that were moved back."""

    forwarded: int = 0
    """Bytes that were needed while they were still in memory, though they were moved out."""

    peak: int = 0
    """Bytes in memory at most."""

    stall: float = 0.0
    """Seconds that computing waited for moves."""

    seconds: float = 0.0
    """From the beginning of the block until backward let go of the last tensor."""

    predicted_peak: int | None = None
    """By the plan; None, as the two below, without one, and where the step keeps more than 5 %
    other bytes than the one that was planned for."""

    predicted_stall: float | None = None
    predicted_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def predicted_by(self, plan: StepPlan | None) -> StepStats:
        """The same, beside what a plan foretold."""
        if plan is None:
            return self
        return replace(
            self,
            predicted_peak=plan.peak,
            predicted_stall=plan.stall,
            predicted_seconds=plan.seconds,
        )


class StepClock:
    """When storages were saved and needed, by a clock that stands still while computing waits."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._ended = self._begun
        self.waited = 0.0
        self._saved: list[tuple[int, float, int]] = []  # (bytes, when, small before), by number
        self._small = 0  # bytes since the last one
        self._needed: dict[int, float] = {}  # number: when first

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While computing waits."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begun

    def saved(self, nbytes: int) -> int:
        """A storage is kept; returns its number in the step."""
        self._saved.append((nbytes, self._now(), self._small))
        self._small = 0
        return len(self._saved) - 1

    def saved_small(self, nbytes: int) -> None:
        """Bytes of a mask or the like are kept."""
        self._small += nbytes

    def needed(self, number: int) -> None:
        """Backward asks for a storage."""
        self._needed.setdefault(number, self._now())

    def released(self, when: float) -> None:
        """Backward let go of a tensor at a time of ``time.perf_counter``."""
        self._ended = max(self._ended, when)

    @property
    def seconds(self) -> float:
        """Of the step so far, with waiting."""
        return self._ended - self._begun

    def profile(self, write_bandwidth: float, read_bandwidth: float) -> StepProfile:
        """What the planner knows of the step.

        Args:
            write_bandwidth, read_bandwidth: bytes a second; infinite where nothing was moved.
        """
        computing = max(0.0, self.seconds - self.waited)
        if not self._saved:
            return StepProfile((), self._small, 0.0, computing, write_bandwidth, read_bandwidth)
        forward = _gaps([0.0, *(when for _, when, _ in self._saved)])
        last = self._saved[-1][1]
        # In the order of need; one that was never needed takes no time.
        times, latest = [], last
        for number in reversed(range(len(self._saved))):
            latest = max(latest, self._needed.get(number, latest))
            times.append(latest)
        backward = [*_gaps(times), max(0.0, computing - times[-1])]
        saved = tuple(
            SavedStorage(nbytes, before, after, small)
            for (nbytes, _, small), before, after in zip(
                self._saved, forward, reversed(backward), strict=True
            )
        )
        return StepProfile(
            saved, self._small, times[0] - last, 0.0, write_bandwidth, read_bandwidth
        )

    def _now(self) -> float:
        return time.perf_counter() - self._begun - self.waited


def _gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]
