"""The harness of all benchmarks: check first, warm up, take turns, keep every sample.

An entry yields cases; a case holds implementations of one job. Each implementation is checked
against a reference before anything is timed and run once as a warm-up. Then come the rounds: in
each, every implementation runs once on the same input, and the order rotates from round to round.
Machines are shared and noisy, so the figure that counts is the ratio of two implementations within
one run; the ratio of each round is kept beside the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import describe_environment
from report import print_case, print_head, print_peers, write_json

__all__ = [
    "BenchError",
    "Case",
    "CheckError",
    "Implementation",
    "Measured",
    "Rate",
    "Sample",
    "add_options",
    "check_json",
    "check_options",
    "measure",
    "run_benchmark",
    "run_entry",
    "timed",
]

FORMAT = 1
"""Version of the JSON that ``run_benchmark`` writes."""

WARM_UP = 0
"""The round that is not timed; timed rounds count from 1."""

_MIN_ROUNDS = 5


class BenchError(Exception):
    """A benchmark cannot go on; the message says why and what would mend it."""


class CheckError(BenchError):
    """An implementation's result is not that of the reference."""


@dataclass(kw_only=True, slots=True)
class Sample:
    """One timed run."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """CPU time of all threads of the process that ran: steadier than wall time on a busy machine,
    but it also counts threads that wait by spinning."""
    amounts: dict[str, float]
    """How much was done, by what a ``Rate`` counts."""


@dataclass(kw_only=True, slots=True)
class Rate:
    """A figure to print: ``amounts[amount] / seconds / scale``, in ``unit``."""

    amount: str
    unit: str
    scale: float = 1.0


@dataclass(kw_only=True, slots=True)
class Implementation:
    """One way to do a case's job."""

    name: str
    check: Callable[[], None]
    """Raises CheckError unless the result on the input of round 0 is right."""
    run: Callable[[int], Sample]
    """Does the job of that round."""
    is_peer: bool = False
    """A peer's failure is reported and the others go on; one of our own ends the benchmark."""
    reported: tuple[type[BenchError], ...] = ()
    """Failures that are only reported although the implementation is our own."""


@dataclass(kw_only=True, slots=True)
class Case:
    """One setting that implementations are compared at."""

    labels: dict[str, Any]
    rates: tuple[Rate, ...]
    """Figures to print, the most telling one first."""
    bases: tuple[str, ...]
    """Names of the implementations that the others are divided by."""
    implementations: list[Implementation]
    prepare: Callable[[int], None] = lambda number: None
    """Makes the input of a round, the same for all implementations."""


@dataclass(slots=True)
class Measured:
    """A case with its samples by implementation and round, who ran when, and who failed why."""

    case: Case
    samples: dict[str, dict[int, Sample]] = field(default_factory=dict)
    order: dict[int, list[str]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def rates(self, name: str, rate: Rate) -> dict[int, float]:
        """What an implementation reached in each round, in the rate's unit; rounds without such an
        amount are left out."""
        return {
            number: sample.amounts[rate.amount] / sample.seconds / rate.scale
            for number, sample in self.samples.get(name, {}).items()
            if rate.amount in sample.amounts
        }

    def summary(self, name: str, rate: Rate) -> dict[str, Any]:
        """Median, minimum and maximum, and the ratios to every base that has samples."""
        mine = self.rates(name, rate)
        if not mine:
            return {}
        return {
            "unit": rate.unit,
            "median": statistics.median(mine.values()),
            "min": min(mine.values()),
            "max": max(mine.values()),
            "ratios": {
                base: _ratios(mine, theirs)
                for base in self.case.bases
                if (theirs := self.rates(base, rate)) and mine.keys() & theirs.keys()
            },
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "labels": self.case.labels,
            "bases": self.case.bases,
            "order": self.order,
            "implementations": [self._describe(impl) for impl in self.case.implementations],
        }

    def _describe(self, implementation: Implementation) -> dict[str, Any]:
        name = implementation.name
        samples = self.samples.get(name, {})
        return {
            "name": name,
            "is_peer": implementation.is_peer,
            "error": self.errors.get(name),
            "samples": [
                {
                    "round": number,
                    "seconds": sample.seconds,
                    "cpu_seconds": sample.cpu_seconds,
                    "amounts": sample.amounts,
                }
                for number, sample in samples.items()
            ],
            "median_cpu_seconds": statistics.median(s.cpu_seconds for s in samples.values())
            if samples
            else None,
            "summaries": {rate.amount: self.summary(name, rate) for rate in self.case.rates},
        }


def _ratios(mine: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    by_round = {number: mine[number] / theirs[number] for number in sorted(mine.keys() & theirs)}
    return {
        "median_of_ratios": statistics.median(by_round.values()),
        "ratio_of_medians": statistics.median(mine.values()) / statistics.median(theirs.values()),
        "by_round": by_round,
    }


def timed(job: Callable[[], object], **amounts: float) -> Sample:
    """Times ``job`` in this process; letting go of what it returns is part of it."""
    cpu = time.process_time()
    start = time.perf_counter()
    job()
    seconds = time.perf_counter() - start
    return Sample(seconds=seconds, cpu_seconds=time.process_time() - cpu, amounts=amounts)


def measure(case: Case, rounds: int) -> Measured:
    """Checks, warms up and times the implementations of a case.

    Raises:
        CheckError: an implementation of our own gives a wrong result; nothing is timed then.
    """
    measured = Measured(case)
    case.prepare(WARM_UP)
    for implementation in case.implementations:
        _attempt(measured, implementation, implementation.check)
    for implementation in case.implementations:
        _attempt(measured, implementation, implementation.run, WARM_UP)
    for number in range(1, rounds + 1):
        case.prepare(number)
        turns = _rotate(case.implementations, number - 1)
        measured.order[number] = [implementation.name for implementation in turns]
        for implementation in turns:
            sample = _attempt(measured, implementation, implementation.run, number)
            if sample is not None:
                measured.samples.setdefault(implementation.name, {})[number] = sample
    return measured


def _attempt(
    measured: Measured, implementation: Implementation, action: Callable[..., Any], *args: Any
) -> Any:
    """Lets an implementation act unless it has failed before; None where it fails."""
    name = implementation.name
    if name in measured.errors:
        return None
    try:
        return action(*args)
    except BenchError as error:
        if not implementation.is_peer and not isinstance(error, implementation.reported):
            where = ", ".join(f"{key} {value}" for key, value in measured.case.labels.items())
            raise type(error)(f"{name} ({where}): {error}") from error
        measured.errors[name] = str(error)
        return None


def _rotate(items: list[Implementation], by: int) -> list[Implementation]:
    by %= max(1, len(items))
    return items[by:] + items[:by]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    shared = parser.add_argument_group("harness")
    shared.add_argument(
        "--rounds",
        type=int,
        help=f"timed rounds a case (default {_MIN_ROUNDS}, the least; with --quick 2)",
    )
    shared.add_argument(
        "--quick",
        action="store_true",
        help="allow fewer rounds: tries the benchmark out, its figures are not to be cited",
    )
    shared.add_argument(
        "--json", type=Path, metavar="FILE", help="write samples and environment to FILE"
    )


def check_options(options: argparse.Namespace) -> None:
    """Completes the shared options.

    Raises:
        BenchError: too few rounds, or a file that could not be written in the end.
    """
    if options.rounds is None:
        options.rounds = 2 if options.quick else _MIN_ROUNDS
    least = 1 if options.quick else _MIN_ROUNDS
    if options.rounds < least:
        raise BenchError(
            f"--rounds {options.rounds} < {least}: a median of fewer says little on a shared "
            "machine; --quick allows them for a trial"
        )
    check_json(options.json)


def run_entry(name: str, job: Callable[[], None]) -> int:
    """Does a benchmark's job and returns the exit status; a BenchError is told as the entry's."""
    try:
        job()
    except BenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def check_json(path: Path | None) -> None:
    """Raises BenchError for a file of ``--json`` that could not be written in the end."""
    if path is not None and not path.absolute().parent.is_dir():
        raise BenchError(f"--json {path}: its folder does not exist; make it first")


def run_benchmark(
    name: str,
    cases: Iterable[Case],
    options: argparse.Namespace,
    *,
    cache_state: str,
    notes: dict[str, Any],
    peers: dict[str, Any] | None = None,
) -> None:
    """Measures cases one after the other, prints each and writes the JSON file.

    The file holds the cases that were done, and the error, where one ended the benchmark.

    Args:
        name: of the benchmark.
        cases: made one at a time, so that a case's memory is free before the next.
        options: parsed, with those of ``add_options``.
        cache_state: cold or warm, and how that is brought about.
        notes: what else the figures depend on; read in the end.
        peers: for each peer its versions, or why it is missing.

    Raises:
        CheckError: an implementation of our own is wrong.
    """
    environment = describe_environment()
    print_head(name, options.rounds, options.quick, cache_state, environment)
    print_peers(peers or {})
    results: list[dict[str, Any]] = []
    described = {
        "format": FORMAT,
        "benchmark": name,
        "started": _now(),
        "options": {key: _plain(value) for key, value in vars(options).items()},
        "rounds": options.rounds,
        "warm_up_rounds": 1,
        "quick": options.quick,
        "cache_state": cache_state,
        "environment": environment,
        "peers": peers or {},
        "notes": notes,
        "cases": results,
    }
    try:
        for case in cases:
            measured = measure(case, options.rounds)
            print_case(measured)
            results.append(measured.as_dict())
    except BaseException as error:
        described["error"] = repr(error)
        raise
    finally:
        if results and options.json is not None:
            write_json(options.json, {**described, "finished": _now()})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
