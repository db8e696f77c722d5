"""The graph whose nodes are clustered, whatever it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch_geometric.data import Data

from gnnsys.config.cluster import ClusterConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.deep_clustering import convert_deep_clustering, is_deep_clustering
from gnnsys.convert.pyg import NAMES, convert_pyg_name
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import digest_of

__all__ = ["ClusterGraph", "open_graph"]

_DEEP = ("acm", "dblp", "usps")


@dataclass(slots=True)
class ClusterGraph:
    """A graph with features, and with labels where they are known."""

    name: str

    data: Data
    """x, unified; edge_index (2, E)."""

    labels: NDArray[Any] | None
    """(N,) classes, -1 where unknown."""

    num_classes: int | None

    digest: str
    """Tells this graph from others: a checkpoint of one does not fit another."""

    @property
    def num_nodes(self) -> int:
        return int(self.data.num_nodes)

    def facts(self) -> dict[str, Any]:
        """Its name and sizes, for JSON."""
        known = {} if self.num_classes is None else {"classes": self.num_classes}
        nodes, features = self.data.x.shape
        edges = self.data.edge_index.shape[1]
        return {"name": self.name, "nodes": nodes, "edges": edges, "features": features, **known}


@contextmanager
def open_graph(config: ClusterConfig) -> Iterator[ClusterGraph]:
    """Opens a dataset folder, or makes one for the time being of what is none.

    Raises:
        MissingFileError, FileFormatError: files that are not there or damaged.
        ArgumentError: an unknown name, or a dataset without features.
    """
    options = ConvertOptions(threads=config.threads)
    with closing(ScratchFolder("gnnsys-cluster-")) as folder:
        made = folder.path / os.path.basename(os.path.normpath(config.dataset))
        source = _folder_of(config)
        if source is None:
            convert_pyg_name(config.dataset, Path(config.root), made, options)
        elif is_deep_clustering(source):
            convert_deep_clustering(source, made, options)
        else:
            made = source
        yield _read(open_dataset(made), config)


def _folder_of(config: ClusterConfig) -> Path | None:
    """Where the dataset lies; None for one that PyG reads."""
    name, root = config.dataset, Path(config.root)
    if os.sep in name or os.path.isdir(name):
        return Path(name)
    places = [root / "DeepClustering" / name, root / name]
    if name in _DEEP:
        found = next((place for place in places if is_deep_clustering(place)), None)
        if found is None:
            told = " or ".join(str(place / f"{name}_feat.npz") for place in places)
            raise MissingFileError(f"{told}: no such file; give the folder around with --root")
        return found
    if name in NAMES:
        return None
    raise ArgumentError(
        f"dataset {name!r} is unknown: expected one of {', '.join(dict.fromkeys(_DEEP + NAMES))}, "
        "or the path of a folder"
    )


def _read(dataset: Dataset, config: ClusterConfig) -> ClusterGraph:
    if not dataset.has("features"):
        raise ArgumentError(f"{config.dataset}: has no features to cluster nodes by")
    data = dataset.to_data(threads=config.threads, device="cpu")
    data.edge_attr = None
    task, digest = dataset.task, digest_of(dataset)
    if task is None or task.multi_label or task.regression:
        return ClusterGraph(dataset.name, data, None, None, digest)
    labels = dataset.labels().numpy()
    return ClusterGraph(dataset.name, data, labels, task.num_classes, digest)
