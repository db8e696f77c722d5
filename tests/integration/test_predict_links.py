"""``gnnsys predict`` of runs on links, against brute force over PyG's embeddings in float64."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

import gnnsys
from gnnsys.commands import predict_links
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import TooLargeError
from gnnsys.generate import generate_community
from gnnsys.system.budget import process_budget
from gnnsys.training.checkpoint import load_weights
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.link_embeddings import sampled_embeddings
from gnnsys.training.link_models import LinkModel
from gnnsys.training.link_ranking import top_links
from gnnsys.training.link_task import LinkTask, stacked
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.models import make_model
from gnnsys.training.step_parts import make_sampler
from gnnsys.training.task import PARTS
from tests.integration.link_folders import ITEMS, LIKES, USERS, held_folder, shop, web

pytestmark = pytest.mark.usefixtures("one_thread")

K = 7


def held_out(place: Path, data: Any, *options: str) -> Path:
    """A folder with links held out, whose nodes have other numbers than in the source."""
    convert_pyg(data, place / "whole", ConvertOptions(), name="whole")
    command = ["convert", str(place / "whole"), str(place / "held"), "--order", "degree"]
    assert main([*command, "--hold-out-shares", "0.1,0.1", "--hold-out", *options]) == 0
    return place / "held"


def trained(folder: Path, out: Path, **options: Any) -> TrainResult:
    small = {"task": "link", "epochs": 2, "batch_size": 256, "hidden": 16, "fanouts": (4, 3)}
    return run_training(TrainConfig(dataset=str(folder), out=str(out), **{**small, **options}))


def predict(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["predict", str(run), "--json", *options]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    place = tmp_path_factory.mktemp("typed")
    folder = held_out(place, shop()[0], ",".join(LIKES))
    return place / "run", trained(folder, place / "run", model="sage", eval="layerwise")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    place = tmp_path_factory.mktemp("plain")
    options = {"model": "gin", "decoder": "distmult", "metric": "ndcg@10"}
    return place / "run", trained(held_out(place, web()[0]), place / "run", **options)


def by_brute_force(run: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Embeddings by PyG on the full graph in float64, scores of all pairs, and known links."""
    config = resolve(resumed_config(run))
    dataset, opened = load_run_dataset(config), gnnsys.open_dataset(config.config.dataset)
    model, task = make_model(config, dataset), dataset.task
    assert isinstance(model, LinkModel)
    assert isinstance(task, LinkTask)
    load_weights(run, model)
    model.double().eval()
    known = torch.cat([stacked(task.links(part)) for part in PARTS], 1)
    with torch.no_grad():
        if opened.heterogeneous:
            x = {"user": torch.tensor(opened.node_table("features", "user")).double()}
            edges = {kind: opened.edge_index(kind) for kind in opened.edge_types}
            ids = {kind: torch.arange(opened.num_nodes(kind)) for kind in opened.node_types}
            rows = model(x, edges, ids)
            source, target = rows["user"], rows["item"]
        else:
            data = Data(x=torch.tensor(opened.node_table("features")).double())
            source = target = model(data.x, opened.edge_index())
            rows = {"node": source}
        scores = model.queries(source) @ target.t()
    dataset.close()
    return rows, scores, known


def check_best(ids: Tensor, found: Tensor, scores: Tensor, hidden: Tensor | None) -> None:
    """The best of (n, m) scores, equal ones in any order."""
    if hidden is not None:
        scores = scores.clone()
        scores[hidden[0], hidden[1]] = -torch.inf
    best = scores.topk(ids.shape[1]).values
    torch.testing.assert_close(found.double(), best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.gather(1, ids), best, atol=1e-5, rtol=1e-5)
    assert all(len(row.unique()) == len(row) for row in ids)


def test_embeddings_and_the_best_targets_are_those_of_the_full_graph(
    typed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = typed
    told = predict(capsys, run, "--top", str(K), "--out", str(tmp_path / "p"))
    assert told["files"] == {
        "embeddings.user.npy": [USERS, 16], "embeddings.item.npy": [ITEMS, 16],
        "nodes.npy": [USERS], "ids.npy": [USERS, K], "scores.npy": [USERS, K],
    }  # fmt: skip
    files = {name: torch.tensor(np.load(tmp_path / "p" / name)) for name in told["files"]}
    rows, scores, known = by_brute_force(run)
    for kind in ("user", "item"):
        found = files[f"embeddings.{kind}.npy"].double()
        torch.testing.assert_close(found, rows[kind], atol=1e-5, rtol=1e-5)
    check_best(files["ids.npy"], files["scores.npy"], scores, known)
    assert files["nodes.npy"].tolist() == list(range(USERS))
    for part, had in (("val", result.best_val), ("test", result.best_test)):
        assert told["metrics"][part] == pytest.approx(had, abs=1e-6)
        assert told["run_metrics"][part] == pytest.approx(had)
    assert main(["predict", str(run), "--out", str(tmp_path / "q")]) == 0
    mrr = result.best_test["mrr"]
    assert f"test mrr {mrr:.4f} (the run's {mrr:.4f})" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [
        "embeddings.item.npy", "embeddings.user.npy",
    ]  # fmt: skip


def test_known_links_of_chosen_sources_without_types(
    plain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = plain
    nodes = torch.tensor([9, 3, 9, USERS - 1])
    np.save(tmp_path / "n.npy", nodes.numpy())
    rows, scores, known = by_brute_force(run)
    chosen = ["--nodes", str(tmp_path / "n.npy"), "--top", str(K)]
    seen = torch.zeros(USERS, USERS, dtype=torch.bool)
    seen[known[0], known[1]] = True
    for name, options, hidden in (
        ("a", [], seen[nodes].nonzero().t()),
        ("b", ["--keep-known"], None),
    ):
        told = predict(capsys, run, *chosen, *options, "--out", str(tmp_path / name))
        files = {each: torch.tensor(np.load(tmp_path / name / each)) for each in told["files"]}
        check_best(files["ids.npy"], files["scores.npy"], scores[nodes], hidden)
        assert files["nodes.npy"].tolist() == nodes.tolist()
        assert told["metrics"]["val"] == pytest.approx(result.best_val, abs=1e-6)
    source, relation = files["embeddings.node.npy"].double(), files["relation.npy"].double()
    torch.testing.assert_close(source, rows["node"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(source * relation @ source.t(), scores, atol=1e-4, rtol=1e-4)
    np.save(tmp_path / "none.npy", np.empty(0, np.int64))
    none = ["--nodes", str(tmp_path / "none.npy"), "--top", "2", "--out", str(tmp_path / "c")]
    assert predict(capsys, run, *none)["files"]["ids.npy"] == [0, 2]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_name_both_ends_as_the_source_does(
    suffix: str, typed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = typed
    predict(capsys, run, "--top", str(ITEMS), "--out", str(tmp_path / "p"))
    told = predict(capsys, run, "--top", str(ITEMS), "--out", str(tmp_path / f"t.{suffix}"))
    table = (pd.read_csv if suffix == "csv" else pd.read_parquet)(tmp_path / f"t.{suffix}")
    assert told["files"] == {"": list(table.shape)}
    ids, scores = (np.load(tmp_path / "p" / f"{name}.npy") for name in ("ids", "scores"))
    opened = gnnsys.open_dataset(resumed_config(run).dataset)
    users, items = (opened.node_table("node_id", kind) for kind in ("user", "item"))
    row, rank = (ids >= 0).nonzero()
    assert len(row) < ids.size  # known links leave fewer than were asked for
    assert (table["source"] == users[row]).all()
    assert (table["target"] == items[ids[row, rank]]).all()
    assert (table["rank"] == rank + 1).all()
    np.testing.assert_allclose(table["score"], scores[row, rank], rtol=1e-6)
    liked = {tuple(pair) for pair in shop()[0][LIKES].edge_index.t().tolist()}
    named = set(zip(table["source"], table["target"], strict=True))
    assert len(named | liked) == USERS * ITEMS
    assert not named & liked


def test_sampled_embeddings_are_those_of_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = shop()
    for kind, count in (("user", USERS), ("item", ITEMS)):
        data[kind].time = torch.arange(count)
    data[LIKES].time = data[LIKES].edge_index.amax(0) + 20
    times = {part: torch.full((100,), 150) for part in held}
    folder = held_folder(tmp_path / "timed", data, held, LIKES, times)
    result = trained(folder, tmp_path / "run", model="rgcn", epochs=1)
    assert result.evaluation["way"] == "sampled"
    for options in (["--out", str(tmp_path / "p")], ["--sampled"]):
        told = predict(capsys, tmp_path / "run", "--top", "2", *options)
        assert told["metrics"]["test"] == pytest.approx(result.best_test, abs=1e-6)
        assert told["files"]["embeddings.item.npy"] == [ITEMS, 16]


def test_runs_of_own_models_are_exact_too_and_sampled_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model": "torch_geometric.nn:GraphSAGE", "fanouts": (2, 2), "eval": "layerwise"}
    run = tmp_path / "run"
    result = trained(held_out(tmp_path, web()[0]), run, **given)
    rows, made = by_brute_force(run)[0]["node"], {}
    for way, best in (("exact", result.best_test), ("sampled", None)):
        options = ["--sampled"] if way == "sampled" else []
        told = predict(capsys, run, "--out", str(tmp_path / way), *options)
        assert best is None or told["metrics"]["test"] == pytest.approx(best, abs=1e-6)
        made[way] = torch.tensor(np.load(tmp_path / way / "embeddings.node.npy"))
    torch.testing.assert_close(made["exact"].double(), rows, atol=1e-5, rtol=1e-5)
    assert ((made["sampled"] - rows).abs().amax(1) > 1e-3).float().mean() > 0.5
    config = resolve(resumed_config(run)).config
    with closing(load_run_dataset(resolve(config))) as dataset:
        model = make_model(resolve(config), dataset)
        assert isinstance(model, LinkModel)
        load_weights(run, model)
        model.eval()

        def embed(batch: Any) -> Tensor:
            out: Tensor = model(batch.x, batch.edge_index)
            return out[: batch.batch_size]

        sampler = make_sampler(config, dataset.graph, device="cpu")
        expected = sampled_embeddings(config, dataset, "node", sampler, embed)
    torch.testing.assert_close(made["sampled"], expected, atol=1e-6, rtol=1e-5)


def test_blocks_of_sources_fit_in_memory(
    plain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, seen = ["--top", str(K), "--out"], []
    predict(capsys, plain[0], *chosen, str(tmp_path / "one"))

    def top(queries: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append(len(queries))
        return top_links(queries, *args, **options)

    monkeypatch.setattr(predict_links, "top_links", top)
    monkeypatch.setattr(predict_links, "_SOURCES", 50)
    monkeypatch.setattr(predict_links, "_BEST_BYTES", 1)
    predict(capsys, plain[0], *chosen, str(tmp_path / "several"))
    assert seen == [50, 50, 20]
    for name in ("ids", "scores"):
        one, several = (np.load(tmp_path / way / f"{name}.npy") for way in ("one", "several"))
        np.testing.assert_allclose(several, one, rtol=1e-6)


def test_more_best_targets_than_memory_holds_are_refused() -> None:
    with process_budget().run(2 << 30) as budget:
        assert predict_links.plan_best(10, 1 << 20, 1 << 20, 8) == 1 << 16
        assert budget.planned("best targets of sources") < 64 << 20
        with pytest.raises(TooLargeError, match="give a smaller --top, or more memory"):
            predict_links.plan_best(1 << 20, 1 << 20, 1 << 20, 8)


def test_options_that_do_not_fit_are_told(
    typed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    community = generate_community(tmp_path / "g", nodes=200, classes=2, features=4)
    run_training(TrainConfig(dataset=str(community), out=str(tmp_path / "nodes"), epochs=1))
    np.save(tmp_path / "n.npy", np.arange(2))
    for run, options, says in (
        (tmp_path / "nodes", ["--top", "3"], "--top 3: goes with a run on links"),
        (typed[0], ["--top", "0"], "--top 0: expected at least 1"),
        (typed[0], ["--top", "999999999999"], f"there are {ITEMS} targets; give at most as many"),
        (typed[0], ["--keep-known"], "--keep-known: goes with --top"),
        (typed[0], ["--nodes", str(tmp_path / "n.npy")], "best targets are asked for; give --top"),
        (typed[0], ["--out", str(tmp_path / "t.csv")], "a table is of the best targets; give --to"),
    ):
        assert main(["predict", str(run), *options]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
