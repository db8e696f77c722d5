"""What a user types: help in sections, the nearest name for a mistyped one, completion, --quiet."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gnnsys._version import __version__
from gnnsys.commands.arguments import CONFIGS, read_arguments
from gnnsys.commands.cli import main
from gnnsys.config.generate import CommunityConfig, RmatConfig
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community

COMMANDS = {
    **{name: kind for name, kind in CONFIGS.items() if name != "generate"},
    "generate rmat": RmatConfig,
    "generate community": CommunityConfig,
}
Captured = pytest.CaptureFixture[str]


def help_of(command: str, monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    """Help as it is written to what is no UTF-8 terminal: without boxes."""
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out):
        main([*command.split(), "--help"])
    assert end.value.code == 0
    return out.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_in_a_line_of_its_own_with_its_default_once(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(command, monkeypatch, 110)
    assert "None" not in text
    assert "TEXT" not in text
    lines = text.partition("\n --")[2].splitlines()
    for field in dataclasses.fields(COMMANDS[command]):
        positional = "Positional" in str(field.type)
        name = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
        starts = [n for n, line in enumerate(lines) if re.match(rf"  \[?{name}\]?( |$)", line)]
        assert len(starts) == 1, f"{name} stands in {len(starts)} places"
        following = [n for n, line in enumerate(lines) if re.match(r"  -", line)]
        end = min((n for n in following if n > starts[0]), default=len(lines))
        about = " ".join(" ".join(lines[starts[0] : end]).split())
        assert about.count("efault:") <= 1, about
        if field.default not in (dataclasses.MISSING, None, "", False) and "Default:" not in about:
            value: Any = field.default
            said = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert f"(default: {said})" in about


def test_the_options_of_train_stand_in_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of("train", monkeypatch, 80)
    section, name = {}, ""
    for line in text.splitlines():
        heading = re.fullmatch(r" (.*) options\s*", line)
        name = heading[1] if heading else name
        option = re.match(r"  (--[a-z-]+)", line)
        section |= {option[1]: name} if option else {}
    assert section["--hidden"] == "model"
    assert section["--split"] == "data"
    assert section["--fanouts"] == "sampling"
    assert section["--lr"] == section["--batch-size"] == "optimisation"
    assert section["--eval-every"] == "evaluation"
    assert section["--checkpoint-minutes"] == "checkpoint"
    assert section["--ranks"] == "parallel"
    assert section["--victim-buffer"] == section["--memory"] == "memory and cache"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_pasted_and_read_as_they_are_documented(
    command: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(command, monkeypatch, width)
    shown = text.partition("Examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    words = [shlex.split(line) for line in shown.splitlines()]
    documented = (COMMANDS[command].__doc__ or "").partition("Examples:\n")[2].strip()
    assert words == [shlex.split(line) for line in documented.splitlines()]
    for _, *arguments in words:
        if arguments[1:2] not in (["--resume"], ["my-graph"]) and "--config" not in arguments:
            assert type(read_arguments(arguments)) in CONFIGS.values()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("tran demo", "tran: gnnsys has no such command; did you mean train?"),
        ("xyz", "xyz: gnnsys has no such command; expected one of train, convert, generate"),
        ("generate rmt g", "rmt: gnnsys generate has no such kind of graph; did you mean rmat?"),
        (
            "train demo --epoch 3",
            "--epoch: gnnsys train has no such option; did you mean --epochs",
        ),
        (
            "train demo --fanoutz=3",
            "--fanoutz: gnnsys train has no such option; did you mean --fan",
        ),
        ("cluster acm --fanouts 3", "--fanouts: gnnsys cluster has no such option; did you mean"),
        ("info g --jsn", "--jsn: gnnsys info has no such option; did you mean --json?"),
        ("info --jsn", "--jsn: gnnsys info has no such option; did you mean --json?"),
        ("report r --qqq", "--qqq: gnnsys report has no such option; see gnnsys report --help"),
        ("train demo --model sag", "--model sag: expected one of sage, gcn, gat"),
        ("train demo --epochs x", "--epochs x: expected a whole number"),
        ("train demo --lr nan", "--lr nan: expected a number"),
        ("train demo --window soon", "--window soon: expected a whole number or auto"),
        ("train demo --epochs 0", "--epochs 0: expected at least 1"),
        ("train demo --epochs", "--epochs: expected a value; see gnnsys train --help"),
        ("train demo --epochs --lr 1", "--epochs: expected a value"),
        ("convert a b --random-split 0.5 0.5", "--random-split: expected 3 values"),
        ("train a b", "b: one too many; gnnsys train takes DATASET"),
        ("convert a", "DST is missing; see gnnsys convert --help"),
    ],
)
def test_a_mistyped_command_is_one_line_about_the_command_at_hand(
    arguments: str, told: str, capsys: Captured
) -> None:
    assert main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"gnnsys: error: {told}")
    assert (out, error.count("\n")) == ("", 1)
    others = {"--max-pairs", "--random-split", "--budget", "--fanout "}
    assert not any(option in error for option in others - set(arguments.split()))


def test_values_are_read_as_python_reads_them() -> None:
    words = ["--lr", "1e-3", "--batch_size=7", "--layers", "3", "--fanouts", "5,4", "3", "--json"]
    config = read_arguments(["train", "my graph", *words, "--window", "auto", "--no-stats"])
    expected = TrainConfig(
        dataset="my graph", lr=1e-3, batch_size=7, layers=3, fanouts=(5, 4, 3), json=True
    )
    assert config == expected
    convert = read_arguments(
        ["convert", "a", "b", "--random-split", ".5", ".25", "0.25", "--nodes", "n.csv"]
    )
    assert (convert.random_split, convert.nodes) == ((0.5, 0.25, 0.25), Path("n.csv"))
    budget = read_arguments(["plan", "g", "--budget", "1%", "2GB,3GB"]).budget
    assert budget == ("1%", "2GB", "3GB")


def test_the_command_line_counts_before_a_file_of_options_and_unsets_its_flags(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.toml").write_text('full_batch = true\nmodel = "gcn"\nepochs = 7\n')
    given = ["train", "cora", "--config", str(tmp_path / "c.toml")]
    assert (read_arguments(given).full_batch, read_arguments(given).epochs) == (True, 7)
    config = read_arguments([*given, "--no-full-batch", "--epochs", "9"])
    assert (config.full_batch, config.epochs, config.model) == (False, 9, "gcn")


def test_version(capsys: Captured) -> None:
    for option in ("--version", "-V"):
        assert main([option]) == 0
        assert capsys.readouterr().out == f"gnnsys {__version__}\n"


def test_a_shell_completes_commands_options_and_choices(tmp_path: Path, capsys: Captured) -> None:
    script = tmp_path / "gnnsys.bash"
    with pytest.raises(SystemExit) as end:
        main(["--tyro-write-completion", "bash", str(script)])
    assert not end.value.code
    typed = {
        "gnnsys pr": {"predict"},
        "gnnsys info --ver": {"--verify"},
        "gnnsys train demo --model gc": {"gcn", "gcnii"},
        "gnnsys generate rm": {"rmat"},
        "gnnsys train demo --qu": {"--quiet"},
    }
    for line, expected in typed.items():
        words = line.split()
        function = re.findall(r"^complete -F (\S+)", script.read_text(), re.MULTILINE)[0]
        asked = (
            f"source {shlex.quote(str(script))}; COMP_WORDS=({line}); "
            f'COMP_CWORD={len(words) - 1}; {function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, (line, done.stderr)
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef gnnsys")


def test_quiet_commands_show_results_and_errors_only(tmp_path: Path, capsys: Captured) -> None:
    graph = str(tmp_path / "g")
    assert main(["generate", "community", graph, "--nodes", "300", "--quiet"]) == 0
    run = str(tmp_path / "run")
    commands: list[list[str]] = [
        ["train", graph, "--epochs", "2", "--out", run, "--json"],
        ["predict", run, "--json"],
        ["score", graph, "--batches", "3", "--json"],
        ["plan", graph, "--batches", "3", "--json"],
        ["info", graph, "--verify", "--json"],
    ]
    capsys.readouterr()
    for command in commands:
        assert main([command[0], "--quiet", *command[1:]]) == 0
        out, error = capsys.readouterr()
        assert error == ""
        assert isinstance(json.loads(out), dict)
    assert main(["info", str(tmp_path / "none"), "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("gnnsys: error: ")


def test_without_quiet_there_is_progress(tmp_path: Path, capsys: Captured) -> None:
    generate_community(tmp_path / "g", nodes=300, classes=2, features=4)
    assert main(["score", str(tmp_path / "g"), "--batches", "3", "--json"]) == 0
    assert capsys.readouterr().err != ""


def test_quiet_conversion_tells_what_was_made_and_a_dry_run_what_was_understood(
    tmp_path: Path, capsys: Captured
) -> None:
    edges = tmp_path / "edges.csv"
    edges.write_text("source,target\n0,1\n1,2\n2,0\n")
    assert main(["convert", str(edges), str(tmp_path / "a"), "--dry-run", "--quiet"]) == 0
    assert "delimiter" in capsys.readouterr().out
    assert main(["convert", str(edges), str(tmp_path / "b"), "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert ("delimiter" in out, "indptr.npy" in out, error) == (False, True, "")


def test_debug_reaches_the_ranks_and_the_first_shows_where_bad_input_was_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks = ["--full-batch", "--model", "gcn", "--parallel", "graph", "--ranks", "2"]
    assert main(["train", str(tmp_path / "none"), *ranks, "--debug"]) != 0
    told = capfd.readouterr().err
    assert told.count("Traceback") == 1
    assert "MissingFileError" in told or "ArgumentError" in told
