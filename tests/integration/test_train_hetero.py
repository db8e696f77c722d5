"""``gnnsys train``, predict and report on heterogeneous dataset folders."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData
from torch_geometric.transforms import ToUndirected

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.features.importance import importance_for_cache
from gnnsys.system.budget import process_budget
from gnnsys.training.datasets import load_dataset
from gnnsys.training.hetero_models import HeteroClassifier
from gnnsys.training.loop import TrainResult, run_training

sys.path.insert(0, str(Path(__file__).parent))
from typed_graphs import graph_of

pytestmark = pytest.mark.usefixtures("one_thread")

AUTHORS, PAPERS, VENUES, CLASSES = 300, 200, 6, 3
SMALL: dict[str, Any] = {
    "epochs": 2, "batch_size": 32, "hidden": 16, "fanouts": (4, 3), "device": "cpu",
}  # fmt: skip


def make_graph() -> HeteroData:
    """Authors write papers, which are shown at venues without features; nobody cites yet."""
    draw = torch.Generator().manual_seed(5)

    def ids(nodes: int, count: int) -> torch.Tensor:
        return torch.randint(nodes, (count,), generator=draw)

    data = HeteroData()
    data["author"].y = ids(CLASSES, AUTHORS)
    data["author"].x = 4 * F.one_hot(data["author"].y, 5) + torch.randn(AUTHORS, 5, generator=draw)
    order = torch.randperm(AUTHORS, generator=draw)
    for name, part in (("train", order[:120]), ("val", order[120:200]), ("test", order[200:])):
        data["author"][f"{name}_idx"] = part
    data["paper"].x = torch.randn(PAPERS, 9, generator=draw)
    data["venue"].num_nodes = VENUES
    data["author", "writes", "paper"].edge_index = torch.stack(
        [ids(AUTHORS, 900), ids(PAPERS, 900)]
    )
    data["paper", "at", "venue"].edge_index = torch.stack(
        [torch.arange(PAPERS), ids(VENUES, PAPERS)]
    )
    data = ToUndirected()(data)
    data["author", "cites", "paper"].edge_index = torch.empty(2, 0, dtype=torch.int64)
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_pyg(
        make_graph(), tmp_path_factory.mktemp("hetero") / "g", ConvertOptions(), name="papers"
    )


def train(folder: Path, **options: Any) -> TrainResult:
    return run_training(TrainConfig(dataset=str(folder), **{**SMALL, **options}))


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


def plain_model(
    model: str, data: HeteroData, config: TrainConfig
) -> tuple[HeteroClassifier, list[torch.optim.Optimizer]]:
    """What a run without dropout begins with."""
    torch.manual_seed(0)
    net = HeteroClassifier(
        model, in_channels={"author": 5, "paper": 9},
        num_nodes={"author": AUTHORS, "paper": PAPERS, "venue": VENUES},
        edge_types=data.edge_types, target="author", hidden=16, out_channels=CLASSES, layers=2,
        dropout=0.0,
    )  # fmt: skip
    lr, decay = config.lr, config.weight_decay
    dense = (p for name, p in net.named_parameters() if name != "inputs.venue.weight")
    rows = torch.optim.SparseAdam([net.inputs["venue"].weight], lr=lr)
    return net, [torch.optim.Adam(dense, lr=lr, weight_decay=decay), rows]


@pytest.mark.parametrize("model", ["rgcn", "rgat", "hgt", "sage", "gat"])
def test_losses_are_those_of_a_plain_loop_of_pyg(folder: Path, model: Any) -> None:
    """Over the graph in memory: types, embeddings, labels and edges are the folder's."""
    result = train(folder, model=model, dropout=0.0)
    assert result.evaluation == {}
    assert set(result.best_test) == {"accuracy"}
    data = graph_of(folder)
    net, optimizers = plain_model(model, data, result.config)
    seeds = "author", data["author"].train_idx
    loader = gnnsys.NeighborLoader(data, [4, 3], seeds, batch_size=32, shuffle=True, seed=0)
    for epoch in range(2):
        total = 0.0
        for batch in loader:
            net.zero_grad()
            x = {kind: batch[kind].x for kind in ("author", "paper")}
            ids = {kind: batch[kind].n_id for kind in batch.node_types}
            sizes = batch.num_sampled_nodes_dict, batch.num_sampled_edges_dict
            size = batch["author"].batch_size
            out = net(x, batch.edge_index_dict, ids, *sizes)[:size]
            loss = F.cross_entropy(out, batch["author"].y[:size])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.item() * size
        assert losses(result)[epoch] == total / 120


@pytest.mark.parametrize("model", ["rgcn", "hgt"])
def test_a_batch_of_all_nodes_and_neighbours_trains_as_the_full_graph(
    folder: Path, model: Any
) -> None:
    """Rows of no type, target or not, get another gradient or another weight decay."""
    result = train(
        folder, model=model, dropout=0.0, epochs=10, batch_size=120, fanouts=(-1, -1),
        eval="layerwise", weight_decay=0.01,
    )  # fmt: skip
    data = graph_of(folder)
    net, optimizers = plain_model(model, data, result.config)
    seeds = data["author"].train_idx
    ids = {kind: torch.arange(data[kind].num_nodes) for kind in data.node_types}
    wanted = []
    for _ in range(10):
        net.zero_grad()
        out = net(data.x_dict, data.edge_index_dict, ids)[seeds]
        loss = F.cross_entropy(out, data["author"].y[seeds])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        wanted.append(loss.item())
    assert wanted[-1] < 0.95 * wanted[0]
    np.testing.assert_allclose(losses(result), wanted, rtol=2e-6)


def test_caches_of_all_types_share_one_size_and_change_no_loss(folder: Path) -> None:
    plain = train(folder, model="hgt", cache="none")
    sizes = (AUTHORS * 5 + PAPERS * 9) * 4
    for options in ({"cache": "20%"}, {"cache": "4KB", "score": "none", "policy": "lru"}):
        cached = train(folder, model="hgt", storage="pread", **options)
        assert losses(cached) == losses(plain)
        assert cached.best_test == plain.best_test
        served = cached.counters.as_dict()
        assert sum(served["rows"].values()) == sum(plain.counters.as_dict()["rows"].values())
        assert served["rows"]["file"] > 0
        assert served["rows"]["cache"] > 0
        held = cached.memory["names"]["cache rows"]["held"]
        assert 0 < held <= max(sizes // 5, 4096)


def test_importance_is_the_degree_over_all_edge_types_and_ranked_over_all_nodes(
    folder: Path,
) -> None:
    dataset, data = gnnsys.open_dataset(folder), make_graph()
    kind, found = importance_for_cache(dataset, "auto")
    assert kind == "degree"
    assert found is not None
    degrees = {
        "author": np.bincount(data["author", "writes", "paper"].edge_index[0], minlength=AUTHORS),
        "paper": np.bincount(data["author", "writes", "paper"].edge_index[1], minlength=PAPERS) + 1,
    }
    assert list(found) == ["author", "paper"]
    both, ranks = np.concatenate([*degrees.values()]), np.concatenate([*found.values()])
    order = np.argsort(both, kind="stable")
    assert (np.diff(ranks[order].astype(int)) >= 0).all()
    assert len(np.unique(both)) == len(np.unique(ranks))


def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(
    folder: Path, tmp_path: Path
) -> None:
    whole = train(folder, model="rgcn", epochs=3)

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    out = str(tmp_path / "run")
    config = TrainConfig(dataset=str(folder), out=out, model="rgcn", **{**SMALL, "epochs": 3})
    assert run_training(config, on_batch=interrupt).reason == "interrupted"
    rest = run_training(resumed_config(out))
    assert losses(rest) == losses(whole)
    assert (rest.best_val, rest.best_test) == (whole.best_val, whole.best_test)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder, model="sage", out=str(path), epochs=6, fanouts=(-1, -1), lr=0.02)
    torch.set_num_threads(threads)
    return path


def test_sampled_predictions_are_of_the_target_type(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "p"
    assert main(["predict", str(run), "--sampled", "--out", str(place), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["files"]["scores.npy"] == [AUTHORS, CLASSES]
    assert told["files"]["embeddings.npy"] == [AUTHORS, 16]
    # All neighbours were drawn: the same scores as in the run, whatever the batches.
    assert told["metrics"] == told["run_metrics"]
    labels = gnnsys.open_dataset(folder).node_table("labels", "author")
    right = (np.load(place / "predictions.npy") == labels).mean()
    assert right > 0.6
    np.save(tmp_path / "ids.npy", np.array([7, 299, 7]))
    some = ["--nodes", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "some.csv")]
    assert main(["predict", str(run), "--sampled", *some]) == 0
    assert len((tmp_path / "some.csv").read_text().splitlines()) == 4


def test_the_report_names_the_target_and_all_nodes(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "506 nodes" in page
    assert "author of 3 node types, 5 edge types" in page


def test_memory_names_the_embeddings_of_types_without_features(folder: Path) -> None:
    gc.collect()  # torch.fx, which traced models before, leaves cycles of frames
    found = train(folder, model="rgcn", epochs=1).memory["names"]
    assert found["embeddings of nodes"]["planned"] == VENUES * 16 * 4 * 6
    assert found["topology: neighbours, mapped"]["held"] == (2 * 900 + 2 * PAPERS) * 4
    assert {entry.name for entry in process_budget().table() if entry.held} <= {"libraries"}


def test_memory_names_what_exact_evaluation_takes(folder: Path) -> None:
    names = [
        train(folder, model="rgcn", epochs=1, eval=how).memory["names"]
        for how in ("sampled", "layerwise")
    ]
    two_layers = 2 * (AUTHORS + PAPERS + VENUES) * 16 * 4
    assert "activations of evaluation" not in names[0]
    assert names[1]["activations of evaluation"]["planned"] == two_layers
    assert names[1]["blocks of evaluation"]["planned"] >= 1 << 27


# In a process without memory that was freed before and is taken again. The peak begins anew.
TRAIN = """
    import sys
    from pathlib import Path
    from gnnsys.config.train import TrainConfig
    from gnnsys.system.budget import resident_memory
    from gnnsys.training.loop import run_training

    config = TrainConfig(
        dataset=sys.argv[1], model="rgcn", hidden=128, batch_size=60, epochs=2, fanouts=(3, 2),
        layers=2, device="cpu",
    )
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory().peak
    planned = run_training(config).memory["names"]["embeddings of nodes"]["planned"]
    print((resident_memory().peak - before) / planned)
"""


def test_embeddings_take_what_is_planned_for_them(
    run_forked: Callable[..., Any], tmp_path: Path
) -> None:
    data = make_graph()
    data["venue"].num_nodes = 100_000
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="papers")
    done = run_forked(TRAIN, tmp_path, path)
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < 1.3


def test_a_target_may_have_any_name(tmp_path: Path) -> None:
    data = make_graph()
    path = convert_pyg(
        data.rename("author", "a/b"), tmp_path / "g", ConvertOptions(), name="papers"
    )
    run, store = tmp_path / "run", str(tmp_path)
    result = train(path, eval="layerwise", eval_store=store, out=str(run), model="rgcn", epochs=1)
    assert main(["predict", str(run), "--eval-store", store, "--quiet"]) == 0
    assert len(np.load(run / "predictions" / "scores.npy")) == AUTHORS
    assert 0 <= result.best_test["accuracy"] <= 1


def test_another_type_with_labels_can_be_the_target(tmp_path: Path) -> None:
    data = make_graph()
    data["paper"].y = torch.arange(PAPERS) % 4
    data["paper"].train_idx, data["paper"].val_idx = torch.arange(100), torch.arange(100, 200)
    data["venue"].y = torch.zeros(VENUES, dtype=torch.int64)
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="papers")
    for target, classes in (("paper", 4), ("author", CLASSES)):
        dataset = load_dataset(str(folder), target=target)
        assert (dataset.target, dataset.task.outputs) == (target, classes)
        dataset.close()
    assert len(train(folder, target="paper", model="hgt").history) == 2


def test_numbers_of_another_type_can_be_the_target(tmp_path: Path) -> None:
    data = make_graph()
    data["paper"].y = torch.rand(PAPERS)
    data["paper"].train_idx, data["paper"].val_idx = torch.arange(100), torch.arange(100, 200)
    options = ConvertOptions(regression=True)
    folder = convert_pyg(data, tmp_path / "g", options, name="papers")
    for target in ("paper", "author"):
        dataset = load_dataset(str(folder), target=target)
        task = dataset.node_task
        assert (task.regression, task.outputs, task.metric) == (True, 1, "rmse")
        dataset.close()
        result = train(folder, target=target, model="rgcn", epochs=1)
        assert result.best_val["rmse"] > 0


def test_types_without_edges_and_isolated_targets_are_trained_by_their_own_features(
    tmp_path: Path,
) -> None:
    data = make_graph()
    for kind in data.edge_types:
        data[kind].edge_index = torch.empty(2, 0, dtype=torch.int64)
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="papers")
    for model in ("rgcn", "hgt", "sage", "gat"):
        assert len(train(folder, model=model).history) == 2


def test_a_graph_without_any_features_is_trained_by_embeddings(tmp_path: Path) -> None:
    data = make_graph()
    for kind in ("author", "paper"):
        data[kind].num_nodes = len(data[kind].pop("x"))
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="papers")
    for cache in ("auto", "1MB"):
        result = train(folder, model="rgcn", epochs=1, cache=cache)
        assert result.counters.as_dict() == {"rows": {}, "bytes": {}}
        planned = result.memory["names"]["embeddings of nodes"]["planned"]
        assert planned == (AUTHORS + PAPERS + VENUES) * 16 * 4 * 6


def test_nan_among_features_is_told_with_its_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_graph()
    data["paper"].x[:] = torch.nan
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(nan="keep"), name="papers")
    assert main(["train", str(folder), "--model", "rgcn"]) == 2
    assert "of its nodes of type 'paper' are NaN" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "editor"], "no such node type; expected one of author, paper, venue"),
        (["--target", "venue"], "has no labels of these nodes, those of author have some"),
        (["--model", "gin"], "heterogeneous; expected rgcn, rgat, hgt, sage, gat"),
        (["--model", "hgt", "--eval", "neighborhoods"], "give layerwise or sampled"),
        (["--full-batch"], "--full-batch: is for homogeneous graphs"),
        (["--cache", "100"], "rows of which type?"),
        (["--victim-buffer", "1MB"], "--victim-buffer 1MB: is for homogeneous graphs"),
        (["--topology", "read"], "--topology read: is for homogeneous graphs"),
        (["--split", "1"], "--split 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_types_cannot_have_is_told_in_one_message(
    options: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(folder), "--out", str(out), *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_target_without_training_nodes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_graph()
    data["venue"].y = torch.zeros(VENUES, dtype=torch.int64)
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="papers")
    assert main(["train", str(folder), "--target", "venue"]) == 2
    assert "papers: no train nodes of type 'venue'" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["ram", "folder"])
def test_exact_predictions_are_those_with_all_neighbours(
    run: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    place = "ram" if store == "ram" else str(tmp_path / store)
    exact, sampled = tmp_path / "exact", tmp_path / "sampled"
    options = ["--json", "--eval-store", place]
    assert main(["predict", str(run), "--out", str(exact), *options]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["metrics"] == told["run_metrics"]  # its fanouts take all neighbours
    assert main(["predict", str(run), "--sampled", "--out", str(sampled)]) == 0
    for name in ("scores", "embeddings"):
        found, expected = (np.load(each / f"{name}.npy") for each in (exact, sampled))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize("model", ["rgcn", "rgat", "hgt"])
def test_layerwise_scores_are_those_with_all_neighbours(folder: Path, model: Any) -> None:
    results = [
        train(folder, model=model, epochs=2, fanouts=(-1, -1), eval=how)
        for how in ("sampled", "layerwise")
    ]
    assert losses(results[0]) == losses(results[1])
    assert results[0].evaluation == {}
    assert results[1].evaluation["why"] == "layerwise, 180 nodes scored with all their neighbours"
    scores = [[record.val for record in each.history] for each in results]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--target", "node1"], "--target node1: demo has nodes of one type"),
        (["demo", "--model", "rgcn"], "--model rgcn: is for heterogeneous dataset folders"),
    ],
)
def test_options_of_types_are_refused_without_types(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
