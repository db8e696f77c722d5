"""Graphs of PyTorch Geometric to dataset folders: objects, saved files, datasets by name."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnsys.convert.arrays import load_torch
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg_graph import convert_pyg
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

    from gnnsys.dataset.named import NamedDataset

__all__ = ["NAMES", "convert_pyg", "convert_pyg_file", "convert_pyg_name"]

NAMES = ("cora", "citeseer", "pubmed", "actor", "tolokers", "minesweeper", "dblp")
"""Datasets that ``convert_pyg_name`` reads from raw files without touching their folder."""


def convert_pyg_file(
    source: Path,
    path: Path,
    options: ConvertOptions,
    *,
    name: str | None = None,
    split: int = 0,
    metric: str | None = None,
) -> Path:
    """Makes a dataset folder of a file that holds a PyG graph.

    Args:
        source: written by ``torch.save`` of a Data or HeteroData object, or a processed file of an
            InMemoryDataset of one graph.
        path: of the folder to make.
        options: of the conversion.
        name: of the dataset; None for the file's.
        split: column of masks that have several.
        metric: what the dataset is judged by; None for the one that its labels suggest.

    Raises:
        MissingFileError: no such file.
        FileFormatError: the file holds something else, or objects that torch does not trust.
        UnsupportedError: it holds several graphs.

    >>> import tempfile, torch
    >>> from torch_geometric.data import Data
    >>> folder = Path(tempfile.mkdtemp())
    >>> pair = Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2)
    >>> torch.save(pair, folder / "pair.pt")
    >>> convert_pyg_file(folder / "pair.pt", folder / "pair", ConvertOptions()).name
    'pair'
    """
    if not source.is_file():
        raise MissingFileError(f"{source}: no such file")
    with _trusting():
        content = load_torch(
            source,
            "cannot be loaded without running code from it",
            "; expected torch.save of a Data or HeteroData object",
        )
    data = _take_graph(content, source)
    return convert_pyg(
        data, path, options, name=name or source.stem, files=[source], split=split, metric=metric
    )


@contextmanager
def _trusting() -> Iterator[None]:
    """Lets torch load what Data and HeteroData objects are made of; PyG names only some."""
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals
    from torch_geometric.data import Data, HeteroData, data, storage

    parts = [data.DataEdgeAttr, data.DataTensorAttr, storage.BaseStorage, storage.GlobalStorage]
    stores = [storage.NodeStorage, storage.EdgeStorage]
    # Transforms leave notes in a graph, in a defaultdict, which torch makes but does not fill.
    notes = [storage.AttrType, set, (_plain_dict, "collections.defaultdict")]
    before = get_safe_globals()
    try:
        clear_safe_globals()
        known = [each for each in before if each is not defaultdict]
        add_safe_globals([*known, Data, HeteroData, *parts, *stores, *notes])
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _take_graph(content: Any, source: Path) -> Data | HeteroData:
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.data.separate import separate

    slices = None
    graphs = content if isinstance(content, tuple | list) else ()
    if len(graphs) > 1 and all(isinstance(each, Data | HeteroData) for each in graphs):
        raise UnsupportedError(
            f"{source}: holds {len(graphs)} graphs, expected 1, such as RandomLinkSplit makes; "
            "save one of them"
        )
    if isinstance(content, tuple) and len(content) in (2, 3):
        content, slices, kind = (*content, Data)[:3]
        if isinstance(content, dict):
            content = kind.from_dict(content)
    if not isinstance(content, Data | HeteroData):
        raise FileFormatError(
            f"{source}: holds a {type(content).__name__}, expected Data, HeteroData or what an "
            "InMemoryDataset saves"
        )
    content = type(content).from_dict(content.to_dict())  # without notes of transforms
    if not slices:
        return content
    count = _count_graphs(slices)
    if count != 1:
        raise UnsupportedError(
            f"{source}: holds {count} graphs, expected 1; save one of them, or "
            "torch_geometric.data.Batch of them as a Data object"
        )
    return separate(type(content), content, idx=0, slice_dict=slices, decrement=False)


def _count_graphs(slices: Any) -> int:
    while isinstance(slices, Mapping):
        slices = next(iter(slices.values()), [0])
    return len(slices) - 1


def convert_pyg_name(
    name: str, root: Path, path: Path, options: ConvertOptions, split: int = 0
) -> Path:
    """Makes a dataset folder of one of PyG's datasets.

    Args:
        name: one of ``NAMES``, read from raw files under ``root``; or ``pyg:CLASS`` or
            ``pyg:CLASS/NAME`` for any class in ``torch_geometric.datasets``, which may download and
            process there.
        root: folder of the raw files, laid out as PyG's loaders do.
        path: of the folder to make.
        options: of the conversion.
        split: which of several splits.

    Raises:
        ArgumentError: an unknown name, or a split that is not there.
        MissingFileError: raw files that are not under ``root``.
        FileFormatError: raw files that PyG cannot read.
        UnsupportedError: a dataset of several graphs.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "karate"
    >>> path = convert_pyg_name("pyg:KarateClub", Path("data"), out, ConvertOptions())
    >>> sorted(file.name for file in path.iterdir())[:4]
    ['features.npy', 'graph.json', 'indices.npy', 'indptr.npy']
    """
    if name.startswith("pyg:"):
        data = _construct(name, root)
        return convert_pyg(data, path, options, name=name.removeprefix("pyg:"), split=split)
    if name not in NAMES:
        raise ArgumentError(
            f"dataset {name!r} is unknown: expected one of {', '.join(NAMES)} or pyg:CLASS/NAME"
        )
    from gnnsys.dataset.named import NAMED, find_folder, load_raw

    source = _dblp() if name == "dblp" else NAMED[name]
    raw = find_folder(name, source, root) / "raw"
    return convert_pyg(
        load_raw(name, source, root),
        path,
        options,
        name=name,
        files=[raw / file for file in source.files],
        split=split,
        metric=source.metric,
    )


def _dblp() -> NamedDataset:
    from torch_geometric.datasets import DBLP

    from gnnsys.dataset.named import NamedDataset

    files = (
        "adjM.npz", "features_0.npz", "features_1.npz", "features_2.npy", "labels.npy",
        "node_types.npy", "train_val_test_idx.npz",
    )  # fmt: skip
    return NamedDataset(("DBLP_hetero", "DBLP"), files, lambda folder: DBLP(str(folder)))


def _construct(name: str, root: Path) -> Data | HeteroData:
    import torch_geometric.datasets

    class_name, _, dataset_name = name.removeprefix("pyg:").partition("/")
    if class_name not in torch_geometric.datasets.__all__:
        raise ArgumentError(
            f"{name}: torch_geometric.datasets has no class {class_name!r}; expected one such as "
            "pyg:KarateClub or pyg:Planetoid/Cora"
        )
    kind = getattr(torch_geometric.datasets, class_name)
    arguments = {"root": str(root), "name": dataset_name}
    wanted = inspect.signature(kind).parameters
    if bool(dataset_name) != ("name" in wanted):
        form = f"pyg:{class_name}/NAME" if "name" in wanted else f"pyg:{class_name}"
        raise ArgumentError(f"{name}: write {form}, as the arguments of {class_name} ask for")
    try:
        dataset = kind(**{key: value for key, value in arguments.items() if key in wanted})
        graphs, data = len(dataset), dataset[0]
    except Exception as error:  # PyG's classes download, unpack and parse, each in its own way
        raise FileFormatError(
            f"{root}: PyG cannot make {name} there ({type(error).__name__}: {error}); look at its "
            "raw files and at the network"
        ) from error
    if graphs != 1:
        raise UnsupportedError(f"{name}: a dataset of {graphs} graphs, expected 1")
    return data
