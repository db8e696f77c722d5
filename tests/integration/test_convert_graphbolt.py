"""GraphBolt folders to dataset folders and back: nothing is lost, and DGL opens what goes out."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.graphbolt import convert_graphbolt, is_graphbolt
from gnnsys.convert.graphbolt_export import export_graphbolt
from gnnsys.convert.pyg import convert_pyg, convert_pyg_name
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, Table, read_manifest
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    StorageError,
    UnsupportedError,
)

OPTIONS = ConvertOptions(threads=1)
DGL = "GNNSYS_TEST_DGL"
NODES, EDGES = 50, 400


class Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.manifest = path, read_manifest(path)

    def node(self, name: str, node_type: str = NODE_TYPE) -> Any:
        return self._load(self.manifest.nodes[node_type].tables[name])

    def edge(self, name: str, edge_type: EdgeType = EDGE_TYPE) -> Any:
        return self._load(self.manifest.edges[edge_type].tables[name])

    def _load(self, table: Table) -> Any:
        return np.load(self.path / table.shards[0].path)


class Maker:
    """Writes the files of a GraphBolt folder and the entries that name them."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.random = folder, np.random.default_rng(seed)
        folder.mkdir(parents=True)

    def save(self, path: str, array: Any, **entry: Any) -> dict[str, Any]:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".pt"):
            torch.save(array if isinstance(array, torch.Tensor) else torch.tensor(array), file)
            return {**entry, "format": "torch", "path": path}
        np.save(file, array)
        return {**entry, "format": "numpy", "path": path}

    def save_csv(self, path: str, edges: NDArray[Any], **entry: Any) -> dict[str, Any]:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{source},{target}\n" for source, target in edges.T.tolist())
        opener = gzip.open if path.endswith(".gz") else open
        with opener(self.folder / path, "wt") as file:
            file.write(text)
        return {**entry, "format": "csv", "path": path}

    def edges(self, sources: int = NODES, targets: int = NODES, count: int = EDGES) -> Any:
        ends = self.random.integers(0, sources, count), self.random.integers(0, targets, count)
        return np.stack(ends)

    def write(self, **metadata: Any) -> Path:
        (self.folder / "metadata.yaml").write_text(yaml.safe_dump(metadata, sort_keys=False))
        return self.folder


def make_homogeneous(folder: Path, seed: int = 0) -> Path:
    make = Maker(folder, seed)
    shuffled = make.random.permutation(NODES)
    labels = make.random.integers(0, 5, NODES)
    sets = {
        "train_set": shuffled[:20],
        "validation_set": shuffled[20:30],
        "test_set": shuffled[30:40],
    }
    task: dict[str, Any] = {"name": "node_classification", "num_classes": 5, "note": "kept"}
    pairs: dict[str, Any] = {"name": "link_prediction"}
    for key, ids in sets.items():
        data = [
            make.save(f"sets/{key}_seeds.npy", ids.astype(np.int32), name="seeds", in_memory=True),
            make.save(f"sets/{key}_labels.npy", labels[ids].astype(np.uint8), name="labels"),
        ]
        task[key] = [{"type": None, "data": data}]
        seeds = make.save(f"sets/{key}_pairs.npy", make.edges(count=17).T, name="seeds")
        indexes = make.save(f"sets/{key}_indexes.pt", torch.arange(17), name="indexes")
        pairs[key] = [{"data": [seeds, indexes]}]
    features = [
        make.save("f/feat.npy", make.random.random((NODES, 7)), domain="node", name="feat"),
        make.save(
            "f/half.npy",
            make.random.random((NODES, 3)).astype(np.float16),
            domain="node",
            name="half",
            in_memory=False,
            unit="metre",
        ),
        make.save("f/big.npy", np.arange(NODES, dtype=">f4"), domain="node", name="big"),
        make.save("f/b.pt", torch.rand(NODES, 2).bfloat16(), domain="node", name="../odd name"),
        make.save("f/labels.npy", labels, domain="node", name="labels"),
        make.save("f/e.npy", make.random.random((EDGES, 2)), domain="edge", name="feat"),
        make.save("f/w.pt", torch.rand(EDGES).bfloat16(), domain="edge", name="weight"),
        make.save(
            "f/f.npy", np.asfortranarray(make.random.random((EDGES, 3))), domain="edge", name="f"
        ),
        make.save("f/ids.npy", np.arange(EDGES, dtype=">i4"), domain="edge", name="id"),
        make.save("f/graph.npy", np.array(3.5), domain="graph", name="temperature"),
        make.save("f/none.npy", np.empty((0, 4), np.int8), domain="graph", name="none"),
    ]
    timestamps = make.save("f/ts.npy", np.arange(NODES) % 7, domain="node", name="timestamp")
    return make.write(
        dataset_name="toy",
        graph={
            "nodes": [{"num": NODES}],
            "edges": [make.save("edges.npy", make.edges().astype(np.int32))],
            "feature_data": [timestamps],
        },
        feature_data=[*features, timestamps],
        tasks=[pairs, task],
    )


TYPES = {"author": 30, "paper": NODES, "venue": 4}


def make_heterogeneous(folder: Path, seed: int = 0) -> Path:
    make = Maker(folder, seed)
    labels = make.random.integers(0, 3, NODES)
    ids = make.random.permutation(NODES)
    task: dict[str, Any] = {"name": "papers", "num_classes": 3}
    for key, part in (("train_set", ids[:9]), ("test_set", ids[20:])):
        task[key] = [
            {
                "type": "paper",
                "data": [
                    make.save(f"set/{key}.pt", part, name="seed_nodes"),
                    make.save(f"set/{key}_labels.npy", labels[part][:, None], name="labels"),
                ],
            },
            {
                "type": "author",
                "data": [
                    make.save(f"set/{key}_author.npy", np.arange(5), name="seed_nodes"),
                    make.save(f"set/{key}_author_labels.npy", np.ones(5), name="labels"),
                ],
            },
        ]
    links = {
        "name": "links",
        "train_set": [
            {
                "type": "author:writes:paper",
                "data": [make.save("set/links.npy", make.edges(30, NODES, 11).T, name="seeds")],
            }
        ],
    }
    return make.write(
        dataset_name="typed",
        graph={
            "nodes": [{"type": name, "num": num} for name, num in TYPES.items()],
            "edges": [
                make.save_csv("e/w.csv", make.edges(30, NODES), type="author:writes:paper"),
                make.save("e/c.npy", make.edges(), type="paper:cites:paper"),
                make.save_csv("e/p.csv.gz", make.edges(NODES, 4, 60), type="paper:in:venue"),
                make.save("e/empty.npy", make.edges(4, 30, 0), type="venue:invites:author"),
            ],
        },
        feature_data=[
            make.save("f/p.npy", make.random.random((NODES, 4), np.float32), domain="node",
                      type="paper", name="feat"),
            make.save("f/a.pt", torch.rand(30, 2), domain="node", type="author", name="feat"),
            make.save("f/y.npy", np.arange(NODES), domain="node", type="paper", name="year"),
            make.save("f/w.npy", make.random.random(EDGES), domain="edge",
                      type="author:writes:paper", name="feat"),
        ],
        tasks=[links, task],
    )  # fmt: skip


KINDS: dict[str, Callable[..., Path]] = {"one": make_homogeneous, "several": make_heterogeneous}


def named_files(metadata: Any) -> list[tuple[str, str]]:
    if isinstance(metadata, list):
        return [entry for part in metadata for entry in named_files(part)]
    if not isinstance(metadata, dict):
        return []
    own = [(metadata["path"], metadata["format"])] if "path" in metadata else []
    return own + [entry for part in metadata.values() for entry in named_files(part)]


def load(file: Path, kind: str) -> Any:
    if kind == "csv":
        return np.loadtxt(file, np.int64, delimiter=",", ndmin=2)
    return torch.load(file, weights_only=True) if kind == "torch" else np.load(file)


def assert_same_folder(left: Path, right: Path) -> None:
    texts = [(folder / "metadata.yaml").read_text() for folder in (left, right)]
    assert yaml.safe_load(texts[0]) == yaml.safe_load(texts[1])
    files = named_files(yaml.safe_load(texts[0]))
    assert len(files) > 10
    for path, kind in files:
        one, two = load(left / path, kind), load(right / path, kind)
        assert type(one) is type(two)
        assert (one.dtype, one.shape) == (two.dtype, two.shape), path
        if kind == "torch":
            assert torch.equal(one, two), path
        else:
            np.testing.assert_array_equal(one, two, err_msg=path)
    found = {str(file.relative_to(right)) for file in right.rglob("*") if file.is_file()}
    assert found == {"metadata.yaml", *(path for path, _ in files)}


@pytest.mark.parametrize("memory", [1 << 30, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_folder(kind: str, memory: int, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    source = KINDS[kind](tmp_path / "source", seed)
    assert is_graphbolt(source)
    options = ConvertOptions(memory=4096 if memory == 256 else 1 << 30, threads=1)
    ours = convert_graphbolt(source, tmp_path / "ours", options)
    back = export_graphbolt(ours, tmp_path / "back", memory=memory)
    assert_same_folder(source, back)
    again = convert_graphbolt(back, tmp_path / "again", OPTIONS)
    tables = sorted(file.relative_to(ours) for file in ours.rglob("*.npy"))
    assert tables == sorted(file.relative_to(again) for file in again.rglob("*.npy"))
    for table in tables:
        assert (ours / table).read_bytes() == (again / table).read_bytes()


def test_tables_of_a_homogeneous_folder(tmp_path: Path) -> None:
    source = make_homogeneous(tmp_path / "source")
    folder = Folder(convert_graphbolt(source, tmp_path / "ours", OPTIONS))
    assert folder.manifest.name == "toy"
    index = np.load(source / "edges.npy")
    order = np.lexsort((np.arange(EDGES), index[0], index[1]))
    np.testing.assert_array_equal(folder.edge("indices"), index[0][order])
    np.testing.assert_array_equal(folder.edge("edge_id"), order)
    np.testing.assert_array_equal(folder.edge("edge_features"), np.load(source / "f/e.npy")[order])
    weight = torch.load(source / "f/w.pt")[torch.from_numpy(order)]
    assert torch.equal(torch.from_numpy(folder.edge("edge_weight")).view(torch.bfloat16), weight)
    assert folder.node("features").dtype == np.float64
    np.testing.assert_array_equal(folder.node("features"), np.load(source / "f/feat.npy"))
    np.testing.assert_array_equal(folder.node("half"), np.load(source / "f/half.npy"))
    np.testing.assert_array_equal(folder.node("big"), np.load(source / "f/big.npy"))
    np.testing.assert_array_equal(folder.node("timestamp"), np.load(source / "f/ts.npy"))
    known = np.full(NODES, -1)
    for key, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        ids = np.load(source / f"sets/{key}_set_seeds.npy")
        np.testing.assert_array_equal(folder.node(split), ids)
        known[ids] = np.load(source / f"sets/{key}_set_labels.npy")
    np.testing.assert_array_equal(folder.node("labels"), known)
    task = folder.manifest.task
    assert task is not None
    assert (task.node_type, task.num_classes, task.multi_label) == (NODE_TYPE, 5, False)


def test_tables_of_a_heterogeneous_folder(tmp_path: Path) -> None:
    source = make_heterogeneous(tmp_path / "source")
    folder = Folder(convert_graphbolt(source, tmp_path / "ours", OPTIONS))
    assert {name: nodes.count for name, nodes in folder.manifest.nodes.items()} == TYPES
    source_ids, target = np.loadtxt(source / "e/w.csv", np.int64, delimiter=",").T
    order = np.lexsort((np.arange(EDGES), source_ids, target))
    writes = ("author", "writes", "paper")
    np.testing.assert_array_equal(folder.edge("indices", writes), source_ids[order])
    weights = np.load(source / "f/w.npy")[order]
    np.testing.assert_array_equal(folder.edge("edge_features", writes), weights)
    np.testing.assert_array_equal(folder.node("year", "paper"), np.arange(NODES))
    assert folder.manifest.task is not None
    assert folder.manifest.task.node_type == "paper"
    assert (
        folder.node("train", "paper").tolist() == torch.load(source / "set/train_set.pt").tolist()
    )
    assert (folder.node("labels", "paper") == -1).sum() == 11


def test_several_labels_a_node(tmp_path: Path) -> None:
    make = Maker(tmp_path / "source")
    labels = make.random.integers(0, 2, (10, 6))
    data = [
        make.save("s.npy", np.arange(10), name="seeds"),
        make.save("l.npy", labels, name="labels"),
    ]
    make.write(
        graph={"nodes": [{"num": NODES}], "edges": [make.save("e.npy", make.edges())]},
        tasks=[{"num_classes": 2, "train_set": [{"data": data}]}],
    )
    folder = Folder(convert_graphbolt(tmp_path / "source", tmp_path / "ours", OPTIONS))
    np.testing.assert_array_equal(folder.node("labels")[:10], labels)
    assert np.isnan(folder.node("labels")[10:]).all()
    assert folder.manifest.task is not None
    assert (folder.manifest.task.num_classes, folder.manifest.task.multi_label) == (6, True)
    assert folder.manifest.name == "source"
    back = export_graphbolt(folder.path, tmp_path / "back")
    np.testing.assert_array_equal(np.load(back / "l.npy"), labels)
    assert np.load(back / "l.npy").dtype == labels.dtype


@pytest.mark.parametrize(
    "labels", [[0.5, 1.5, 2.5], [1.0, np.nan, 0.0], [-5, 1, 2], [True, False, True]]
)
def test_labels_of_any_kind_come_back(labels: list[Any], tmp_path: Path) -> None:
    make = Maker(tmp_path / "source")
    seeds = make.save("s.npy", np.array([4, 2, 9]), name="seeds")
    data = [seeds, make.save("l.npy", np.array(labels), name="labels")]
    make.write(
        graph={"nodes": [{"num": NODES}], "edges": [make.save("e.npy", make.edges())]},
        tasks=[{"train_set": [{"data": data}]}],
    )
    ours = convert_graphbolt(tmp_path / "source", tmp_path / "ours", OPTIONS)
    back = export_graphbolt(ours, tmp_path / "back")
    np.testing.assert_array_equal(np.load(back / "l.npy"), labels)
    np.testing.assert_array_equal(np.load(back / "s.npy"), [4, 2, 9])
    regression = labels[0] == 0.5
    assert (Folder(ours).manifest.task is None) == regression


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_features_in_another_type(stored: str, tmp_path: Path) -> None:
    source = make_homogeneous(tmp_path / "source")
    options = ConvertOptions(dtype=stored, threads=1)  # type: ignore[arg-type]
    folder = Folder(convert_graphbolt(source, tmp_path / "ours", options))
    rows = torch.from_numpy(np.load(source / "f/feat.npy"))
    expected = rows.float().to(getattr(torch, stored))
    found = torch.from_numpy(folder.node("features"))
    assert torch.equal(found.view(expected.dtype), expected)
    back = np.load(export_graphbolt(folder.path, tmp_path / "back") / "f/feat.npy")
    assert back.dtype == np.float64
    np.testing.assert_array_equal(back, expected.double().numpy())


def test_undirected_makes_a_new_folder(tmp_path: Path) -> None:
    source = make_homogeneous(tmp_path / "source")
    options = ConvertOptions(undirected=True, threads=1)
    folder = Folder(convert_graphbolt(source, tmp_path / "ours", options))
    index = np.load(source / "edges.npy")
    count = 2 * EDGES - int((index[0] == index[1]).sum())
    assert folder.manifest.edges[EDGE_TYPE].count == count
    back = export_graphbolt(folder.path, tmp_path / "back")
    assert np.load(back / "edges" / "edges.npy").shape == (2, count)


def test_a_stopped_conversion_goes_on(tmp_path: Path) -> None:
    source = make_homogeneous(tmp_path / "source")
    whole = convert_graphbolt(source, tmp_path / "whole", OPTIONS)
    for stop in ("indptr", "edge_features", "half", "train", "labels"):

        def progress(what: str, done: int, total: int, stop: str = stop) -> None:
            if what == stop and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_graphbolt(source, tmp_path / "ours", ConvertOptions(progress=progress))
    ours = convert_graphbolt(source, tmp_path / "ours", OPTIONS)
    assert sorted(file.name for file in ours.iterdir()) == sorted(f.name for f in whole.iterdir())
    for file in whole.iterdir():
        assert file.read_bytes() == (ours / file.name).read_bytes()


# Other folders ------------------------------------------------------------------------------------


def test_other_folders_go_out_whole(tmp_path: Path) -> None:
    """Features, edges with what belongs to them, splits and labels, in GraphBolt's terms."""
    from torch_geometric.data import Data

    data = Data(
        x=torch.rand(NODES, 4).bfloat16(),
        y=torch.randint(3, (NODES,)),
        edge_index=torch.randint(NODES, (2, EDGES)),
        edge_attr=torch.rand(EDGES, 2),
        time=torch.arange(NODES),
        train_mask=torch.arange(NODES) < 10,
        test_mask=torch.arange(NODES) >= 40,
    )
    ours = convert_pyg(data, tmp_path / "ours", OPTIONS, name="random")
    out = export_graphbolt(ours, tmp_path / "out")
    again = Folder(convert_graphbolt(out, tmp_path / "again", OPTIONS))
    np.testing.assert_array_equal(again.node("features"), data.x.float().numpy())
    np.testing.assert_array_equal(again.node("label"), data.y.numpy())
    np.testing.assert_array_equal(again.node("time"), np.arange(NODES))
    np.testing.assert_array_equal(again.node("train"), np.arange(10))
    np.testing.assert_array_equal(again.node("test"), np.arange(40, NODES))
    np.testing.assert_array_equal(again.node("labels")[:10], data.y[:10].numpy())
    for table in ("indptr", "indices", "edge_features"):
        np.testing.assert_array_equal(again.edge(table), np.load(ours / f"{table}.npy"))
    assert again.manifest.task is not None
    assert again.manifest.task.num_classes == int(data.y.max()) + 1


def test_what_a_killed_export_wrote_is_removed_by_the_next(tmp_path: Path) -> None:
    ours = convert_graphbolt(make_homogeneous(tmp_path / "source"), tmp_path / "ours", OPTIONS)

    def kill(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    place = tmp_path / "exports"
    child = os.fork()
    if child == 0:
        export_graphbolt(ours, place / "out", progress=kill)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (left,) = place.iterdir()
    assert left.name != "out"
    assert_same_folder(tmp_path / "source", export_graphbolt(ours, place / "out"))
    assert list(place.iterdir()) == [place / "out"]


def test_export_refuses_to_overwrite_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = convert_graphbolt(make_homogeneous(tmp_path / "source"), tmp_path / "ours", OPTIONS)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ArgumentError, match="used: exists already"):
        export_graphbolt(ours, tmp_path / "used")
    (tmp_path / "empty").mkdir()
    assert_same_folder(tmp_path / "source", export_graphbolt(ours, tmp_path / "empty"))
    with pytest.raises(MissingFileError, match=r"graph\.json: no such file"):
        export_graphbolt(tmp_path / "nothing", tmp_path / "out")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gnnsys.convert.graphbolt_files.write_whole", full)
    with pytest.raises(StorageError, match=r"edges\.npy: cannot be written.*make room"):
        export_graphbolt(ours, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["empty", "ours", "source", "used"]


def change_source(ours: Path, change: Callable[[Any], Any]) -> None:
    graph = json.loads((ours / "graph.json").read_text())
    change(graph["source"]["graphbolt"])
    (ours / "graph.json").write_text(json.dumps(graph))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept["files"][0].update(path="../evil.npy"), "expected a path inside"),
        (lambda kept: kept["files"][0].update(path="/tmp/evil.npy"), "expected a path inside"),
        (
            lambda kept: kept["files"][0].pop("dtype"),
            r"source.graphbolt: no files\[0\].dtype; convert",
        ),
        (lambda kept: kept.pop("metadata"), "source.graphbolt: no metadata; convert"),
        (lambda kept: kept["files"][0].update(of=["a", "b", "c"]), "not in the graph"),
    ],
)
def test_a_changed_graph_json_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    ours = convert_graphbolt(make_homogeneous(tmp_path / "source"), tmp_path / "ours", OPTIONS)
    change_source(ours, change)
    with pytest.raises(FileFormatError, match=message):
        export_graphbolt(ours, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["ours", "source"]


def test_colons_in_names_are_refused(tmp_path: Path) -> None:
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["http://a"].num_nodes = 2
    data["http://a", "is", "http://a"].edge_index = torch.tensor([[0], [1]])
    ours = convert_pyg(data, tmp_path / "ours", OPTIONS, name="uris")
    with pytest.raises(UnsupportedError, match="'http://a' has a colon"):
        export_graphbolt(ours, tmp_path / "out")


# Bad input ----------------------------------------------------------------------------------------


def edit(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
        change(metadata)
        (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))

    return run


def cut(path: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: len(data) * 2 // 3])

    return run


def put(path: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / path, array)


def write(path: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_text(text)


BAD: dict[str, tuple[Callable[[Path], Any], type[GnnsysError], str]] = {
    "no metadata": (
        lambda f: (f / "metadata.yaml").unlink(),
        MissingFileError,
        "metadata.yaml: no",
    ),
    "not YAML": (write("metadata.yaml", "graph: [unclosed"), FileFormatError, "yaml: not YAML"),
    "not UTF-8": (
        lambda f: (f / "metadata.yaml").write_bytes(b"\xff\xfe\x00\xd8"),
        FileFormatError,
        "not YAML",
    ),
    "a list": (
        write("metadata.yaml", "- 1"),
        FileFormatError,
        r"it is \[1\], expected an object",
    ),
    "no graph": (edit(lambda m: m.pop("graph")), FileFormatError, "yaml: no graph; see DGL"),
    "no nodes": (edit(lambda m: m["graph"].pop("nodes")), FileFormatError, "no graph.nodes; see"),
    "no num": (
        edit(lambda m: m["graph"].update(nodes=[{}])),
        FileFormatError,
        r"no graph.nodes\[0\].num; see",
    ),
    "wrong num": (
        edit(lambda m: m["graph"]["nodes"][0].update(num="many")),
        FileFormatError,
        "num is 'many', expected an integer",
    ),
    "no path": (
        edit(lambda m: m["graph"]["edges"][0].pop("path")),
        FileFormatError,
        r"no graph.edges\[0\].path; see",
    ),
    "wrong format": (
        edit(lambda m: m["feature_data"][0].update(format="csv")),
        FileFormatError,
        r"feature_data\[0\].format is 'csv', expected one of 'numpy', 'torch'",
    ),
    "wrong domain": (
        edit(lambda m: m["feature_data"][0].update(domain="city")),
        FileFormatError,
        "domain is 'city'",
    ),
    "a path outside": (
        edit(lambda m: m["feature_data"][0].update(path="../feat.npy")),
        FileFormatError,
        "'../feat.npy', expected a path inside the folder",
    ),
    "a type": (
        edit(lambda m: m["feature_data"][0].update(type="paper")),
        FileFormatError,
        "'paper', but the graph has no types",
    ),
    "preprocessed": (
        edit(lambda m: m.update(graph_topology=m.pop("graph"))),
        FileFormatError,
        "preprocessed form; give the folder above",
    ),
    "no file": (
        lambda f: (f / "f/feat.npy").unlink(),
        MissingFileError,
        "f/feat.npy: no such file",
    ),
    "cut features": (cut("f/feat.npy"), FileFormatError, "f/feat.npy: not a whole"),
    "cut edges": (cut("edges.npy"), FileFormatError, "edges.npy: not a whole"),
    "cut tensor": (cut("f/b.pt"), FileFormatError, "f/b.pt: torch cannot read"),
    "objects": (
        lambda f: np.save(f / "f/feat.npy", np.array([{}, None]), allow_pickle=True),
        FileFormatError,
        "f/feat.npy: not a whole",
    ),
    "strings": (put("f/feat.npy", np.array(["a"] * NODES)), FileFormatError, "expected numbers"),
    "rows": (put("f/feat.npy", np.zeros((49, 7))), FileFormatError, "49 feature rows != 50 nodes"),
    "edge rows": (put("f/e.npy", np.zeros((399, 2))), FileFormatError, "399 rows != 400 edges"),
    "edges turned": (
        put("edges.npy", np.zeros((EDGES, 2), int)),
        FileFormatError,
        r"int64 \(400, 2\), expected integers \(2, edges\)",
    ),
    "edges of floats": (
        put("edges.npy", np.zeros((2, EDGES))),
        FileFormatError,
        "expected integers",
    ),
    "edge outside": (
        put("edges.npy", np.full((2, EDGES), 50)),
        FileFormatError,
        r"50, outside the nodes \[0, 50\)",
    ),
    "seed outside": (
        put("sets/test_set_seeds.npy", np.arange(41, 51)),
        FileFormatError,
        r"id 50 at position 9 is outside",
    ),
    "seed twice": (
        put("sets/test_set_seeds.npy", np.zeros(10, int)),
        FileFormatError,
        "id 0 is there 10 times",
    ),
    "labels too few": (
        put("sets/train_set_labels.npy", np.zeros(19, int)),
        FileFormatError,
        "19 labels != 20 seeds",
    ),
    "class too high": (
        put("sets/train_set_labels.npy", np.full(20, 5)),
        FileFormatError,
        "class 5, expected below 5",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_folders_are_one_error_and_leave_nothing(what: str, tmp_path: Path) -> None:
    damage, error, message = BAD[what]
    source = make_homogeneous(tmp_path / "source")
    damage(source)
    with pytest.raises(error, match=message):
        convert_graphbolt(source, tmp_path / "ours", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["source"]


BAD_TYPES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no type": (
        edit(lambda m: m["graph"]["nodes"][1].pop("type")),
        r"no graph.nodes\[1\].type; see",
    ),
    "type twice": (edit(lambda m: m["graph"]["nodes"][1].update(type="author")), "there twice"),
    "edge type": (
        edit(lambda m: m["graph"]["edges"][0].update(type="author:writes:book")),
        "'author:writes:book', expected SOURCE:RELATION:TARGET with node types of author",
    ),
    "edge type twice": (
        edit(lambda m: m["graph"]["edges"][1].update(type="author:writes:paper")),
        "'author:writes:paper', which is there twice",
    ),
    "feature type": (
        edit(lambda m: m["feature_data"][0].update(type="book")),
        "'book', which the graph does not have",
    ),
    "feature edges": (
        edit(lambda m: m["feature_data"][3].update(type="paper:writes:author")),
        "'paper:writes:author', which the graph does not have",
    ),
    "csv columns": (write("e/w.csv", "1,2,3\n"), "3 columns, expected source, target"),
    "csv text": (write("e/w.csv", "1,2\na,b\n"), "column src, line 2: expected int64"),
    "csv gap": (write("e/w.csv", "1,2\n3,\n"), "a field is empty"),
    "csv cut": (cut("e/p.csv.gz"), "e/p.csv.gz: "),
    "csv source": (write("e/w.csv", "30,2\n"), r"source 30, outside the nodes \[0, 30\)"),
}


@pytest.mark.parametrize("what", BAD_TYPES)
def test_bad_types_are_one_error_and_leave_nothing(what: str, tmp_path: Path) -> None:
    damage, message = BAD_TYPES[what]
    source = make_heterogeneous(tmp_path / "source")
    damage(source)
    with pytest.raises(FileFormatError, match=message):
        convert_graphbolt(source, tmp_path / "ours", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["source"]


def test_labels_that_contradict_each_other(tmp_path: Path) -> None:
    source = make_homogeneous(tmp_path / "source")
    train = np.load(source / "sets/train_set_seeds.npy")
    labels = np.load(source / "sets/train_set_labels.npy")
    np.save(source / "sets/test_set_seeds.npy", train[:10])
    np.save(source / "sets/test_set_labels.npy", labels[:10])
    convert_graphbolt(source, tmp_path / "ours", OPTIONS)
    np.save(source / "sets/test_set_labels.npy", (labels[:10] + 1) % 5)
    with pytest.raises(FileFormatError, match=f"node {train[0]} has the label .* in another set"):
        convert_graphbolt(source, tmp_path / "more", OPTIONS)


def test_yaml_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_homogeneous(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UnsupportedError, match=r"needs PyYAML.*pip install 'gnnsys\[convert\]'"):
        convert_graphbolt(source, tmp_path / "ours", OPTIONS)


def test_undirected_needs_one_type(tmp_path: Path) -> None:
    source = make_heterogeneous(tmp_path / "source")
    with pytest.raises(ArgumentError, match="undirected is for graphs of one type"):
        convert_graphbolt(source, tmp_path / "ours", ConvertOptions(undirected=True))


# DGL ----------------------------------------------------------------------------------------------

LOADS = """
import json, sys, torch, dgl.graphbolt as gb
dataset = gb.OnDiskDataset(sys.argv[1], include_original_edge_id=True).load()
graph, found = dataset.graph, {}
found["nodes"] = graph.num_nodes
found["edges"] = graph.total_num_edges
found["indptr"] = graph.csc_indptr.tolist()
found["indices"] = graph.indices.tolist()
found["features"] = {}
for key, value in dataset.feature._features.items():
    name = "/".join(str(getattr(part, "value", part)) for part in key)
    rows = value.read()
    found["features"][name] = [str(rows.dtype), list(rows.shape), rows.double().sum().item()]
found["tasks"] = [
    {name: len(getattr(task, name) or []) for name in ("train_set", "validation_set", "test_set")}
    for task in dataset.tasks
]
if len(sys.argv) > 2:
    items = gb.ItemSampler(dataset.tasks[0].train_set, batch_size=4)
    for batch in items.sample_neighbor(graph, [3, 3]):
        found["batch"] = [len(batch.seeds), len(batch.labels)]
        break
print(json.dumps(found))
"""


@pytest.fixture
def load_with_dgl() -> Callable[..., Any]:
    python = os.environ.get(DGL)
    if not python:
        pytest.skip(f"name a Python with DGL in {DGL} to load what is exported with GraphBolt")

    def run(folder: Path, *more: str) -> Any:
        environment = os.environ | {"DGLBACKEND": "pytorch"}
        command = [python, "-c", LOADS, str(folder), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_dgl_loads_cora(load_with_dgl: Any, real_graphs: Path, tmp_path: Path) -> None:
    ours = Folder(convert_pyg_name("cora", real_graphs, tmp_path / "ours", OPTIONS))
    found = load_with_dgl(export_graphbolt(ours.path, tmp_path / "out"), "sample")
    assert (found["nodes"], found["edges"]) == (2708, 10556)
    assert found["indptr"] == ours.edge("indptr").tolist()
    assert found["indices"] == ours.edge("indices").tolist()
    dtype, shape, total = found["features"]["node/None/feat"]
    assert (dtype, shape) == ("torch.float32", [2708, 1433])
    assert total == pytest.approx(ours.node("features").astype(np.float64).sum(), rel=1e-9)
    assert found["tasks"] == [{"train_set": 140, "validation_set": 500, "test_set": 1000}]
    assert found["batch"] == [4, 4]


def test_dgl_loads_dblp(load_with_dgl: Any, real_graphs: Path, tmp_path: Path) -> None:
    ours = Folder(convert_pyg_name("dblp", real_graphs, tmp_path / "ours", OPTIONS))
    found = load_with_dgl(export_graphbolt(ours.path, tmp_path / "out"))
    assert found["nodes"] == {name: nodes.count for name, nodes in ours.manifest.nodes.items()}
    assert found["edges"] == 239566
    total = found["features"]["node/author/feat"][2]
    assert total == pytest.approx(ours.node("features", "author").astype(np.float64).sum())
    assert len(found["tasks"]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_dgl_loads_both_sides_of_a_round_trip_alike(
    kind: str, load_with_dgl: Any, tmp_path: Path
) -> None:
    source = KINDS[kind](tmp_path / "source")
    metadata = yaml.safe_load((source / "metadata.yaml").read_text())
    # GraphBolt itself takes neither bfloat16, nor another order of bytes, nor features of a graph;
    # and with pandas 3 no CSV either.
    refused = ("f/big.npy", "f/b.pt", "f/w.pt", "f/ids.npy", "f/graph.npy")
    entries = metadata["feature_data"]
    metadata["feature_data"] = [entry for entry in entries if entry["path"] not in refused]
    for entry in metadata["graph"]["edges"]:
        if entry["format"] == "csv":
            edges = load(source / entry["path"], "csv").T
            entry |= {"format": "numpy", "path": f"{entry['path']}.npy"}
            np.save(source / entry["path"], edges)
    (source / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    back = export_graphbolt(
        convert_graphbolt(source, tmp_path / "ours", OPTIONS), tmp_path / "back"
    )
    assert load_with_dgl(source) == load_with_dgl(back)
