"""gnnsys plan and gnnsys score of folders with tasks, or with links held out."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch_geometric.data import HeteroData

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.errors import UnsupportedError
from gnnsys.system.budget import process_budget
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.memory import plan_run, planned_names
from gnnsys.training.models import make_model
from gnnsys.training.pipeline_steps import make_steps
from gnnsys.training.seed_times import settle_times

sys.path.insert(0, str(Path(__file__).parent))
from link_folders import LIKES, held_folder, shop, web
from relational_database import Database

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES = 5
OPTIONS = ["--task", "churn", "--fanouts", "3,2", "--batch-size", "16", "--seed", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users are asked for twice in train, so that a batch may hold one twice."""
    base, place = Database(), tmp_path_factory.mktemp("tasks")
    days = pd.to_datetime(["2020-03-01", "2020-06-01", "2020-07-15"])
    rows = pd.DataFrame({"id": np.repeat(np.arange(30), 3), "when": np.tile(days, 30)})
    about, _ = base.tasks["churn"]
    base.tasks["churn"] = (about, rows.assign(churns=np.arange(90) % 2))
    assert main(["convert", str(base.write(place / "tables")), str(place / "g")]) == 0
    return place / "g"


@pytest.fixture
def machine(tmp_path: Path) -> list[str]:
    place = tmp_path / "s.toml"
    place.write_text('disk = {iops = 1000, bandwidth = "1MB"}\nmemory.bandwidth = 1e9\n')
    return ["--hardware", str(place)]


def requests(folder: Path) -> list[dict[str, NDArray[np.int64]]]:
    """The ids of each type in the batches of PyG's way to write it: a loader over the rows."""
    dataset, data = gnnsys.open_dataset(folder), HeteroData()
    for kind in dataset.node_types:
        data[kind].num_nodes = dataset.num_nodes(kind)
    for edge_type in dataset.edge_types:
        data[edge_type].edge_index = dataset.edge_index(edge_type)
    loader = gnnsys.NeighborLoader(
        data, [3, 2], ("users", dataset.seeds("churn", "train").nodes), batch_size=16,
        shuffle=True, seed=4,
    )  # fmt: skip
    batches = [batch for _ in range(2) for batch in loader]
    return [{kind: b[kind].n_id.numpy() for kind in b.node_types} for b in batches[:BATCHES]]


def test_batches_and_memory_are_those_of_training_on_the_rows(
    folder: Path, machine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--batches", str(BATCHES), "--budget", "50%", *machine, "--json"]
    capsys.readouterr()
    assert main(["plan", str(folder), *OPTIONS, *more]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["target"], plan["seeds"]) == ("users", "train rows of task churn")
    assert plan["epoch_batches"] == -(-60 // 16)
    batches = requests(folder)
    for kind, table in plan["tables"].items():
        ids = [batch[kind] for batch in batches]
        assert table["ids"] == sum(map(len, ids))
        assert table["rows_touched"] == len(np.unique(np.concatenate(ids)))
    options: dict[str, Any] = {"fanouts": (3, 2), "batch_size": 16, "hidden": 64, "seed": 4}
    run = TrainConfig(dataset=str(folder), task="churn", model="rgcn", **options)
    with process_budget().run(None):
        plan_run(settle_times(resolve(run)))
        trained = planned_names()
    for name in ("rows of the task", "times and edges sorted by them", "order of the seeds"):
        assert plan["memory"]["names"][name]["planned"] == trained[name]["planned"] > 0


def test_importance_counts_the_batches_around_the_rows(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    computed: dict[str, Any] = {"score": "presample", "cache": "50%", "storage": "pread"}
    run = TrainConfig(dataset=str(folder), task="churn", model="rgcn", **computed)
    load_run_dataset(settle_times(resolve(run))).close()
    assert "--score presample --task churn stores it" in caplog.text
    capsys.readouterr()
    assert main(["score", str(folder), *OPTIONS, "--batches", str(BATCHES), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["target"]) == ("churn", "users")
    assert told["seeds"] == "train rows of task churn"
    batches = requests(folder)
    for kind, each in told["types"].items():
        never = set(range(each["nodes"])).difference(*(batch[kind].tolist() for batch in batches))
        assert each["zero"] == len(never)
    assert main(["info", str(folder)]) == 0
    assert "presample, task churn" in " ".join(capsys.readouterr().out.split())


def test_what_is_not_asked_for_is_told(
    folder: Path,
    machine: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    links = held_folder(tmp_path / "links", *shop(), LIKES)
    for place, kind, others in (
        (folder, "users", "tasks (churn)"),
        (links, "user", "links held out (user,likes,item)"),
    ):
        for command in ("plan", "score"):
            arguments = [command, str(place), "--target", kind, "--batches", "1", "--json"]
            more = ["--budget", "50%", "--ignore-times", *machine] if command == "plan" else []
            assert main([*arguments, *more]) == 0
            assert json.loads(capsys.readouterr().out)["seeds"] == f"all nodes of type {kind}"
        assert caplog.text.count(f"but it also has {others}") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "sales"], "--task sales: "),
        (["--task", "churn", "--target", "items"], "task churn is of nodes of type users"),
        ([], "give --task, one of churn, or --target, one of items, orders, users"),
    ],
)
def test_tasks_that_there_are_not_are_refused(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "score"):
        assert main([command, str(folder), *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "demo", "--task", "churn"], "--task churn: demo has no tasks"),
        (["plan", "g", "--task", "churn", "--parallel", "all"], "does not go with --parallel"),
        (["score", "g", "--task", "churn", "--score", "degree"], "goes with --score presample"),
        (["score", "FOLDER", "--task", "link"], "is of links, and only batches around nodes"),
        (["plan", "FOLDER", "--task", "link"], "has no links held out"),
        (["plan", "FOLDER", *OPTIONS, "--negatives", "2"], "--negatives 2: goes with a task of"),
        (["plan", "FOLDER", *OPTIONS, "--eval", "layerwise"], "or --ignore-times"),
    ],
)
def test_options_that_do_not_go_with_a_task_are_refused(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder) if each == "FOLDER" else each for each in arguments]
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("is_typed", [True, False])
def test_batches_of_links_and_their_memory_are_those_of_training(
    is_typed: bool, machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = shop() if is_typed else web()
    links = held_folder(tmp_path / "links", data, held, *([LIKES] if is_typed else []))
    capsys.readouterr()
    batches = ["--fanouts", "3,2", "--batch-size", "64", "--seed", "4", "--negatives", "2"]
    count = 15  # over two epochs
    more = ["--batches", str(count), "--budget", "50%", *machine, "--json"]
    assert main(["plan", str(links), "--task", "link", *batches, *more]) == 0
    plan = json.loads(capsys.readouterr().out)
    model = "rgcn" if is_typed else "sage"
    run = resolve(
        TrainConfig(
            dataset=str(links), task="link", model=model, fanouts=(3, 2), batch_size=64, seed=4,
            negatives=2, device="cpu",
        )
    )  # fmt: skip
    with process_budget().run(None):
        plan_run(run)
        trained = planned_names()
    for name in ("links", "negatives", "order of the seeds", "what evaluation predicts"):
        assert plan["memory"]["names"][name]["planned"] == trained[name]["planned"] > 0
    with closing(load_run_dataset(run)) as dataset:
        steps = make_steps(run, dataset, make_model(run, dataset), None)
        drawn = [batch for epoch in range(2) for batch in steps.batches(epoch, 0)][:count]
        assert plan["epoch_batches"] == steps.num_batches() < count
    tables = plan["tables"] if is_typed else {None: plan}
    for kind, table in tables.items():
        ids = [(batch if kind is None else batch[kind]).n_id.numpy() for batch in drawn]
        assert table["ids"] == sum(map(len, ids))
        assert table["rows_touched"] == len(np.unique(np.concatenate(ids)))


def test_links_take_a_stored_importance_of_any_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    links, stored = held_folder(tmp_path / "links", *shop(), LIKES), {"score": "presample"}
    config = TrainConfig(dataset=str(links), task="link", model="rgcn", cache="50%", **stored)
    with pytest.raises(UnsupportedError, match="store it by gnnsys score"):
        plan_run(resolve(config))
    assert main(["score", str(links), "--target", "user", "--batches", "2"]) == 0
    caplog.set_level(logging.INFO)
    with process_budget().run(None):
        plan_run(resolve(config))
        load_run_dataset(resolve(config)).close()
    assert "--score presample: computed" not in caplog.text
