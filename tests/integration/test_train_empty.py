"""Types without nodes or edges, by ``convert`` and ``train``: trained around, or one error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.errors import ArgumentError
from gnnsys.training.datasets import load_dataset

LIKES = ("user", "likes", "item")
NO_IDS = torch.empty(0, dtype=torch.int64)


def shop(users: int, items: int) -> HeteroData:
    """Users, half of whom are trained on, and the items that each likes, if there are any."""
    data = HeteroData()
    data["user"].x = torch.randn(users, 4)
    data["user"].y = torch.arange(users) % 2
    for part, name in enumerate(("train", "val", "test")):
        data["user"][f"{name}_idx"] = torch.arange(users)[part::3]
    data["item"].x = torch.randn(items, 3)
    links = torch.stack([torch.arange(users * bool(items)), torch.arange(users * bool(items)) % 3])
    data[LIKES].edge_index = links
    data["item", "liked_by", "user"].edge_index = links.flip(0)
    data["user", "knows", "user"].edge_index = torch.empty(2, 0, dtype=torch.int64)
    return data


def write(data: Data | HeteroData, folder: Path) -> str:
    return str(convert_pyg(data, folder, ConvertOptions(), name="shop"))


@pytest.mark.parametrize("model", ["rgcn", "hgt", "sage", "gat"])
def test_a_type_without_nodes_is_trained_and_predicted_around(model: str, tmp_path: Path) -> None:
    folder, run = write(shop(30, 0), tmp_path / "g"), str(tmp_path / "run")
    options = ["--epochs", "1", "--model", model, "--hidden", "4", "--device", "cpu"]
    assert main(["train", folder, "--out", run, *options]) == 0
    assert main(["predict", run]) == 0


@pytest.mark.parametrize("typed", [True, False])
def test_a_target_without_nodes_is_one_error(
    typed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = Data(x=torch.randn(0, 4), y=NO_IDS, train_idx=NO_IDS, edge_index=NO_IDS.view(2, 0))
    folder = write(shop(0, 5) if typed else none, tmp_path / "g")
    told = f"shop: no train nodes{' of type .user.' if typed else ''}; name them"
    with pytest.raises(ArgumentError, match=told):
        load_dataset(folder)
    assert main(["train", folder]) == 2
    assert "shop: no train nodes" in capsys.readouterr().err


def test_an_edge_type_without_edges_has_no_links_to_train_on() -> None:
    data = shop(30, 0)
    for negatives in (None, "binary", "triplet"):
        loader = gnnsys.LinkNeighborLoader(
            data, [2], edge_label_index=(LIKES, None), batch_size=4, neg_sampling=negatives
        )
        assert list(loader) == []
