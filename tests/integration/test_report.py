"""``gnnsys.commands.report``: the page that is made of a training run's folder."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import pytest

from gnnsys.commands.report import run_command, write_report
from gnnsys.config.report import ReportConfig
from gnnsys.errors import FileFormatError, GnnsysError, MissingFileError, StorageError
from gnnsys.pipeline.schedule import Event
from gnnsys.training.trace_events import trace_file

sys.path.insert(0, str(Path(__file__).parent))
from run_folders import BATCHES, Page, Records, records, with_loading, write_run


def report(folder: Path, made: Records, rest: str = "") -> Page:
    path = write_report(write_run(folder, made, rest))
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


# What the page says ---------------------------------------------------------------------------


def test_the_headline_gives_state_scores_time_and_memory(tmp_path: Path) -> None:
    page = report(tmp_path, records())
    assert page.title == "sage on demo: done"
    assert "20,000 nodes · 320,000 edges · 128 features · 17,226 parameters" in page.text
    assert "started 2025-06-15 15:06 UTC" in page.text
    assert "Validation accuracy 0.8000 best, epoch 2 of 3" in page.text
    assert "Test accuracy 0.7500 in the best epoch" in page.text
    assert "Time 9.00 s 2.00 s to train an epoch" in page.text
    assert "Throughput 1,000 seeds/s" in page.text
    assert "Peak memory 1.5 GiB of 16 GiB" in page.text
    assert page.tags["svg"] == page.tags["figure"] == 6


def test_tables_hold_the_numbers_of_the_run(tmp_path: Path) -> None:
    page = report(tmp_path, records())
    tiers = page.table("tier")
    assert tiers["device"] == ["30,000", "50.0%", "15,360,000", "15.4 MB", "50.0%"]
    assert tiers["host"] == ["18,000", "30.0%", "9,216,000", "9.22 MB", "30.0%"]
    assert tiers["in all"] == ["60,000", "", "30,720,000", "30.7 MB", ""]
    epochs = page.table("epoch")
    assert epochs["1"] == ["20", "2.0000", "0.7000", "0.6500", "2.00 s", "1.00 s", "1,000"]
    assert epochs["2 (best)"] == ["40", "1.0000", "0.8000", "0.7500", "2.00 s", "1.00 s", "1,000"]
    assert page.table("gnnsys")["torch"] == ["2.13.0+cpu"]
    assert page.table("cpu") == {"cpu": ["A processor"], "cores": ["2"], "memory": ["16 GiB"]}


def test_charts_have_real_text_and_a_name_that_says_what_they_show(tmp_path: Path) -> None:
    page = report(tmp_path, records(metric="rocauc"))
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert "Loss over time, in cross entropy: from 2.0000 to 0.6667" in names
    assert "Metric over time, in rocauc: best validation 0.8000 in epoch 2" in names
    assert "Memory over time, in GiB: peak 1.5 GiB" in names
    assert "Feature bytes served so far over time, in MB: 30.7 MB in all" in names
    drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", page.html))
    for unit in ("cross entropy", "rocauc", "seeds per second", "GiB", "MB per second", "MB"):
        assert unit in drawn
    assert page.text.count("time (s)") == 6
    assert page.text.count("epoch 1 2 3") == 6


def test_config_toml_prevails_and_options_without_a_value_are_shown(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('dataset = "demo"\nmodel = "gat"\nlr = 0.01\n')
    page = report(tmp_path, records())
    options = page.table("dataset")
    expected = {"dataset": ["demo"], "model": ["gat"], "fanouts": ["15, 10"], "patience": ["—"]}
    assert options == {**expected, "lr": ["0.01"]}
    assert page.title.startswith("gat on demo")


@pytest.mark.parametrize("reason", ["done", "early stop", "interrupted"])
def test_the_state_is_why_the_run_ended(reason: str, tmp_path: Path) -> None:
    made = records()
    made[-1]["reason"] = reason
    page = report(tmp_path, made)
    assert page.title == f"sage on demo: {reason}"
    assert "has not ended" not in page.text


def test_a_run_that_goes_on_is_shown_so_far(tmp_path: Path) -> None:
    page = report(tmp_path, records()[:-12])  # up to a step of the third epoch
    assert page.title == "sage on demo: not ended"
    assert "This run has not ended" in page.text
    assert "Validation accuracy 0.8000 best, epoch 2 of 2" in page.text
    assert page.table("tier")["device"] == ["25,000", "50.0%", "12,800,000", "12.8 MB", "50.0%"]


def test_the_process_that_writes_a_run_is_told_while_it_lives(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records()[:-12])
    lock = run / "lock"
    told = "process 123 on another host"  # whose processes cannot be looked at from here
    lock.write_text(told)
    locking = "import fcntl; fcntl.flock(file := open('lock'), fcntl.LOCK_EX); print(flush=True)"
    command = [sys.executable, "-c", f"{locking}; input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=run, **pipes) as other:
        assert other.stdout is not None
        other.stdout.readline()
        page = Page(write_report(run).read_text(encoding="utf-8"))
        assert page.title == "sage on demo: going on"
        assert f"is going on: {told} is writing it" in page.text
        other.kill()
    for left in (told, f"process {os.getpid()} on {platform.node()}"):  # a pid given anew
        lock.write_text(left)
        page = Page(write_report(run).read_text(encoding="utf-8"))
        assert page.title == "sage on demo: not ended"
        assert "This run has not ended: it is going on or was killed" in page.text
        assert lock.read_text() == left


@pytest.mark.parametrize("made", [[], records()[:1]], ids=["an empty file", "only a start"])
def test_a_run_without_steps_says_so(made: Records, tmp_path: Path) -> None:
    page = report(tmp_path, made)
    assert "No steps or epochs yet" in page.text
    assert page.tags["svg"] == 0


def test_steps_without_an_epoch_are_drawn(tmp_path: Path) -> None:
    page = report(tmp_path, records()[:8])
    assert page.tags["svg"] == 5  # no scores yet
    assert "no epoch was evaluated" in page.text


def test_epochs_that_were_not_evaluated_have_no_score(tmp_path: Path) -> None:
    made = records()
    for record in made:
        if record["kind"] == "epoch" and record["epoch"] != 2:
            record |= {"val": None, "test": None}
    made[BATCHES + 1]["best_epoch"] = 0
    page = report(tmp_path, made)
    assert page.table("epoch")["1"][2:4] == ["—", "—"]
    assert "best validation 0.8000 in epoch 2" in page.html


def test_the_parts_of_the_time_add_up(tmp_path: Path) -> None:
    made = records()
    for record in made[1:-1]:  # a checkpoint of 1 s after the first epoch
        record["seconds"] += float(record["epoch"] > 1)
    made[-1]["result"]["seconds"] = 10.0
    page = report(tmp_path, made)
    assert page.table("part") == {
        "part": ["time", "share of the time"],
        "training": ["6.00 s", "60.0%"],
        "evaluation": ["3.00 s", "30.0%"],
        "checkpoints": ["1.00 s", "10.0%"],
    }
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert "Time: training 60.0%, evaluation 30.0%, checkpoints 10.0%" in names
    widths = [float(each) for each in re.findall(r'style="width: ([\d.]+)%', page.html)]
    assert widths == [60, 30, 10]


def test_scoring_the_test_nodes_at_the_end_is_evaluation(tmp_path: Path) -> None:
    made = records()
    made[-1]["result"] |= {"seconds": 16.0, "test_seconds": 5.0}
    assert report(tmp_path, made).table("part") == {
        "part": ["time", "share of the time"],
        "training": ["6.00 s", "37.5%"],
        "evaluation": ["8.00 s", "50.0%"],
        "checkpoints": ["2.00 s", "12.5%"],
    }


def test_waiting_for_batches_is_a_part_of_the_time(tmp_path: Path) -> None:
    page = report(tmp_path, with_loading(records()))
    assert page.table("part") == {
        "part": ["time", "share of the time"],
        "loading": ["1.20 s", "13.3%"],
        "training": ["4.80 s", "53.3%"],
        "evaluation": ["3.00 s", "33.3%"],
        "checkpoints": ["0.00 s", "0.0%"],
    }
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert "Time: loading 13.3%, training 53.3%, evaluation 33.3%, checkpoints 0.0%" in names
    epochs = page.table("epoch")
    assert epochs["epoch"][-4:] == ["loading", "training", "evaluation", "seeds/s"]
    assert epochs["1"][-4:] == ["0.40 s", "1.60 s", "1.00 s", "1,000"]


def test_waiting_for_batches_is_told_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    half = with_loading(records())[:-12]  # up to the tenth step of the third epoch
    assert report(tmp_path, half).table("part") == {
        "part": ["time", "share of the time"],
        "loading": ["1.00 s", "14.3%"],
        "training": ["4.00 s", "57.1%"],
        "evaluation": ["2.00 s", "28.6%"],
        "checkpoints": ["0.00 s", "0.0%"],
    }


def test_what_evaluation_read_is_told_where_it_was_recorded(tmp_path: Path) -> None:
    made = records()
    for record in made:
        if record["kind"] == "epoch":
            record["eval_bytes"] = {"host": 1_000_000, "file": 500_000}
    parts = report(tmp_path, made).table("part")
    assert parts["evaluation"] == ["3.00 s", "33.3%", "4.5 MB"]
    assert parts["training"][2] == ""


# Ranks --------------------------------------------------------------------------------------------


def with_ranks(made: Records) -> Records:
    made[-1]["result"]["parallel"] = {
        "ranks": [
            {
                "bytes": {"layer": 1_000_000 * rank, "weight": 500},
                "messages": {"layer": 10, "weight": 2},
                "seconds_waited": {"layer": 0.5, "weight": 1.25},
            }
            for rank in range(3)
        ]
    }
    return made


def test_a_parallel_run_shows_what_each_rank_sent_and_waited_for(tmp_path: Path) -> None:
    assert report(tmp_path, with_ranks(records())).table("rank") == {
        "rank": ["sent: layer", "sent: weight", "sent in all", "messages", "waited"],
        "0": ["0 B", "500 B", "500 B", "12", "1.75 s"],
        "1": ["1 MB", "500 B", "1 MB", "12", "1.75 s"],
        "2": ["2 MB", "500 B", "2 MB", "12", "1.75 s"],
        "in all": ["3 MB", "1.5 kB", "3 MB", "36", "5.25 s"],
    }


def test_ranks_that_share_mini_batches_show_what_each_served_and_needed(tmp_path: Path) -> None:
    ranks = [
        {
            "machine": "m",
            "rows": {"file": 30 * rank, "host": 10},
            "bytes": {"file": 3000 * rank, "host": 1000},
            "reads": {"bytes_read": 4000},
            "load_seconds": 1.5 * rank,
            "sent": {"bytes": {"weight": 500}, "messages": {"weight": 2}, "seconds_waited": {}},
            "memory": {"peak": rank << 30},
        }
        for rank in (1, 2)
    ]
    made = records()
    made[-1]["result"]["ranks"] = ranks
    ended = report(tmp_path, made)
    assert ended.table("rank") == {
        "rank": [
            "rows", "features served", "read", "loading", "sent: weight", "sent in all", "messages",
            "peak memory",
        ],
        "0": ["40", "4 kB", "4 kB", "1.50 s", "500 B", "500 B", "2", "1 GiB"],
        "1": ["70", "7 kB", "4 kB", "3.00 s", "500 B", "500 B", "2", "2 GiB"],
        "in all": ["110", "11 kB", "8 kB", "4.50 s", "1 kB", "1 kB", "4", "1.5 GiB"],
    }  # fmt: skip
    assert "resident, of 2 ranks" in ended.text
    made = records()
    next(each for each in made if each.get("epoch") == 2 and "val" in each)["ranks"] = ranks
    going_on = [each for each in made[:-1] if each.get("epoch") != 3]
    (tmp_path / "going on").mkdir()
    assert report(tmp_path / "going on", going_on).table("rank")["1"][0] == "70"


def test_a_kept_timeline_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path, with_ranks(records()))
    events = [Event(rank, "forward", 0, rank, rank + 1.0) for rank in range(3)]
    (run / "timeline.json").write_bytes(trace_file(events, "a title"))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Timeline of the last epoch: idle 66.7%" in page.text
    assert "time (seconds)" in page.text
    for rank in range(3):
        assert f"rank {rank}" in page.text
    (run / "timeline.json").write_bytes(trace_file(events * 2000, "a title"))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "6000 events are too many to draw" in page.text


@pytest.mark.parametrize("text", ["", "[]", '{"traceEvents": 1}', '{"traceEvents": [{"ph": 2}]}'])
def test_a_damaged_timeline_is_named(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, records())
    (run / "timeline.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"timeline\.json: .*remove the file"):
        write_report(run)


# How features were read ---------------------------------------------------------------------------


def with_reads(made: Records) -> Records:
    """With 30 requests for 40 pages, and 10 ms of waiting, a batch."""
    for record in made[1:]:
        counts = record["result"] if record["kind"] == "end" else record
        batches = counts["seeds"] // 100
        counts["reads"] = {
            "hits": 800 * batches,
            "bypasses": 7 * batches,
            "requests": 30 * batches,
            "pages": 40 * batches,
            "bytes_read": 40 * 4096 * batches,
            "io_wait_seconds": 0.01 * batches,
        }
    return made


def test_a_run_with_a_cache_shows_hit_ratios_reads_and_waiting(tmp_path: Path) -> None:
    page = report(tmp_path, with_reads(records()))
    assert page.tags["svg"] == page.tags["figure"] == 9
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert (
        "Hit ratio by tier over time, in % of rows: in all: device 50.0%, host 30.0%, file 20.0%"
        in names
    )
    assert "Disk reads over time, in per second: at most 300 requests per second" in names
    assert "Time waited for reads over time, in % of the time: 0.60 s in all" in names
    reads = page.table("read and not kept")
    assert reads["read and not kept"] == ["420 rows"]
    assert reads["disk reads"] == ["1,800 requests"]
    assert reads["pages read"] == ["2,400, 9.83 MB"]
    assert reads["waited for reads"] == ["0.60 s (6.7% of the time)"]


def test_a_run_going_on_shows_its_reads_so_far(tmp_path: Path) -> None:
    page = report(tmp_path, with_reads(records())[:-12])
    assert page.tags["svg"] == 9
    assert page.table("read and not kept")["disk reads"] == ["1,500 requests"]


def test_records_from_before_reads_were_counted_may_stand_first(tmp_path: Path) -> None:
    made = with_reads(records())
    for record in made[1:10]:
        del record["reads"]
    assert report(tmp_path, made).tags["svg"] == 9


# Runs that were resumed ---------------------------------------------------------------------------


def test_batches_trained_twice_are_shown_once_and_the_resume_is_marked(tmp_path: Path) -> None:
    made = records()
    resume = {"kind": "resume", "time": 1_750_000_050.0, "epoch": 2, "batch": 5}
    at = 1 + BATCHES + 1 + 5  # after the fifth step of the second epoch
    killed = [
        {**record, "loss": 77.0, "seconds": record["seconds"] + 0.01}
        for record in made[at : at + 9]
    ]
    page = report(tmp_path / "resumed", [*made[:at], *killed, resume, *made[at:]])
    plain = report(tmp_path / "plain", made)
    assert "Resumed from a checkpoint of epoch 2, batch 5, after 3.50 s of training." in page.text
    assert "9 earlier records left out" in page.text
    assert page.text.count("resumed") == 6  # in the legend of every chart
    assert page.tables == plain.tables
    assert "77" not in page.text


def test_a_step_written_only_before_the_kill_does_not_turn_time_back(tmp_path: Path) -> None:
    made = records()
    slow = {**made[6], "batch": 6, "seconds": 5.0}
    resume = {"kind": "resume", "time": 0.0, "epoch": 1, "batch": 5}
    page = report(tmp_path, [*made[:6], slow, resume, *made[8:]])
    assert "after 0.50 s of training" in page.text
    assert "1 earlier records left out" in page.text


def test_a_run_resumed_after_its_end_has_not_ended(tmp_path: Path) -> None:
    made = records()
    resume = {"kind": "resume", "time": 0.0, "epoch": 3, "batch": 20}
    assert report(tmp_path, [*made, resume]).title == "sage on demo: not ended"


# Strange input --------------------------------------------------------------------------------


def test_text_of_the_run_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> &amp; {x} $\\alpha$'
    made = records(name=evil, metric=evil)
    made[0]["config"] = {evil: evil}
    made[-1]["reason"] = evil
    for record in [*made[1:-1], made[-1]["result"]]:
        for counts in (record["rows"], record["bytes"]):
            counts[evil] = counts.pop("host")
    page = report(tmp_path, made)
    assert page.tags["script"] == 0
    assert f"model on {evil}: {evil}" == page.title
    assert page.table("tier")[evil][0] == "18,000"
    assert page.table(evil)[evil] == [evil]


def test_half_a_surrogate_pair_is_no_obstacle(tmp_path: Path) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in report(tmp_path, records(name="demo \ud800")).title


@pytest.mark.parametrize("keep", [1, -2])
def test_a_cut_last_line_is_left_out_and_said(keep: int, tmp_path: Path) -> None:
    made = records()[:-5]
    last = json.dumps(made[-1])[:keep]
    page = report(tmp_path / "cut", made[:-1], rest=last)
    whole = report(tmp_path / "whole", made[:-1])
    assert "its last line was cut off" in page.text
    assert "cut off" not in whole.text
    assert page.tables == whole.tables


def test_a_last_line_that_lacks_only_its_line_feed_counts(tmp_path: Path) -> None:
    *made, end = records()
    assert report(tmp_path, made, rest=json.dumps(end)).title == "sage on demo: done"


def test_a_line_cut_in_the_middle_of_a_character_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, records()[:-1])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "é'.encode()[:-1])
    assert "its last line was cut off" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"kind": "st', r"'\{\"kind\": \"st' is not JSON .* expected one object a line"),
        ("", "is not JSON"),
        ("[1]", 'expected an object with a "kind"'),
        ('{"kind": "resume", "epoch": 1}', "a 'resume' record: no batch"),
        ('{"kind": "resume", "epoch": 1.5, "batch": 2}', "epoch is 1.5, expected an integer"),
    ],
)
def test_a_bad_line_raises_an_error_that_names_it(line: str, says: str, tmp_path: Path) -> None:
    made = records()
    lines = [json.dumps(record) for record in made]
    lines.insert(2, line)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(FileFormatError, match=rf"metrics\.jsonl, line 3: .*{says}.*remove the"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_count_that_is_no_number_raises(tmp_path: Path) -> None:
    made = records()
    made[1]["rows"] = {"host": "many"}
    with pytest.raises(FileFormatError, match=r"line 2: .* rows\.host is 'many', expected a num"):
        report(tmp_path, made)


@pytest.mark.parametrize(
    ("staleness", "says"),
    [(0.5, r"staleness is 0\.5, expected a list"), ([0.5, "x"], r"staleness\[1\] is 'x'")],
)
def test_staleness_that_is_no_list_of_numbers_raises(staleness, says: str, tmp_path: Path) -> None:
    made = [record | {"staleness": staleness} for record in records()]
    with pytest.raises(FileFormatError, match=says):
        report(tmp_path, made)


def test_records_of_an_unknown_kind_are_left_out(tmp_path: Path) -> None:
    made = records()
    page = report(tmp_path, [*made[:3], {"kind": "of a later version"}, *made[3:]])
    assert page.title == "sage on demo: done"


def test_a_config_that_is_not_toml_raises(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("dataset: demo\n")
    with pytest.raises(FileFormatError, match=r"config\.toml: is not TOML"):
        report(tmp_path, records())


def test_a_missing_folder_or_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing: no such folder.*gnnsys train --out"):
        write_report(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match=r"metrics\.jsonl: no such.*gnnsys train --out"):
        write_report(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MissingFileError, match=r"file: is no folder.*gnnsys train --out"):
        write_report(tmp_path / "file")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 1e300, 0])
def test_a_diverged_run_is_shown(value: float | None, tmp_path: Path) -> None:
    made = records(9)
    for record in made:
        if record["kind"] in ("step", "epoch") and record["epoch"] > 1:
            record |= {"loss": value, "rss": value}
        if record["kind"] == "epoch" and record["epoch"] > 2:
            record |= {"val": {"accuracy": value}, "epoch_seconds": value, "eval_seconds": value}
    page = report(tmp_path, made)
    shown = {"nan": "NaN", "None": "NaN", "inf": "∞", "-inf": "-∞"}.get(str(value))
    third = page.table("epoch")["3"]
    if shown is None:
        assert "diverged" not in page.text
    else:
        assert f"The run diverged: its loss is {shown} in epoch 2." in page.text
        assert third[1:3] == [shown, shown]


def paths_of(html: str, title: str) -> list[str]:
    """The lines of a chart, each as the letters and numbers of its path."""
    drawing = re.search(rf'<svg role="img" aria-label="{title}.*?</svg>', html, re.DOTALL)
    assert drawing is not None
    lines = re.findall(r'<path d="([^"]*)" [^>]*stroke: var\(--series-', drawing[0])
    return [line for line in lines if "L" in line]


def test_lines_have_gaps_where_values_are_not_finite(tmp_path: Path) -> None:
    made = records(60)
    for record in made:
        if record["kind"] == "epoch" and record["epoch"] in (20, 21, 40):
            record |= {"loss": None, "val": {"accuracy": None}}
    page = report(tmp_path / "gaps", made)
    whole = report(tmp_path / "whole", records(60))
    for title, line in (("Loss", 1), ("Metric", 0)):
        assert paths_of(page.html, title)[line].count("M") == 3
        assert paths_of(whole.html, title)[line].count("M") == 1
    assert "its loss is NaN in epoch 20. Where a value is not finite, its line" in page.text
    assert "The validation accuracy is not finite in 3 of 60 epochs" in page.text
    assert "not finite" not in whole.text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("field", ["seconds", "load_seconds", "seeds", "rows", "bytes"])
@pytest.mark.parametrize("value", [math.nan, 0])
def test_no_number_of_a_run_can_break_the_page(field: str, value: float, tmp_path: Path) -> None:
    made = records()
    for record in made[1:-1]:
        record[field] = {"host": value} if field in ("rows", "bytes") else value
    made[-1]["result"] = {}
    assert report(tmp_path, made).title == "sage on demo: done"


# The file -----------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(write_run(tmp_path / "a", records()))
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        second = write_report(write_run(tmp_path / "b", records()))
        assert mpl.rcParams["font.size"] == 30
    assert first.read_bytes() == second.read_bytes()


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = report(tmp_path, records(40))
    assert "http" not in page.html
    assert "@import" not in page.html
    assert page.tags["link"] == page.tags["script"] == page.tags["img"] == 0
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("#")


def test_ids_are_unique_and_references_lead_to_them(tmp_path: Path) -> None:
    page = report(tmp_path, records())
    ids = [value for name, value in page.attributes if name == "id"]
    links = {value[1:] for name, value in page.attributes if name == "href"}
    links |= set(re.findall(r"url\(#([^)]+)\)", page.html))
    assert len(ids) == len(set(ids)) > 6
    assert set(ids) == links


def test_charts_use_the_colours_of_the_style_sheet_only(tmp_path: Path) -> None:
    drawings = re.findall("<svg.*?</svg>", report(tmp_path, records()).html, re.DOTALL)
    for drawing in drawings:
        assert not re.search("#[0-9a-f]{6}", drawing)
        assert "var(--" in drawing


def test_long_runs_make_pages_of_bounded_size(tmp_path: Path) -> None:
    made = records(400)
    page = report(tmp_path, made)
    assert "steps, averaged" in page.text
    assert len(page.html) < 600_000


def test_out_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records())
    page = tmp_path / "page.html"
    page.write_text("old")
    (run / "metrics.jsonl").write_text("bad\n")
    with pytest.raises(GnnsysError):
        write_report(run, page)
    assert page.read_text() == "old"
    write_run(run, records())
    assert write_report(str(run), str(page)) == page
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records())
    with pytest.raises(StorageError, match=r"run: is a folder, expected the name of a file"):
        write_report(run, run)
    with pytest.raises(StorageError, match=r"x\.html: .*nothing is not a folder.*--out"):
        write_report(run, tmp_path / "nothing" / "x.html")


def test_the_command_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, records())
    assert run_command(ReportConfig(runs=(str(run),))) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"


def test_matplotlib_is_imported_when_a_report_is_made(tmp_path: Path) -> None:
    check = "import sys, gnnsys.commands.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


# In a browser -------------------------------------------------------------------------------------


def chromium(page: Path, profile: Path, *flags: str) -> str:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_browser_shows_charts_and_text(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", records()))
    picture = tmp_path / "page.png"
    flags = ["--hide-scrollbars", "--window-size=1200,2400", f"--screenshot={picture}"]
    chromium(page, tmp_path / "profile", *flags)
    pixels = matplotlib.image.imread(picture)  # (2400, 1200, 3 or 4) float32 in [0, 1]
    assert pixels.shape[:2] == (2400, 1200)
    colours = (pixels[..., :3] * 255).astype("uint32") @ [1 << 16, 1 << 8, 1]
    upper = colours[:1400]  # headline and charts
    assert len(set(upper.ravel().tolist())) > 200
    for series in (0x2563C9, 0xD9660A):  # solid strokes of the first two series
        assert (upper == series).sum() > 300
    dark = (pixels[..., :3].sum(axis=2) < 1.0).mean()
    assert 0.001 < dark < 0.2


def test_a_browser_reads_the_page_as_it_was_written(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", records()))
    shown = Page(chromium(page, tmp_path / "profile", "--dump-dom"))
    written = Page(page.read_text(encoding="utf-8"))
    assert shown.text == written.text
    assert shown.tables == written.tables
    assert shown.tags["svg"] == 6
    assert "Validation accuracy 0.8000" in shown.text
