"""``gnnsys train``: progress on standard error, the result on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from gnnsys.config.checks import check_bytes
from gnnsys.config.train import TrainConfig
from gnnsys.features.statistics import (
    FeatureStats,
    live_line,
    memory_rows,
    offload_rows,
    stats_rows,
)
from gnnsys.memory.alloc import suit_freed_memory
from gnnsys.pages import numbers
from gnnsys.pages.tables import pairs_on_terminal
from gnnsys.ranks.environment import rank_of_process, rank_on_machine
from gnnsys.system.budget import process_budget
from gnnsys.system.interrupts import INTERRUPTED
from gnnsys.system.progress import Progress, bar_on_demand, silence
from gnnsys.system.records import json_text
from gnnsys.system.threads import local_world_size
from gnnsys.training.loop import EpochRecord, TrainResult, run_training

__all__ = ["run_command"]


def run_command(config: TrainConfig) -> int:
    """Trains and tells; the exit code is 130 where the run was interrupted."""
    # The process is this command's, and the memory that of all ranks of the machine.
    if config.offload != "none":
        suit_freed_memory(0)  # or what activations leave would stay in the heap
    elif not config.full_batch:
        whole = check_bytes("memory", config.memory) or process_budget().left()
        suit_freed_memory(whole // local_world_size())
    if rank_of_process() > 0:  # the first rank tells, and that of a machine warns
        with silence() if rank_on_machine() > 0 else nullcontext():
            return INTERRUPTED if run_training(config).reason == "interrupted" else 0
    with _progress(config) as callbacks:
        result = run_training(config, *callbacks)
    if config.json:
        print(json_text(result.as_dict()))
    else:
        mode = "full batch" if config.full_batch else "mini-batches"
        ranks = result.config.ranks or 1
        mode = f"joint {mode}" if config.cooperative and ranks > 1 else mode
        mode += f" on {ranks} ranks" if ranks > 1 and not config.full_batch else ""
        title = f"{result.config.model} on {result.config.dataset}, {mode}"
        Console().print(pairs_on_terminal(title, _result_rows(result)))
    folder = config.resume or config.out
    if result.reason != "interrupted":
        return 0
    again = f" --ranks {config.ranks}" if config.ranks and not config.full_batch else ""
    resume = f"; go on with gnnsys train --resume {folder}{again}"
    way_on = resume if folder else ", without a checkpoint"
    print(f"gnnsys: interrupted in epoch {len(result.history) + 1}{way_on}", file=sys.stderr)
    return INTERRUPTED


OnEpoch = Callable[[EpochRecord], None]
OnBatch = Callable[[int, int, int], None]
OnStats = Callable[[FeatureStats], None]

_LINE_SECONDS = 1.0
"""Least time that the live line is about."""


@contextmanager
def _progress(config: TrainConfig) -> Iterator[tuple[OnEpoch, OnBatch, OnStats, Progress]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with bar_on_demand(columns) as bar:
        total = config.filled_in().epochs
        epochs = bar.add_task(f"train {config.dataset}", total=total, state="")
        batches = bar.add_task("epoch 1", total=None, state="", visible=False)

        def show_epoch(record: EpochRecord) -> None:
            bar.start()
            metrics = (("val", record.val), ("test", record.test))
            told = [f"{name} {value:.4f}" for name, value in metrics if value is not None]
            bar.update(
                epochs, completed=record.epoch, state="  ".join([f"loss {record.loss:.4f}", *told])
            )
            bar.milestone()

        def show_batch(epoch: int, done: int, total: int) -> None:
            bar.start()
            bar.update(
                batches,
                description=f"epoch {epoch}",
                completed=done,
                total=total,
                visible=total > 1,
            )

        last: FeatureStats | None = None

        def show_stats(stats: FeatureStats) -> None:
            nonlocal last
            recent = stats - (last or FeatureStats())
            if config.stats and (last is None or recent.seconds >= _LINE_SECONDS):
                bar.line = live_line(recent) if last else ""
                last = stats

        evaluations: dict[str, TaskID] = {}

        def show_evaluation(what: str, done: int, total: int) -> None:
            bar.start()
            if what not in evaluations:
                label = what if what.startswith("packing") else f"evaluate: {what}"
                evaluations[what] = bar.add_task(label, total=total, state="")
            bar.update(evaluations[what], completed=done, visible=done < total)

        yield show_epoch, show_batch, show_stats, show_evaluation


def _result_rows(result: TrainResult) -> Iterator[tuple[str, str]]:
    config = result.config
    for kind, metrics in (("test", result.best_test), ("validation", result.best_val)):
        for name, value in metrics.items():
            yield f"{kind} {name}", f"{value:.4f}"
    yield "best epoch", f"{result.best_epoch} of {len(result.history)}"
    yield "ended", result.reason
    yield "time", f"{result.seconds:.1f} s"
    if result.load_seconds:
        share = result.load_seconds / result.seconds
        yield "loading", f"{result.load_seconds:.1f} s ({share:.1%} of the time)"
    if result.evaluation:
        yield "evaluated", result.evaluation["why"]
    if result.padding:
        nodes, edges = result.padding["node_share"], result.padding["edge_share"]
        yield "padding", f"{nodes:.1%} of the nodes, {edges:.1%} of the edges"
    yield from ((f"activations: {name}", told) for name, told in offload_rows(result.offload))
    yield from _parallel_rows(result)
    if config.stats:
        served = result.counters.as_dict()
        stats = FeatureStats(
            seconds=result.seconds, rows=served["rows"], bytes=served["bytes"], reads=result.reads
        )
        yield from stats_rows(stats)
        yield from ((f"memory: {name}", told) for name, told in memory_rows(result.memory))
        yield from _rank_rows(result)
    else:
        for tier, each in result.counters.tiers().items():
            yield f"served by {tier}", f"{each.rows:,} rows, {each.bytes:,} bytes"
    if config.resume or config.out:
        yield "run", str(config.resume or config.out)


def _rank_rows(result: TrainResult) -> Iterator[tuple[str, str]]:
    """What each rank had of mini-batches, sent and needed; and the memory of all."""
    for rank, told in enumerate(result.ranks):
        rows, size = sum(told["rows"].values()), sum(told["bytes"].values())
        read = told["reads"].get("bytes_read")
        parts = [
            f"{rows:,} rows, {numbers.traffic(size)}",
            *([] if read is None else [f"{numbers.traffic(read)} read"]),
            f"loading {told['load_seconds']:.1f} s",
            _sent(told["sent"]),
            f"at most {numbers.memory(told['memory']['peak'])}",
        ]
        yield f"rank {rank}", "; ".join(parts)
    if result.ranks:
        yield "memory of all ranks", f"about {numbers.memory(result.peak_rss)} at most"


def _sent(ledger: Mapping[str, Mapping[str, float]]) -> str:
    """What a rank sent by kind, and how long it waited for others."""
    sent = [f"{kind} {numbers.traffic(n)}" for kind, n in sorted(ledger["bytes"].items())]
    waited = sum(ledger["seconds_waited"].values())
    return f"sent {', '.join(sent) or 'nothing'}; waited {waited:.1f} s"


def _parallel_rows(result: TrainResult) -> Iterator[tuple[str, str]]:
    told = result.parallel
    if told is None or result.config.parallel is None:
        return
    yield "ranks", f"{told['stages']} stages x {told['ways']} ways, {told['chunks']} chunks"
    yield "bubble", f"{told['bubble']:.1%} of {told['slots']} slots"
    for kind, nbytes in sorted(told["sent"].items()):
        yield f"sent: {kind}", f"{nbytes:,} bytes"
    if result.config.stats:
        for rank, ledger in enumerate(told["ranks"]):
            yield f"rank {rank}", _sent(ledger)
    if told["staleness"]:
        yield "staleness", f"at most {max(told['staleness']):.3f} of a layer's rows"
