"""The HTML page of a report. Every text that comes from the run passes through ``html.escape``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from typing import Any, TypeGuard

from gnnsys.features.statistics import FeatureStats, stats_rows
from gnnsys.pages import numbers as text
from gnnsys.pages.drawing import Chart, Key
from gnnsys.pages.style import html_page, numbers_table
from gnnsys.report.run import Run, as_object

__all__ = ["make_page"]

_OPEN_EPOCHS = 12  # tables that are longer are shown on demand
_STATES = {"done": "good", "early stop": "good", "interrupted": "warning", "not ended": "warning"}


def make_page(run: Run, charts: Sequence[Chart]) -> str:
    """The whole page, which needs no other file."""
    name = f"{_model(run)} on {_dataset(run)}"
    state = run.reason or "not ended"
    parts = [
        _header(run, name, state),
        _notices(run),
        _tiles(run),
        _charts(charts),
        _tiers(run),
        _epochs(run),
        _facts(run),
    ]
    return html_page(f"{name}: {state}", "\n".join(filter(None, parts)), _FOOTER)


_FOOTER = (
    "Traffic: 1 kB is 1000 bytes. Memory: 1 KiB is 1024 bytes. A row is one node's features; "
    "rows asked for twice are counted twice."
)


def _model(run: Run) -> str:
    return str(run.options.get("model", "model"))


def _dataset(run: Run) -> str:
    named = as_object(run.start.get("dataset")).get("name")
    return str(named or run.options.get("dataset", "an unnamed dataset"))


def _header(run: Run, name: str, state: str) -> str:
    sizes = as_object(run.start.get("dataset"))
    facts = [
        f"{_count_any(sizes[kind])} {kind}"
        for kind in ("nodes", "edges", "features", "classes")
        if kind in sizes
    ]
    if "parameters" in run.start:
        facts.append(f"{_count_any(run.start['parameters'])} parameters")
    if "time" in run.start:
        facts.append(f"started {_date(run.start['time'])}")
    look = _STATES.get(state, "warning")
    return (
        f'<header>\n<h1>{escape(name)} <span class="state {look}">{escape(state)}</span></h1>\n'
        f"<p>{escape(' · '.join(facts))}</p>\n</header>"
    )


def _notices(run: Run) -> str:
    notices = []
    if run.reason is None:
        cut = ", and its last line was cut off in the middle" if run.cut else ""
        notices.append(
            f"This run has not ended: it is going on or was killed{cut}. "
            "The page shows what was written so far."
        )
    if not run.samples:
        notices.append("No steps or epochs yet: there is nothing to draw.")
    lost = next((sample for sample in run.samples if not math.isfinite(sample.loss)), None)
    if lost is not None:
        notices.append(
            f"The run diverged: its loss is {text.score(lost.loss)} in epoch {lost.epoch}. "
            "Values that are not finite are not drawn."
        )
    if run.resumes:
        places = (
            f"epoch {each.epoch}, batch {each.batch}, after {text.duration(each.seconds)}"
            for each in run.resumes
        )
        notices.append(f"Resumed from a checkpoint of {'; '.join(places)} of training.")
    if run.redone:
        notices.append(
            "Batches that were trained again after a resume are shown once "
            f"({text.count(run.redone)} earlier records left out)."
        )
    items = "".join(f"<li>{escape(notice)}</li>\n" for notice in notices)
    return f'<ul class="notices" aria-label="Notes on this run">\n{items}</ul>' if items else ""


def _tiles(run: Run) -> str:
    metric, best, epochs = run.metric, run.best, run.epochs
    val, test = run.best_scores()
    place = f"best, epoch {best.epoch} of {len(epochs)}" if best else "no epoch was evaluated"
    trained = sum(epoch.epoch_seconds for epoch in epochs)
    rates = [rate for _, rate in run.epoch_rates() if math.isfinite(rate)]
    served = run.tiers("bytes")
    tiles = [
        (f"Validation {metric}", text.score(val), place),
        (f"Test {metric}", text.score(test), "in the best epoch"),
        (
            "Time",
            text.duration(run.seconds),
            f"{text.duration(trained / len(epochs))} to train an epoch" if epochs else "",
        ),
        (
            "Throughput",
            text.rate(sum(rates) / len(rates)) if rates else text.NOTHING,
            "seeds/s, mean of epochs",
        ),
        (
            "Features served",
            text.traffic(sum(served.values())),
            f"{text.count(sum(run.tiers('rows').values()))} rows",
        ),
        ("Peak memory", text.memory(run.peak_rss), _of_memory(run)),
    ]
    items = "\n".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)} <small>{escape(note)}</small></dd></div>"
        for label, value, note in tiles
    )
    return f'<dl class="tiles">\n{items}\n</dl>'


def _of_memory(run: Run) -> str:
    size = as_object(run.start.get("machine")).get("memory_bytes")
    return f"of {text.memory(size)}" if _is_number(size) else "resident"


def _charts(charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    figures = "\n".join(map(_figure, charts))
    return f'<section>\n<h2>Training</h2>\n<div class="grid">\n{figures}\n</div>\n</section>'


def _figure(chart: Chart) -> str:
    title = f"<h3>{escape(chart.title)} <small>{escape(chart.unit)}</small></h3>"
    if not chart.svg:
        return f'<div class="card">\n{title}\n<p class="empty">Nothing to draw.</p>\n</div>'
    label = f"{chart.title} over time, in {chart.unit}: {chart.summary}"
    keys = "".join(map(_key, chart.keys))
    drawn = chart.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return (
        f'<figure class="card">\n<figcaption>\n{title}\n'
        f'<p class="summary">{escape(chart.summary)}</p>\n'
        f'<ul class="keys">{keys}</ul>\n</figcaption>\n{drawn}\n</figure>'
    )


def _key(key: Key) -> str:
    swatch = f'<i class="{key.mark}" style="--color: var({key.color})"></i>'
    return f"<li>{swatch}{escape(key.label)}</li>"


def _tiers(run: Run) -> str:
    rows, sizes = run.tiers("rows"), run.tiers("bytes")
    tiers = list(dict.fromkeys([*rows, *sizes]))
    if not tiers:
        return ""
    body = [
        [
            tier,
            text.count(rows.get(tier, 0)),
            _share(rows.get(tier, 0), sum(rows.values())),
            text.count(sizes.get(tier, 0)),
            text.traffic(sizes.get(tier, 0)),
            _share(sizes.get(tier, 0), sum(sizes.values())),
        ]
        for tier in tiers
    ]
    if len(tiers) > 1:
        served = sum(sizes.values())
        total = text.count(sum(rows.values()))
        body.append(["in all", total, "", text.count(served), text.traffic(served), ""])
    head = ("tier", "rows", "share of rows", "bytes", "size", "share of bytes")
    table = numbers_table(head, body)
    told = stats_rows(FeatureStats(seconds=run.seconds, reads=run.reads()))
    reads = "".join(_pair(name, value) for name, value in told)
    if reads:
        table += f'<table class="pairs">\n{reads}</table>'
    return f'<section>\n<h2>Features by tier</h2>\n<div class="card">{table}</div>\n</section>'


def _epochs(run: Run) -> str:
    epochs = run.epochs
    if not epochs:
        return ""
    metrics = list(dict.fromkeys(name for epoch in epochs for name in epoch.val or {}))
    head = ["epoch", "loss"]
    head += [f"{kind} {name}" for name in metrics for kind in ("validation", "test")]
    head += ["training", "evaluation", "seeds/s"]
    body = [
        [
            f"{epoch.epoch} (best)" if epoch is run.best else str(epoch.epoch),
            text.score(epoch.loss),
            *(
                text.score((scores or {}).get(name))
                for name in metrics
                for scores in (epoch.val, epoch.test)
            ),
            text.duration(epoch.epoch_seconds),
            text.duration(epoch.eval_seconds),
            text.rate(rate) if math.isfinite(rate) else text.NOTHING,
        ]
        for epoch, rate in run.epoch_rates()
    ]
    number = "1 epoch" if len(epochs) == 1 else f"{len(epochs)} epochs, one per row"
    opened = " open" if len(epochs) <= _OPEN_EPOCHS else ""
    return (
        f'<section>\n<h2>Epochs</h2>\n<details class="card"{opened}>\n'
        f"<summary>{number}</summary>\n{numbers_table(head, body)}\n"
        "</details>\n</section>"
    )


def _facts(run: Run) -> str:
    machine = {
        name.removesuffix("_bytes"): text.memory(value)
        if name == "memory_bytes" and _is_number(value)
        else value
        for name, value in as_object(run.start.get("machine")).items()
    }
    options = _card("Configuration", run.options)
    versions = _card("Versions", as_object(run.start.get("versions")))
    return (
        '<section>\n<h2>How it was run</h2>\n<div class="facts">\n'
        f"{options}\n<div>\n{versions}\n{_card('Machine', machine)}\n</div>\n</div>\n</section>"
    )


def _card(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(_pair(name, text.plain(value)) for name, value in facts.items())
    table = f'<table class="pairs">\n{rows}</table>' if rows else "<p>not recorded</p>"
    return f'<div class="card">\n<h3>{escape(title)}</h3>\n{table}\n</div>'


def _pair(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>\n'


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole and math.isfinite(part / whole) else text.NOTHING


def _date(seconds: Any) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (TypeError, ValueError, OverflowError, OSError):  # not a time
        return text.plain(seconds)


def _count_any(value: Any) -> str:
    return text.count(value) if _is_number(value) else text.plain(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
