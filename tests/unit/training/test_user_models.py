"""Models of the user's own are found, called as documented, and checked before training begins."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import GAT, GraphSAGE, SAGEConv

from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.generate import generate_community
from gnnsys.training.datasets import NodeDataset, load_dataset
from gnnsys.training.hetero_models import embeddings_in_memory
from gnnsys.training.link_task import LinkTask
from gnnsys.training.user_factory import load_factory
from gnnsys.training.user_models import (
    make_user_embedder,
    make_user_hetero_model,
    make_user_model,
)

FEATURES, CLASSES = 6, 3

NETS = """
import torch
from torch_geometric.nn import GraphSAGE, SAGEConv

class Net(torch.nn.Module):
    def __init__(self, in_channels, out_channels, width=None):
        super().__init__()
        self.conv = SAGEConv(in_channels, width or out_channels)
    def forward(self, x, edge_index):
        return self.conv(x, edge_index)

def lazy(in_channels, out_channels):
    return Net(-1, out_channels)

def wide(in_channels, out_channels):
    return Net(in_channels, out_channels, out_channels + 1)

def wants_more(in_channels, out_channels, metadata):
    return Net(in_channels, out_channels)

def fails(in_channels, out_channels):
    raise ValueError("no such thing")

def number(in_channels, out_channels):
    return 3

def joined(in_channels, out_channels, hidden_channels, num_layers):
    return GraphSAGE(in_channels, hidden_channels, num_layers, out_channels, jk="cat")

def backwards(in_channels, out_channels, hidden_channels, num_layers):
    return GraphSAGE(
        in_channels, hidden_channels, num_layers, out_channels, flow="target_to_source"
    )

class Open(Net):
    def __init__(self, in_channels, out_channels, **kwargs):
        super().__init__(in_channels, out_channels)
        self.given = kwargs

class Picky(Net):
    def forward(self, x, edge_index, time):
        return self.conv(x, edge_index)

class Frozen(Net):
    def forward(self, x, edge_index):
        return self.conv(x, edge_index).detach()

class Spare(Net):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.unused = torch.nn.Linear(2, 2)

class Normed(Net):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.norm = torch.nn.BatchNorm1d(in_channels)
    def forward(self, x, edge_index):
        return self.conv(self.norm(x), edge_index)

class Rare(Net):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.rare = torch.nn.Embedding(4, out_channels, sparse=True)
    def forward(self, x, edge_index):
        return self.conv(x, edge_index) + self.rare(torch.arange(len(x)) % 4)

class Deep(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.lin = torch.nn.Linear(in_channels + 1, out_channels)
    def forward(self, x, edge_index):
        return self.lin(x)

constant = 3
"""

TYPED_NETS = """
import torch
from torch_geometric.nn import GraphSAGE, HeteroConv, SAGEConv, to_hetero

class Net(torch.nn.Module):
    def __init__(self, out_channels, metadata, **given):
        super().__init__()
        self.given = given
        self.conv = HeteroConv({kind: SAGEConv((-1, -1), out_channels) for kind in metadata[1]})
    def forward(self, x_dict, edge_index_dict):
        return self.conv(x_dict, edge_index_dict)

def sage(hidden_channels, out_channels, metadata):
    return to_hetero(GraphSAGE((-1, -1), hidden_channels, 2, out_channels), metadata)

def wide(out_channels, metadata):
    return Net(out_channels + 1, metadata)

def narrow(hidden_channels, out_channels, metadata):
    return to_hetero(GraphSAGE((3, 3), hidden_channels, 2, out_channels), metadata)

class Other(Net):
    def forward(self, x_dict, edge_index_dict):
        return {"item": super().forward(x_dict, edge_index_dict)["item"]}

class Item(Net):
    def forward(self, x_dict, edge_index_dict):
        return super().forward(x_dict, edge_index_dict)["item"]

class Listed(Net):
    def forward(self, x_dict, edge_index_dict):
        return [*super().forward(x_dict, edge_index_dict).values()]

class Picky(Net):
    def forward(self, x_dict, edge_index_dict):
        return super().forward(x_dict, edge_index_dict)["users"]

class Unequal(Net):
    def forward(self, x_dict, edge_index_dict):
        return torch.nn.functional.linear(x_dict["user"], torch.ones(3, 7))

class Spare(Net):
    def __init__(self, out_channels, metadata):
        super().__init__(out_channels, metadata)
        self.spare = SAGEConv(-1, 2)

class Looks(Net):
    def forward(self, x_dict, edge_index_dict):
        out = super().forward(x_dict, edge_index_dict)["user"]
        return -out if x_dict["user"].sum() > 1e9 else out
"""

LINKS = LinkTask(
    target="user", metric="mrr", edge_type=("user", "buys", "item"), is_edge=True, width=8,
    timed=False, sizes={"train": 1, "val": 1, "test": 0}, open_links={}.__getitem__,
)  # fmt: skip
"""None of which need to be there to try a model."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> NodeDataset:
    path = tmp_path_factory.mktemp("user") / "g"
    generate_community(path, nodes=120, classes=CLASSES, features=FEATURES, degree=4)
    return load_dataset(str(path), device="cpu")


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder with the module is the working folder, which Python need not look into."""
    (tmp_path / "my_nets.py").write_text(NETS)
    (tmp_path / "typed_nets.py").write_text(TYPED_NETS)
    (tmp_path / "broken_nets.py").write_text("import torch\nimport not_there\n")
    (tmp_path / "bad_nets.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield
    for name in ("my_nets", "typed_nets", "broken_nets", "bad_nets"):
        sys.modules.pop(name, None)


def make(dataset: NodeDataset, model: str, ranks: int = 1, **options: Any) -> torch.nn.Module:
    config = TrainConfig(dataset="demo", model=model, device="cpu", **options)
    return make_user_model(dataclasses.replace(resolve(config), ranks=ranks), dataset)


def test_a_factory_is_called_with_sizes_and_with_what_it_names(dataset: NodeDataset) -> None:
    assert make(dataset, "my_nets:Net").conv.in_channels == FEATURES
    net = make(dataset, "torch_geometric.nn:GAT", hidden=16, layers=3, dropout=0.2)
    assert isinstance(net, GAT)
    assert (net.in_channels, net.hidden_channels, net.out_channels) == (FEATURES, 16, CLASSES)
    assert (net.num_layers, net.dropout.p, net.training) == (3, 0.2, True)
    assert load_factory("torch_geometric.nn.models:basic_gnn.GraphSAGE") is GraphSAGE


def test_a_lazy_model_has_its_weights_after_the_check(dataset: NodeDataset) -> None:
    net = make(dataset, "my_nets:lazy")
    assert isinstance(net.conv, SAGEConv)
    assert net.conv.lin_l.weight.shape == (CLASSES, FEATURES)


def test_a_factory_of_any_options_gets_all_of_them(dataset: NodeDataset) -> None:
    net = make(dataset, "my_nets:Open", hidden=24, layers=3, dropout=0.2)
    assert net.given == {"hidden_channels": 24, "num_layers": 3, "dropout": 0.2}


def test_options_without_a_part_are_warned_of(
    dataset: NodeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    make(dataset, "my_nets:Net")
    assert not caplog.records
    task = dataclasses.replace(LINKS, width=24)
    make(dataclasses.replace(dataset, task=task), "my_nets:Net", hidden=24)
    assert not caplog.records  # the width of the embeddings that it is to give
    make(dataset, "my_nets:Net", hidden=24, dropout=0.2)
    assert "--hidden 24: has no part in --model my_nets:Net, which has no par" in caplog.text
    assert "--dropout 0.2: has no part in" in caplog.text


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("Net", "a Net cannot be taken apart"),
        ("joined", "a GraphSAGE cannot be taken apart"),
        ("backwards", "has messages of flow target_to_source"),
    ],
)
def test_what_exact_evaluation_cannot_take_apart_is_told_before_training(
    dataset: NodeDataset, model: str, told: str
) -> None:
    assert make(dataset, f"my_nets:{model}", eval="sampled")
    with pytest.raises(ArgumentError, match=f"^--model .*{told}, but .*--eval sampled"):
        make(dataset, f"my_nets:{model}", eval="layerwise")


def test_the_check_changes_no_statistics(dataset: NodeDataset) -> None:
    net = make(dataset, "my_nets:Normed")
    assert net.norm.num_batches_tracked == 0
    assert net.norm.training


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("no_nets:Net", "no module no_nets, looked for in .*; start from its folder"),
        ("my_nets.more:Net", "no module my_nets.more, looked for|is not a package"),
        ("my_nets:Nett", "my_nets has no Nett; did you mean Net?"),
        ("my_nets:constant", "is a int, expected a function or a class"),
        ("broken_nets:make", "import broken_nets raised ModuleNotFoundError: No module named 'not"),
        ("bad_nets:make", "import bad_nets raised SyntaxError"),
        ("my_nets:wants_more", r"wants_more\(in_channels=6, out_channels=3\) raised TypeError"),
        ("my_nets:fails", "raised ValueError: no such thing (.*my_nets.py, line "),
        ("my_nets:number", "gave a int, expected a torch.nn.Module"),
        ("my_nets:Deep", r"raised RuntimeError: mat1 .*/my_nets.py, line 72\); mend it"),
        ("my_nets:Picky", "the model, called with x .*, raised TypeError: .*'time'"),
        ("my_nets:wide", r"gave float32 \(\d+, 4\), expected floats \(\d+, 3\): a row for each"),
        ("my_nets:Frozen", "the model gives outputs without a gradient"),
    ],
)
def test_what_is_wrong_is_told_in_one_error(dataset: NodeDataset, model: str, told: str) -> None:
    told = told.replace("Net?", r"Net\?").replace("thing (", r"thing \(")
    with pytest.raises(ArgumentError, match=f"^--model {model}: .*{told}"):
        make(dataset, model)


def test_exact_evaluation_takes_models_of_known_layers(dataset: NodeDataset) -> None:
    assert make(dataset, "torch_geometric.nn:GraphSAGE", eval="layerwise")
    with pytest.raises(ArgumentError, match=r"a Net cannot be taken apart.*--eval sampled"):
        make(dataset, "my_nets:Net", eval="layerwise")
    (Path.cwd() / "my_nets.py").write_text(
        "from torch_geometric.nn import GraphSAGE\n"
        "def make(in_channels, out_channels):\n"
        "    return GraphSAGE(in_channels, 8, 3, out_channels)\n"
    )
    sys.modules.pop("my_nets", None)
    with pytest.raises(ArgumentError, match="has 3 graph convolutions, but --layers is 2"):
        make(dataset, "my_nets:make", eval="neighborhoods")


def test_several_ranks_take_models_that_they_keep_equal(dataset: NodeDataset) -> None:
    assert make(dataset, "my_nets:Net", ranks=2)
    with pytest.raises(UnsupportedError, match=r"unused.weight has no part in the outputs"):
        make(dataset, "my_nets:Spare", ranks=2)
    with pytest.raises(UnsupportedError, match=r"norm.running_mean is a buffer"):
        make(dataset, "my_nets:Normed", ranks=2)
    with pytest.raises(UnsupportedError, match=r"rare.weight gets sparse gradients, which several"):
        make(dataset, "my_nets:Rare", ranks=2)


# Graphs with types -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> NodeDataset:
    """Users with features buy items without, which are of no use to shops."""
    data, draw = HeteroData(), torch.Generator().manual_seed(0)
    data["user"].x = torch.randn(90, FEATURES, generator=draw)
    data["user"].y = torch.arange(90) % CLASSES
    data["user"].train_idx, data["user"].val_idx = torch.arange(50), torch.arange(50, 90)
    data["item"].num_nodes = 40
    bought = torch.stack([torch.arange(90), torch.arange(90) % 40])
    data["user", "buys", "item"].edge_index = bought
    data["item", "of", "user"].edge_index = bought.flip(0)
    place = tmp_path_factory.mktemp("typed") / "g"
    return load_dataset(str(convert_pyg(data, place, ConvertOptions(), name="g")), device="cpu")


def make_typed(dataset: NodeDataset, model: str, **options: Any) -> Any:
    config = TrainConfig(dataset="g", model=f"typed_nets:{model}", device="cpu", **options)
    run = resolve(config)
    return make_user_hetero_model(run, dataset, embeddings_in_memory(run.config.hidden or 0))


def test_a_factory_for_types_is_told_of_them(typed: NodeDataset) -> None:
    net = make_typed(typed, "Net", hidden=24, dropout=0.2)
    assert net.gnn.given == {
        "in_channels": {"user": FEATURES, "item": 24}, "target": "user", "hidden_channels": 24,
        "num_layers": 2, "dropout": 0.2,
    }  # fmt: skip
    assert [*net.gnn.conv.convs.keys()] == [("user", "buys", "item"), ("item", "of", "user")]
    assert {kind: rows.shape for kind, rows in net.embeddings().items()} == {"item": (40, 24)}


def test_a_model_gives_rows_of_the_target_among_others_or_alone(typed: NodeDataset) -> None:
    net = make_typed(typed, "sage")
    x = {"user": torch.ones(3, FEATURES)}
    ids = {"user": torch.tensor([5, 6, 7]), "item": torch.tensor([2, 39])}
    edges = {kind: torch.tensor([[0, 1], [1, 0]]) for kind in typed.graphs}
    found = net(x, edges, ids)
    rows = x | {"item": net.embeddings()["item"][ids["item"]]}
    assert torch.equal(found, net.gnn(rows, edges)["user"])
    assert torch.equal(found, net(rows, edges))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("wide", r"an x_dict of user \(\d+, 6\), item \(\d+, 64\) and an edge_index_dict, gave "
         r"float32 \(\d+, 4\) for user, expected floats \(\d+, 3\): a row for each node"),
        ("Other", "gave a dict of item, expected a dict by node type that has user, or its rows"),
        ("Item", r"gave float32 \(\d+, 3\) for user, expected floats \(\d+, 3\)"),
        ("Listed", "gave list for user, expected floats"),
        ("Picky", r"raised KeyError: 'users' \(.*/typed_nets.py, line 36\); mend it"),
        ("narrow", r"raised RuntimeError: mat1 and mat2 .*line \d+\); mend it"),
        ("Unequal", r"raised RuntimeError: .*/typed_nets.py, line 40\); mend it"),
        ("Spare", "spare.lin_l.weight has no shape after a call: its layer had no part; leave"),
        ("missing", "typed_nets has no missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_types_is_told_in_one_error(
    typed: NodeDataset, model: str, told: str
) -> None:
    with pytest.raises(ArgumentError, match=f"^--model typed_nets:{model}: .*{told}"):
        make_typed(typed, model)


def test_what_exact_evaluation_cannot_follow_is_told_before_training(typed: NodeDataset) -> None:
    assert make_typed(typed, "sage", eval="layerwise").training
    assert make_typed(typed, "Looks", eval="sampled")
    with pytest.raises(ArgumentError, match=r"Looks cannot be followed by torch.*--eval sampled"):
        make_typed(typed, "Looks", eval="layerwise")


def make_embedder(dataset: NodeDataset, model: str) -> Any:
    dataset = dataclasses.replace(dataset, task=LINKS)
    config = TrainConfig(dataset="g", task="link", model=f"typed_nets:{model}", device="cpu")
    run = resolve(config)
    return make_user_embedder(run, dataset, LINKS, embeddings_in_memory(run.config.hidden or 0))


def test_a_factory_for_links_is_told_of_their_type_and_embeds_both_ends(typed: NodeDataset) -> None:
    net = make_embedder(typed, "Net")
    assert net.gnn.given["target"] == ("user", "buys", "item")
    x = {"user": torch.ones(3, FEATURES), "item": torch.ones(2, 64)}
    found = net(x, {kind: torch.tensor([[0, 1], [1, 0]]) for kind in typed.graphs})
    assert {kind: rows.shape for kind, rows in found.items()} == {"user": (3, 8), "item": (2, 8)}
    for model, told in (
        ("Other", "gave a dict of item, expected a dict by node type that has user and item$"),
        ("Item", r"gave float32 \(\d+, 8\), expected a dict by node type that has user and item$"),
        ("wide", r"gave float32 \(\d+, 9\) for user, expected floats \(\d+, 8\)"),
    ):
        with pytest.raises(ArgumentError, match=told):
            make_embedder(typed, model)
