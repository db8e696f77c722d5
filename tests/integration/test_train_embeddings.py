"""``gnnsys train`` on node types without features whose embeddings lie in files."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv
from torch_geometric.transforms import ToUndirected

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.commands.predict import predict
from gnnsys.config.file import resumed_config
from gnnsys.config.predict import PredictConfig
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import ArgumentError, MissingFileError, TooLargeError
from gnnsys.features.setup import setup_features
from gnnsys.system.budget import EMBEDDINGS, process_budget, resident_memory
from gnnsys.training import hetero_memory
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.memory import plan_run
from tests.integration.link_folders import held_folder

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, GOODS, SHOPS = 300, 2000, 6
SMALL: dict[str, Any] = {
    "model": "rgcn", "epochs": 3, "batch_size": 16, "hidden": 8, "fanouts": (3, 2), "lr": 0.05,
    "device": "cpu",
}  # fmt: skip


def make_graph() -> HeteroData:
    """Users buy goods, which shops have; goods and shops have no features."""
    draw = torch.Generator().manual_seed(5)
    data = HeteroData()
    data["user"].y = torch.randint(3, (USERS,), generator=draw)
    data["user"].x = torch.randn(USERS, 4, generator=draw)
    order = torch.randperm(USERS, generator=draw)
    # So many to test that they are scored once, at the end, by the best weights.
    for name, part in (("train", order[:64]), ("val", order[64:110]), ("test", order[110:])):
        data["user"][f"{name}_idx"] = part
    data["a/b"].num_nodes, data["shop"].num_nodes = GOODS, SHOPS
    bought = data["user"].y.repeat(30) * 600 + torch.randint(800, (30 * USERS,), generator=draw)
    data["user", "buys", "a/b"].edge_index = torch.stack([torch.arange(USERS).repeat(30), bought])
    at = torch.randint(SHOPS, (GOODS,), generator=draw)
    data["a/b", "at", "shop"].edge_index = torch.stack([torch.arange(GOODS), at])
    return ToUndirected()(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bare") / "g"
    return convert_pyg(make_graph(), place, ConvertOptions(), name="shopping")


def train(folder: Path, **options: Any) -> TrainResult:
    return run_training(TrainConfig(dataset=str(folder), **{**SMALL, **options}))


class Relations(nn.Module):
    """A model of one's own."""

    def __init__(
        self, out_channels: int, hidden_channels: int, num_layers: int, metadata: Any
    ) -> None:
        super().__init__()
        widths = [hidden_channels] * (num_layers - 1) + [out_channels]
        self.convs = nn.ModuleList(
            HeteroConv({kind: SAGEConv((-1, -1), width) for kind in metadata[1]})
            for width in widths
        )

    def forward(self, x: dict[str, Tensor], edge_index: dict[Any, Tensor]) -> dict[str, Tensor]:
        for number, conv in enumerate(self.convs):
            x = {kind: rows.relu() for kind, rows in x.items()} if number else x
            x = conv(x, edge_index)
        return x


def found(result: TrainResult) -> Any:
    return result.history, result.best_epoch, result.best_val, result.best_test


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for runs, where nothing waits for a disk."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as found:
        yield Path(found)


@pytest.fixture
def tiny_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of embeddings holds the rows of a batch, and auto takes files."""
    monkeypatch.setattr(hetero_memory, "_SHARE", 0.0)
    monkeypatch.setattr(hetero_memory, "_IN_MEMORY", 0.0)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("rgcn", "sparse_adam"), ("rgcn", "adagrad"), (f"{__name__}:Relations", "sparse_adam")],
)
@pytest.mark.usefixtures("tiny_cache")
def test_losses_scores_and_predictions_are_those_of_embeddings_in_memory(
    folder: Path, place: Path, model: str, optimizer: Any
) -> None:
    options = {"embedding_optimizer": optimizer, "clip_norm": 0.5, "lr_schedule": "cosine"}
    options["model"] = model
    results = [
        train(folder, embeddings=where, out=str(place / where), epochs=4, seed=1, **options)
        for where in ("ram", "auto")
    ]
    assert found(results[0]) == found(results[1])
    assert results[1].best_epoch < 4  # so that the last rows are not the best
    lines = map(json.loads, (place / "auto" / "metrics.jsonl").read_text().splitlines())
    told = [line["embeddings"]["rows"] for line in lines if line["kind"] == "epoch"][-1]
    assert told["file"] > GOODS + SHOPS  # rows left the cache, and came back
    assert told["cache"] > 0
    in_memory = train(folder, embeddings="ram", epochs=1, **options).memory["names"]
    assert "cache of embeddings" not in in_memory
    table = results[1].memory["names"]["cache of embeddings"]
    assert 0 < table["held"] <= table["planned"] < (GOODS + SHOPS) * 8 * 4 * 3
    kept = {path.name for path in (place / "auto" / "embeddings").iterdir()}
    best = f"best-{results[1].best_epoch}.npy"
    assert kept == {"a%2Fb", "shop", f"a%2Fb.{best}", f"shop.{best}"}
    shutil.move(place / "auto", place / "moved")
    for how in ([], ["--sampled"]):
        scores = []
        for run in ("ram", "moved"):
            out = str(place / f"{run}{len(how)}")
            assert main(["predict", str(place / run), "--out", out, "--quiet", *how]) == 0
            scores.append(np.load(f"{out}/scores.npy"))
        assert np.array_equal(*scores)
    assert process_budget().planned(EMBEDDINGS) == 0


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of what users buy is held out."""
    data, of = make_graph(), ("user", "buys", "a/b")
    ends = data[of].edge_index.unique(dim=1)
    ends = ends[:, torch.randperm(ends.shape[1], generator=torch.Generator().manual_seed(1))]
    held = {"val": ends[:, :60], "test": ends[:, 60:120]}
    data[of].edge_index = ends[:, 120:1000]
    data["a/b", "rev_buys", "user"].edge_index = ends[:, 120:1000].flip(0)
    del data["user"].y
    return held_folder(tmp_path_factory.mktemp("links") / "g", data, held, of)


@pytest.mark.usefixtures("tiny_cache")
def test_links_have_the_losses_and_ranks_of_embeddings_in_memory(links: Path, place: Path) -> None:
    """Read for training, hard negatives, and sampled and exact embeddings."""
    options: dict[str, Any] = {
        "task": "link", "negatives": 2, "negative_sampling": "hard", "batch_size": 80,
        "eval": "sampled", "epochs": 2,
    }  # fmt: skip
    in_memory = train(links, embeddings="ram", out=str(place / "ram"), **options)

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 3):
            os.kill(os.getpid(), signal.SIGINT)

    run = str(place / "auto")
    config = TrainConfig(dataset=str(links), out=run, **{**SMALL, **options})
    assert run_training(config, on_batch=interrupt).reason == "interrupted"
    in_files = run_training(resumed_config(run))
    assert found(in_files) == found(in_memory)
    assert in_files.best_val["mrr"] > 0
    names = in_files.memory["names"]
    assert names["cache of embeddings"]["planned"] >= names["cache of embeddings"]["held"] > 0
    assert names.get("embeddings of nodes", {"planned": 0})["planned"] == 0
    lines = map(json.loads, (place / "auto" / "metrics.jsonl").read_text().splitlines())
    told = [line["embeddings"]["rows"] for line in lines if line["kind"] == "epoch"][-1]
    assert told["file"] > 0
    for how in ([], ["--sampled"]):
        rows = []
        for name in ("ram", "auto"):
            out = str(place / f"{name}{len(how)}")
            assert main(["predict", str(place / name), "--out", out, "--quiet", *how]) == 0
            rows.append(np.load(f"{out}/embeddings.a%2Fb.npy"))
        assert np.array_equal(*rows)


@pytest.mark.usefixtures("tiny_cache")
def test_rows_of_the_next_batch_are_announced_before_a_batch_reads_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, torch.Tensor]] = []
    for name in ("prefetch", "gather", "update"):

        def record(store: Any, ids: Any, *more: Any, name: str = name, done: Any = None) -> Any:
            if store.shape[0] == GOODS:
                events.append((name, ids))
            return done(store, ids, *more)

        done = getattr(gnnsys.EmbeddingStore, name)
        monkeypatch.setattr(gnnsys.EmbeddingStore, name, partialmethod(record, done=done))
    result = train(folder, epochs=1, eval="layerwise")
    assert found(result) == found(train(folder, epochs=1, eval="layerwise", embeddings="ram"))
    names = "".join(name[0] for name, _ in events)
    assert names.startswith("ppgupgupgugu")
    announced = [ids for name, ids in events if name == "prefetch"]
    gathered = [ids for name, ids in events if name == "gather"]
    assert all(map(torch.equal, announced, gathered[:4]))


# Kills itself in an epoch, some batches after a checkpoint.
KILLED = """
    import os, signal, sys
    import torch
    from gnnsys.config.train import TrainConfig
    from gnnsys.training import hetero_memory
    from gnnsys.training.loop import run_training

    torch.set_num_threads(1)
    hetero_memory._SHARE = 0.0
    def kill(epoch, done, total):
        if (epoch, done) == (3, 2):
            os.kill(os.getpid(), signal.SIGKILL)
    run_training(TrainConfig(dataset=sys.argv[1], out=sys.argv[2], embeddings=sys.argv[3],
                             **eval(sys.argv[4])), on_batch=kill)
"""


@pytest.mark.usefixtures("tiny_cache")
def test_a_run_that_was_killed_in_an_epoch_goes_on_as_if_it_had_not_been(
    folder: Path,
    place: Path,
    tmp_path: Path,
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    options = {**SMALL, "eval": "layerwise", "batch_size": 22}
    whole, run, tables = place / "whole", place / "run", place / "tables"
    undisturbed = train(folder, out=str(whole), **options)
    done = run_forked(KILLED, place, folder, run, tables, {**options, "checkpoint_minutes": 1e-9})
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = run_training(resumed_config(run))
    assert found(resumed) == found(undisturbed)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in (f"{kind}.best-{resumed.best_epoch}.npy" for kind in ("a%2Fb", "shop")):
        assert (tables / name).read_bytes() == (whole / "embeddings" / name).read_bytes()
    stores = [
        gnnsys.EmbeddingStore(each / "shop", cache=9) for each in (tables, whole / "embeddings")
    ]
    ids = torch.arange(SHOPS)
    one, other = ({"rows": each.gather(ids), **each.gather_state(ids)} for each in stores)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for each in stores:
        each.close()
    with pytest.raises(ArgumentError, match="tables: holds files already; give another folder"):
        train(folder, out=str(place / "other"), embeddings=str(tables))
    assert not (place / "other").exists()
    _check_spoilt(run, tables)


def _check_spoilt(run: Path, tables: Path) -> None:
    """Each is one error."""
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("hidden = 8", "hidden = 16"))
    with pytest.raises(ArgumentError, match=r"has rows of shape \(2000, 8\).* expected \(2000, 16"):
        run_training(resumed_config(run))
    for had, has, told in (
        ('optimizer = "adam"', 'optimizer = "sgd"', "optimizer: optimizer is adam, config.toml"),
        (f'embeddings = "{tables}"', 'embeddings = "ram"', "its embeddings lie in files, config"),
    ):
        assert had in config
        (run / "config.toml").write_text(config.replace(had, has))
        with pytest.raises(ArgumentError, match=told):
            run_training(resumed_config(run))
    (run / "config.toml").write_text(config)
    shutil.rmtree(tables / "shop")
    with pytest.raises(MissingFileError, match=r"shop: no such table, .* of 'shop' were"):
        run_training(resumed_config(run))
    for path in tables.glob("*.npy"):
        np.save(path, np.zeros((5, 8), np.float32))
    with pytest.raises(
        ArgumentError, match=r"npy: embeddings of 5 nodes, but the dataset has 2000"
    ):
        predict(PredictConfig(run=str(run)))
    for path in tables.glob("*.npy"):
        path.unlink()
    with pytest.raises(MissingFileError, match=r"best-\d.npy: no such file"):
        predict(PredictConfig(run=str(run)))


@pytest.mark.usefixtures("tiny_cache")
def test_nothing_is_left_of_a_run_that_keeps_nothing_or_has_not_begun(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    place = tmp_path / "tables"
    train(folder, embeddings=str(place), epochs=1)
    assert os.listdir(place) == []

    def stop(*_: Any) -> None:
        raise ArgumentError("stopped")

    monkeypatch.setattr("gnnsys.training.loop.make_steps", stop)
    for where in ("auto", str(place)):
        with pytest.raises(ArgumentError, match="stopped"):
            train(folder, embeddings=where, out=str(tmp_path / "run"))
        assert os.listdir(tmp_path) == ["tables"]
    assert os.listdir(place) == []
    assert "--embeddings auto: 385152 bytes in memory, more than 0 % of what is left" in caplog.text


def test_a_run_goes_on_where_its_embeddings_were(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 1, "out": str(place / "ram")}
    gc.collect()  # the models of other runs
    held = train(folder, **options).memory["names"]["embeddings of nodes"]["held"]
    assert held == (GOODS + SHOPS) * 8 * 4
    shutil.copytree(place / "ram", place / "ram" / "embeddings")  # a folder of the user's
    assert run_training(replace(resumed_config(place / "ram"), epochs=2)).history[-1].epoch == 2
    config = place / "ram" / "config.toml"
    config.write_text(config.read_text().replace('"sparse_adam"', '"adagrad"'))
    with pytest.raises(ArgumentError, match=r"optimizer is sparse_adam, config\.toml says adagrad"):
        run_training(resumed_config(place / "ram"))
    monkeypatch.setattr(hetero_memory, "_IN_MEMORY", 0.0)
    train(folder, **{**options, "out": str(place / "files")})
    shutil.rmtree(place / "files" / "embeddings")
    with pytest.raises(MissingFileError, match=r"files/embeddings/a%2Fb: no such table"):
        run_training(resumed_config(place / "files"))
    assert not (place / "files" / "embeddings").exists()
    for path in (place / "files").glob("*.*t*"):
        if path.name != "config.toml":
            path.unlink()
    with pytest.raises(
        MissingFileError, match="or remove what a run that was ended before its fir"
    ):
        run_training(resumed_config(place / "files"))


def test_predictions_before_a_best_epoch_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    config = TrainConfig(dataset=str(folder), out=str(run), embeddings=str(tmp_path / "t"), **SMALL)
    run_training(config, on_batch=interrupt)
    assert main(["predict", str(run)]) == 2
    assert "was ended before a first evaluation" in " ".join(capsys.readouterr().err.split())


def test_memory_decides_where_embeddings_lie_and_refuses_what_does_not_fit(
    folder: Path, tmp_path: Path
) -> None:
    data = gnnsys.open_dataset(folder)

    def plan(memory: int, **options: Any) -> dict[str, int]:
        with process_budget().run(memory):
            run = resolve(
                TrainConfig(dataset=str(folder), **{**SMALL, "hidden": 1 << 16, **options})
            )
            plan_run(run)
            setup_features(data, run.features)
            names = ("embeddings of nodes", EMBEDDINGS)
            return {name: process_budget().planned(name) for name in names}

    nodes, most, now = GOODS + SHOPS, 1 << 50, resident_memory()
    there = now.anonymous + now.file
    in_memory = nodes * 4 * 6 << 16
    assert plan(most) == {"embeddings of nodes": in_memory, EMBEDDINGS: 0}
    assert plan(most, embedding_optimizer="adagrad")["embeddings of nodes"] == in_memory // 6 * 5
    whole = nodes * ((4 * 3 << 16) + 14)
    assert plan(most, embeddings=str(tmp_path)) == {"embeddings of nodes": 0, EMBEDDINGS: whole}
    with pytest.raises(TooLargeError, match=r"embeddings of nodes +2\.9\d+ GiB"):
        plan(there + (2 << 30), embeddings="ram")
    found = plan(there + (2 << 30))
    assert found["embeddings of nodes"] == 0
    assert 4 * nodes < found[EMBEDDINGS] < whole
    with pytest.raises(TooLargeError, match="cache of embeddings"):
        plan(there + (1 << 28), embeddings=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--embeddings", "t"], "/t: is for node types without features"),
        (["demo", "--embedding-optimizer", "adagrad"], "adagrad: is for node types without"),
        (["FULL", "--embeddings", "t"], "/t: all node types of"),
    ],
)
def test_embeddings_are_refused_where_all_nodes_have_features(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "FULL":
        data = make_graph()
        data["a/b"].x, data["shop"].x = torch.ones(GOODS, 1), torch.ones(SHOPS, 1)
        arguments[0] = str(convert_pyg(data, tmp_path / "g", ConvertOptions(), name="full"))
        arguments += ["--model", "rgcn"]
    assert main(["train", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
