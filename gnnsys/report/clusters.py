"""The HTML pages of clustering runs, of one or of several: the texts that templates show."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable
from gnnsys.pages.templates import render
from gnnsys.report.cluster_charts import MOST_LINES, draw_curves
from gnnsys.report.comparison import Runs, split_options
from gnnsys.report.comparison_page import render_comparison
from gnnsys.report.page import LOOKS, about, facts, machine_facts, unfinished
from gnnsys.report.run import RecordedRun, as_object
from gnnsys.report.seeds import CURVES, Seed, group_seeds, spread

__all__ = ["compare_clusterings", "make_cluster_comparison", "make_cluster_page"]

_WHICH = ("selected", "last")


def compare_clusterings(runs: Runs) -> dict[str, Any]:
    """What ``gnnsys report --json`` prints.

    Returns:
        ``runs``, with means and deviations over seeds, of the epochs that are selected and of the
        last ones, and what each seed gave; ``options`` that ``differ`` and the ``same``; ``notes``.
    """
    differ, same = split_options(runs)
    return {
        "runs": [_numbers(name, run) for name, run in runs.items()],
        "options": {"differ": differ, "same": same},
        "notes": [f"{name}: {note}" for name, run in runs.items() for note in unfinished(run)],
    }


def make_cluster_page(run: RecordedRun, picture: bytes | None) -> str:
    """The whole page of a run, which needs no other file.

    Args:
        picture: a PNG file of the first seed's embedding.
    """
    seeds = _seeds(run)
    name = f"{run.start.get('clusters', '?')} clusters of {_dataset(run)}"
    notes = unfinished(run)
    if not seeds:
        notes.append("No epochs yet: there is nothing to draw.")
    if len(seeds) > MOST_LINES:
        notes.append(f"The first {MOST_LINES} of {len(seeds)} seeds are drawn.")
    if run.resumes:
        often = "once" if len(run.resumes) == 1 else f"{len(run.resumes)} times"
        notes.append(f"Resumed from a checkpoint {often}.")
    return render(
        "clusters",
        title=f"{name}: {run.state}",
        name=name,
        state=run.state,
        look=LOOKS.get(run.state, "warning"),
        about=about(run),
        notes=notes,
        tiles=_tiles(run, seeds),
        charts=draw_curves({f"seed {seed.number}": [seed] for seed in seeds}),
        picture=None if picture is None else base64.b64encode(picture).decode(),
        summary=_summary(run, seeds),
        seeds=_seed_table(seeds),
        sizes=_sizes(seeds),
        options=facts({k: v for k, v in run.options.items() if k != "command"}),
        versions=facts(as_object(run.start.get("versions"))),
        machine=machine_facts(run),
    )


def make_cluster_comparison(runs: Runs) -> str:
    """The whole page of several runs."""
    found = compare_clusterings(runs)
    seeds = {name: _seeds(run) for name, run in runs.items()}
    curves = _curves([seed for each in seeds.values() for seed in each])
    rows = [
        [
            name,
            run.state,
            _dataset(run),
            numbers.count(len(seeds[name])),
            *(_cell(seeds[name], "selected", curve) for curve in curves),
            numbers.duration(_seconds(seeds[name])),
        ]
        for name, run in runs.items()
    ]
    head = ["run", "state", "dataset", "seeds", *(CURVES[curve] for curve in curves), "time"]
    title = "In the selected epoch, mean ± deviation over seeds"
    return render_comparison(
        f"{len(runs)} clustering runs compared",
        runs,
        found,
        [TextTable(title, head, rows)],
        ["epoch"],
        [{"title": "Mean of seeds", "charts": {"epoch": draw_curves(seeds)}}],
    )


def _seeds(run: RecordedRun) -> list[Seed]:
    return group_seeds(run.seed_epochs, run.seed_ends)


def _dataset(run: RecordedRun) -> str:
    name = as_object(run.start.get("dataset")).get("name")
    return str(name or run.options.get("dataset", "an unnamed dataset"))


def _curves(seeds: Sequence[Seed]) -> list[str]:
    """Those that the runs have."""
    return [curve for curve in CURVES if any(seed.last.value(curve) is not None for seed in seeds)]


def _spread(seeds: Sequence[Seed], which: str, curve: str) -> tuple[float, float | None] | None:
    epochs = (seed.selected if which == "selected" else seed.last for seed in seeds)
    return spread(epoch.value(curve) for epoch in epochs)


def _cell(seeds: Sequence[Seed], which: str, curve: str) -> str:
    found = _spread(seeds, which, curve)
    if found is None:
        return numbers.NOTHING
    mean, deviation = found
    return numbers.metric(mean) + (
        f" ± {numbers.metric(deviation)}" if deviation is not None else ""
    )


def _seconds(seeds: Sequence[Seed]) -> float:
    return sum(seed.last.seconds for seed in seeds)


def _numbers(name: str, run: RecordedRun) -> dict[str, Any]:
    seeds = _seeds(run)

    def summary(which: str) -> dict[str, Any]:
        found = {curve: _spread(seeds, which, curve) for curve in _curves(seeds)}
        return {curve: {"mean": each[0], "std": each[1]} for curve, each in found.items() if each}

    return {
        "run": name,
        "state": run.state,
        "dataset": _dataset(run),
        "clusters": run.start.get("clusters"),
        "seconds": _seconds(seeds),
        "summary": {which: summary(which) for which in _WHICH},
        "seeds": [
            {
                "seed": seed.number,
                "epochs": seed.last.epoch,
                "selected_epoch": seed.selected.epoch,
                "selected": {curve: seed.selected.value(curve) for curve in _curves([seed])},
                "last": {curve: seed.last.value(curve) for curve in _curves([seed])},
                "seconds": seed.last.seconds,
                "sizes": None if seed.end is None else list(seed.end.sizes),
            }
            for seed in seeds
        ],
    }


def _tiles(run: RecordedRun, seeds: Sequence[Seed]) -> list[tuple[str, str, str]]:
    """What each tile shows: its name, a value and a note."""
    several = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    note = f"epoch by {run.options.get('select', 'loss')}{several}"
    shown = [curve for curve in _curves(seeds) if curve not in ("contrastive", "clustering")]
    tiles = [(CURVES[curve], _cell(seeds, "selected", curve), note) for curve in shown]
    of = run.options.get("seeds", len(seeds))
    return [
        *tiles,
        ("Time", numbers.duration(_seconds(seeds)), f"{len(seeds)} of {numbers.plain(of)} seeds"),
    ]


def _summary(run: RecordedRun, seeds: Sequence[Seed]) -> TextTable:
    rows = [
        [CURVES[curve], *(_cell(seeds, which, curve) for which in _WHICH)]
        for curve in _curves(seeds)
    ]
    selected = f"epoch by {run.options.get('select', 'loss')}"
    title = "Mean ± deviation over seeds" if len(seeds) > 1 else "Losses and scores"
    return TextTable(title, ("of the clusters", selected, "last epoch"), rows)


def _seed_table(seeds: Sequence[Seed]) -> TextTable:
    curves = _curves(seeds)
    rows = [
        [
            str(seed.number),
            f"{seed.selected.epoch} of {seed.last.epoch}",
            *(numbers.metric(seed.selected.value(curve)) for curve in curves),
            numbers.duration(seed.last.seconds),
        ]
        for seed in seeds
    ]
    head = ["seed", "selected epoch", *(CURVES[curve] for curve in curves), "time"]
    return TextTable("Seeds, in the selected epoch", head, rows)


def _sizes(seeds: Sequence[Seed]) -> TextTable:
    """Nodes of each cluster, by seed."""
    ends = [seed.end for seed in seeds if seed.end is not None]
    most = max((len(end.sizes) for end in ends), default=0)
    rows = [
        [str(place), *(numbers.count(end.sizes[place]) for end in ends)] for place in range(most)
    ]
    return TextTable("Nodes of each cluster", ["cluster", *(f"seed {e.seed}" for e in ends)], rows)
