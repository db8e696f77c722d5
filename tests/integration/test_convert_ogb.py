"""Small raw folders in the layouts of OGB's datasets, against what ogb's loaders make of them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.ogb import NAMES, convert_ogb, is_ogb
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, read_manifest
from gnnsys.errors import ArgumentError, FileFormatError, GnnsysError, MissingFileError

OPTIONS = ConvertOptions(threads=1)
NODES, EDGES = 40, 300


class Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.manifest = path, read_manifest(path)

    def node(self, name: str, node_type: str = NODE_TYPE) -> Any:
        return np.load(self.path / self.manifest.nodes[node_type].tables[name].shards[0].path)

    def edge(self, name: str, edge_type: EdgeType = EDGE_TYPE) -> Any:
        return np.load(self.path / self.manifest.edges[edge_type].tables[name].shards[0].path)


def save_text(path: Path, rows: Any, header: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.asarray(rows)
    rows = rows[:, None] if rows.ndim == 1 else rows
    lines = [header] if header else []
    lines += [",".join(str(value) for value in row) for row in rows.tolist()]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def save_split(folder: Path, random: np.random.Generator, nodes: int = NODES) -> list[NDArray[Any]]:
    parts = np.split(random.permutation(nodes), [nodes // 2, nodes * 3 // 4])
    for name, ids in zip(("train", "valid", "test"), parts, strict=True):
        save_text(folder / f"{name}.csv.gz", ids)
    return parts


Made = dict[str, Any]


def make_text(root: Path, name: str, seed: int = 5) -> Made:
    """arxiv, products or proteins."""
    random = np.random.default_rng(seed)
    folder = root / name.replace("-", "_")
    made: Made = {"folder": folder, "edges": random.integers(0, NODES, (EDGES, 2))}
    made["edges"][7] = 3  # a self loop
    save_text(folder / "raw" / "num-node-list.csv.gz", [NODES])
    save_text(folder / "raw" / "num-edge-list.csv.gz", [EDGES])
    save_text(folder / "raw" / "edge.csv.gz", made["edges"])
    if name == "ogbn-proteins":
        made["labels"] = random.integers(0, 2, (NODES, 112))
        made["edge_features"] = random.random((EDGES, 8), np.float32).round(3)
        made["species"] = random.integers(3000, 9000, NODES)
        save_text(folder / "raw" / "edge-feat.csv.gz", made["edge_features"])
        save_text(folder / "raw" / "node_species.csv.gz", made["species"])
    else:
        made["labels"] = random.integers(0, 40, NODES)
        made["features"] = random.standard_normal((NODES, 6)).astype(np.float32)
        save_text(folder / "raw" / "node-feat.csv.gz", made["features"])
    if name == "ogbn-arxiv":
        made["time"] = random.integers(1990, 2020, NODES)
        save_text(folder / "raw" / "node_year.csv.gz", made["time"])
    save_text(folder / "raw" / "node-label.csv.gz", made["labels"])
    schemes = {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking", "ogbn-proteins": "species"}
    made["split"] = save_split(folder / "split" / schemes[name], random)
    return made


def make_binary(root: Path, save: Callable[..., None] = np.savez, order: Any = "C") -> Made:
    """papers100M."""
    random = np.random.default_rng(6)
    folder = root / "ogbn_papers100M"
    (folder / "raw").mkdir(parents=True)
    made: Made = {"folder": folder, "edges": random.integers(0, NODES, (EDGES, 2))}
    made["features"] = random.random((NODES, 6), np.float32)
    made["time"] = random.integers(1990, 2020, NODES)
    labels = random.integers(0, 172, NODES).astype(np.float32)
    labels[random.permutation(NODES)[:30]] = np.nan
    made["labels"] = np.where(np.isnan(labels), -1, labels)
    save(
        folder / "raw" / "data.npz",
        num_nodes_list=np.array([NODES]),
        num_edges_list=np.array([EDGES]),
        edge_index=np.array(made["edges"].T, order=order),
        node_feat=made["features"],
        node_year=made["time"][:, None],
    )
    save(folder / "raw" / "node-label.npz", node_label=labels[:, None])
    made["split"] = save_split(folder / "split" / "time", random)
    return made


MAG = {"author": 30, "paper": NODES, "institution": 5}
TRIPLETS = [
    ("paper", "cites", "paper"),
    ("author", "writes", "paper"),
    ("author", "affiliated_with", "institution"),
]


def make_mag(root: Path) -> Made:
    random = np.random.default_rng(7)
    folder = root / "ogbn_mag"
    raw = folder / "raw"
    made: Made = {"folder": folder, "edges": {}, "reltype": {}}
    save_text(raw / "num-node-dict.csv.gz", [list(MAG.values())], ",".join(MAG))
    save_text(raw / "triplet-type-list.csv.gz", TRIPLETS)
    has = [[kind == "paper" for kind in MAG]]
    for file in ("nodetype-has-feat", "nodetype-has-label"):
        save_text(raw / f"{file}.csv.gz", has, ",".join(MAG))
    save_text(folder / "split" / "time" / "nodetype-has-split.csv.gz", has, ",".join(MAG))
    for number, triplet in enumerate(TRIPLETS):
        place = raw / "relations" / "___".join(triplet)
        edges = np.stack([random.integers(0, MAG[triplet[i]], EDGES) for i in (0, 2)], axis=1)
        made["edges"][triplet] = edges
        made["reltype"][triplet] = np.full(EDGES, number)
        save_text(place / "edge.csv.gz", edges)
        save_text(place / "num-edge-list.csv.gz", [EDGES])
        save_text(place / "edge_reltype.csv.gz", made["reltype"][triplet])
    made["features"] = random.standard_normal((NODES, 6)).astype(np.float32)
    made["time"] = random.integers(2010, 2020, NODES)
    made["labels"] = random.integers(0, 349, NODES)
    save_text(raw / "node-feat" / "paper" / "node-feat.csv.gz", made["features"])
    save_text(raw / "node-feat" / "paper" / "node_year.csv.gz", made["time"])
    save_text(raw / "node-label" / "paper" / "node-label.csv.gz", made["labels"])
    made["split"] = save_split(folder / "split" / "time" / "paper", random)
    return made


def assert_same_edges(
    folder: Folder, edges: NDArray[Any], kind: EdgeType, **tables: NDArray[Any]
) -> None:
    source, target = edges.T
    order = np.lexsort((np.arange(len(edges)), source, target))
    counts = np.diff(folder.edge("indptr", kind))
    np.testing.assert_array_equal(np.repeat(np.arange(len(counts)), counts), target[order])
    np.testing.assert_array_equal(folder.edge("indices", kind), source[order])
    for name, rows in tables.items():
        np.testing.assert_array_equal(folder.edge(name, kind), rows[order])
        assert folder.edge(name, kind).dtype == rows.dtype


def assert_same_nodes(folder: Folder, made: Made, node_type: str) -> None:
    for name in ("features", "labels", "time", "species"):
        tables = folder.manifest.nodes[node_type].tables
        assert (name in tables) == (name in made)
        if name in made:
            np.testing.assert_array_equal(folder.node(name, node_type), made[name])
    for name, ids in zip(("train", "val", "test"), made["split"], strict=True):
        np.testing.assert_array_equal(folder.node(name, node_type), ids)


def as_ogb_adds_reverses(edges: NDArray[Any]) -> NDArray[Any]:
    """ogb.io.read_graph_raw repeats every edge and turns the second one round."""
    both = np.repeat(edges, 2, axis=0)
    both[1::2] = both[1::2, ::-1]
    return both


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-proteins"])
def test_text_layout(name: str, tmp_path: Path) -> None:
    made = make_text(tmp_path / "root", name)
    assert is_ogb(made["folder"])
    folder = Folder(convert_ogb(name, tmp_path / "root", tmp_path / "out", OPTIONS))
    assert_same_nodes(folder, made, NODE_TYPE)
    edges, tables = made["edges"], {}
    if name != "ogbn-arxiv":
        edges = as_ogb_adds_reverses(edges)
    if name == "ogbn-proteins":
        tables["edge_features"] = np.repeat(made["edge_features"], 2, axis=0)
    assert_same_edges(folder, edges, EDGE_TYPE, **tables)
    task = folder.manifest.task
    assert task is not None
    expected = {
        "ogbn-arxiv": (40, False, "accuracy"),
        "ogbn-products": (47, False, "accuracy"),
        "ogbn-proteins": (112, True, "rocauc"),
    }
    assert (task.num_classes, task.multi_label, task.metric) == expected[name]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_binary_layout(save: Any, order: str, tmp_path: Path) -> None:
    made = make_binary(tmp_path / "root", save, order)
    folder = Folder(convert_ogb("ogbn-papers100M", tmp_path / "root", tmp_path / "out", OPTIONS))
    assert_same_nodes(folder, made, NODE_TYPE)
    assert_same_edges(folder, made["edges"], EDGE_TYPE)
    assert folder.manifest.task is not None
    assert folder.manifest.task.num_classes == 172


def test_layout_with_types(tmp_path: Path) -> None:
    made = make_mag(tmp_path / "root")
    folder = Folder(convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "out", OPTIONS))
    assert {kind: nodes.count for kind, nodes in folder.manifest.nodes.items()} == MAG
    assert_same_nodes(folder, made, "paper")
    assert folder.manifest.nodes["author"].tables == {}
    for triplet in TRIPLETS:
        reltype = made["reltype"][triplet]
        assert_same_edges(folder, made["edges"][triplet], triplet, edge_reltype=reltype)
    assert folder.manifest.task is not None
    assert (folder.manifest.task.node_type, folder.manifest.task.num_classes) == ("paper", 349)


@pytest.mark.parametrize("layout", ["text", "binary"])
def test_edges_are_read_from_any_block_on(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks far smaller than the edges, and a stop after each kind of table."""
    monkeypatch.setattr("gnnsys.convert.arrays._BLOCK_BYTES", 800)
    monkeypatch.setattr("gnnsys.convert.text._BLOCK_BYTES", 400)
    if layout == "text":
        made, name = make_text(tmp_path / "root", "ogbn-proteins"), "ogbn-proteins"
    else:
        made, name = make_binary(tmp_path / "root"), "ogbn-papers100M"
    stops = ["labels", "read edges", "indptr", "indices"]
    stops += ["edge_id", "edge_features"] if layout == "text" else ["features", "time"]
    for stop in stops:

        def progress(what: str, done: int, total: int, stop: str = stop) -> None:
            # The second call for it, so that a part of it is there.
            if what == stop and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_ogb(
                name, tmp_path / "root", tmp_path / "out", ConvertOptions(progress=progress)
            )
    folder = Folder(convert_ogb(name, tmp_path / "root", tmp_path / "out", OPTIONS))
    assert_same_nodes(folder, made, NODE_TYPE)
    if layout == "text":
        features = np.repeat(made["edge_features"], 2, axis=0)
        edges = as_ogb_adds_reverses(made["edges"])
        assert_same_edges(folder, edges, EDGE_TYPE, edge_features=features)
    else:
        assert_same_edges(folder, made["edges"], EDGE_TYPE)


def test_undirected_adds_reverses_only_to_directed_graphs(tmp_path: Path) -> None:
    options = ConvertOptions(undirected=True, threads=1)
    edges = make_text(tmp_path / "root", "ogbn-arxiv")["edges"]
    folder = Folder(convert_ogb("ogbn-arxiv", tmp_path / "root", tmp_path / "arxiv", options))
    loops = int((edges[:, 0] == edges[:, 1]).sum())
    assert folder.manifest.edges[EDGE_TYPE].count == 2 * EDGES - loops
    make_text(tmp_path / "root", "ogbn-products")
    folder = Folder(convert_ogb("ogbn-products", tmp_path / "root", tmp_path / "products", options))
    assert folder.manifest.edges[EDGE_TYPE].count == 2 * EDGES
    make_mag(tmp_path / "root")
    with pytest.raises(ArgumentError, match="ogbn-mag: undirected is for graphs of one type"):
        convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "mag", options)


def test_folders_are_found_under_their_other_names(tmp_path: Path) -> None:
    folder = make_text(tmp_path, "ogbn-arxiv")["folder"]
    paths = [convert_ogb("ogbn-arxiv", folder, tmp_path / "out0", OPTIONS)]
    for number, name in enumerate(["arxiv", "ogbn-arxiv"], start=1):
        folder = folder.rename(tmp_path / name)
        paths.append(convert_ogb(name, tmp_path, tmp_path / f"out{number}", OPTIONS))
    assert len({(path / "indices.npy").read_bytes() for path in paths}) == 1


def test_names_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'ogbn-cora' is unknown: expected one of ogbn-arxiv"):
        convert_ogb("ogbn-cora", tmp_path, tmp_path / "out", OPTIONS)
    for name in NAMES:
        place = str(tmp_path / name.replace("-", "_") / "raw")
        with pytest.raises(MissingFileError, match=place):
            convert_ogb(name, tmp_path, tmp_path / "out", OPTIONS)
    assert not is_ogb(tmp_path)
    assert list(tmp_path.iterdir()) == []


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def append(path: Path, line: str) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + line.encode()))


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[GnnsysError], str]] = {
    "no edges": (lambda raw: (raw / "edge.csv.gz").unlink(), MissingFileError, "edge.csv.gz"),
    "no labels": (lambda raw: (raw / "node-label.csv.gz").unlink(), MissingFileError, "node-label"),
    "cut edges": (lambda raw: cut(raw / "edge.csv.gz", 0.5), FileFormatError, "edge.csv.gz: "),
    "cut features": (lambda raw: cut(raw / "node-feat.csv.gz", 0.5), FileFormatError, "node-feat"),
    "not gzip": (
        lambda raw: (raw / "node-label.csv.gz").write_bytes(b"\x01\x02" * 50),
        FileFormatError,
        "node-label",
    ),
    "an edge too many": (
        lambda raw: append(raw / "edge.csv.gz", "1,2\n"),
        FileFormatError,
        "edge.csv.gz: 301 edges != 300 in num-edge-list",
    ),
    "an id outside": (
        lambda raw: save_text(raw / "edge.csv.gz", np.full((EDGES, 2), NODES)),
        FileFormatError,
        r"40, outside the nodes \[0, 40\)",
    ),
    "three columns": (
        lambda raw: save_text(raw / "edge.csv.gz", np.zeros((EDGES, 3), int)),
        FileFormatError,
        "edge.csv.gz: 3 columns, expected source, target",
    ),
    "text for a number": (
        lambda raw: append(raw / "edge.csv.gz", "1,x\n"),
        FileFormatError,
        "edge.csv.gz: column dst, line 301: expected int64",
    ),
    "a label too many": (
        lambda raw: append(raw / "node-label.csv.gz", "3\n"),
        FileFormatError,
        "node-label.csv.gz: 41 labels != 40 nodes",
    ),
    "a class too high": (
        lambda raw: save_text(raw / "node-label.csv.gz", np.full(NODES, 40)),
        FileFormatError,
        "class 40, expected below 40",
    ),
    "a feature row too few": (
        lambda raw: save_text(raw / "node-feat.csv.gz", np.zeros((39, 6))),
        FileFormatError,
        "39 feature rows != 40 nodes",
    ),
    "two graphs": (
        lambda raw: save_text(raw / "num-node-list.csv.gz", [20, 20]),
        FileFormatError,
        "the sizes of 2 graphs, expected 1",
    ),
    "no year": (
        lambda raw: save_text(raw / "node_year.csv.gz", ["nan"] * NODES),
        FileFormatError,
        "node_year.csv.gz: a field is empty or NaN",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_text_is_one_error_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    damage, error, message = DAMAGE[what]
    make_text(tmp_path / "root", "ogbn-arxiv")
    damage(tmp_path / "root" / "ogbn_arxiv" / "raw")
    with pytest.raises(error, match=message):
        convert_ogb("ogbn-arxiv", tmp_path / "root", tmp_path / "out", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["root"]


def test_missing_and_wrong_splits(tmp_path: Path) -> None:
    split = make_text(tmp_path / "root", "ogbn-arxiv")["folder"] / "split" / "time"
    save_text(split / "valid.csv.gz", [0, NODES])
    with pytest.raises(FileFormatError, match=r"valid.csv.gz: id 40 at position 1 is outside"):
        convert_ogb("ogbn-arxiv", tmp_path / "root", tmp_path / "out", OPTIONS)
    (split / "test.csv.gz").unlink()
    save_text(split / "valid.csv.gz", [0, 1])
    with pytest.raises(MissingFileError, match=r"time/test\.csv\.gz: no such file"):
        convert_ogb("ogbn-arxiv", tmp_path / "root", tmp_path / "out", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["root"]


def test_a_gap_among_whole_numbers_is_refused(tmp_path: Path) -> None:
    raw = make_mag(tmp_path / "root")["folder"] / "raw"
    gap = ["1"] * (EDGES - 1) + ["nan"]
    save_text(raw / "relations" / "paper___cites___paper" / "edge_reltype.csv.gz", gap)
    with pytest.raises(FileFormatError, match=r"edge_reltype.csv.gz: NaN among whole numbers"):
        convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "out", OPTIONS)


def test_damaged_binary_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    raw = make_binary(tmp_path / "root")["folder"] / "raw"
    whole = (raw / "data.npz").read_bytes()

    def expect(message: str) -> None:
        with pytest.raises(FileFormatError, match=message):
            convert_ogb("ogbn-papers100M", tmp_path / "root", tmp_path / "out", OPTIONS)
        assert [place.name for place in tmp_path.iterdir()] == ["root"]

    cut(raw / "data.npz", 0.6)
    expect(r"data\.npz: not a whole \.npz file")
    # A bit of an edge, which the archive's checksum tells.
    place = whole.index(b"edge_index.npy") + 2000
    (raw / "data.npz").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    expect(r"edge_index: (damaged|edge \d+ has)|outside the nodes")
    np.savez(raw / "data.npz", num_nodes_list=[NODES], num_edges_list=[EDGES])
    expect("no array 'edge_index'")
    np.savez(
        raw / "data.npz",
        num_nodes_list=[NODES],
        num_edges_list=[EDGES],
        edge_index=np.zeros((2, EDGES - 1), int),
    )
    expect(r"int64 \(2, 299\), expected integers \(2, 300\)")
    (raw / "data.npz").write_bytes(whole)
    np.savez(raw / "node-label.npz", node_label=np.full((NODES, 1), 0.5, np.float32))
    expect("labels are not whole numbers")
    np.savez(raw / "node-label.npz", node_label=np.zeros((NODES - 1, 1), np.float32))
    expect("39 labels != 40 nodes")


def test_types_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    raw = make_mag(tmp_path / "root")["folder"] / "raw"
    save_text(raw / "triplet-type-list.csv.gz", [("paper", "cites", "book")])
    with pytest.raises(FileFormatError, match=r"'book'.*expected source, relation, target"):
        convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "out", OPTIONS)
    save_text(raw / "triplet-type-list.csv.gz", [("paper", "is", "paper")])
    with pytest.raises(MissingFileError, match="paper___is___paper/num-edge-list"):
        convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "out", OPTIONS)
    save_text(raw / "num-node-dict.csv.gz", [["few", 3, 4]], "paper,author,institution")
    with pytest.raises(FileFormatError, match="paper few; expected numbers of nodes"):
        convert_ogb("ogbn-mag", tmp_path / "root", tmp_path / "out", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["root"]
