"""Graphs to train on: by name, through PyG's dataset classes, and the generated demo.

Owns ``NodeDataset`` and ``load_dataset``. Invariant: nothing is written into the user's folder.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

from gnnsys.demo import write_demo
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["NodeDataset", "load_dataset"]


@dataclass(kw_only=True, slots=True)
class NodeDataset:
    """A graph whose nodes are to be classified."""

    name: str

    data: Data
    """``x`` (nodes, features) unified, ``edge_index`` (2, edges), ``y`` (nodes,) int64."""

    num_classes: int

    train: Tensor
    """(n,) int64 ids of the training nodes; ``val`` and ``test`` likewise."""

    val: Tensor

    test: Tensor

    metric: str
    """What the dataset is judged by: accuracy or rocauc."""

    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    """Holds the generated features until the dataset is let go."""

    @property
    def features(self) -> UnifiedTensor:
        """``data.x``."""
        return self.data.x


@dataclass(frozen=True, slots=True)
class _Source:
    """One named dataset of PyG."""

    folders: tuple[str, ...]
    """Where its ``raw`` folder may lie under the root."""

    files: tuple[str, ...]

    load: Callable[[Path], Any]
    """Given the folder that holds ``raw``, the PyG dataset."""

    metric: str = "accuracy"


def _planetoid(name: str) -> _Source:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import Planetoid

        # Rows of bags of words sum to 1, as in Kipf and Welling (ICLR 2017).
        return Planetoid(str(folder.parent), folder.name, transform=NormalizeFeatures())

    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return _Source((name,), tuple(f"ind.{name.lower()}.{part}" for part in parts), load)


def _heterophilous(name: str) -> _Source:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import HeterophilousGraphDataset

        return HeterophilousGraphDataset(str(folder.parent), folder.name)

    return _Source((f"HeterophilousGraph/{name}", name), (f"{name}.npz",), load, "rocauc")


def _actor() -> _Source:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import Actor

        return Actor(str(folder))

    splits = tuple(f"film_split_0.6_0.2_{i}.npz" for i in range(10))
    files = ("out1_node_feature_label.txt", "out1_graph_edges.txt", *splits)
    return _Source(("Actor", "actor", "."), files, load)


_SOURCES = {
    "cora": _planetoid("Cora"),
    "citeseer": _planetoid("CiteSeer"),
    "pubmed": _planetoid("PubMed"),
    "actor": _actor(),
    "tolokers": _heterophilous("tolokers"),
    "minesweeper": _heterophilous("minesweeper"),
}


def load_dataset(
    name: str,
    root: str = "data",
    *,
    split: int = 0,
    seed: int = 0,
    threads: int = 0,
    device: str | None = None,
) -> NodeDataset:
    """Loads a dataset by name, or generates the demo.

    Args:
        name: cora, citeseer, pubmed, actor, tolokers, minesweeper or demo.
        root: folder of the raw files, laid out as PyG's loaders do.
        split: which of several splits.
        seed: of the demo's generator.
        threads: that gather features; 0 for all cores.
        device: where features are consumed; None for "cuda" when there is one.

    Raises:
        ArgumentError: an unknown name or split.
        MissingFileError: raw files that are not under ``root``.
        FileFormatError: raw files that cannot be read, or labels that do not fit the nodes.
    """
    if name == "demo":
        return _load_demo(seed, threads, device)
    if name not in _SOURCES:
        raise ArgumentError(
            f"dataset {name!r} is unknown: expected one of {', '.join([*_SOURCES, 'demo'])}"
        )
    data = _load_raw(name, _SOURCES[name], Path(root))
    _check_labels(name, data)
    train, val, test = (
        _split_ids(name, data[f"{part}_mask"], split) for part in ("train", "val", "test")
    )
    graph = Data(
        x=unified(data.x.contiguous(), threads=threads, device=device),
        edge_index=data.edge_index,
        y=data.y,
    )
    return NodeDataset(
        name=name,
        data=graph,
        num_classes=int(data.y.max()) + 1,
        train=train,
        val=val,
        test=test,
        metric=_SOURCES[name].metric,
    )


def _load_demo(seed: int, threads: int, device: str | None) -> NodeDataset:
    folder = tempfile.TemporaryDirectory(prefix="gnnsys-demo-")
    demo = write_demo(Path(folder.name) / "features.npy", seed=seed)
    x = unified(Path(folder.name) / "features.npy", threads=threads, device=device)
    return NodeDataset(
        name="demo",
        data=Data(x=x, edge_index=demo.edge_index, y=demo.labels),
        num_classes=demo.num_classes,
        train=demo.train,
        val=demo.val,
        test=demo.test,
        metric="accuracy",
        folder=folder,
    )


def _load_raw(name: str, source: _Source, root: Path) -> Data:
    folder = _find_folder(name, source, root)
    # PyG writes what it has processed beside the raw files; it gets a folder of its own for that.
    with tempfile.TemporaryDirectory(prefix="gnnsys-") as scratch:
        place = Path(scratch) / (folder.name or name)
        place.mkdir()
        (place / "raw").symlink_to((folder / "raw").resolve())
        try:
            with redirect_stderr(io.StringIO()):  # PyG tells there that it is processing
                return source.load(place)[0]
        except (OSError, LookupError, ValueError, EOFError, RuntimeError, PickleError) as error:
            raise FileFormatError(
                f"{folder / 'raw'}: PyG cannot read the raw files of {name} ({error}); "
                "fetch them again"
            ) from error


def _find_folder(name: str, source: _Source, root: Path) -> Path:
    candidates = [root / folder for folder in source.folders]
    for folder in candidates:
        if all((folder / "raw" / file).is_file() for file in source.files):
            return folder
    missing = [file for file in source.files if not (candidates[0] / "raw" / file).is_file()]
    raise MissingFileError(
        f"{candidates[0] / 'raw'}: no {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; "
        f"give --root the folder that holds {source.folders[0]}/raw, or let PyG's dataset class "
        f"download {name} there"
    )


def _check_labels(name: str, data: Data) -> None:
    if len(data.y) != data.num_nodes:
        raise FileFormatError(
            f"{name}: {len(data.y)} labels != {data.num_nodes} nodes; fetch the raw files again"
        )


def _split_ids(name: str, mask: Tensor, split: int) -> Tensor:
    splits = 1 if mask.dim() == 1 else mask.shape[1]
    if split >= splits:
        raise ArgumentError(f"--split {split}: {name} has {splits}, numbered from 0")
    chosen = mask if mask.dim() == 1 else mask[:, split]
    return torch.nonzero(chosen).view(-1)
