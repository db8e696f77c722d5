"""Dataset folders with links held out, and small runs on them, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToUndirected

from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.dataset.format import EDGE_TYPE, EdgeType
from gnnsys.dataset.tables import DatasetTables
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.training.loop import TrainResult, run_training

SMALL: dict[str, Any] = {
    "task": "link", "epochs": 2, "batch_size": 256, "hidden": 16, "fanouts": (4, 3),
    "dropout": 0.0, "device": "cpu",
}  # fmt: skip

USERS, ITEMS, GROUPS = 120, 60, 6
LIKES = "user", "likes", "item"


def shop(seed: int = 3) -> tuple[HeteroData, dict[str, Tensor]]:
    """Users like items of their own group; the links to train on as edges, and those held out."""
    draw = torch.Generator().manual_seed(seed)
    user = torch.randint(USERS, (1600,), generator=draw)
    pick = torch.randint(ITEMS // GROUPS, (1600,), generator=draw)
    links = torch.stack([user, user % GROUPS + GROUPS * pick]).unique(dim=1)
    links = links[:, torch.randperm(links.shape[1], generator=draw)]
    data = HeteroData()
    data["user"].x = torch.randn(USERS, 8, generator=draw)
    data["user"].x[:, 0] = (torch.arange(USERS) % GROUPS).float()
    data["item"].num_nodes = ITEMS
    data[LIKES].edge_index = links[:, 200:]
    return ToUndirected()(data), {"val": links[:, :100], "test": links[:, 100:200]}


def web(seed: int = 3) -> tuple[Data, dict[str, Tensor]]:
    """The same without types: pages of a group point at each other."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(USERS, (1400,), generator=draw)
    pick = torch.randint(USERS // GROUPS, (1400,), generator=draw)
    links = torch.stack([first, first % GROUPS + GROUPS * pick])
    links = links[:, links[0] != links[1]].unique(dim=1)
    links = links[:, torch.randperm(links.shape[1], generator=draw)]
    x = torch.randn(USERS, 8, generator=draw)
    data = Data(x=x, edge_index=links[:, 200:])
    return data, {"val": links[:, :100], "test": links[:, 100:200]}


def held_folder(
    path: Path,
    data: Any,
    held: Mapping[str, Tensor],
    edge_type: EdgeType = EDGE_TYPE,
    times: Mapping[str, Tensor] | None = None,
) -> Path:
    """A folder of a graph and of links that are not among its edges."""
    plain = convert_pyg(data, path.with_name(f"{path.name}-plain"), ConvertOptions(), name="shop")
    tables = DatasetTables(plain)
    manifest = tables.manifest
    with DatasetWriter(path, name="shop", heterogeneous=manifest.heterogeneous) as writer:
        for kind, nodes in manifest.nodes.items():
            writer.add_nodes(nodes.count, kind)
            for key, table in nodes.tables.items():
                rows = cut_rows(tables.node_table(key, kind))
                writer.write_nodes(key, rows, table.shape, table.encoding, kind)
        for of, edges in manifest.edges.items():
            writer.add_edges(edges.count, of)
            for key, table in edges.tables.items():
                rows = cut_rows(tables.edge_table(key, of))
                writer.write_edges(key, rows, table.shape, table.encoding, of)
        for part, links in held.items():
            found = {"source": links[0], "target": links[1]}
            found |= {"time": times[part]} if times else {}
            for what, values in found.items():
                ids = values.numpy().astype(np.int64)
                shape, name = ids.shape, f"{part}.{what}"
                writer.write_edges(name, cut_rows(ids), shape, "int64", edge_type)
        return writer.commit()


def train(folder: Path, **options: Any) -> TrainResult:
    return run_training(TrainConfig(dataset=str(folder), **{**SMALL, **options}))
