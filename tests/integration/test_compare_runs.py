"""``gnnsys report RUN1 RUN2 …``: several runs side by side."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from gnnsys.commands.cli import main
from gnnsys.commands.report import write_comparison

sys.path.insert(0, str(Path(__file__).parent))
from run_folders import Page, Records, records, with_loading, write_run


def changed(made: Records, **config: Any) -> Records:
    made[0]["config"] |= config
    return made


def compared(folder: Path, **runs: Records) -> Page:
    folder.mkdir(exist_ok=True)
    folders = [write_run(folder / name, made) for name, made in runs.items()]
    return Page(write_comparison(folders, folder / "page.html").read_text(encoding="utf-8"))


def numbers_of(capsys: pytest.CaptureFixture[str], *folders: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert main(["report", *map(str, folders), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    return told


def test_numbers_are_those_that_pandas_reads_in_the_metrics(tmp_path: Path, capsys) -> None:
    folders = [
        write_run(tmp_path / f"run{epochs}", with_loading(records(epochs))) for epochs in (2, 3, 5)
    ]
    told = numbers_of(capsys, *folders)
    assert [run["run"] for run in told["runs"]] == ["run2", "run3", "run5"]
    for run, folder in zip(told["runs"], folders, strict=True):
        lines = pandas.read_json(folder / "metrics.jsonl", lines=True, precise_float=True)
        epochs = lines[lines.kind == "epoch"]
        scores = epochs.val.map(lambda values: values["accuracy"])
        assert run["epochs"] == len(epochs)
        assert run["best_val"] == scores.max()
        assert run["best_epoch"] == epochs.epoch[scores.idxmax()]
        assert run["best_test"] == epochs.test[scores.idxmax()]["accuracy"]
        assert run["last_val"] == scores.iloc[-1]
        assert run["last_loss"] == epochs.loss.iloc[-1]
        assert run["seconds"] == epochs.seconds.iloc[-1]
        loading = epochs.load_seconds.sum()
        assert run["seconds_of"]["loading"] == pytest.approx(loading)
        assert run["seconds_of"]["training"] == pytest.approx(epochs.epoch_seconds.sum() - loading)
        assert run["seconds_of"]["evaluation"] == epochs.eval_seconds.sum()
        assert sum(run["seconds_of"].values()) == pytest.approx(run["seconds"])
        assert run["peak_rss"] == 3 << 29
        curve = pandas.DataFrame(run["curve"])
        assert curve.loss.tolist() == epochs.loss.tolist()
        assert curve.val.tolist() == scores.tolist()
        assert curve.step.tolist() == epochs.step.tolist()
        assert curve.seconds.tolist() == epochs.seconds.tolist()


def test_the_page_shows_scores_and_the_options_that_differ(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        slow=changed(records(2), lr=0.1, out="slow"),
        fast=changed(with_loading(records(3)), lr=0.01, out="fast"),
    )
    assert page.title == "2 runs compared"
    scores = page.table("run")
    assert scores["slow"][:3] == ["done", "0.8000 (best)", "0.7500"]
    assert scores["run"][6:10] == ["time", "loading", "training", "evaluation"]
    assert scores["slow"][6:10] == ["6.00 s", "—", "4.00 s", "2.00 s"]
    assert scores["fast"][2:10] == [
        "0.7500", "0.7000", "0.6667", "2 of 3", "9.00 s", "1.20 s", "4.80 s", "3.00 s",
    ]  # fmt: skip
    options = page.table("option")
    assert options == {"option": ["slow", "fast"], "lr": ["0.1", "0.01"]}
    same = page.table("dataset")
    assert same == {
        "dataset": ["demo"],
        "model": ["sage"],
        "fanouts": ["15, 10"],
        "patience": ["—"],
    }


def test_curves_are_there_over_epochs_and_time_with_a_legend(tmp_path: Path) -> None:
    page = compared(tmp_path, one=records(), other=records(200))
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert names == [
        f"{title} over {axis}, in {unit}, of one, other"
        for axis in ("epoch", "step", "time")
        for title, unit in (("Loss", "cross entropy, log scale"), ("Validation", "accuracy"))
    ]
    assert page.html.count("<li><i") == 12
    assert page.tags["script"] == page.tags["link"] == 0
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def drawn(page: Page, title: str, axis: str) -> list[list[float]]:
    """Where the points of each line of a chart lie from left to right."""
    chart = rf'<svg role="img" aria-label="{title} over {axis},.*?</svg>'
    drawing = re.search(chart, page.html, re.DOTALL)
    assert drawing is not None
    lines = re.findall(r'<path d="([^"]*)" [^>]*stroke: var\(--series-', drawing[0])
    found = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", line)] for line in lines]
    return [places for places in found if len(places) > 1]


def test_curves_over_steps_are_stretched_by_the_batches_of_an_epoch(tmp_path: Path) -> None:
    larger = records(5)  # batches: 7 of them are an epoch
    for record in larger:
        if record["kind"] == "epoch":
            record["step"] = 7 * record["epoch"]
    page = compared(tmp_path, one=records(4), other=larger)
    for title in ("Loss", "Validation"):
        one, other = drawn(page, title, "step")
        steps = [*range(20, 81, 20), *range(7, 36, 7)]
        line = numpy.polynomial.Polynomial.fit([20, 80], [one[0], one[-1]], 1)
        assert [*one, *other] == pytest.approx([line(step) for step in steps])
        one, other = drawn(page, title, "epoch")
        assert one == other[:4]


def test_curves_over_steps_need_runs_that_recorded_them(tmp_path: Path, capsys) -> None:
    older = records()
    for record in older:
        if record["kind"] == "epoch":
            del record["step"]
    page = compared(tmp_path / "mixed", old=older, new=records())
    told = "old: its steps were not recorded; curves over steps leave it out."
    assert told in page.text
    assert len(drawn(page, "Loss", "step")) == 1
    assert len(drawn(page, "Loss", "time")) == 2
    page = compared(tmp_path / "older", a=older, b=older)
    assert "over step" not in page.html.split("</style>")[1]
    assert told not in page.text


def test_each_choice_of_an_axis_shows_its_charts(tmp_path: Path) -> None:
    page = compared(tmp_path, one=records(), other=records(2))
    style, body = page.html.split("</style>")
    choices = re.findall(r'<input type="radio" name="axis" id="([^"]*)"( checked)?>', body)
    assert choices == [("over-epoch", " checked"), ("over-step", ""), ("over-time", "")]
    for name, _ in choices:
        assert f'<div class="grid {name}">' in body
        assert f"#{name}:not(:checked) ~ .{name}" in style


def test_runs_of_another_metric_or_dataset_are_shown_apart(tmp_path: Path) -> None:
    smaller = records()
    smaller[0]["dataset"]["nodes"] = 7
    page = compared(
        tmp_path,
        a=records(),
        b=records(metric="f1"),
        c=records(name="other"),
        d=smaller,
        e=records(),
    )
    assert (
        "cannot be compared. They are shown apart: "
        "accuracy on demo (20000 nodes, 320000 edges, 128 features, — classes): a, e; "
        "f1 on demo: b; accuracy on other: c; "
        "accuracy on demo (7 nodes, 320000 edges, 128 features, — classes): d." in page.text
    )
    members = [[row[0] for row in table[1:]] for table in page.tables if table[0][0] == "run"]
    assert members == [["a", "e"], ["b"], ["c"], ["d"]]
    assert page.tags["svg"] == 24
    assert page.text.count("(best)") == 2  # of a and e, which are equal


def test_runs_that_can_be_compared_have_no_notes(tmp_path: Path, capsys) -> None:
    folders = [write_run(tmp_path / name, records()) for name in "ab"]
    assert numbers_of(capsys, *folders)["notes"] == []


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_null_and_told(value: Any, tmp_path: Path, capsys) -> None:
    made = records(4)
    for record in made:
        if record["kind"] in ("step", "epoch") and record["epoch"] == 3:
            record["loss"] = value
    told = numbers_of(capsys, write_run(tmp_path / "a", made), write_run(tmp_path / "b", records()))
    assert [point["loss"] for point in told["runs"][0]["curve"]] == [2.0, 1.0, None, 0.5]
    assert told["notes"] == [
        "a: its loss is not finite in epoch 3; a line has a gap where a value is not finite."
    ]


def test_a_run_that_goes_on_or_has_no_epochs_is_told(tmp_path: Path, capsys) -> None:
    half = write_run(tmp_path / "half", records()[:-12])
    empty = write_run(tmp_path / "empty", records()[:1])
    told = numbers_of(capsys, half, empty)
    assert [run["state"] for run in told["runs"]] == ["not ended", "not ended"]
    assert told["runs"][0]["seconds_of"]["training"] == pytest.approx(2 * 2.0 + 1.0)
    assert told["runs"][1]["best_val"] is None
    assert "empty: has no epochs yet, so no scores and no curves." in told["notes"]
    page = Page(write_comparison([half, empty], tmp_path / "page.html").read_text())
    assert page.table("run")["empty"][1:6] == ["—"] * 5


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (None, "bad: no such folder"),
        ({}, r"bad/metrics\.jsonl: no such file"),
        ({"metrics.jsonl": "{\n"}, r"bad/metrics\.jsonl, line 1: .* is not JSON"),
        ({"metrics.jsonl": "", "config.toml": "= 1"}, r"bad/config\.toml: is not TOML"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_error_that_names_it(
    broken: dict[str, str] | None, says: str, tmp_path: Path, capsys
) -> None:
    good, bad = write_run(tmp_path / "good", records()), tmp_path / "bad"
    if broken is not None:
        bad.mkdir()
        for name, text in broken.items():
            (bad / name).write_text(text)
    page = tmp_path / "page.html"
    assert main(["report", str(good), str(bad), "--out", str(page)]) == 2
    told = capsys.readouterr()
    assert re.fullmatch(rf"gnnsys: error: .*{says}.*\n", told.err)
    assert told.out == ""
    assert not page.exists()


def test_a_report_of_nothing_is_refused(capsys) -> None:
    assert main(["report"]) == 2
    assert "RUNS is missing" in capsys.readouterr().err


def test_a_run_named_twice_is_refused(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", records())
    assert main(["report", str(run), f"{run}/../run"]) == 2
    assert "named twice" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, capsys) -> None:
    folders = [tmp_path / place / "run" for place in "ab"]
    for folder in folders:
        folder.parent.mkdir()
        write_run(folder, records())
    assert [run["run"] for run in numbers_of(capsys, *folders)["runs"]] == ["a/run", "b/run"]


def test_json_writes_a_page_only_where_one_is_asked_for(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(write_run(Path(name), records())) for name in "ab"]
    assert main(["report", *runs, "--json"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert main(["report", *runs, "--json", "--out", "page.html"]) == 0
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "comparison.html"
    assert Path("page.html").read_bytes() == Path("comparison.html").read_bytes()
