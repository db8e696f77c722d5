"""``gnnsys train`` on links that have times, and on tasks of links of relational databases."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from gnnsys.commands.cli import main
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.relbench import convert_relbench
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.link_task import LinkTask
from gnnsys.training.models import make_model
from gnnsys.training.pipeline_steps import make_steps
from gnnsys.training.seed_times import settle_times

sys.path.insert(0, str(Path(__file__).parent))
from link_folders import ITEMS, LIKES, SMALL, USERS, held_folder, shop, train, web
from relational_database import Database

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("of_nodes", [True, False])
def test_links_with_times_see_nothing_that_is_newer(
    tmp_path: Path, of_nodes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = shop()
    draw = torch.Generator().manual_seed(0)
    ends, back = data[LIKES].edge_index, ("item", "rev_likes", "user")
    count = ends.shape[1]
    if of_nodes:
        data["user"].time = torch.randint(50, (USERS,), generator=draw)
        data["item"].time = torch.randint(50, (ITEMS,), generator=draw)
    data[LIKES].time = torch.randint(50, 100, (count,), generator=draw)
    data[back].time = data[LIKES].time.clone()  # of reverses, in the same order
    times = {part: torch.full((100,), 100 if part == "val" else 110) for part in held}
    folder = held_folder(tmp_path / "shop", data, held, LIKES, times)
    options = TrainConfig(dataset=str(folder), model="rgcn", negatives=2, **SMALL)
    run = settle_times(resolve(options))
    dataset = load_run_dataset(run)
    steps = make_steps(run, dataset, make_model(run, dataset), None)
    assert isinstance(dataset.task, LinkTask)
    when = dataset.task.links("train").time
    assert when is not None
    known = {
        pair: time
        for *pair, time in zip(*ends.tolist(), data[LIKES].time.tolist(), strict=True)
        for pair in [tuple(pair)]
    }
    messages = 0
    for batch in steps.batches(0, 0):
        limit = when[batch[LIKES].input_id]
        tree = {kind: batch[kind].batch % len(limit) for kind in ("user", "item")}
        source, target = batch[LIKES].edge_index
        pairs = zip(
            batch["user"].n_id[source].tolist(), batch["item"].n_id[target].tolist(), strict=True
        )
        ages = torch.tensor([known[pair] for pair in pairs])
        assert (ages <= limit[tree["item"][target]]).all()
        messages += len(ages)
    assert messages
    tables = {"embeddings": str(tmp_path / "tables")}
    plain, in_files = (
        train(folder, model="rgcn", epochs=1, negatives=2, **more) for more in ({}, tables)
    )
    assert in_files.history == plain.history
    found = steps.evaluate(["mrr"], "val")
    assert 0 < found["mrr"] <= 1
    assert steps.evaluation()["way"] == "sampled"
    dataset.close()
    arguments = ["train", str(folder), "--task", "link", "--model", "rgcn"]
    assert main([*arguments, "--eval", "layerwise"]) == 2
    assert "have times, but layers take all neighbours" in " ".join(capsys.readouterr().err.split())


def test_links_with_times_of_a_graph_without_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = web()
    data.edge_attr = None
    data.time = torch.randint(100, (USERS,), generator=torch.Generator().manual_seed(0))
    data.edge_time = torch.arange(data.num_edges)
    times = {part: torch.full((100,), 10_000) for part in held}
    folder = held_folder(tmp_path / "web", data, held, times=times)
    result = train(folder, model="sage", epochs=1)
    assert result.evaluation["way"] == "sampled"
    assert result.best_val["mrr"] > 0
    for given in ("--topology read", "--topology-memory 1MiB", "--trace run.trace"):
        assert main(["train", str(folder), "--task", "link", *given.split()]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"{given.split()[0]} " in told
        assert "does not go with the times of the links of" in told


def test_a_task_of_a_relational_database_is_trained_at_its_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = Database()
    asked = database.tasks["churn"][1]
    asked["when"] = asked["when"].replace(pd.Timestamp("2020-06-01"), pd.Timestamp("2020-07-01"))
    skus = database.frames["items"]["sku"].to_numpy()
    about = {
        "kind": "forecast", "task_type": "recommendation", "src_entity_table": "users",
        "src_entity_col": "id", "dst_entity_table": "items", "dst_entity_col": "sku",
        "time_col": "when", "eval_k": 10, "sql": "SELECT 1", "timedelta": "30 days",
    }  # fmt: skip
    lists = [list(skus[: n % 4]) for n in range(len(asked))]
    database.tasks["buys"] = about, asked[["id", "when"]].assign(sku=lists)
    source = database.write(tmp_path / "source")
    folder = convert_relbench(source, tmp_path / "g", ConvertOptions())
    result = train(folder, task="buys", model="rgcn", epochs=1, metric="recall@10")
    assert result.evaluation["way"] == "sampled"
    assert 0 < result.best_test["recall@10"] <= 1
    for options, says in (
        (["--full-batch"], "--full-batch: is not for links, but --task buys is of them"),
        (["--target", "users"], "--target users: --task buys says what its links join"),
    ):
        assert main(["train", str(folder), "--task", "buys", "--model", "rgcn", *options]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    churn = ["train", str(folder), "--task", "churn", "--model", "rgcn", "--decoder", "dot"]
    assert main(churn) == 2
    assert "--decoder dot: goes with --task link, or with a task of links" in " ".join(
        capsys.readouterr().err.split()
    )
    path = source / "tasks" / "buys" / "test.parquet"
    pd.read_parquet(path).drop(columns=["sku"]).to_parquet(path)
    hidden = convert_relbench(source, tmp_path / "hidden", ConvertOptions())
    result = train(hidden, task="buys", model="rgcn", epochs=1)
    assert result.best_val["mrr"] > 0
    assert result.best_test == {}
