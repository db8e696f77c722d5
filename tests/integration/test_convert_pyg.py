"""PyG graphs to dataset folders: everything in the object comes back from the .npy files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Data, HeteroData, InMemoryDataset

from gnnsys.convert import arrays
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import (
    NAMES,
    convert_pyg,
    convert_pyg_file,
    convert_pyg_name,
)
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, Manifest, read_manifest
from gnnsys.dataset.named import NAMED, load_raw
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    MissingFileError,
    StorageError,
    UnsupportedError,
)

OPTIONS = ConvertOptions(threads=1)
GRAPHS = ["cora", "pubmed", "actor", "tolokers", "dblp"]


class Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.manifest = path, read_manifest(path)

    def node(self, name: str, node_type: str = NODE_TYPE) -> Any:
        return self._load(self.manifest.nodes[node_type].tables[name])

    def edge(self, name: str, edge_type: EdgeType = EDGE_TYPE) -> Any:
        return self._load(self.manifest.edges[edge_type].tables[name])

    def _load(self, table: Any) -> Any:
        array = np.load(self.path / table.shards[0].path)
        assert array.shape == table.shape
        return array


def assert_same_edges(
    folder: Folder, edge_index: torch.Tensor, attributes: dict[str, torch.Tensor], kind: EdgeType
) -> None:
    """The edges by target, then source, then place in ``edge_index``, each with its attributes."""
    source, target = edge_index.numpy()
    order = np.lexsort((np.arange(len(source)), source, target))
    indptr = folder.edge("indptr", kind)
    np.testing.assert_array_equal(
        np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), target[order]
    )
    np.testing.assert_array_equal(folder.edge("indices", kind), source[order])
    for name, rows in attributes.items():
        stored = folder.edge(name, kind)
        np.testing.assert_array_equal(stored, rows.numpy()[order])
        assert stored.dtype == rows.numpy().dtype


def random_data(seed: int = 3) -> Data:
    random = torch.Generator().manual_seed(seed)
    nodes, edges = 30, 200
    return Data(
        x=torch.rand(nodes, 5, generator=random),
        y=torch.randint(4, (nodes,), generator=random),
        edge_index=torch.randint(nodes, (2, edges), generator=random),
        edge_attr=torch.rand(edges, 3, generator=random),
        edge_weight=torch.rand(edges, generator=random),
        edge_time=torch.randint(1000, (edges,), generator=random),
        time=torch.randint(1000, (nodes,), generator=random),
        train_mask=torch.arange(nodes) < 10,
        val_mask=(torch.arange(nodes) >= 10) & (torch.arange(nodes) < 20),
        test_mask=torch.arange(nodes) >= 20,
    )


def load_by_name(name: str, root: Path) -> Any:
    if name != "dblp":
        return load_raw(name, NAMED[name], root)
    from torch_geometric.datasets import DBLP

    return DBLP(str(root / "DBLP_hetero"))[0]


@pytest.mark.parametrize("name", GRAPHS)
def test_named_datasets_come_back_exactly(name: str, real_graphs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    copied = ["DBLP_hetero"] if name == "dblp" else NAMED[name].folders[:1]
    for place in copied:
        shutil.copytree(real_graphs / place, root / place)
        (root / place).chmod(0o755)
    before = sorted(root.rglob("*"))
    split = 2 if name in ("actor", "tolokers") else 0
    folder = Folder(convert_pyg_name(name, root, tmp_path / "out", OPTIONS, split))
    assert sorted(root.rglob("*")) == before, "PyG wrote into the root"
    assert folder.manifest.name == name

    data = load_by_name(name, root)
    nodes = dict(data.node_items()) if name == "dblp" else {NODE_TYPE: data}
    edges = dict(data.edge_items()) if name == "dblp" else {EDGE_TYPE: data}
    for node_type, store in nodes.items():
        assert folder.manifest.nodes[node_type].count == store.num_nodes
        if "x" in store:
            np.testing.assert_array_equal(folder.node("features", node_type), store.x.numpy())
            assert folder.node("features", node_type).dtype == np.float32
        if "y" in store:
            np.testing.assert_array_equal(folder.node("labels", node_type), store.y.numpy())
            for part in ("train", "val", "test"):
                mask = store[f"{part}_mask"]
                mask = mask[:, split] if mask.dim() == 2 else mask
                ids = torch.nonzero(mask).view(-1).numpy()
                np.testing.assert_array_equal(folder.node(part, node_type), ids)
    for edge_type, store in edges.items():
        assert_same_edges(folder, store.edge_index, {}, edge_type)
    assert folder.manifest.source["left_out"] == []
    task = folder.manifest.task
    assert task is not None
    assert task.node_type == ("author" if name == "dblp" else NODE_TYPE)
    assert task.metric == ("rocauc" if name == "tolokers" else "accuracy")


def test_the_list_of_names_is_that_of_the_loaders() -> None:
    assert set(NAMES) == {*NAMED, "dblp"}


def test_every_tensor_of_data_comes_back(tmp_path: Path) -> None:
    data = random_data()
    data.pos = torch.rand(30, 2)
    data.edge_type = torch.randint(3, (200,))
    data.whole = torch.rand(7)
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="random"))
    attributes = {
        "edge_features": data.edge_attr,
        "edge_weight": data.edge_weight,
        "edge_time": data.edge_time,
        "edge_type": data.edge_type,
    }
    assert_same_edges(folder, data.edge_index, attributes, EDGE_TYPE)
    for name, key in [("features", "x"), ("labels", "y"), ("time", "time"), ("pos", "pos")]:
        np.testing.assert_array_equal(folder.node(name), data[key].numpy())
    np.testing.assert_array_equal(folder.node("val"), np.arange(10, 20))
    assert folder.manifest.source["left_out"] == ["node: whole"]
    assert folder.manifest.task is not None
    assert folder.manifest.task.num_classes == 4


def test_undirected_gives_both_directions_the_same_attributes(tmp_path: Path) -> None:
    data = random_data()
    options = ConvertOptions(undirected=True, threads=1)
    folder = Folder(convert_pyg(data, tmp_path / "out", options, name="random"))
    indptr = folder.edge("indptr")
    target = np.repeat(np.arange(30), np.diff(indptr))
    found = sorted(zip(folder.edge("indices"), target, folder.edge("edge_weight"), strict=True))
    pairs = list(zip(*data.edge_index.tolist(), data.edge_weight.tolist(), strict=True))
    pairs += [(t, s, w) for s, t, w in pairs if s != t]
    assert found == sorted(pairs)


def random_hetero() -> HeteroData:
    data = HeteroData()
    data["user"].x = torch.rand(6, 2)
    data["item"].num_nodes = 4
    data["item"].y = torch.tensor([0, 1, 1, 2])
    data["item"].train_mask = torch.tensor([True, False, True, False])
    data["user", "buys", "item"].edge_index = torch.tensor([[0, 5, 3, 0], [3, 3, 0, 1]])
    data["user", "buys", "item"].time = torch.tensor([9, 8, 7, 6])
    data["item", "rev_buys", "user"].edge_index = torch.tensor([[3, 3, 0, 1], [0, 5, 3, 0]])
    data["user", "knows", "user"].edge_index = torch.empty(2, 0, dtype=torch.long)
    return data


def test_types_of_hetero_data_keep_their_tables(tmp_path: Path) -> None:
    data = random_hetero()
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="shop"))
    assert folder.manifest.heterogeneous
    np.testing.assert_array_equal(folder.node("features", "user"), data["user"].x.numpy())
    np.testing.assert_array_equal(folder.node("labels", "item"), [0, 1, 1, 2])
    np.testing.assert_array_equal(folder.node("train", "item"), [0, 2])
    buys = data["user", "buys", "item"]
    assert_same_edges(folder, buys.edge_index, {"edge_time": buys.time}, ("user", "buys", "item"))
    assert folder.manifest.edges["user", "knows", "user"].count == 0
    assert folder.manifest.task is not None
    assert folder.manifest.task.node_type == "item"


@pytest.mark.filterwarnings("ignore:There exist type names")
def test_names_that_look_alike_keep_their_edges_apart(tmp_path: Path) -> None:
    data = HeteroData()
    types = [
        ("a__b", "c", "d"),
        ("a", "b__c", "d"),
        ("a_", "c", "d"),
        ("a", "_c", "d"),
        ("..", "a/b", "."),
    ]
    for number, (source, relation, target) in enumerate(types):
        for node_type in (source, target):
            data[node_type].num_nodes = 9
        data[source, relation, target].edge_index = torch.tensor([[number], [8 - number]])
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="alike"))
    for edge_type in types:
        assert_same_edges(folder, data[edge_type].edge_index, {}, edge_type)
    assert [place.name for place in tmp_path.iterdir()] == ["out"]


def test_the_task_is_of_the_type_with_labels_and_training_nodes(tmp_path: Path) -> None:
    data = random_hetero()
    data["user"].y = torch.zeros(6, dtype=torch.long)
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="shop"))
    assert folder.manifest.task is not None
    assert folder.manifest.task.node_type == "item"
    assert folder.node("labels", "user").tolist() == [0] * 6


@pytest.mark.parametrize("stored", ["keep", "float32", "bfloat16"])
def test_bfloat16_features_stay_or_widen(stored: str, tmp_path: Path) -> None:
    data = random_data()
    data.x = data.x.bfloat16()
    options = ConvertOptions(dtype=stored, threads=1)  # type: ignore[arg-type]
    folder = Folder(convert_pyg(data, tmp_path / "out", options, name="random"))
    table = folder.manifest.nodes[NODE_TYPE].tables["features"]
    rows = torch.from_numpy(folder.node("features"))
    if stored == "float32":
        assert table.encoding.dtype == "float32"
        assert torch.equal(rows, data.x.float())
    else:
        assert table.encoding.dtype == "bfloat16"
        assert torch.equal(rows.view(torch.bfloat16), data.x)


def test_several_labels_and_unknown_ones(tmp_path: Path) -> None:
    data = random_data()
    data.y = (torch.rand(30, 6) > 0.5).float()
    data.y[3] = float("nan")
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="random"))
    np.testing.assert_array_equal(folder.node("labels"), data.y.numpy())
    task = folder.manifest.task
    assert task is not None
    assert (task.num_classes, task.multi_label, task.metric) == (6, True, "rocauc")


def test_index_splits_and_labels_of_splits(tmp_path: Path) -> None:
    """As in PyG's Entities: labels stand only beside the ids of the splits."""
    data = Data(
        edge_index=torch.tensor([[0, 1], [1, 2]]),
        num_nodes=5,
        train_idx=torch.tensor([4, 0]),
        train_y=torch.tensor([1, 2]),
        test_idx=torch.tensor([3]),
        test_y=torch.tensor([0]),
    )
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="entities"))
    assert folder.node("train").tolist() == [4, 0]
    assert folder.node("test").tolist() == [3]
    assert folder.node("labels").tolist() == [2, -1, -1, 0, 1]


def test_a_mask_of_one_column_holds_for_every_split(tmp_path: Path) -> None:
    data = random_data()
    data.train_mask = torch.stack([data.train_mask, data.test_mask], dim=1)
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="random", split=1))
    assert folder.node("train").tolist() == list(range(20, 30))
    assert folder.node("val").tolist() == list(range(10, 20))


@pytest.mark.parametrize("split", [-1, 2])
def test_a_split_that_is_not_there_is_refused(split: int, tmp_path: Path) -> None:
    data = random_data()
    data.train_mask = torch.stack([data.train_mask, data.test_mask], dim=1)
    with pytest.raises(ArgumentError, match=f"split {split}.* has 2, numbered from 0"):
        convert_pyg(data, tmp_path / "out", OPTIONS, name="random", split=split)
    assert list(tmp_path.iterdir()) == []


def test_another_graph_of_the_same_name_does_not_continue_the_first(tmp_path: Path) -> None:
    data = random_data()
    partial = tmp_path / "out.partial"

    def stop(what: str, done: int, total: int) -> None:
        if what == "labels":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_pyg(data, tmp_path / "out", ConvertOptions(progress=stop), name="random")
    assert partial.is_dir()
    with pytest.raises(ArgumentError, match="an unfinished conversion of another source"):
        convert_pyg(random_data(4), tmp_path / "out", OPTIONS, name="random")
    folder = Folder(convert_pyg(data, tmp_path / "out", OPTIONS, name="random"))
    assert_same_edges(folder, data.edge_index, {"edge_weight": data.edge_weight}, EDGE_TYPE)


BROKEN = {
    "labels": ({"y": torch.zeros(29, dtype=torch.long)}, "random: y: 29 labels != 30 nodes"),
    "edge_attr": ({"edge_attr": torch.zeros(199, 1)}, "edge_attr has 199 rows != 200 edges"),
    "edge id": ({"edge_index": torch.full((2, 200), 30)}, r"30, outside the nodes \[0, 30\)"),
    "edge shape": ({"edge_index": torch.zeros(200, 2).long()}, r"\(200, 2\), expected integers"),
    "edge dtype": ({"edge_index": torch.zeros(2, 200)}, "float32 .*, expected integers"),
    "mask": ({"val_mask": torch.ones(7, dtype=torch.bool)}, "7 entries of a mask != 30 nodes"),
    "regression": ({"y": torch.rand(30)}, "labels are not whole numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_tensors_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    changes, message = BROKEN[what]
    data = random_data()
    data.num_nodes = 30
    for key, value in changes.items():
        data[key] = value
    with pytest.raises(FileFormatError, match=message):
        convert_pyg(data, tmp_path / "out", OPTIONS, name="random")
    assert list(tmp_path.iterdir()) == []


def test_no_edge_index_and_no_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no edge_index"):
        convert_pyg(Data(x=torch.rand(3, 1)), tmp_path / "out", OPTIONS, name="bare")
    data = random_hetero()
    del data["item"].num_nodes, data["item"].y, data["item"].train_mask
    with pytest.raises(FileFormatError, match=r"set data\['item'\].num_nodes"):
        convert_pyg(data, tmp_path / "out", OPTIONS, name="bare")
    with pytest.raises(ArgumentError, match="ToUndirected"):
        convert_pyg(data, tmp_path / "out", ConvertOptions(undirected=True), name="bare")
    assert list(tmp_path.iterdir()) == []


# Files --------------------------------------------------------------------------------------------


def saved(kind: str, path: Path) -> Data | HeteroData:
    data = random_hetero() if kind == "hetero" else random_data()
    if kind == "dataset":
        InMemoryDataset.save([data], str(path))
    elif kind == "slices":
        edges = torch.tensor([0, 200])
        slices = {"x": torch.tensor([0, 30]), "edge_index": edges, "y": torch.tensor([0, 30])}
        small = Data(x=data.x, y=data.y, edge_index=data.edge_index)
        torch.save((small, slices), path)
        return small
    else:
        torch.save(data, path, _use_new_zipfile_serialization=kind != "legacy")
    return data


@pytest.mark.parametrize("kind", ["data", "hetero", "dataset", "slices", "legacy"])
def test_saved_graphs_equal_the_objects(kind: str, tmp_path: Path) -> None:
    data = saved(kind, tmp_path / "graph.pt")
    one = convert_pyg_file(tmp_path / "graph.pt", tmp_path / "one", OPTIONS)
    two = convert_pyg(data, tmp_path / "two", OPTIONS, name="graph")
    tables = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert tables == sorted(path.relative_to(two) for path in two.rglob("*.npy"))
    for table in tables:
        assert (one / table).read_bytes() == (two / table).read_bytes()
    assert json.loads((one / "graph.json").read_text())["source"]["files"] == ["graph.pt"]


class NotTrusted:
    pass


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.pt"
    with pytest.raises(MissingFileError, match=r"graph\.pt: no such file"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    path.write_bytes(b"no torch")
    with pytest.raises(FileFormatError, match=r"graph\.pt: cannot be loaded"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    torch.save(random_data(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FileFormatError, match=r"graph\.pt: cannot be loaded"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    torch.save(torch.zeros(3), path)
    with pytest.raises(FileFormatError, match="holds a Tensor, expected Data"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    torch.save(NotTrusted(), path)
    with pytest.raises(FileFormatError, match=r"Unsupported global: GLOBAL .*NotTrusted"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    InMemoryDataset.save([random_data(1), random_data(2)], str(path))
    with pytest.raises(UnsupportedError, match="holds 2 graphs, expected 1"):
        convert_pyg_file(path, tmp_path / "out", OPTIONS)
    assert list(tmp_path.iterdir()) == [path]


# Names --------------------------------------------------------------------------------------------


def test_any_class_of_pyg_by_name(tmp_path: Path) -> None:
    from torch_geometric.datasets import KarateClub

    path = convert_pyg_name("pyg:KarateClub", tmp_path, tmp_path / "out", OPTIONS)
    assert_same_edges(Folder(path), KarateClub()[0].edge_index, {}, EDGE_TYPE)


def test_a_class_with_a_name_by_name(real_graphs: Path, tmp_path: Path) -> None:
    for file in (real_graphs / "Cora" / "raw").iterdir():
        (tmp_path / "Cora" / "raw").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "Cora" / "raw")
    folder = Folder(convert_pyg_name("pyg:Planetoid/Cora", tmp_path, tmp_path / "out", OPTIONS))
    manifest: Manifest = folder.manifest
    assert (manifest.name, manifest.edges[EDGE_TYPE].count) == ("Planetoid/Cora", 10556)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("citeceer", ArgumentError, "'citeceer' is unknown: expected one of cora"),
        ("cora", MissingFileError, "no ind.cora.x"),
        ("dblp", MissingFileError, "no adjM.npz"),
        ("pyg:NoSuch", ArgumentError, "has no class 'NoSuch'"),
        ("pyg:Planetoid", ArgumentError, "write pyg:Planetoid/NAME"),
        ("pyg:KarateClub/x", ArgumentError, "write pyg:KarateClub,"),
        ("pyg:Planetoid/Nothing", FileFormatError, "PyG cannot make pyg:Planetoid/Nothing"),
    ],
)
def test_wrong_names_are_one_error(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        convert_pyg_name(name, tmp_path, tmp_path / "out", OPTIONS)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_sparse_features_are_made_dense_some_rows_at_a_time(
    layout: torch.layout, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", block_bytes)
    dense = torch.rand(7, 5) * (torch.rand(7, 5) < 0.4)
    dense[2] = 0
    sparse = dense.to_sparse() if layout == torch.sparse_coo else dense.to_sparse(layout=layout)
    data = Data(x=sparse, edge_index=torch.tensor([[0, 1, 2], [1, 2, 6]]), num_nodes=7)
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="sparse")
    assert np.array_equal(np.load(folder / "features.npy"), dense.numpy())


def test_sparse_features_that_the_disk_has_no_room_for_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for width, fits in ((1 << 50, False), (5, True)):
        entries = torch.tensor([[0, 6], [2, 4]]), torch.tensor([1.0, 2.0])
        x = torch.sparse_coo_tensor(*entries, (7, width))
        data = Data(x=x, edge_index=torch.tensor([[0, 1], [1, 6]]), num_nodes=7)
        if fits:
            convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
            assert f"sparse, of shape (7, {width}); dense it takes" in caplog.text
        else:
            with pytest.raises(StorageError, match=r"dense it takes .*, but .* are free"):
                convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
            assert not list(tmp_path.iterdir())


# Transforms ---------------------------------------------------------------------------------------


def transformed(seed: int, heterogeneous: bool, how: list[Any]) -> Data | HeteroData:
    """A graph without repeated edges, saved after transforms as people do."""
    random = torch.Generator().manual_seed(seed)
    index = torch.randperm(12 * 9, generator=random)[:30]
    data: Data | HeteroData
    if heterogeneous:
        data = HeteroData()
        data["a"].x, data["b"].x = torch.rand(12, 3), torch.rand(9, 2)
        data["a"].y = torch.arange(12) % 3
        data["a", "to", "b"].edge_index = torch.stack([index // 9, index % 9])
    else:
        edges = torch.stack([index // 9, index % 9])
        data = Data(x=torch.rand(12, 3), edge_index=edges, y=torch.arange(12) % 3)
        data.edge_attr = torch.rand(30, 2)
    return T.Compose(how)(data)


@pytest.mark.parametrize("heterogeneous", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        [T.ToUndirected(), T.RandomNodeSplit(num_val=2, num_test=3), T.NormalizeFeatures()],
        [T.ToSparseTensor()],
        [T.ToUndirected(), T.ToSparseTensor(), T.RandomNodeSplit(num_val=2, num_test=3)],
        [T.ToSparseTensor(layout=torch.sparse_coo)],
    ],
)
def test_graphs_after_transforms_keep_their_edges(
    heterogeneous: bool, how: list[Any], tmp_path: Path
) -> None:
    data = transformed(1, heterogeneous, how)
    torch.save(data, tmp_path / "d.pt")
    found = open_dataset(convert_pyg_file(tmp_path / "d.pt", tmp_path / "g", ConvertOptions()))
    kinds = data.edge_types if heterogeneous else [EDGE_TYPE]
    for kind in kinds:
        store = data[kind] if heterogeneous else data
        if "adj_t" in store:
            target, source = store["adj_t"].to_dense().nonzero().T
        else:
            source, target = store["edge_index"]
        mine = Counter(map(tuple, found.edge_index(kind).T.tolist()))
        assert mine == Counter(zip(source.tolist(), target.tolist(), strict=True))
        assert found.num_edges(kind) == len(source)
    node_type = "a" if heterogeneous else "node"
    owner = data["a"] if heterogeneous else data
    for part in ("train", "val", "test"):
        if f"{part}_mask" in owner:
            ids = owner[f"{part}_mask"].nonzero().flatten()
            assert torch.equal(found.split(part, node_type), ids)
    assert np.array_equal(found.node_table("features", node_type), owner.x.numpy())
    if not heterogeneous and "adj_t" in data:
        assert np.array_equal(found.edge_table("edge_features"), data.edge_attr.numpy())


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_values_of_an_adjacency_are_weights(layout: torch.layout, tmp_path: Path) -> None:
    graph = transformed(2, False, [])
    graph.edge_weight = torch.rand(30)
    wanted = np.zeros((12, 12), np.float32)
    wanted[graph.edge_index[1], graph.edge_index[0]] = graph.edge_weight.numpy()
    data = T.ToSparseTensor(attr="edge_weight", layout=layout)(graph)
    folder = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    found = open_dataset(folder)
    source, target = found.edge_index().numpy()
    back = np.zeros_like(wanted)
    back[target, source] = found.edge_table("edge_weight")
    assert np.array_equal(back, wanted)


def test_parts_of_a_link_split_are_refused_together(tmp_path: Path) -> None:
    torch.save(T.RandomLinkSplit()(transformed(3, False, [])), tmp_path / "d.pt")
    with pytest.raises(UnsupportedError, match=r"d\.pt: holds 3 graphs, expected 1"):
        convert_pyg_file(tmp_path / "d.pt", tmp_path / "g", ConvertOptions())
