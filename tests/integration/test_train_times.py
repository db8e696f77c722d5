"""``gnnsys train`` and predict at the times of seeds, and on the tasks of relational databases."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import mean_absolute_error, roc_auc_score
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import LeakageError
from gnnsys.system.budget import process_budget
from gnnsys.system.once import warn_once
from gnnsys.training.checkpoint import load_weights
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.hetero_models import HeteroClassifier
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.memory import plan_run
from gnnsys.training.models import NodeClassifier, make_model
from gnnsys.training.pipeline_steps import make_steps
from gnnsys.training.seed_times import settle_times
from tests.integration.relational_database import Database

pytestmark = pytest.mark.usefixtures("one_thread")

DAY = 86_400_000_000  # microseconds
SMALL: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "hidden": 8, "fanouts": (4, 3), "device": "cpu", "dropout": 0.0,
}  # fmt: skip


def shop(earlier: int = 0) -> Database:
    """Tasks of each kind about users, who are asked for four times each; orders are said to be so
    many days earlier than they are."""
    base, random = Database(), np.random.default_rng(3)
    base.frames["orders"]["at"] -= pd.Timedelta(days=earlier)
    about, _ = base.tasks["churn"]
    days = pd.to_datetime(["2020-03-01", "2020-06-01", "2020-07-15", "2020-09-01"])
    rows = pd.DataFrame({"id": np.repeat(np.arange(30), 4), "when": np.tile(days, 30)})
    rows["churns"] = random.integers(0, 2, len(rows))
    base.tasks["churn"] = (about, rows)
    for name, kind, values in (
        ("spend", "regression", random.normal(50, 9, len(rows))),
        ("likes", "multilabel_classification", [*random.integers(0, 2, (len(rows), 3))]),
    ):
        frame = rows.drop(columns="churns").assign(truth=values)
        base.tasks[name] = ({**about, "task_type": kind, "target_col": "truth"}, frame)
    links = {
        "kind": "forecast", "task_type": "link_prediction", "src_entity_table": "users",
        "src_entity_col": "id", "dst_entity_table": "items", "dst_entity_col": "item",
        "time_col": "when",
    }  # fmt: skip
    bought = rows[["id", "when"]].assign(item=base.frames["items"]["sku"].iloc[0])
    base.tasks["buys"] = (links, bought)
    return base


def convert(base: Database, place: Path, name: str = "graph") -> Path:
    tables = base.write(place / f"{name}-tables")
    for hidden in (tables / "tasks" / "spend").glob("test.parquet"):
        pd.read_parquet(hidden).drop(columns="truth").to_parquet(hidden)
    assert main(["convert", str(tables), str(place / name)]) == 0
    return place / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(shop(), tmp_path_factory.mktemp("shop"))


def train(folder: Path, **options: Any) -> TrainResult:
    return run_training(TrainConfig(dataset=str(folder), **{"model": "rgcn", **SMALL, **options}))


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


def all_times(folder: Path) -> HeteroData:
    dataset, times = gnnsys.open_dataset(folder), HeteroData()
    for kind in dataset.node_types:
        times[kind].num_nodes = dataset.num_nodes(kind)
        if dataset.has("time", kind):
            times[kind].time = torch.from_numpy(dataset.node_table("time", kind).copy())
    return times


def training_batches(folder: Path, **options: Any) -> list[Any]:
    """Those of the first epoch of a run."""
    config = TrainConfig(dataset=str(folder), **{"model": "rgcn", **SMALL, **options})
    run = settle_times(resolve(config))
    dataset = load_run_dataset(run)
    return [*make_steps(run, dataset, make_model(run, dataset), None).batches(0, 0)]


LOSSES = {
    "churn": lambda out, truth: F.cross_entropy(out, truth),
    "spend": lambda out, truth: F.mse_loss(out[:, 0], truth),
    "likes": lambda out, truth: F.binary_cross_entropy_with_logits(out, truth),
}
LIMITS: dict[str, dict[str, Any]] = {
    "churn": {"temporal": "last"},
    "spend": {"time_window": 90 * DAY},
    "likes": {"last_n": 2},
}


@pytest.mark.parametrize("task", LOSSES)
def test_losses_are_those_of_a_loop_over_a_loader_with_input_time(folder: Path, task: str) -> None:
    result = train(folder, task=task, **LIMITS[task])
    assert result.config.eval == "sampled"
    assert "neighbours no later than each" in result.evaluation["why"]
    dataset = gnnsys.open_dataset(folder)
    seeds = dataset.seeds(task, "train")
    assert len(seeds.nodes.unique()) < len(seeds.nodes)
    assert seeds.labels is not None
    outputs = {"churn": 2, "spend": 1, "likes": 3}[task]
    torch.manual_seed(0)
    net = HeteroClassifier(
        "rgcn", target="users", hidden=8, out_channels=outputs, layers=2, dropout=0.0,
        in_channels={kind: dataset.features(kind).shape[1] for kind in dataset.node_types},
        num_nodes={kind: dataset.num_nodes(kind) for kind in dataset.node_types},
        edge_types=dataset.edge_types,
    )  # fmt: skip
    config = result.config
    adam = torch.optim.Adam(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    limits = {{"temporal": "temporal_strategy"}.get(k, k): v for k, v in LIMITS[task].items()}
    loader = gnnsys.NeighborLoader(
        dataset.stores(), [4, 3], ("users", seeds.nodes), seeds.time, time_attr="time",
        batch_size=16, shuffle=True, seed=0, **limits,
    )  # fmt: skip
    for epoch in range(2):
        total = 0.0
        for batch in loader:
            adam.zero_grad()
            x = {kind: batch[kind].x for kind in batch.node_types}
            sizes = batch.num_sampled_nodes_dict, batch.num_sampled_edges_dict
            out = net(x, batch.edge_index_dict, None, *sizes)[: batch["users"].batch_size]
            loss = LOSSES[task](out, seeds.labels[batch["users"].input_id])
            loss.backward()
            adam.step()
            total += loss.item() * len(out)
        assert losses(result)[epoch] == total / len(seeds.nodes)


def test_no_batch_of_training_holds_what_is_later_and_a_planted_leak_is_caught(
    folder: Path, tmp_path: Path
) -> None:
    times = all_times(folder)
    seen = 0
    for batch in training_batches(folder, task="churn", fanouts=(-1, -1)):
        gnnsys.check_leakage(batch, times, "time")
        asked = batch["users"].seed_time[batch["orders"].batch]
        assert (times["orders"].time[batch["orders"].n_id] <= asked).all()
        seen += len(asked)
    assert seen > 0
    leaky = convert(shop(earlier=60), tmp_path)  # orders are known before they are made
    batch = training_batches(leaky, task="churn", fanouts=(-1, -1))[0]
    with pytest.raises(LeakageError, match="of 'orders' are newer than their seed"):
        gnnsys.check_leakage(batch, times, "time")


def a_graph(of_edges: bool) -> Data:
    """Edges without any order; nodes know their own times."""
    draw = torch.Generator().manual_seed(1)
    edges = torch.randperm(60 * 60, generator=draw)[:600]
    data = Data(edge_index=torch.stack([edges // 60, edges % 60]), num_nodes=60)
    data.x, data.y = torch.randn(60, 4, generator=draw), torch.arange(60) % 3
    data.time = torch.randint(100, (60,), generator=draw)
    if of_edges:
        data.edge_time = torch.randint(100, (600,), generator=draw)
    data.train_mask, data.val_mask = torch.arange(60) < 40, torch.arange(60) >= 40
    data.test_mask = data.val_mask
    return data


def test_nodes_are_seeds_at_their_own_times(tmp_path: Path) -> None:
    """Of a folder whose edges do not stand in the order of times."""
    path = convert_pyg(a_graph(of_edges=False), tmp_path / "g", ConvertOptions(), name="g")
    result = train(path, model="sage")
    dataset = gnnsys.open_dataset(path)
    data = a_graph(of_edges=False)
    data.edge_index = dataset.edge_index()
    torch.manual_seed(0)
    net = NodeClassifier("sage", in_channels=4, hidden=8, out_channels=3, layers=2, dropout=0.0)
    decay = result.config.weight_decay
    adam = torch.optim.Adam(net.parameters(), lr=result.config.lr, weight_decay=decay)
    loader = gnnsys.NeighborLoader(
        data, [4, 3], dataset.split("train"), time_attr="time", batch_size=16, shuffle=True, seed=0
    )
    for epoch in range(2):
        total = 0.0
        for batch in loader:
            adam.zero_grad()
            sizes = batch.num_sampled_nodes, batch.num_sampled_edges
            loss = F.cross_entropy(
                net(batch.x, batch.edge_index, *sizes)[: batch.batch_size],
                batch.y[: batch.batch_size],
            )
            loss.backward()
            adam.step()
            total += loss.item() * batch.batch_size
        assert losses(result)[epoch] == total / 40


def test_neither_edges_nor_nodes_are_later_where_both_have_times(tmp_path: Path) -> None:
    data = a_graph(of_edges=True)
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    ends = zip(*data.edge_index.tolist(), strict=True)
    since = dict(zip(ends, data.edge_time.tolist(), strict=True))
    drawn = 0
    for batch in training_batches(path, model="sage", fanouts=(-1, -1)):
        seed_time = data.time[batch.n_id[: batch.batch_size]][batch.batch]
        for source, target in batch.edge_index.T.tolist():
            edge = int(batch.n_id[source]), int(batch.n_id[target])
            assert max(since[edge], int(data.time[edge[0]])) <= seed_time[target]
            drawn += 1
        one = batch.n_id[: batch.batch_size]
        first_hop = sum(
            int(data.time[node]) >= max(moment, int(data.time[source]))
            for (source, target), moment in since.items()
            for node in one.tolist()
            if target == node
        )
        assert batch.num_sampled_edges[0] == first_hop  # and no other is missing
    assert drawn > 100
    assert losses(train(path, model="sage")) != losses(train(path, model="sage", ignore_times=True))


def known_edges(data: HeteroData, hops: int, seed: int) -> Counter[Any]:
    """Edges of each type that lead to a seed of type u in so many hops and are no later."""
    since: dict[Any, list[tuple[int, int, int]]] = {}
    for kind in data.edge_types:
        ends, at = data[kind].edge_index, torch.full((data[kind].num_edges,), -1)
        for time in (data[kind].get("edge_time"), data[kind[0]].get("time", [None])):
            if isinstance(time, torch.Tensor):
                at = torch.maximum(at, time if len(time) == len(at) else time[ends[0]])
        since[kind] = [*zip(*ends.tolist(), at.tolist(), strict=True)]
    asked, found = int(data["u"].time[seed]), Counter[Any]()
    seen, last = {("u", seed)}, {("u", seed)}
    for _ in range(hops):
        more = set()
        for kind, edges in since.items():
            for source, target, moment in edges:
                if (kind[2], target) in last and moment <= asked:
                    found[kind, source, target] += 1
                    more.add((kind[0], source))
        last, seen = more - seen, seen | more
    return found


def test_neighbours_of_types_are_those_of_brute_force_where_some_have_times(tmp_path: Path) -> None:
    """Nodes u and edges a have times; nodes i, edges b and c have none of their own."""
    draw, data = torch.Generator().manual_seed(0), HeteroData()
    for kind in "ui":
        data[kind].x = torch.randn(40, 3, generator=draw)
    data["u"].time, data["u"].y = torch.randint(50, (40,), generator=draw), torch.arange(40) % 2
    data["u"].train_mask, data["u"].val_mask = torch.arange(40) < 20, torch.arange(40) >= 20
    data["u"].test_mask = data["u"].val_mask
    for kind in (("i", "a", "u"), ("u", "b", "i"), ("i", "c", "i")):
        edges = torch.randperm(1600, generator=draw)[:200]
        data[kind].edge_index = torch.stack([edges // 40, edges % 40])
    data["i", "a", "u"].edge_time = torch.randint(50, (200,), generator=draw)
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    for batch in training_batches(path, model="sage", fanouts=(-1, -1)):
        trees = [Counter[Any]() for _ in range(batch["u"].batch_size)]
        for kind in batch.edge_types:
            row, col = batch[kind].edge_index
            drawn = batch[kind[0]].n_id[row], batch[kind[2]].n_id[col], batch[kind[2]].batch[col]
            for source, target, tree in zip(*(each.tolist() for each in drawn), strict=True):
                trees[tree][kind, source, target] += 1
        seeds = batch["u"].n_id[: len(trees)].tolist()
        assert trees == [known_edges(data, 2, seed) for seed in seeds]


def test_the_last_neighbours_are_drawn_of_edges_that_were_sorted(tmp_path: Path) -> None:
    data = a_graph(of_edges=False)
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    for batch in training_batches(path, model="sage", fanouts=(3, 2), temporal="last"):
        row, col = batch.edge_index[:, : batch.num_sampled_edges[0]]
        for place, seed in enumerate(batch.n_id[: batch.batch_size].tolist()):
            times = data.time[data.edge_index[0][data.edge_index[1] == seed]]
            last = times[times <= data.time[seed]].sort().values[-3:]
            assert data.time[batch.n_id[row[col == place]]].sort().values.tolist() == last.tolist()


def test_nodes_are_predicted_at_other_times_than_their_own(tmp_path: Path) -> None:
    data = a_graph(of_edges=False)
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    out = tmp_path / "run"
    config = train(path, model="sage", out=str(out), fanouts=(-1, -1)).config
    rows = torch.tensor([[50, 10**6], [3, 10**6], [50, int(data.time[50])]])
    np.save(tmp_path / "rows.npy", rows.numpy())
    assert main(["predict", str(out), "--out", str(tmp_path / "all")]) == 0
    asked = ["--nodes", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "some")]
    assert main(["predict", str(out), *asked]) == 0
    found = np.load(tmp_path / "some" / "scores.npy")
    assert found[2] == pytest.approx(np.load(tmp_path / "all" / "scores.npy")[50], abs=1e-6)
    run = settle_times(resolve(config))
    model = make_model(run, load_run_dataset(run))
    load_weights(out, model)
    with torch.no_grad():  # nothing is later than that
        expected = model.eval()(data.x, data.edge_index)[rows[:2, 0]]
    assert found[:2] == pytest.approx(expected.numpy(), abs=1e-5)


def test_edges_that_were_sorted_are_held_in_memory_and_times_of_seeds_are_mapped(
    tmp_path: Path,
) -> None:
    path = convert_pyg(a_graph(of_edges=False), tmp_path / "g", ConvertOptions(), name="g")
    config = TrainConfig(dataset=str(path), model="sage", **SMALL)
    gc.collect()  # datasets of other tests would be in the table
    with process_budget().run(None):
        run = settle_times(resolve(config))
        plan_run(run)
        dataset = load_run_dataset(run)
        names = {each.name: each for each in process_budget().table()}
        assert names["times and edges sorted by them"].held == dataset.graph.indices.nbytes
        assert names["topology: neighbours, mapped"].held == 0
        of_seeds = names["times of the seeds, mapped"]
        assert (of_seeds.planned, of_seeds.held, of_seeds.mapped) == (60 * 8, 60 * 8, True)


def test_times_with_fractions_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = a_graph(of_edges=False)
    data.time = data.time.double()
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    assert main(["train", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"{path}: the times of nodes node are float64, expected whole numbers" in told
    assert "--ignore-times" in told
    assert not settle_times(resolve(TrainConfig(dataset=str(path), ignore_times=True))).timed


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder, task="churn", out=str(path), fanouts=(-1, -1))
    torch.set_num_threads(threads)
    return path


def test_predictions_are_written_for_each_row_of_val_and_test(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run), "--out", str(tmp_path / "p"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["task"], told["metrics"]) == ("churn", told["run_metrics"])
    names = ("nodes", "times", "scores")
    nodes, times, scores = (np.load(tmp_path / "p" / f"{name}.npy") for name in names)
    for part, (first, end) in told["parts"].items():
        seeds = gnnsys.open_dataset(folder).seeds("churn", part)
        assert seeds.time is not None
        assert nodes[first:end].tolist() == seeds.nodes.tolist()
        assert times[first:end].tolist() == seeds.time.tolist()
        margin = scores[first:end, 1] - scores[first:end, 0]
        expected = roc_auc_score(seeds.labels, margin)
        assert told["metrics"][part]["rocauc"] == pytest.approx(expected, abs=1e-6)
    rows = np.stack([nodes, times], axis=1)[[3, 50, 3]]
    np.save(tmp_path / "rows.npy", rows)
    some = ["--nodes", str(tmp_path / "rows.npy"), "--out"]
    assert main(["predict", str(run), *some, str(tmp_path / "some")]) == 0
    found = np.load(tmp_path / "some" / "scores.npy")
    assert found == pytest.approx(scores[[3, 50, 3]], abs=1e-6)  # all neighbours were drawn
    assert main(["predict", str(run), *some, str(tmp_path / "some.csv")]) == 0
    assert pd.read_csv(tmp_path / "some.csv")[["id", "time"]].values.tolist() == rows.tolist()
    np.save(tmp_path / "ids.npy", np.array([1, 2]))
    nodes_alone = ["--nodes", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "no")]
    assert main(["predict", str(run), *nodes_alone]) == 2
    assert "expected .npy of (n, 2) nodes and times" in capsys.readouterr().err
    assert main(["predict", str(run), "--out", str(tmp_path / "no"), "--topology", "read"]) == 2
    err = capsys.readouterr().err
    assert "--topology read: what" in err
    assert "--ignore-times" not in err  # which predict has not


def test_the_task_is_named_in_the_result_and_the_log(run: Path) -> None:
    assert json.loads((run / "result.json").read_text())["config"]["task"] == "churn"
    start = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["dataset"]["task"], start["dataset"]["target"]) == ("churn", "users")


def test_test_rows_without_labels_have_no_score(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    result = train(folder, task="spend", out=str(tmp_path / "run"), fanouts=(-1, -1))
    assert (result.metric, result.best_test, sorted(result.best_val)) == (
        "rmse", {}, ["mae", "r2", "rmse"],
    )  # fmt: skip
    assert caplog.text.count("spend: no test label is known") == 1
    assert main(["predict", str(tmp_path / "run")]) == 0
    values = np.load(tmp_path / "run" / "predictions" / "predictions.npy")
    dataset = gnnsys.open_dataset(folder)
    val, test = (dataset.seeds("spend", part) for part in ("val", "test"))
    assert test.labels is None
    assert len(values) == len(val.nodes) + len(test.nodes)
    expected = mean_absolute_error(val.labels, values[: len(val.nodes)])
    assert result.best_val["mae"] == pytest.approx(expected, rel=1e-6)


def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(
    folder: Path, tmp_path: Path
) -> None:
    whole = train(folder, task="churn", temporal="last")

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    out = str(tmp_path / "run")
    options = {"task": "churn", "temporal": "last", "model": "rgcn", **SMALL}
    config = TrainConfig(dataset=str(folder), out=out, **options)
    assert run_training(config, on_batch=interrupt).reason == "interrupted"
    rest = run_training(resumed_config(out))
    assert losses(rest) == losses(whole)
    assert (rest.best_val, rest.best_test) == (whole.best_val, whole.best_test)


def test_a_task_without_times_is_evaluated_layer_by_layer(tmp_path: Path) -> None:
    """Where nothing has a time; the rows of a task are no ids of nodes."""
    base = shop()
    base.tables["orders"]["time_col"] = None
    about, rows = base.tasks["churn"]
    parts = base.split(rows, "when")
    base.tasks = {"churn": (about, rows)}
    path = base.write(tmp_path / "tables")
    place = path / "tasks" / "churn"
    text = (place / "manifest.yaml").read_text().replace("time_col: when\n", "")
    (place / "manifest.yaml").write_text(text)
    assert main(["convert", str(path), str(tmp_path / "g")]) == 0
    every = {"task": "churn", "fanouts": (-1, -1)}
    exact, sampled = (train(tmp_path / "g", eval=way, **every) for way in ("layerwise", "sampled"))
    assert exact.best_val == sampled.best_val
    assert exact.evaluation["nodes"] == len(parts["val"]) + len(parts["test"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "likes-not"], "has buys, churn, likes, spend; give node for labels of nodes"),
        ([], "nodes have no labels to train with, but it has tasks; give --task"),
        (["--task", "churn", "--target", "items"], "task churn is of nodes of type users"),
        (["--task", "churn", "--eval", "layerwise"], "--eval layerwise: computes a node once for"),
        (["--task", "churn", "--full-batch"], "--full-batch: does not go with the times of"),
        (["--task", "churn", "--static-shapes"], "--static-shapes: does not go with the times of"),
        (["--task", "churn", "--ignore-times", "--last-n", "2"], "--last-n 2 says how to take"),
        (["--temporal", "last", "--sampling", "labor"], "of which --sampling labor draws none"),
        (["--task", "churn", "--last-n", "0"], "--last-n 0: expected at least 1"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    folder: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(folder), "--model", "rgcn", *options]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("options", [["--task", "churn"], ["--last-n", "2"]])
def test_a_graph_without_tasks_and_times_has_no_use_for_their_options(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "demo", *options]) == 2
    told = "--task churn: demo has no tasks" if options[0] == "--task" else "--last-n 2: is for"
    assert told in capsys.readouterr().err


def test_times_are_told_to_be_unused_where_seeds_have_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = a_graph(of_edges=True)
    del data.time
    path = convert_pyg(data, tmp_path / "late", ConvertOptions(), name="late")
    train(path, model="sage", epochs=1)
    assert "late: its times are not used, for the seeds have none" in caplog.text
    assert main(["plan", str(path), "--budget", "50%", "--batches", "2"]) == 0
    assert "late: its batches are planned as gnnsys train --ignore-times draws them" in caplog.text
