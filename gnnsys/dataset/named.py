"""PyG's datasets by name, from raw files as PyG's classes lay them out.

Invariant: nothing is written into the user's folder.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any

from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

from gnnsys.errors import FileFormatError, MissingFileError

__all__ = ["NAMED", "NamedDataset", "find_folder", "load_raw"]


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """One named dataset of PyG."""

    folders: tuple[str, ...]
    """Where its ``raw`` folder may lie under the root."""

    files: tuple[str, ...]

    load: Callable[[Path], Any]
    """Given the folder that holds ``raw``, the PyG dataset."""

    metric: str = "accuracy"


def _planetoid(name: str) -> NamedDataset:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import Planetoid

        # Rows of bags of words sum to 1, as in Kipf and Welling (ICLR 2017).
        return Planetoid(str(folder.parent), folder.name, transform=NormalizeFeatures())

    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return NamedDataset((name,), tuple(f"ind.{name.lower()}.{part}" for part in parts), load)


def _heterophilous(name: str) -> NamedDataset:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import HeterophilousGraphDataset

        return HeterophilousGraphDataset(str(folder.parent), folder.name)

    return NamedDataset((f"HeterophilousGraph/{name}", name), (f"{name}.npz",), load, "rocauc")


def _actor() -> NamedDataset:
    def load(folder: Path) -> Any:
        from torch_geometric.datasets import Actor

        return Actor(str(folder))

    splits = tuple(f"film_split_0.6_0.2_{i}.npz" for i in range(10))
    files = ("out1_node_feature_label.txt", "out1_graph_edges.txt", *splits)
    return NamedDataset(("Actor", "actor", "."), files, load)


NAMED = {
    "cora": _planetoid("Cora"),
    "citeseer": _planetoid("CiteSeer"),
    "pubmed": _planetoid("PubMed"),
    "actor": _actor(),
    "tolokers": _heterophilous("tolokers"),
    "minesweeper": _heterophilous("minesweeper"),
}


def load_raw(name: str, source: NamedDataset, root: Path) -> Data:
    folder = find_folder(name, source, root)
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


def find_folder(name: str, source: NamedDataset, root: Path) -> Path:
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
