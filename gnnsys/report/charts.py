"""The charts of a report: what each of them shows of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from gnnsys.pages import numbers
from gnnsys.pages.drawing import Chart, Drawing
from gnnsys.pages.style import page_looks
from gnnsys.report.run import Epoch, RecordedRun, Sample

__all__ = ["MOST_SPANS", "draw_charts", "draw_timeline", "spans_decades", "thinned"]

_POINTS = 300  # of a line: more cannot be told apart
_INTERVALS = 80  # of the run, in which rates are averaged
_EPOCHS_ALONE = 8  # so many show how traffic changes, without the pauses of evaluation
_LOG_SCALE_FROM = 30  # times the median
_ORIGIN = Sample(
    epoch=0, batch=0, loss=math.nan, seconds=0.0, seeds=0, rows={}, bytes={}, rss=math.nan
)

MOST_SPANS = 4000
"""Of a timeline that is drawn."""

_T = TypeVar("_T")
_Points = list[tuple[float, float]]


def draw_charts(run: RecordedRun) -> list[Chart]:
    """Draws the charts of a run, in the order of the page, all over time; none without samples.

    The same run gives the same charts, byte for byte, under one version of matplotlib.
    """
    if not run.samples:
        return []
    with page_looks():
        draw = [_loss, _metric, _throughput, _memory, _traffic, _traffic_so_far]
        if run.reads():
            draw += [_hit_ratios, _disk, _waiting]
        if any(epoch.staleness for epoch in run.epochs):
            draw.append(_staleness)
        return [chart(run) for chart in draw]


def draw_timeline(run: RecordedRun) -> Chart | None:
    """What each rank of a parallel run did in its last epoch; None where that was not kept, or is
    more than can be drawn."""
    if not 0 < len(run.spans) <= MOST_SPANS:
        return None
    # They bring torch: imported for parallel runs only.
    from gnnsys.pipeline.schedule import Event, Kind
    from gnnsys.training.timeline import timeline_chart

    kinds = {kind.value for kind in Kind}
    events = [
        Event(span.rank, span.kind, span.chunk, span.start, span.end)
        for span in run.spans
        if span.kind in kinds
    ]
    with page_looks():
        return timeline_chart(0, "Timeline of the last epoch", events, "seconds")


def _loss(run: RecordedRun) -> Chart:
    drawing = _new(run, "loss")
    steps = _timed((sample.seconds, sample.loss) for sample in run.steps)
    epochs = _timed((sample.seconds, sample.loss) for sample in run.epochs)
    means = thinned(steps)
    averaged = len(means) < len(steps)
    if averaged:
        groups = [(group[-1][0], [loss for _, loss in group]) for group in _groups(steps)]
        drawing.band([(at, min(each), max(each)) for at, each in groups], "range of steps")
    drawing.line(means, "steps, averaged" if averaged else "steps", faint=True)
    means = thinned(epochs)
    drawing.line(means, "epochs, averaged" if len(means) < len(epochs) else "mean of the epoch")
    unit = run.loss_name
    if spans_decades(loss for _, loss in steps + epochs):
        drawing.use_log_scale()
        unit += ", log scale"
    ends = run.epochs or run.steps
    summary = f"from {numbers.metric(ends[0].loss)} to {numbers.metric(ends[-1].loss)}"
    return drawing.finish("Loss", unit, summary)


def _metric(run: RecordedRun) -> Chart:
    drawing = _new(run, "metric")
    metric, best = run.metric, run.best
    kinds: tuple[tuple[str, Callable[[Epoch], Mapping[str, float] | None]], ...] = (
        ("validation", lambda epoch: epoch.val),
        ("test", lambda epoch: epoch.test),
    )
    for series, (label, values_of) in enumerate(kinds):
        points = _timed(
            (epoch.seconds, values[metric])
            for epoch in run.epochs
            if (values := values_of(epoch)) is not None and metric in values
        )
        means = thinned(points)
        averaged = ", averaged" if len(means) < len(points) else ""
        drawing.line(means, f"{label}{averaged}", series=series)
    summary = ""
    if best is not None and best.val is not None:
        value = best.val.get(metric, math.nan)
        summary = f"best validation {numbers.metric(value)} in epoch {best.epoch}"
        drawing.ring(best.seconds, value, f"best: epoch {best.epoch}")
    return drawing.finish("Metric", metric, summary)


def _staleness(run: RecordedRun) -> Chart:
    """How far the rows that chunks read were from their snapshot, of a pipeline's layers."""
    drawing = _new(run, "staleness", from_zero=True)
    last = [epoch for epoch in run.epochs if epoch.staleness][-1].staleness
    kinds: tuple[tuple[str, Callable[[tuple[float, ...]], float]], ...] = (
        ("the stalest layer", max),
        ("mean of the layers", lambda staleness: sum(staleness) / len(staleness)),
    )
    for series, (label, of) in enumerate(kinds):
        points = [(e.seconds, of(e.staleness)) for e in run.epochs if e.staleness]
        drawing.line(thinned(_finite(points)), label, series=series)
    summary = f"layer {last.index(max(last))} at {max(last):.3f} in the last epoch"
    return drawing.finish("Staleness", "of the norm of a layer's rows", summary)


def _throughput(run: RecordedRun) -> Chart:
    drawing = _new(run, "throughput", from_zero=True)
    epochs = _finite((epoch.seconds, rate) for epoch, rate in run.epoch_rates())
    drawing.line(_finite(_step_rates(run)), "between steps", faint=True)
    means = thinned(epochs)
    drawing.line(means, "epochs, averaged" if len(means) < len(epochs) else "mean of the epoch")
    summary = f"{numbers.rate(epochs[-1][1])} seeds per second in the last epoch" if epochs else ""
    return drawing.finish("Throughput", "seeds per second", summary)


def _step_rates(run: RecordedRun) -> Iterator[tuple[float, float]]:
    """Middles of intervals within an epoch, so without evaluation, and their seeds per second."""
    edges = _edges(run.steps)
    for first, second in pairwise(edges):
        if first.epoch == second.epoch:
            middle = (first.seconds + second.seconds) / 2
            yield middle, (second.seeds - first.seeds) / (second.seconds - first.seconds)


def _memory(run: RecordedRun) -> Chart:
    drawing = _new(run, "memory", from_zero=True)
    unit, size = numbers.memory_unit(run.peak_rss)
    points = _finite((sample.seconds, sample.rss / size) for sample in run.samples)
    points = [group[-1] for group in _groups(points)]
    summary = f"peak {numbers.memory(run.peak_rss)}"
    if run.result.get("ranks"):
        summary += " of all ranks, of which the first is drawn"
    drawing.band([(at, 0.0, held) for at, held in points], None)
    drawing.line(points, "resident memory", marked=False)
    return drawing.finish("Memory", unit, summary)


def _traffic(run: RecordedRun) -> Chart:
    """Stacked rates: how much flows, and how it is shared out among the tiers."""
    drawing = _new(run, "traffic", from_zero=True)
    edges, by_epoch = _traffic_edges(run)
    rates = {
        tier: [
            max(0.0, _bytes(second, tier) - _bytes(first, tier)) / (second.seconds - first.seconds)
            for first, second in pairwise(edges)
        ]
        for tier in run.tier_names()
    }
    totals = [sum(each) for each in zip(*rates.values(), strict=True)]
    unit, size = numbers.traffic_unit(max(totals, default=0.0))
    if totals:
        scaled = {tier: [rate / size for rate in each] for tier, each in rates.items()}
        drawing.stack([edge.seconds for edge in edges], scaled)
    summary = f"at most {numbers.traffic(max(totals))} per second" if totals else ""
    unit += " per second, mean of each epoch" if by_epoch else " per second"
    return drawing.finish("Feature traffic by tier", unit, summary)


def _traffic_edges(run: RecordedRun) -> tuple[list[Sample], bool]:
    """Between which samples traffic is averaged, and whether those are whole epochs."""
    by_epoch = len(run.epochs) >= _EPOCHS_ALONE
    shown = [*run.epochs, run.samples[-1]] if by_epoch else run.samples
    return _edges(shown, cut_epochs=not by_epoch), by_epoch


def _hit_ratios(run: RecordedRun) -> Chart:
    """Which part of the rows each tier served, interval by interval."""
    drawing = _new(run, "hits", from_zero=True)
    tiers = run.tier_names()
    edges, _ = _traffic_edges(run)
    points: dict[str, _Points] = {tier: [] for tier in tiers}
    for first, second in pairwise(edges):
        rows = {tier: second.rows.get(tier, 0) - first.rows.get(tier, 0) for tier in tiers}
        total = sum(rows.values())
        for tier in tiers if total > 0 else ():
            points[tier].append((second.seconds, 100 * rows[tier] / total))
    for series, tier in enumerate(tiers):
        drawing.line(_finite(points[tier]), tier, series=series, marked=False)
    served = run.tiers("rows")
    total = sum(served.values())
    shares = (f"{tier} {rows / total:.1%}" for tier, rows in served.items() if total > 0)
    return drawing.finish("Hit ratio by tier", "% of rows", f"in all: {', '.join(shares)}")


def _disk(run: RecordedRun) -> Chart:
    drawing = _new(run, "disk", from_zero=True)
    requests = _rates(run, "requests")
    drawing.line(requests, "requests", marked=False)
    drawing.line(_rates(run, "pages"), "pages of 4 KiB", series=1, marked=False)
    most = max((value for _, value in requests), default=0.0)
    summary = f"at most {numbers.rate(most)} requests per second"
    return drawing.finish("Disk reads", "per second", summary)


def _waiting(run: RecordedRun) -> Chart:
    drawing = _new(run, "waiting", from_zero=True)
    points = [(at, 100 * share) for at, share in _rates(run, "io_wait_seconds")]
    drawing.band([(at, 0.0, share) for at, share in points], None)
    drawing.line(points, "waiting for reads", marked=False)
    waited = numbers.duration(run.reads().get("io_wait_seconds", 0.0))
    return drawing.finish("Time waited for reads", "% of the time", f"{waited} in all")


def _rates(run: RecordedRun, name: str) -> _Points:
    """Ends of intervals and how fast a count of ``Sample.reads`` grew in them, per second."""
    edges, _ = _traffic_edges(run)
    return _finite(
        (
            second.seconds,
            max(0.0, second.reads.get(name, 0) - first.reads.get(name, 0))
            / (second.seconds - first.seconds),
        )
        for first, second in pairwise(edges)
    )


def _traffic_so_far(run: RecordedRun) -> Chart:
    drawing = _new(run, "served", from_zero=True)
    samples = [group[-1] for group in _groups(run.samples)]
    served = {
        tier: _finite((sample.seconds, _bytes(sample, tier)) for sample in [_ORIGIN, *samples])
        for tier in run.tier_names()
    }
    largest = max((value for points in served.values() for _, value in points), default=0.0)
    unit, size = numbers.traffic_unit(largest)
    for series, (tier, points) in enumerate(served.items()):
        scaled = [(at, value / size) for at, value in points]
        drawing.line(scaled, tier, series=series, marked=False)
    summary = f"{numbers.traffic(sum(run.tiers('bytes').values()))} in all" if served else ""
    return drawing.finish("Feature bytes served so far", unit, summary)


def _new(run: RecordedRun, name: str, **options: Any) -> Drawing:
    ends = _finite((epoch.epoch, epoch.seconds) for epoch in run.epochs)
    times = [sample.seconds for sample in run.samples if math.isfinite(sample.seconds)]
    return Drawing(
        name,
        seconds=max(times, default=0.0),
        epochs=[(int(number), at) for number, at in ends],
        resumes=[each.seconds for each in run.resumes if math.isfinite(each.seconds)],
        **options,
    )


def _finite(points: Iterable[tuple[float, float]]) -> _Points:
    """Those that can be drawn."""
    return [(at, value) for at, value in points if math.isfinite(at) and math.isfinite(value)]


def _timed(points: Iterable[tuple[float, float]]) -> _Points:
    """Those whose time is known, with NaN for what is not finite."""
    return [
        (at, value if math.isfinite(value) else math.nan)
        for at, value in points
        if math.isfinite(at)
    ]


def thinned(points: Sequence[tuple[float, float]]) -> _Points:
    """Means of neighbours, so few that they can be told apart; NaN where one of them is."""
    return [
        (group[-1][0], sum(value for _, value in group) / len(group)) for group in _groups(points)
    ]


def spans_decades(values: Iterable[float]) -> bool:
    """Whether a few are so large that the rest would lie on the axis."""
    seen = sorted(filter(math.isfinite, values))
    return bool(seen) and seen[0] > 0 and seen[-1] > _LOG_SCALE_FROM * seen[len(seen) // 2]


def _groups(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Neighbours together, in at most _POINTS groups whose sizes differ by one at most."""
    number = min(len(items), _POINTS)
    for place in range(number):
        group = slice(place * len(items) // number, (place + 1) * len(items) // number)
        yield items[group]


def _edges(samples: Sequence[Sample], *, cut_epochs: bool = False) -> list[Sample]:
    """The origin and samples about evenly spaced in time, the last among them.

    ``cut_epochs`` adds the last step and the end of every epoch: evaluation lies between them.
    """
    timed = [sample for sample in samples if math.isfinite(sample.seconds)]
    if not timed:
        return []
    spacing = timed[-1].seconds / _INTERVALS
    edges = [_ORIGIN]
    for sample, following in zip(timed, [*timed[1:], None], strict=True):
        elapsed = sample.seconds - edges[-1].seconds
        ends_epoch = isinstance(sample, Epoch) or isinstance(following, Epoch)
        if elapsed > 0 and (elapsed >= spacing or (cut_epochs and ends_epoch)):
            edges.append(sample)
    if len(edges) > 1 and timed[-1].seconds > edges[-1].seconds:
        edges[-1] = timed[-1]  # rather than a short interval, whose rate says little
    return edges


def _bytes(sample: Sample, tier: str) -> float:
    value = sample.bytes.get(tier, 0)
    return value if math.isfinite(value) else 0.0
