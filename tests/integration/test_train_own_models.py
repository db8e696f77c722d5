"""Models of one's own in whole runs, against those of gnnsys and plain loops of PyG."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GraphSAGE
from torch_geometric.transforms import RandomNodeSplit, ToUndirected

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import ArgumentError
from gnnsys.generate import generate_community
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.user_factory import load_factory

sys.path.insert(0, str(Path(__file__).parent))
from link_folders import held_folder, web
from typed_graphs import graph_of

pytestmark = pytest.mark.usefixtures("one_thread", "nets")

NODES, AUTHORS, PAPERS, AGENCIES, CLASSES = 500, 300, 200, 6, 3
OPTIONS: dict[str, Any] = {
    "epochs": 4, "batch_size": 128, "hidden": 16, "fanouts": (3, 3), "threads": 1, "device": "cpu"
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs"
NETS, TYPED_NETS = re.findall(r"```python\n(.*?)```", (DOCS / "models.md").read_text(), re.DOTALL)
MORE_NETS = """
import torch
from gnnsys import fuse
from torch_geometric.nn import GraphSAGE, HeteroConv, SAGEConv, to_hetero

def fused(in_channels, out_channels, hidden_channels, num_layers):
    return fuse(GraphSAGE(in_channels, hidden_channels, num_layers, out_channels, dropout=0.0))

class Layers(torch.nn.Module):
    \"\"\"Those of --model sage.\"\"\"
    def __init__(self, in_channels, out_channels, hidden_channels, num_layers, metadata, target):
        super().__init__()
        kinds = [kind for kind in metadata[0] if kind != "agency"]
        linear = {kind: torch.nn.Linear(in_channels[kind], hidden_channels) for kind in kinds}
        self.inputs = torch.nn.ModuleDict(linear)
        gnn = GraphSAGE((hidden_channels, hidden_channels), hidden_channels, num_layers)
        self.gnn = to_hetero(gnn, metadata)
        kinds = [target] if isinstance(target, str) else [target[0], target[2]]
        heads = {kind: torch.nn.Linear(hidden_channels, out_channels) for kind in kinds}
        self.heads = torch.nn.ModuleDict(heads)
    def forward(self, x_dict, edge_index_dict):
        x = {kind: layer(x_dict[kind]).relu() for kind, layer in self.inputs.items()}
        out = self.gnn({**x_dict, **x}, edge_index_dict)
        return {kind: head(out[kind].relu()) for kind, head in self.heads.items()}

class Placed(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.rows = torch.nn.Embedding(500, in_channels, sparse=True)
        self.conv = SAGEConv(in_channels, out_channels)
    def forward(self, x, edge_index):
        return self.conv(x + self.rows(torch.arange(len(x))), edge_index)

class Relations(torch.nn.Module):
    def __init__(self, out_channels, metadata):
        super().__init__()
        convs = {kind: SAGEConv((-1, -1), out_channels) for kind in metadata[1]}
        self.conv = HeteroConv(convs)
    def forward(self, x_dict, edge_index_dict):
        return self.conv(x_dict, edge_index_dict)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "g"
    return generate_community(path, nodes=NODES, classes=3, features=8, degree=6, signal=0.3)


def make_types() -> HeteroData:
    """Agencies, without features, fund authors, who write papers."""
    draw = torch.Generator().manual_seed(5)

    def ids(nodes: int, count: int) -> Tensor:
        return torch.randint(nodes, (count,), generator=draw)

    data = HeteroData()
    data["agency"].num_nodes = AGENCIES
    data["author"].y = ids(CLASSES, AUTHORS)
    data["author"].x = 4 * F.one_hot(data["author"].y, 5) + torch.randn(AUTHORS, 5, generator=draw)
    data["paper"].x = torch.randn(PAPERS, 9, generator=draw)
    order = torch.randperm(AUTHORS, generator=draw)
    for name, part in (("train", order[:120]), ("val", order[120:200]), ("test", order[200:])):
        data["author"][f"{name}_idx"] = part
    for edge_type, sizes in (
        (("agency", "funds", "author"), (AGENCIES, AUTHORS)),
        (("author", "writes", "paper"), (AUTHORS, PAPERS)),
    ):
        data[edge_type].edge_index = torch.stack([ids(size, 900) for size in sizes])
    return ToUndirected()(data)


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("types") / "g"
    return convert_pyg(make_types(), place, ConvertOptions(), name="papers")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    nets = {"own_nets": NETS, "typed_nets": TYPED_NETS, "more_nets": MORE_NETS}
    for name, text in nets.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in nets:
        sys.modules.pop(name, None)


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    config = TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)
    return run_training(config)


def resume(out: Path, **options: Any) -> TrainResult:
    return run_training(dataclasses.replace(resumed_config(out), **options))


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


def test_a_model_of_ones_own_learns_as_that_of_gnnsys(folder: Path) -> None:
    options = {"dropout": 0.0, "eval": "layerwise"}
    ours = train(folder, **options)
    theirs = train(folder, Path("run"), model="torch_geometric.nn:GraphSAGE", **options)
    # The same model, drawn alike, whose layers compute more nodes of a batch than are needed.
    expected = [record.loss for record in ours.history]
    assert [record.loss for record in theirs.history] == pytest.approx(expected, rel=1e-4)
    weights = {k.removeprefix("gnn."): v for k, v in load_file("run/model.safetensors").items()}
    GraphSAGE(8, 16, 2, 3).load_state_dict(weights)
    assert main(["predict", "run", "--quiet"]) == 0
    scores = np.load("run/predictions/scores.npy")
    found = {path.name for path in Path("run/predictions").iterdir()}
    assert found == {"nodes.npy", "scores.npy", "predictions.npy", "embeddings.npy"}
    assert scores.shape == (NODES, 3)


@pytest.mark.parametrize("full_batch", [False, True])
def test_a_model_of_any_layers_trains_goes_on_and_predicts(
    folder: Path, capsys: pytest.CaptureFixture[str], full_batch: bool
) -> None:
    options = {"model": "own_nets:Net", "full_batch": full_batch, "lr": 0.1, "epochs": 4}
    whole = train(folder, **options)
    assert whole.history[-1].loss < 0.8 * whole.history[0].loss
    train(folder, Path("run"), **{**options, "epochs": 2})
    assert resume(Path("run"), epochs=4).history == whole.history
    assert main(["predict", "run"]) == 2
    assert "own_nets:Net: a Net cannot be taken apart" in capsys.readouterr().err
    assert not Path("run/predictions").exists()
    assert main(["predict", "run", "--sampled"]) == 0
    found = {path.name for path in Path("run/predictions").iterdir()}
    assert found == {"nodes.npy", "scores.npy", "predictions.npy"}


def test_a_model_that_does_not_fit_leaves_no_run(folder: Path) -> None:
    Path("own_nets.py").write_text(
        NETS.replace("hidden_channels, out_channels)\n", "hidden_channels, 7)\n")
    )
    with pytest.raises(ArgumentError, match=r"gave float32 \(\d+, 7\), expected floats"):
        train(folder, Path("run"), model="own_nets:Net")
    assert not Path("run").exists()


def test_sparse_embeddings_train_on_the_full_graph_as_in_a_plain_loop(folder: Path) -> None:
    result = train(folder, model="more_nets:Placed", full_batch=True, lr=0.05)
    dataset = gnnsys.open_dataset(folder)
    x = torch.from_numpy(dataset.node_table("features").copy())
    edges, labels, nodes = dataset.edge_index(), dataset.labels(), dataset.split("train")
    torch.manual_seed(0)
    net = load_factory("more_nets:Placed")(in_channels=8, out_channels=CLASSES)
    decay = result.config.weight_decay
    optimizers = (
        torch.optim.Adam(net.conv.parameters(), lr=0.05, weight_decay=decay),
        torch.optim.SparseAdam(net.rows.parameters(), lr=0.05),
    )
    expected = []
    for _ in range(OPTIONS["epochs"]):
        net.zero_grad()
        loss = F.cross_entropy(net(x, edges)[nodes], labels[nodes])
        loss.backward()
        for each in optimizers:
            each.step()
        expected.append(loss.item())
    assert losses(result) == expected


# Other labels ------------------------------------------------------------------------------------


def test_numbers_and_several_labels_are_learnt_as_by_the_model_of_gnnsys(tmp_path: Path) -> None:
    """On the full graph, where the layers compute the same nodes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(NODES, 4, generator=draw)
    edge_index = torch.randint(NODES, (2, 4 * NODES), generator=draw)
    split = RandomNodeSplit(num_val=100, num_test=100)
    for name, y, columns in (("numbers", x.sum(1), 1), ("several", (x[:, :2] > 0).float(), 2)):
        data = split(Data(x=x, edge_index=edge_index, y=y))
        kind = ConvertOptions(regression=name == "numbers")
        place = convert_pyg(data, tmp_path / name, kind, name=name)
        options = {"full_batch": True, "dropout": 0.0, "lr": 0.05, "epochs": 20}
        ours = train(place, **options)
        run = f"run-{name}"
        theirs = train(place, Path(run), model="more_nets:fused", **options)
        assert losses(theirs) == losses(ours)
        assert losses(ours)[-1] < 0.5 * losses(ours)[0]
        assert theirs.best_test == ours.best_test
        for sampled in ([], ["--sampled"]):
            out = f"{run}{len(sampled)}"
            assert main(["predict", run, "--out", out, "--quiet", *sampled]) == 0
            assert np.load(f"{out}/scores.npy").shape == (NODES, columns)


def test_numbers_of_a_type_are_learnt(tmp_path: Path) -> None:
    data = make_types()
    data["paper"].y = data["paper"].x.sum(1)
    data["paper"].train_idx, data["paper"].val_idx = torch.arange(150), torch.arange(150, 200)
    place = convert_pyg(data, tmp_path / "g", ConvertOptions(regression=True), name="papers")
    result = train(
        place,
        target="paper",
        model="more_nets:Relations",
        layers=1,
        fanouts=(3,),
        epochs=20,
        lr=0.1,
    )
    assert result.metric == "rmse"
    assert losses(result)[-1] < 0.2 * losses(result)[0]


# Graphs with types -------------------------------------------------------------------------------


def plain_loop(folder: Path, make: Any, epochs: int, lr: float, decay: float) -> list[float]:
    """Losses of PyG's layers over the graph in memory."""
    data = graph_of(folder)
    torch.manual_seed(0)
    emb, net = nn.Embedding(AGENCIES, 16, sparse=True), make(data)
    seeds = "author", data["author"].train_idx
    loader = gnnsys.NeighborLoader(data, [3, 3], seeds, batch_size=32, shuffle=True, seed=0)

    def call(batch: HeteroData) -> Tensor:
        out = net({**batch.x_dict, "agency": emb(batch["agency"].n_id)}, batch.edge_index_dict)
        return (out["author"] if isinstance(out, dict) else out)[: batch["author"].batch_size]

    data["agency"].n_id = torch.arange(AGENCIES)
    data["author"].batch_size = AUTHORS
    call(data)  # lazy layers get their weights
    dense = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=decay)
    optimizers = dense, torch.optim.SparseAdam(emb.parameters(), lr=lr)
    found = []
    for _ in range(epochs):
        total = 0.0
        for batch in loader:
            for each in optimizers:
                each.zero_grad()
            size = batch["author"].batch_size
            loss = F.cross_entropy(call(batch), batch["author"].y[:size])
            loss.backward()
            for each in optimizers:
                each.step()
            total += loss.item() * size
        found.append(total / 120)
    return found


@pytest.mark.parametrize("name", ["sage", "HGT"])
def test_losses_are_those_of_a_plain_loop_of_pyg(types: Path, name: str) -> None:
    result = train(types, model=f"typed_nets:{name}", epochs=2, batch_size=32)
    shape = {"hidden_channels": 16, "num_layers": 2, "out_channels": CLASSES}
    target = {"target": "author"} if name == "HGT" else {}

    def make(data: HeteroData) -> nn.Module:
        factory = load_factory(f"typed_nets:{name}")
        made: nn.Module = factory(**shape, **target, metadata=data.metadata())
        return made

    config = result.config
    assert losses(result) == plain_loop(types, make, 2, config.lr, config.weight_decay)
    assert result.evaluation == {}
    planned = result.memory["names"]["embeddings of nodes"]["planned"]
    assert planned == AGENCIES * 16 * 4 * 6


def test_a_factory_of_the_layers_of_gnnsys_gives_its_losses(types: Path) -> None:
    options = {"dropout": 0.0, "batch_size": 32, "epochs": 2}
    assert losses(train(types, model="more_nets:Layers", **options)) == losses(
        train(types, model="sage", **options)
    )


def test_a_run_on_types_goes_on_is_judged_exactly_and_predicts(
    types: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "typed_nets:HGT", "eval": "layerwise", "batch_size": 32, "lr": 0.02}
    whole = train(types, **options)
    assert whole.evaluation["way"] == "layerwise"
    train(types, Path("run"), **{**options, "epochs": 2})
    assert resume(Path("run"), epochs=4).history == whole.history
    assert main(["predict", "run", "--quiet"]) == 0
    assert {path.name for path in Path("run/predictions").iterdir()} == {
        "nodes.npy", "scores.npy", "predictions.npy"
    }  # fmt: skip
    weights, data = load_file("run/model.safetensors"), make_types()
    net = load_factory("typed_nets:HGT")(16, CLASSES, 2, data.metadata(), "author")
    x = {"agency": weights.pop("inputs.agency.weight"), **data.x_dict}
    net(x, data.edge_index_dict)
    net.load_state_dict({name.removeprefix("gnn."): each for name, each in weights.items()})
    with torch.no_grad():
        expected = net(x, data.edge_index_dict)
    found = torch.from_numpy(np.load("run/predictions/scores.npy"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert main(["predict", "run", "--sampled", "--out", "sampled", "--quiet"]) == 0
    assert np.load("sampled/scores.npy").shape == (AUTHORS, CLASSES)


def test_a_run_broken_off_inside_an_epoch_goes_on(types: Path) -> None:
    options = {"model": "typed_nets:sage", "batch_size": 32, "epochs": 2}

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    config = TrainConfig(dataset=str(types), out="run", **OPTIONS | options)
    assert run_training(config, on_batch=interrupt).reason == "interrupted"
    assert resume(Path("run")).history == train(types, **options).history


# Links -------------------------------------------------------------------------------------------

LINKS: dict[str, Any] = {"task": "link", "dropout": 0.0, "epochs": 3, "eval": "layerwise"}


def test_a_factory_of_the_layers_of_gnnsys_embeds_ends_of_links_as_it_does(tmp_path: Path) -> None:
    data = make_types()
    links = data["author", "writes", "paper"].edge_index.unique(dim=1)
    links = links[:, torch.randperm(links.shape[1], generator=torch.Generator().manual_seed(1))]
    data["author", "writes", "paper"].edge_index = links[:, 200:]
    data["paper", "rev_writes", "author"].edge_index = links[:, 200:].flip(0)
    held = {"val": links[:, :100], "test": links[:, 100:200]}
    place = held_folder(tmp_path / "g", data, held, ("author", "writes", "paper"))
    ours = train(place, model="sage", **LINKS)
    theirs = train(place, Path("run"), model="more_nets:Layers", **LINKS)
    assert theirs.history == ours.history
    assert theirs.best_test == ours.best_test
    part = {**LINKS, "epochs": 2, "embeddings": "tables"}
    train(place, Path("part"), model="more_nets:Layers", **part)
    assert resume(Path("part"), epochs=3).history == ours.history
    sampled = train(place, model="typed_nets:sage", **{**LINKS, "eval": "auto"})
    assert sampled.evaluation["way"] == "sampled"
    assert losses(sampled)[-1] < losses(sampled)[0]


def test_a_model_without_types_embeds_ends_of_links(tmp_path: Path) -> None:
    place = held_folder(tmp_path / "g", *web())
    ours = train(place, **LINKS)
    theirs = train(place, model="torch_geometric.nn:GraphSAGE", **LINKS)
    # Layers compute more nodes of a batch than are needed.
    assert losses(theirs) == pytest.approx(losses(ours), rel=1e-4)
    scores = [[record.val for record in each.history] for each in (ours, theirs)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    sampled = train(place, model="own_nets:Net", **{**LINKS, "eval": "auto"})
    assert sampled.evaluation["way"] == "sampled"
