"""Small dataset folders with types, for the tests of what is known before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToUndirected

import gnnsys
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg

AUTHORS, PAPERS, VENUES = 150, 100, 4


def graph_of(folder: Path) -> HeteroData:
    """The graph in memory of a folder whose authors are trained on."""
    data, dataset = HeteroData(), gnnsys.open_dataset(folder)
    for kind in dataset.node_types:
        data[kind].num_nodes = dataset.num_nodes(kind)
        if dataset.has("features", kind):
            data[kind].x = torch.from_numpy(dataset.node_table("features", kind).copy())
    data["author"].y = dataset.labels("author")
    for kind in dataset.edge_types:
        data[kind].edge_index = dataset.edge_index(kind)
    data["author"].train_idx = dataset.split("train")
    return data


def make_typed() -> HeteroData:
    """Authors, of whom some are trained on, write papers, which cite each other and are shown at
    venues without features; nobody reviews yet."""
    draw = torch.Generator().manual_seed(3)

    def ids(nodes: int, count: int) -> Tensor:
        skewed = torch.rand(count, generator=draw) ** 2
        return (nodes * skewed).long()

    data = HeteroData()
    data["author"].x = torch.randn(AUTHORS, 5, generator=draw)
    data["author"].y = torch.randint(3, (AUTHORS,), generator=draw)
    data["author"].train_idx = torch.arange(0, 60)
    data["author"].val_idx = torch.arange(60, 90)
    data["paper"].x = torch.randn(PAPERS, 9, generator=draw)
    data["venue"].num_nodes = VENUES
    writes = torch.stack([ids(AUTHORS, 400), ids(PAPERS, 400)])
    data["author", "writes", "paper"].edge_index = writes
    data["paper", "cites", "paper"].edge_index = torch.stack([ids(PAPERS, 150), ids(PAPERS, 150)])
    data["paper", "at", "venue"].edge_index = torch.stack(
        [torch.arange(PAPERS), ids(VENUES, PAPERS)]
    )
    data = ToUndirected(merge=False)(data)
    data["author", "reviews", "paper"].edge_index = torch.empty(2, 0, dtype=torch.int64)
    return data


def write_typed(folder: Path, data: HeteroData | None = None) -> Path:
    """A heterogeneous dataset folder."""
    return convert_pyg(data or make_typed(), folder, ConvertOptions(), name="papers")


def requests(
    folder: Path, target: str, fanouts: list[int], batch_size: int, *, seed: int
) -> list[dict[str, NDArray[np.int64]]]:
    """The ids of each type in the batches of the loader's first two epochs, over the folder's edges
    in memory."""
    dataset, data = gnnsys.open_dataset(folder), HeteroData()
    for kind in dataset.node_types:
        data[kind].num_nodes = dataset.num_nodes(kind)
    for edge_type in dataset.edge_types:
        data[edge_type].edge_index = dataset.edge_index(edge_type)
    loader = gnnsys.NeighborLoader(
        data, fanouts, (target, dataset.split("train", target)), batch_size=batch_size,
        shuffle=True, seed=seed,
    )  # fmt: skip
    return [
        {kind: batch[kind].n_id.numpy() for kind in batch.node_types}
        for _ in range(2)
        for batch in loader
    ]


def write_twins(folder: Path) -> tuple[Path, Path]:
    """One graph as a homogeneous folder, and as one with a node type and an edge type."""
    typed = make_typed()
    train, val = torch.zeros(2, PAPERS, dtype=torch.bool)
    train[:40], val[40:60] = True, True
    parts = {
        "x": typed["paper"].x, "y": torch.arange(PAPERS) % 3, "train_mask": train, "val_mask": val,
    }  # fmt: skip
    edges = typed["paper", "cites", "paper"].edge_index
    alone, twin = Data(edge_index=edges, **parts), HeteroData()
    for name, part in parts.items():
        twin["paper"][name] = part
    twin["paper", "cites", "paper"].edge_index = edges
    return (
        convert_pyg(alone, folder / "alone", ConvertOptions(), name="papers"),
        convert_pyg(twin, folder / "twin", ConvertOptions(), name="papers"),
    )
