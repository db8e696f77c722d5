"""The HTML page of a report: the texts that its template shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeGuard

from gnnsys.features.statistics import FeatureStats, memory_rows, offload_rows, stats_rows
from gnnsys.pages import numbers
from gnnsys.pages.drawing import Chart
from gnnsys.pages.tables import TextTable
from gnnsys.pages.templates import render
from gnnsys.report.run import RecordedRun, as_object

__all__ = ["LOOKS", "about", "facts", "machine_facts", "make_page", "unfinished"]

LOOKS = {"done": "good", "early stop": "good", "interrupted": "warning", "going on": "good"}


def make_page(run: RecordedRun, charts: Sequence[Chart], timeline: Chart | None = None) -> str:
    """The whole page, which needs no other file.

    Args:
        charts: over the time of the run.
        timeline: of the ranks of a parallel run.
    """
    dataset = as_object(run.start.get("dataset")).get("name")
    dataset = dataset or run.options.get("dataset", "an unnamed dataset")
    name = f"{run.options.get('model', 'model')} on {dataset}"
    state = run.state
    return render(
        "report",
        title=f"{name}: {state}",
        name=name,
        state=state,
        look=LOOKS.get(state, "warning"),
        about=about(run),
        notes=_notices(run),
        tiles=_tiles(run),
        charts=charts,
        times=_times(run),
        shares=_shares(run),
        ranks=_ranks(run),
        timeline=timeline,
        undrawn=len(run.spans) if run.spans and timeline is None else 0,
        tiers=_tiers(run),
        reads=list(stats_rows(FeatureStats(seconds=run.seconds, reads=run.reads()))),
        memory=list(memory_rows(as_object(run.result.get("memory")))),
        offload=list(offload_rows(as_object(run.result.get("offload")))),
        epochs=_epochs(run),
        options=facts(run.options),
        versions=facts(as_object(run.start.get("versions"))),
        machine=machine_facts(run),
    )


def about(run: RecordedRun) -> str:
    """Sizes and when it was started."""
    sizes = as_object(run.start.get("dataset"))
    told = [
        f"{_count_any(sizes[kind])} {kind}"
        for kind in ("nodes", "edges", "features", "classes")
        if kind in sizes
    ]
    if "target" in sizes:
        kinds = (
            f"{len(as_object(sizes.get(f'{of}_types')))} {of} types" for of in ("node", "edge")
        )
        told.append(f"{sizes['target']} of {', '.join(kinds)}")
    if "parameters" in run.start:
        told.append(f"{_count_any(run.start['parameters'])} parameters")
    if "time" in run.start:
        told.append(f"started {_date(run.start['time'])}")
    return " · ".join(told)


def unfinished(run: RecordedRun) -> list[str]:
    """What is said of a run that has not ended; nothing of others."""
    if run.reason is not None:
        return []
    cut = ", and its last line was cut off in the middle" if run.cut else ""
    found = (
        f"This run is going on: {run.writer} is writing it"
        if run.writer
        else "This run has not ended: it is going on or was killed"
    )
    return [f"{found}{cut}. The page shows what was written so far."]


def _notices(run: RecordedRun) -> list[str]:
    notices = unfinished(run)
    if not run.samples:
        notices.append("No steps or epochs yet: there is nothing to draw.")
    lost = run.first_lost()
    if lost is not None:
        notices.append(
            f"The run diverged: its loss is {numbers.metric(lost.loss)} in epoch {lost.epoch}. "
            "Where a value is not finite, its line has a gap."
        )
    if run.lost_scores():
        notices.append(
            f"The validation {run.metric} is not finite in {numbers.count(run.lost_scores())} of "
            f"{numbers.count(len(run.epochs))} epochs: its line has gaps there."
        )
    if run.resumes:
        places = (
            f"epoch {each.epoch}, batch {each.batch}, after {numbers.duration(each.seconds)}"
            for each in run.resumes
        )
        notices.append(f"Resumed from a checkpoint of {'; '.join(places)} of training.")
    if run.redone:
        notices.append(
            "Batches that were trained again after a resume are shown once "
            f"({numbers.count(run.redone)} earlier records left out)."
        )
    return notices


def _tiles(run: RecordedRun) -> list[tuple[str, str, str]]:
    """What each tile shows: its name, a value and a note."""
    metric, best, epochs = run.metric, run.best, run.epochs
    val, test = run.best_metric()
    place = f"best, epoch {best.epoch} of {len(epochs)}" if best else "no epoch was evaluated"
    trained = sum(epoch.epoch_seconds for epoch in epochs)
    rates = [rate for _, rate in run.epoch_rates() if math.isfinite(rate)]
    served = run.tiers("bytes")
    return [
        (f"Validation {metric}", numbers.metric(val), place),
        (f"Test {metric}", numbers.metric(test), "in the best epoch"),
        (
            "Time",
            numbers.duration(run.seconds),
            f"{numbers.duration(trained / len(epochs))} to train an epoch" if epochs else "",
        ),
        (
            "Throughput",
            numbers.rate(sum(rates) / len(rates)) if rates else numbers.NOTHING,
            "seeds/s, mean of epochs",
        ),
        (
            "Features served",
            numbers.traffic(sum(served.values())),
            f"{numbers.count(sum(run.tiers('rows').values()))} rows",
        ),
        ("Peak memory", numbers.memory(run.peak_rss), _of_memory(run)),
    ]


def _of_memory(run: RecordedRun) -> str:
    ranks = run.result.get("ranks")
    if isinstance(ranks, list) and ranks:
        return f"resident, of {len(ranks)} ranks"
    size = as_object(run.start.get("machine")).get("memory_bytes")
    return f"of {numbers.memory(size)}" if _is_number(size) else "resident"


def _shares(run: RecordedRun) -> list[tuple[str, float]]:
    """Parts of the time and their percentages, of a bar; empty where they are not known."""
    times = run.times()
    total = sum(times.values())
    if not total > 0 or not math.isfinite(total):
        return []
    return [(part, 100 * seconds / total) for part, seconds in times.items()]


def _times(run: RecordedRun) -> TextTable:
    times = run.times()
    total = sum(times.values())
    rows = [[part, numbers.duration(sec), _share(sec, total)] for part, sec in times.items()]
    read = [sum(epoch.eval_bytes.values()) for epoch in run.epochs if epoch.eval_bytes]
    head = ["part", "time", "share of the time"]
    if read:
        head.append("features served")
        size = numbers.traffic(sum(read))
        rows = [[*row, size if row[0] == "evaluation" else ""] for row in rows]
    return TextTable("Where the time went", head, rows if run.samples else [])


def _ranks(run: RecordedRun) -> TextTable:
    """What each of several ranks did: columns of what was counted for some rank."""
    ranks = run.ranks()
    kinds = list(dict.fromkeys(kind for rank in ranks for kind in rank.sent))
    sent = [[rank.sent.get(kind, 0.0) for rank in ranks] for kind in kinds]
    traffic, duration = numbers.traffic, numbers.duration
    columns: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("rows", [rank.rows for rank in ranks], numbers.count),
        ("features served", [rank.served for rank in ranks], traffic),
        ("read", [rank.read for rank in ranks], traffic),
        ("loading", [rank.loading for rank in ranks], duration),
        *((f"sent: {kind}", part, traffic) for kind, part in zip(kinds, sent, strict=True)),
        ("sent in all", [sum(rank.sent.values()) for rank in ranks], traffic),
        ("messages", [rank.messages for rank in ranks], numbers.count),
        ("waited", [rank.waited for rank in ranks], duration),
    ]
    columns = [column for column in columns if any(column[1])]
    names = [*map(str, range(len(ranks))), *(["in all"] if len(ranks) > 1 else [])]
    cells = [
        [show(value) for value in (*values, sum(values))][: len(names)]
        for _, values, show in columns
    ]
    head = [name for name, _, _ in columns]
    peaks = [rank.peak for rank in ranks]
    if any(peaks):
        total = [numbers.memory(run.peak_rss) if run.result.get("ranks") else ""]
        cells.append([*map(numbers.memory, peaks), *total][: len(names)])
        head.append("peak memory")
    rows = [[name, *row] for name, *row in zip(names, *cells, strict=True)]
    return TextTable("Ranks", ["rank", *head], rows)


def _tiers(run: RecordedRun) -> TextTable:
    rows, sizes = run.tiers("rows"), run.tiers("bytes")
    tiers = list(dict.fromkeys([*rows, *sizes]))
    body = [
        [
            tier,
            numbers.count(rows.get(tier, 0)),
            _share(rows.get(tier, 0), sum(rows.values())),
            numbers.count(sizes.get(tier, 0)),
            numbers.traffic(sizes.get(tier, 0)),
            _share(sizes.get(tier, 0), sum(sizes.values())),
        ]
        for tier in tiers
    ]
    if len(tiers) > 1:
        served = sum(sizes.values())
        total = numbers.count(sum(rows.values()))
        body.append(["in all", total, "", numbers.count(served), numbers.traffic(served), ""])
    head = ("tier", "rows", "share of rows", "bytes", "size", "share of bytes")
    return TextTable("Features by tier", head, body)


def _epochs(run: RecordedRun) -> TextTable:
    metrics = list(dict.fromkeys(name for epoch in run.epochs for name in epoch.val or {}))
    best = run.best
    by_step = any(epoch.step is not None for epoch in run.epochs)
    head = ["epoch", "steps", "loss"] if by_step else ["epoch", "loss"]
    head += [f"{kind} {name}" for name in metrics for kind in ("validation", "test")]
    loads = any(epoch.load_seconds for epoch in run.epochs)
    head += [*(["loading"] if loads else []), "training", "evaluation", "seeds/s"]
    body = [
        [
            f"{epoch.epoch} (best)" if epoch is best else str(epoch.epoch),
            *([numbers.count(epoch.step)] if by_step else []),
            numbers.metric(epoch.loss),
            *(
                numbers.metric((values or {}).get(name))
                for name in metrics
                for values in (epoch.val, epoch.test)
            ),
            *([numbers.duration(epoch.load_seconds)] if loads else []),
            numbers.duration(epoch.epoch_seconds - epoch.load_seconds),
            numbers.duration(epoch.eval_seconds),
            numbers.rate(rate) if math.isfinite(rate) else numbers.NOTHING,
        ]
        for epoch, rate in run.epoch_rates()
    ]
    return TextTable("Epochs", head, body)


def machine_facts(run: RecordedRun) -> list[tuple[str, str]]:
    """What it ran on."""
    known = dict(as_object(run.start.get("machine")))
    size = known.get("memory_bytes")
    if _is_number(size):
        known["memory_bytes"] = numbers.memory(size)
    return [(name.removesuffix("_bytes"), value) for name, value in facts(known)]


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and what a page shows of each."""
    return [(name, numbers.plain(value)) for name, value in values.items()]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole and math.isfinite(part / whole) else numbers.NOTHING


def _date(seconds: Any) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (TypeError, ValueError, OverflowError, OSError):  # not a time
        return numbers.plain(seconds)


def _count_any(value: Any) -> str:
    return numbers.count(value) if _is_number(value) else numbers.plain(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
