"""The time that planning takes, on one thread: announcing, planning and committing batches."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import (
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    add_options,
    check_options,
    run_benchmark,
    run_entry,
    timed,
)
from numpy.typing import NDArray
from options import make_parser, positive, positive_list

from gnnsys.cache.plan import POLICIES
from gnnsys.cache.planner import Planner

_RATES = (Rate(amount="rows", unit="million rows/s", scale=1e6),)  # 10 are 100 ns a row
_EXAMPLES = """
Rows are drawn with a density that falls as a power of the rank, as degrees do, distinct in a batch
and in random order; the score is the rank. The cache starts filled by score. 10 million rows/s are
100 ns a row.

examples:
  python scripts/bench/planner.py --json planner.json
  python scripts/bench/planner.py --quick --scales 20 --policies hybrid,lookahead
"""


class Planning:
    """One planner that goes on planning, with the batches of a round made before its clock runs."""

    def __init__(self, options: argparse.Namespace, scale: int, policy: Any) -> None:
        self._options, self._scale = options, scale
        rows = 1 << scale
        self._ids_of_rank = lambda rank: (rank * 0x9E3779B1) % rows  # odd, hence a permutation
        scores = np.empty(rows, np.uint16)
        for first in range(0, rows, 1 << 22):
            rank = np.arange(first, min(rows, first + (1 << 22)))
            scores[self._ids_of_rank(rank)] = ((rows - 1 - rank) << 16) // rows
        capacity = int(options.capacity / 100 * rows)
        self.planner = Planner(rows, capacity, policy=policy, window=options.window, scores=scores)
        self._announced: deque[int] = deque()  # rows of each batch
        self.rows = self.hits = 0
        for number in range(-options.window, 0):
            self._announce(self._batch(number))

    def _batch(self, number: int) -> NDArray[np.int32]:
        random = np.random.default_rng((7, number + (1 << 20)))
        drawn = random.random(2 * self._options.batch) ** self._options.skew
        rank = np.unique((drawn * (1 << self._scale)).astype(np.int64))
        rank = random.permutation(rank)[: self._options.batch]
        return self._ids_of_rank(rank).astype(np.int32)

    def _announce(self, ids: NDArray[np.int32]) -> None:
        self._announced.append(len(ids))
        self.planner.announce(ids)

    def step(self, number: int) -> Sample:
        """Plans the batches of a round."""
        first = number * self._options.batches
        batches = [self._batch(first + k) for k in range(self._options.batches)]
        rows = sum(list(self._announced)[: len(batches)])

        def job() -> None:
            for ids in batches:
                self._announce(ids)
                plan = self.planner.plan()
                self.planner.commit(plan.batch)
                self.hits += len(plan.hits)
                if self._announced.popleft() != len(plan.hits) + len(plan.fills):
                    raise CheckError(f"the plan of batch {plan.batch} does not serve every row")

        sample = timed(job, rows=rows)
        self.rows += rows
        return sample


def cases(options: argparse.Namespace, notes: dict[str, Any]) -> Iterator[Case]:
    """One for each size of the table and policy: the planner's memory is free before the next."""
    for scale in options.scales:
        for policy in options.policies:
            planning = Planning(options, scale, policy)
            labels = {"rows": f"2^{scale}", "slots": planning.planner.capacity, "policy": policy}
            implementation = Implementation(name=policy, check=lambda: None, run=planning.step)
            yield Case(labels=labels, rates=_RATES, bases=(), implementations=[implementation])
            notes[f"2^{scale} {policy}"] = {
                "state_bytes": planning.planner.state_bytes,
                "hit_ratio": planning.hits / planning.rows,
                "rows_a_batch": planning.rows // planning.planner.planned,
            }
            print(f"  {notes[f'2^{scale} {policy}']}")
            del planning, implementation


def _policies(text: str) -> list[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in POLICIES]:
        raise argparse.ArgumentTypeError(f"'{wrong[0]}' is none of {', '.join(POLICIES)}")
    return names


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; returns the exit status."""
    parser = make_parser("planner.py", __doc__, _EXAMPLES)
    parser.add_argument(
        "--scales", type=positive_list, default=[20, 22, 24, 26], help="log2 of the tables' rows"
    )
    parser.add_argument("--policies", type=_policies, default=["hybrid"], help="default hybrid")
    parser.add_argument("--batch", type=positive, default=60_000, help="rows; default 60,000")
    parser.add_argument("--batches", type=positive, default=40, help="a round; default 40")
    parser.add_argument("--window", type=int, default=64, help="default 64")
    parser.add_argument("--capacity", type=float, default=10, help="per cent of the rows")
    parser.add_argument("--skew", type=float, default=6, help="power of the density; default 6")
    add_options(parser)
    options = parser.parse_args(arguments)
    notes: dict[str, Any] = {}

    def job() -> None:
        check_options(options)
        run_benchmark(
            "planner",
            cases(options, notes),
            options,
            cache_state="warm: a round of planning goes before, the cache starts filled by score",
            notes=notes,
        )

    return run_entry("planner.py", job)


if __name__ == "__main__":
    sys.exit(main())
