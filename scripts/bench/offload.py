"""Deep training on a full graph with its activations offloaded: memory and time of a step.

The same model is trained plainly, by gnnsys.ActivationOffload with bit masks and recomputation, by
the same with a budget that only the disk can meet, by torch's save_on_cpu and with a checkpoint
around each layer. Each way has two processes of its own, for memory and for time. Losses, gradients
and weights must be those of plain training bit for bit, in every step; of a checkpoint, which may
add gradients up in another order, it is told whether they are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness import (
    WARM_UP,
    BenchError,
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    add_options,
    check_options,
    run_benchmark,
    run_entry,
)
from options import make_parser, positive
from peers import Peer
from rich.console import Console
from rich.table import Table

from gnnsys.dataset.named import NAMED, find_folder
from gnnsys.errors import MissingFileError

_WORKER = Path(__file__).resolve().parent / "workers" / "offload_job.py"
_MODELS = ("deep", "pyg")
_PLAIN = "plain"
_SHRINK, _DISK = "gnnsys shrink", "gnnsys disk"
_POLICIES = {_SHRINK: ("mask", "recompute"), _DISK: ("mask", "recompute", "host", "disk")}
_CHECKPOINT = "checkpoint"
_SIDES = (_SHRINK, _DISK, "save_on_cpu", _CHECKPOINT)
_FIRST = WARM_UP - 1
"""The round of the first step, which makes what all need."""
_MEMORY_STEPS = (WARM_UP, 1, 2)
"""Rounds. The steps from round 1 on go by a plan of a step that was warm."""
_NAMED_VALUES = 5
_OF_WORKER = ("dataset", "hidden", "threads")
_EXAMPLES = f"""
Models, both GCNII: deep is what gnnsys train --model gcnii trains; pyg has PyG's GCN2Conv and
torch's dropout, after gnnsys.fuse.

"{_SHRINK}" has no budget and stores nothing; "{_DISK}" keeps at most --budget-share of the bytes
that plain training keeps. On the CPU save_on_cpu copies nothing: it shows what hooks cost.

examples:
  python scripts/bench/offload.py --root data --depths 32 --json offload32.json
  python scripts/bench/offload.py --root data --depths 64 --models deep --folder FOLDER_ON_THE_DISK
  python scripts/bench/offload.py --quick --root data --dataset cora --depths 4 --hidden 32
"""


@dataclass(kw_only=True, slots=True)
class Figures:
    """What one way needed for one model; lists have an element for each round."""

    model: str
    depth: int
    side: str
    plain_bytes: int = 0
    """That autograd keeps from forward to backward in plain training."""
    budget: int | None = None
    """Of the bytes kept."""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    kept_peak_bytes: list[int] = field(default_factory=list)
    """The most resident in a timed step above what was before the first one, where the C allocator
    keeps freed memory, as by gnnsys train: with the gaps in its heap."""
    peak_bytes: list[int] = field(default_factory=list)
    """The same in steps of another process, where it returns freed memory at once."""
    same_bits: bool = True
    """Whether losses, gradients and weights were those of plain training in all steps."""
    stats: list[dict[str, Any]] = field(default_factory=list)
    """``StepStats`` of gnnsys.ActivationOffload."""


class Training:
    """One model, trained in all ways, whose every step must be the same."""

    def __init__(self, model: str, depth: int, options: argparse.Namespace) -> None:
        self.figures: list[Figures] = []
        self._model, self._depth, self._options = model, depth, options
        self._digests: dict[int, dict[str, str]] = {}
        self._plain_bytes = 0
        for side in (_PLAIN, *options.sides):
            self.figures.append(self._measure_memory(side))

    def _measure_memory(self, side: str) -> Figures:
        """Steps of a process that returns freed memory at once."""
        with self._started(side, keep_freed=False) as peer:
            if side == _PLAIN:
                self._plain_bytes = peer.ask({"job": "saved"})["bytes"]
            figures = Figures(
                model=self._model,
                depth=self._depth,
                side=side,
                plain_bytes=self._plain_bytes,
                budget=self._budget(side),
            )
            self._begin(peer, figures)
            for number in _MEMORY_STEPS:
                figures.peak_bytes.append(self._step(peer, figures, number)["peak_bytes"])
        return figures

    def case(self, stack: contextlib.ExitStack) -> Case:
        """All ways, in turns, each in a process that keeps freed memory, as gnnsys train does."""
        peers = [
            stack.enter_context(self._started(each.side, keep_freed=True)) for each in self.figures
        ]
        options = self._options
        labels = {
            "dataset": options.dataset,
            "model": self._model,
            "depth": self._depth,
            "hidden": options.hidden,
            **self._graph,
            "threads": options.threads,
            "plain MiB": round(self._plain_bytes / 2**20),
        }
        implementations = [
            Implementation(
                name=figures.side,
                check=partial(self._begin, peer, figures),
                run=partial(self._run, peer, figures),
            )
            for figures, peer in zip(self.figures, peers, strict=True)
        ]
        return Case(
            labels=labels,
            rates=(Rate(amount="steps", unit="steps/s"),),
            bases=(_PLAIN,),
            implementations=implementations,
        )

    @contextlib.contextmanager
    def _started(self, side: str, *, keep_freed: bool) -> Iterator[Peer]:
        options = self._options
        request = {
            "job": "open",
            "side": side,
            "policies": _POLICIES.get(side),
            "budget": self._budget(side),
            "keep_freed": keep_freed,
            "model": self._model,
            "depth": self._depth,
            "folder": str(options.folder),
            "root": str(options.root),
            **{name: getattr(options, name) for name in _OF_WORKER},
        }
        with Peer(Path(sys.executable), _WORKER) as peer:
            self._graph = peer.ask(request)
            yield peer
            peer.ask({"job": "close"})

    def _budget(self, side: str) -> int | None:
        return int(self._plain_bytes * self._options.budget_share) if side == _DISK else None

    def _begin(self, peer: Peer, figures: Figures) -> None:
        self._step(peer, figures, _FIRST)
        peer.ask({"job": "settle"})

    def _run(self, peer: Peer, figures: Figures, number: int) -> Sample:
        answer = self._step(peer, figures, number)
        if number != WARM_UP:
            figures.seconds.append(answer["seconds"])
            figures.cpu_seconds.append(answer["cpu_seconds"])
            figures.kept_peak_bytes.append(answer["peak_bytes"])
            if answer["stats"] is not None:
                figures.stats.append(answer["stats"])
        return Sample(
            seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"], amounts={"steps": 1}
        )

    def _step(self, peer: Peer, figures: Figures, number: int) -> dict[str, Any]:
        """The step of a round, which is the same in all ways; plain training has it first."""
        answer = peer.ask({"job": "step", "seed": number - _FIRST})
        found = answer["digests"]
        expected = self._digests.setdefault(number, found)
        if others := [name for name in expected if found.get(name) != expected[name]]:
            figures.same_bits = False
            if figures.side != _CHECKPOINT:
                raise CheckError(
                    f"{figures.model}, {figures.depth} layers, {figures.side}, step "
                    f"{number - _FIRST}: {len(others)} of {len(expected)} values are not those of "
                    f"plain training bit for bit: {', '.join(others[:_NAMED_VALUES])}"
                )
        return answer


def make_cases(options: argparse.Namespace, figures: list[Figures]) -> Iterator[Case]:
    """A case for each model and depth; ``figures`` gets those of each way."""
    for model, depth in itertools.product(options.models, options.depths):
        training = Training(model, depth, options)
        figures += training.figures
        with contextlib.ExitStack() as stack:
            yield training.case(stack)


def print_summary(figures: list[Figures]) -> None:
    """A line for each way, medians, and the verdicts."""
    table = Table(box=None, pad_edge=False)
    for name in ("model", "depth", "way", *_COLUMNS):
        table.add_column(name, justify="left" if name in ("model", "way") else "right")
    for ways in _by_setting(figures):
        for each in ways.values():
            cells = _cells(each, ways[_PLAIN])
            table.add_row(each.model, str(each.depth), each.side, *cells)
    print()
    Console(width=_WIDTH).print(table)
    print()
    for line in verdicts(figures):
        print(line)


def verdicts(figures: list[Figures]) -> Iterator[str]:
    """Whether gnnsys saves what it is to save, in what time, is foretold, and beats checkpoints."""
    for ways in _by_setting(figures):
        plain = ways[_PLAIN]
        for side in (each for each in _GOALS if each in ways):
            mine = ways[side]
            start = f"{mine.model}, {mine.depth} layers, {side}: "
            yield start + _savings(mine, plain)
            for name, limit in _PREDICTED.items():
                if (error := _error(mine, name)) is not None:
                    met = _met(abs(error) <= limit)
                    yield f"{start}predicted {name} {error:+.1%} (at most {limit:.0%}: {met})"
            if (theirs := ways.get(_CHECKPOINT)) is not None:
                memory, time = _memory(mine) / _memory(theirs), _times(mine, theirs)
                is_better = min(memory, time) < 1 and max(memory, time) <= _EQUAL
                yield (
                    f"{start}{memory:.2f} x the memory and {time:.2f} x the time of checkpoints "
                    f"(better in one at equal other: {_met(is_better)})"
                )


def _savings(mine: Figures, plain: Figures) -> str:
    least, most = _GOALS[mine.side]
    live = 1 - (_stat(mine, "peak") or 0) / mine.plain_bytes
    process = 1 - _memory(mine) / _memory(plain)
    time = _times(mine, plain)
    limit = "" if math.isinf(most) else f" (at most {most}: {_met(time <= most)})"
    return (
        f"activations down {live:.1%} (at least {least:.0%}: {_met(live >= least)}), peak of the "
        f"process {process:.1%} ({_met(process >= least)}), {time:.2f} x plain time{limit}"
    )


_GOALS = {_SHRINK: (0.45, 1.3), _DISK: (0.75, math.inf)}
"""Least share of the activations that is saved, and the most times plain training's time."""
_PREDICTED = {"peak": 0.05, "seconds": 0.25}
_EQUAL = 1.05
_WIDTH = 200
_COLUMNS = (
    "s/step", "÷ plain", "RSS MiB", "÷ plain", "kept RSS MiB", "live MiB", "÷ plain", "stall s",
    "predicted MiB", "predicted s", "same bits",
)  # fmt: skip


def _by_setting(figures: list[Figures]) -> Iterator[dict[str, Figures]]:
    """Ways by their names, of each model and depth that was measured."""
    found: dict[tuple[str, int], dict[str, Figures]] = {}
    for each in figures:
        if each.seconds:
            found.setdefault((each.model, each.depth), {})[each.side] = each
    yield from found.values()


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _times(mine: Figures, base: Figures) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(mine.seconds, base.seconds, strict=True))


def _memory(figures: Figures) -> float:
    return statistics.median(figures.peak_bytes)


def _cells(figures: Figures, plain: Figures) -> Iterator[str]:
    yield f"{statistics.median(figures.seconds):.3f}"
    yield f"{_times(figures, plain):.2f}"
    yield f"{_memory(figures) / 2**20:.0f}"
    yield f"{_memory(figures) / _memory(plain):.2f}"
    yield f"{statistics.median(figures.kept_peak_bytes) / 2**20:.0f}"
    live = figures.plain_bytes if figures is plain else _stat(figures, "peak")
    if live is not None:
        yield f"{live / 2**20:.0f}"
        yield f"{live / figures.plain_bytes:.2f}"
    else:
        yield from ("-", "-")
    if figures.stats:
        yield f"{_stat(figures, 'stall'):.3f}"
        yield _predicted(figures, "peak", 2**20)
        yield _predicted(figures, "seconds", 1)
    else:
        yield from ("-", "-", "-")
    yield "yes" if figures.same_bits else "no"


def _predicted(figures: Figures, name: str, unit: int) -> str:
    expected, error = _stat(figures, f"predicted_{name}"), _error(figures, name)
    return "-" if expected is None else f"{expected / unit:.4g} ({error:+.1%})"


def _error(figures: Figures, name: str) -> float | None:
    """Of what was predicted, as a share of what the same steps took; None without a plan."""
    expected, found = _stat(figures, f"predicted_{name}"), _stat(figures, name)
    return None if expected is None or not found else expected / found - 1


def _stat(figures: Figures, name: str) -> float | None:
    """The median; None where it was not told."""
    values = [stats[name] for stats in figures.stats if stats[name] is not None]
    return statistics.median(values) if values else None


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    figures: list[Figures] = []
    notes: dict[str, Any] = {"figures": [], "verdicts": []}

    def note() -> Iterator[Case]:
        for case in make_cases(options, figures):
            yield case
            notes["figures"] = [asdict(each) for each in figures]
            notes["verdicts"] = [*verdicts(figures)]

    run_benchmark(
        "offload",
        note(),
        options,
        cache_state="warm: two steps of the same training precede the timed ones",
        notes=notes,
    )
    print_summary(figures)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("offload.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data"), help="folder of the data sets; default data")
    add("--dataset", choices=NAMED, default="tolokers", help="default tolokers")
    add("--models", nargs="+", choices=_MODELS, default=["deep", "pyg"], help="default deep pyg")
    add("--depths", nargs="+", type=positive, default=[8, 16, 32, 64], metavar="N",
        help="graph layers; default 8 16 32 64")  # fmt: skip
    add("--hidden", type=positive, default=256, help="columns of a layer; default 256")
    add("--sides", nargs="*", choices=_SIDES, default=list(_SIDES), help="beside plain; all")
    add("--budget-share", type=float, default=0.25, metavar="SHARE",
        help=f'of the plain bytes, that "{_DISK}" may keep; default 0.25')  # fmt: skip
    add("--folder", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR",
        help="that activations are stored in; default that of temporary files")  # fmt: skip
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    _check_choice(options)
    return options


def _check_choice(options: argparse.Namespace) -> None:
    if not 0 < options.budget_share <= 1:
        raise BenchError(f"--budget-share {options.budget_share}: expected a share, above 0, to 1")
    if not options.folder.is_dir():
        raise BenchError(f"--folder {options.folder}: is not a folder; make it first")
    for name in ("models", "depths", "sides"):
        given = getattr(options, name)
        if len(set(given)) < len(given):
            raise BenchError(f"--{name} {' '.join(map(str, given))}: names one twice")
    try:
        find_folder(options.dataset, NAMED[options.dataset], options.root)
    except MissingFileError as error:
        raise BenchError(f"--dataset {options.dataset}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("offload.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
