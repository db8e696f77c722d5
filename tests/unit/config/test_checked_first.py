"""Options are checked before work begins, and a file of options means what stands beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gnnsys.choices import DATASET_NAMES
from gnnsys.commands.cli import main
from gnnsys.config.file import config_to_toml, read_config
from gnnsys.config.plan import PlanConfig
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.named import NAMED
from gnnsys.errors import ArgumentError
from gnnsys.generate import generate_community

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph g, an edge list e.csv and a run."""
    folder = tmp_path_factory.mktemp("place")
    generate_community(folder / "g", nodes=300, classes=2, features=4)
    (folder / "e.csv").write_text("a,b\n0,1\n1,2\n")
    arguments = ["--epochs", "1", "--out", str(folder / "run"), "--quiet", "--json"]
    assert main(["train", str(folder / "g"), *arguments]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("plan g --budget abc", "--budget abc: expected a number of bytes"),
        ("plan g --budget 1%,2X", "--budget 2X: expected a number of bytes"),
        ("plan g --budget 101%", "--budget 101%: expected at most 100%"),
        ("plan g --budget", "--budget: expected bytes (500MB, 2GB) or shares (10%)"),
        ("plan g --victim-buffer x", "--victim-buffer x: expected a number of bytes"),
        ("plan g --picture no/p.png", "--picture no/p.png: cannot be written (no such folder)"),
        ("plan g --hardware none.toml", "--hardware none.toml: no such file"),
        ("plan cora --root none", "none/Cora/raw: no ind.cora.x"),
        ("plan g --seed -1", "--seed -1: expected a whole number from 0 to 18446744073709551615"),
        ("train g --seed 18446744073709551616", "--seed 18446744073709551616: expected"),
        ("train ./g --split 5", "--split 5: "),
        ("train g --lr inf", "--lr inf: expected a number"),
        ("train g --cache 0%", "--cache 0%: expected auto, none, bytes such as 8GB, rows"),
        ("train g --cache 110%", "--cache 110%: expected at most 100%"),
        ("score g --seed -1", "--seed -1: expected"),
        ("cluster g --seed -1", "--seed -1: expected a whole number from 0 to 4294967295"),
        ("cluster g --seed 4294967295 --seeds 2", "--seed 4294967295: expected"),
        ("convert e.csv n --threads -1", "--threads -1: expected at least 0"),
        ("convert e.csv n --memory x", "--memory x: expected a number of bytes"),
        ("convert e.csv n --split 3", "--split 3: goes with a named dataset"),
        ("report run --out no/r.html", "no/r.html: no is not a folder"),
        ("predict run --nodes none.npy", "none.npy: no such file"),
        ("predict run --threads -1", "--threads -1: expected at least 0"),
        ("doctor --path none", "--path none: no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_done(
    arguments: str, told: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"gnnsys: error: {told}")  # no bar before it
    assert (out, error.count("\n")) == ("", 1)
    assert sorted(place.rglob("*")) == before


def test_a_plan_of_a_name_is_that_of_its_folder(tmp_path: Path, capsys: Captured) -> None:
    options = ["--batches", "4", "--batch-size", "200", "--budget", "5%,10%", "--json", "--quiet"]
    hardware = tmp_path / "h.toml"
    hardware.write_text(
        'name = "h"\n[disk]\niops = 1000\nbandwidth = "1GB"\n[memory]\nbandwidth = "9GB"\n'
    )
    options += ["--hardware", str(hardware), "--seed", "3"]
    folder = generate_community(tmp_path / "demo", nodes=20_000, seed=3)
    plans = []
    for dataset in ("demo", str(folder)):
        assert main(["plan", dataset, *options]) == 0
        plans.append(json.loads(capsys.readouterr().out))
        for name in ("libraries", "libraries, mapped"):  # what the process has loaded so far
            del plans[-1]["memory"]["names"][name]
    assert plans[0].pop("dataset") == "demo"
    assert plans[1].pop("dataset") == str(folder)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", ["cora", "minesweeper"])
def test_a_named_dataset_is_planned(name: str, real_graphs: Path, capsys: Captured) -> None:
    options = ["--root", str(real_graphs), "--batches", "2", "--budget", "10%", "--json"]
    assert main(["plan", name, *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    rows = {"cora": (2708, 1433 * 4), "minesweeper": (10_000, 7 * 4)}[name]
    assert (plan["dataset"], plan["rows"], plan["row_bytes"]) == (name, *rows)


def test_names_of_datasets_are_those_that_can_be_loaded() -> None:
    assert set(DATASET_NAMES) == {*NAMED, "demo"}


def test_a_folder_of_embeddings_is_beside_the_file_of_options(tmp_path: Path) -> None:
    for given, found in (("rows", str(tmp_path / "rows")), ("auto", "auto"), ("ram", "ram")):
        (tmp_path / "c.toml").write_text(f'embeddings = "{given}"\n')
        config = read_config(tmp_path / "c.toml")
        assert config.embeddings == config.filled_in().embeddings == found


def test_paths_of_a_file_of_options_are_beside_it_and_of_the_command_line_are_here(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (place / "layers").mkdir()
    options = 'dataset = "g"\nepochs = 1\nroot = "sets"\neval_store = "layers"\n'
    (place / "c.toml").write_text(options)
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(place / "c.toml")
    config = read_config(relative)
    assert os.path.samefile(config.dataset, place / "g")
    assert os.path.normpath(Path.cwd() / config.root) == str(place / "sets")
    assert os.path.samefile(config.eval_store, place / "layers")
    assert main(["train", "--config", relative, "--json", "--out", "run"]) == 0
    # A run's own file has absolute paths, so that both can be moved apart.
    kept = read_config(tmp_path / "run" / "config.toml")
    paths = kept.dataset, kept.root, kept.eval_store
    assert paths == (str(place / "g"), str(place / "sets"), str(place / "layers"))
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main(["train", "--resume", "moved", "--epochs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 2
    assert main(["train", "g", "--config", relative]) == 2  # here is no g


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_a_name_in_a_file_of_options_stays_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "c.toml").write_text(f'dataset = "{name}"\n')
    config = read_config(tmp_path / "c.toml")
    assert (config.dataset, config.root, config.eval_store) == (name, "data", "auto")
    (tmp_path / "d.toml").write_text(config_to_toml(config))
    assert read_config(tmp_path / "d.toml").dataset == name


@pytest.mark.parametrize(
    ("key", "meant"), [("epoch", "epochs"), ("batch-size", "batch_size"), ("evel", "eval")]
)
def test_an_unknown_key_of_a_file_is_told_with_the_nearest(
    key: str, meant: str, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(f"{key} = 3\n")
    with pytest.raises(ArgumentError, match=rf"c.toml: option '{key}' is unknown.*mean {meant}\?"):
        read_config(tmp_path / "c.toml")


@pytest.mark.parametrize("name", ["lr", "weight_decay", "checkpoint_minutes", "dropout"])
def test_nan_is_no_option(name: str) -> None:
    with pytest.raises(ArgumentError, match="nan"):
        TrainConfig(dataset="demo", **{name: float("nan")})


def test_budgets_of_a_plan_may_be_between_commas_or_spaces() -> None:
    assert PlanConfig(dataset="g", budget=("1%,2GB", "3%")).budget == ("1%", "2GB", "3%")
