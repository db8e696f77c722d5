"""A dataset folder that is open: what it holds, for people, for gnnsys' loader and for PyG's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import EdgeAttr
from torch_geometric.data.graph_store import EdgeLayout
from torch_geometric.loader import NodeLoader

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.format import Task
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError

NODES, EDGES, CLASSES = 300, 2000, 4
DRAW = np.random.default_rng(11)
PAIRS = DRAW.integers(0, NODES - 5, (2, EDGES))
FEATURES = DRAW.standard_normal((NODES, 6)).astype(np.float32)
LABELS = DRAW.integers(0, CLASSES, NODES)
TIMES = DRAW.integers(0, 1 << 40, EDGES)
WRITES, PAPER, AUTHOR = ("author", "writes", "paper"), "paper", "author"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A homogeneous graph with everything."""
    place = tmp_path_factory.mktemp("source")
    for name, rows in (("e", PAIRS), ("x", FEATURES), ("y", LABELS), ("t", TIMES)):
        np.save(place / f"{name}.npy", rows)
    spec = EdgeListSpec(
        edges=place / "e.npy",
        name="all of [it]",
        features=place / "x.npy",
        labels=place / "y.npy",
        edge_time=str(place / "t.npy"),
        random_split=(0.5, 0.25, 0.0),
    )
    return convert_edge_list(spec, place / "[g]", ConvertOptions())


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A heterogeneous graph: 5 authors write 3 papers."""
    place = tmp_path_factory.mktemp("papers") / "g"
    tables: dict[str, tuple[str, NDArray[Any]]] = {
        "features": (PAPER, FEATURES[:3]),
        "labels": (PAPER, LABELS[:3]),
        "train": (PAPER, np.array([2])),
        "time": (AUTHOR, np.arange(5)),
    }
    with DatasetWriter(place, name="papers", heterogeneous=True) as writer:
        writer.add_nodes(3, PAPER)
        writer.add_nodes(5, AUTHOR)
        for name, (kind, rows) in tables.items():
            writer.write_nodes(name, cut_rows(rows), rows.shape, rows.dtype.name, kind)
        writer.add_edges(4, WRITES)
        for name, rows in (
            ("indptr", np.array([0, 1, 1, 4])),
            ("indices", np.array([4, 0, 0, 3], np.int32)),
        ):
            writer.write_edges(name, cut_rows(rows), rows.shape, rows.dtype.name, WRITES)
        writer.task = Task(node_type=PAPER, num_classes=CLASSES)
        return writer.commit()


def copy_of(folder: Path, place: Path) -> Path:
    """A folder that may be spoilt."""
    return Path(shutil.copytree(folder, place / "copy"))


def true_edges() -> set[tuple[int, int]]:
    return set(zip(*PAIRS.tolist(), strict=True))


# Homogeneous --------------------------------------------------------------------------------------


def test_what_is_in_the_folder_is_told(folder: Path) -> None:
    found = gnnsys.open_dataset(str(folder))
    assert found.path == folder
    assert found.name == "all of [it]"
    assert not found.heterogeneous
    assert (found.node_types, found.edge_types) == (["node"], [("node", "to", "node")])
    assert (found.num_nodes(), found.num_edges()) == (NODES, EDGES)
    assert found.task == Task(node_type="node", num_classes=CLASSES)
    assert found.has("labels")
    assert not found.has("time")
    assert repr(found) == f"Dataset({str(folder)!r}, nodes={{node: {NODES}}}, edges={EDGES})"


def test_tables_are_mapped_and_the_same(folder: Path) -> None:
    found = gnnsys.open_dataset(folder)
    for rows in (found.node_table("features"), found.edge_table("indices")):
        assert isinstance(rows, np.memmap)
        assert not rows.flags.writeable
    assert np.array_equal(found.node_table("features"), FEATURES)
    assert np.array_equal(found.node_table("labels"), LABELS)
    assert np.array_equal(found.edge_table("edge_time"), TIMES[found.edge_table("edge_id")])


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float64])
def test_features_are_a_unified_tensor_over_the_file(
    dtype: torch.dtype | None, folder: Path
) -> None:
    x = gnnsys.open_dataset(folder).features(dtype=dtype, device="cpu", threads=2)
    ids = torch.tensor([7, 0, 299, 7])
    assert isinstance(x, gnnsys.UnifiedTensor)
    assert x.shape == (NODES, 6)
    assert torch.equal(x[ids], torch.from_numpy(FEATURES)[ids].to(dtype or torch.float32))


def test_the_graph_is_the_csc(folder: Path) -> None:
    graph = gnnsys.open_dataset(folder).graph()
    assert (graph.num_nodes, graph.num_edges) == (NODES, EDGES)
    target = torch.repeat_interleave(graph.indptr.diff())
    found = sorted(zip(target.tolist(), graph.indices.tolist(), strict=True))
    assert found == sorted(zip(*PAIRS[::-1].tolist(), strict=True))
    assert found == list(zip(target.tolist(), graph.indices.tolist(), strict=True))


def test_splits_are_ids_and_empty_where_there_are_none(folder: Path) -> None:
    found = gnnsys.open_dataset(folder)
    parts = [found.split(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [150, 75, 0]
    assert all(part.dtype == torch.int64 for part in parts)
    assert len(set(torch.cat(parts).tolist())) == 225
    assert found.split("holdout").tolist() == []


def test_data_is_what_pyg_takes(folder: Path) -> None:
    data = gnnsys.open_dataset(folder).to_data(device="cpu")
    assert data.num_nodes == NODES
    assert data.validate()
    edges = [tuple(edge) for edge in data.edge_index.T.tolist()]
    assert sorted(edges) == sorted(zip(*PAIRS.tolist(), strict=True))
    assert torch.equal(data.x[torch.arange(NODES)], torch.from_numpy(FEATURES))
    assert torch.equal(data.y, torch.from_numpy(LABELS))
    splits = {part: gnnsys.open_dataset(folder).split(part).tolist() for part in ("train", "val")}
    for part, ids in splits.items():
        mask = data[f"{part}_mask"]
        assert mask.nonzero().flatten().tolist() == sorted(ids)
        assert (mask.dtype, len(mask)) == (torch.bool, NODES)


def check_batches(loader: Any, seeds: int) -> None:
    """Rows of x and y are those of the nodes, and every edge is one of the graph's."""
    known, seen, edges = true_edges(), 0, 0
    for batch in loader:
        n_id = batch.n_id
        assert torch.equal(batch.x, torch.from_numpy(FEATURES)[n_id])
        assert torch.equal(batch.y, torch.from_numpy(LABELS)[n_id])
        source, target = (n_id[end].tolist() for end in batch.edge_index)
        assert set(zip(source, target, strict=True)) <= known
        seen, edges = seen + batch.batch_size, edges + len(source)
    assert seen == seeds
    assert edges > seeds


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_of_our_loader_hold_true_rows_and_edges(workers: int, folder: Path) -> None:
    found = gnnsys.open_dataset(folder)
    train = found.split("train")
    for data in (found.to_data(device="cpu"), found.stores(device="cpu")):
        loader = gnnsys.NeighborLoader(
            data, [5, 3], input_nodes=train, batch_size=32, num_workers=workers, shuffle=True
        )
        check_batches(loader, len(train))


def test_batches_of_pygs_loader_hold_true_rows_and_edges(folder: Path) -> None:
    found = gnnsys.open_dataset(folder)
    train = found.split("train")
    for data in (found.to_data(device="cpu"), found.stores(device="cpu")):
        sampler = gnnsys.NeighborSampler(data, [5, 3], seed=3)
        check_batches(NodeLoader(data, sampler, train, batch_size=32), len(train))


def test_stores_are_what_pyg_asks_for(folder: Path) -> None:
    features, graphs = gnnsys.open_dataset(folder).stores(device="cpu")
    ids = torch.tensor([5, 1])
    assert torch.equal(features[None, "x", ids], torch.from_numpy(FEATURES)[ids])
    assert torch.equal(features[None, "y", ids], torch.from_numpy(LABELS)[ids])
    (attr,) = graphs.get_all_edge_attrs()
    assert (attr.layout, attr.is_sorted, attr.size) == (EdgeLayout.CSC, True, (NODES, NODES))
    row, colptr = graphs.get_edge_index(attr)
    assert (len(row), len(colptr)) == (EDGES, NODES + 1)
    with pytest.raises(UnsupportedError, match="read-only"):
        graphs.put_edge_index((row, colptr), attr)
    with pytest.raises(KeyError):
        graphs.get_edge_index(("a", "b", "c"), layout="csc")


def test_labels_and_times_are_mapped_however_little_memory_is_left(
    papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda: 1)
    features, _ = gnnsys.open_dataset(papers).stores(device="cpu")
    read = {key: features.table(*key).store.storage for key in [(PAPER, "y"), (AUTHOR, "time")]}
    assert set(read.values()) == {"mmap"}, read
    assert features.table(PAPER, "x").store.storage != "mmap"


def test_a_graph_without_edges_or_labels_opens(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.empty((2, 0), np.int64))
    spec = EdgeListSpec(edges=tmp_path / "e.npy", name="bare", num_nodes=4)
    found = gnnsys.open_dataset(convert_edge_list(spec, tmp_path / "g", ConvertOptions()))
    found.verify()
    data = found.to_data()
    assert (data.num_nodes, data.num_edges, data.x, data.y) == (4, 0, None, None)
    loader = gnnsys.NeighborLoader(found.stores(), [3], input_nodes=torch.arange(4))
    assert [batch.n_id.tolist() for batch in loader] == [[0], [1], [2], [3]]


# Heterogeneous ------------------------------------------------------------------------------------


def test_types_have_their_tables_and_edges(papers: Path) -> None:
    found = gnnsys.open_dataset(papers)
    assert found.heterogeneous
    assert (found.node_types, found.edge_types) == ([PAPER, AUTHOR], [WRITES])
    assert (found.num_nodes(PAPER), found.num_nodes(AUTHOR), found.num_edges(WRITES)) == (3, 5, 4)
    assert found.split("train").tolist() == [2]  # of the task's node type
    assert found.split("train", AUTHOR).tolist() == []
    assert found.graph(WRITES).indices.tolist() == [4, 0, 0, 3]
    found.verify()
    with pytest.raises(UnsupportedError, match="heterogeneous graph is no Data"):
        found.to_data()


def test_stores_of_types_are_what_pyg_asks_for(papers: Path) -> None:
    features, graphs = gnnsys.open_dataset(papers).stores(device="cpu")
    ids = torch.tensor([2, 0])
    assert torch.equal(features[PAPER, "x", ids], torch.from_numpy(FEATURES)[ids])
    assert features[AUTHOR, "time", ids].tolist() == [2, 0]
    attr = EdgeAttr(WRITES, EdgeLayout.CSC, True, (5, 3))
    assert graphs.get_all_edge_attrs() == [attr]
    row, col = (ends[WRITES].tolist() for ends in graphs.coo([WRITES])[:2])
    assert sorted(zip(row, col, strict=True)) == [(0, 2), (0, 2), (3, 2), (4, 0)]


def test_names_that_are_not_there_are_told(folder: Path, papers: Path) -> None:
    homogeneous, heterogeneous = gnnsys.open_dataset(folder), gnnsys.open_dataset(papers)
    with pytest.raises(MissingFileError, match=r"node has no table 'time'; it has features, lab"):
        homogeneous.node_table("time")
    with pytest.raises(MissingFileError, match=r"author has no table 'features'; it has time"):
        heterogeneous.features(AUTHOR)
    for use in (
        lambda: heterogeneous.num_nodes("venue"),
        lambda: heterogeneous.node_table("features"),
        lambda: heterogeneous.graph(),
        lambda: heterogeneous.has("features", "venue"),
        lambda: homogeneous.num_edges(WRITES),
    ):
        with pytest.raises(ArgumentError, match=r"no type .*; it has \["):
            use()


# Checking -----------------------------------------------------------------------------------------


def test_verify_reads_everything_and_tells_how_far_it_is(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    gnnsys.open_dataset(folder).verify(lambda what, done, total: told.append((done, total)))
    data = sum(len(np.load(path, "r").tobytes()) for path in folder.glob("*.npy"))
    assert told[-1] == (data, data)
    assert told == sorted(told)


@pytest.mark.parametrize("name", ["features", "indices", "indptr", "labels", "train", "edge_time"])
@pytest.mark.parametrize("place", [0, 33, -1])
def test_one_flipped_bit_is_found_with_its_file_and_place(
    name: str, place: int, folder: Path, tmp_path: Path
) -> None:
    file = copy_of(folder, tmp_path) / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[place if place < 0 else 4096 + place] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        gnnsys.open_dataset(file.parent).verify()
    assert f"{file}: checksum 0 (from byte 4096) is " in str(caught.value)
    assert "convert the source again" in str(caught.value)


def test_an_indptr_that_descends_is_found_when_it_is_used(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "indptr.npy"
    indptr = np.load(file, mmap_mode="r+")
    indptr[5] = EDGES + 1
    indptr.flush()
    with pytest.raises(FileFormatError, match=r"indptr\.npy: entry 5 is 2001"):
        gnnsys.open_dataset(file.parent).graph()


def test_a_neighbour_outside_the_nodes_is_found(tmp_path: Path) -> None:
    for wrong in (-1, 2):
        with DatasetWriter(tmp_path / f"g{wrong}", name="wrong") as writer:
            writer.add_nodes(2)
            writer.add_edges(1)
            for name, rows in (("indptr", np.array([0, 0, 1])), ("indices", np.array([wrong]))):
                writer.write_edges(name, cut_rows(rows), rows.shape, "int64")
            found = gnnsys.open_dataset(writer.commit())
        with pytest.raises(
            FileFormatError, match=rf"id {wrong} at position 0 is outside the nodes \[0, 2\)"
        ):
            found.verify()


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def lengthen(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"x")


def overwrite_header(file: Path) -> None:
    with file.open("r+b") as start:
        start.write(b"\x93NUMPY\x01\x00\xf6\x0f{'descr': (((")


def other_array(file: Path) -> None:
    content = file.read_bytes().replace(b"'<f4'", b"'<i4'")
    file.write_bytes(content)


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (remove, MissingFileError, "no such file, but graph.json names it"),
        (make_folder, MissingFileError, "no such file, but graph.json names it"),
        (truncate, FileFormatError, "truncated: 11295 bytes, expected 11296 by graph.json"),
        (lengthen, FileFormatError, "longer than it should be: 11297 bytes, expected 11296"),
        (overwrite_header, FileFormatError, "not a whole .npy array"),
        (other_array, FileFormatError, "holds int32 (300, 6), expected float32 (300, 6)"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_error(
    spoil: Any, error: type[Exception], says: str, folder: Path, tmp_path: Path
) -> None:
    file = copy_of(folder, tmp_path) / "features.npy"
    spoil(file)
    with pytest.raises(error) as caught:
        gnnsys.open_dataset(file.parent)
    assert str(caught.value).startswith(f"{file}: {says}")


def sharded(folder: Path, tmp_path: Path, name: str, second: NDArray[Any]) -> Path:
    """A copy whose table `name` lies in two files, the second of which is elsewhere."""
    copy, elsewhere = copy_of(folder, tmp_path), tmp_path / "disk2"
    elsewhere.mkdir()
    content = json.loads((copy / "graph.json").read_text())
    table = content["nodes"]["node"]["tables"][name]
    (shard,) = table["shards"]
    np.save(elsewhere / "second.npy", second)
    whole = np.load(copy / f"{name}.npy")
    np.save(copy / f"{name}.npy", whole[:200])
    table["shards"] = [
        shard | {"rows": 200, "bytes": (copy / f"{name}.npy").stat().st_size},
        shard
        | {
            "rows": 100,
            "path": str(elsewhere / "second.npy"),
            "bytes": (elsewhere / "second.npy").stat().st_size,
        },
    ]
    (copy / "graph.json").write_text(json.dumps(content))
    return copy


def test_features_of_several_shards_are_the_rows_of_all(folder: Path, tmp_path: Path) -> None:
    dataset = gnnsys.open_dataset(sharded(folder, tmp_path, "features", FEATURES[200:]))
    ids = torch.tensor([299, 0, 199, 200, 200])
    assert torch.equal(dataset.features(device="cpu")[ids], torch.from_numpy(FEATURES)[ids])


def test_a_shard_of_other_rows_is_named(folder: Path, tmp_path: Path) -> None:
    copy = sharded(folder, tmp_path, "features", FEATURES[200:].astype(np.float64))
    with pytest.raises(FileFormatError, match=r"second\.npy: holds float64 \(100, 6\), expected"):
        gnnsys.open_dataset(copy)


def test_other_tables_of_several_shards_are_for_a_later_version(
    folder: Path, tmp_path: Path
) -> None:
    dataset = gnnsys.open_dataset(sharded(folder, tmp_path, "labels", LABELS[200:]))
    with pytest.raises(UnsupportedError, match="a table of 2 shards"):
        dataset.node_table("labels")


# Commands -----------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_info_prints_what_the_folder_holds(
    folder: Path, papers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "info", str(folder), "--verify")
    assert code == 0
    for words in ("all of [it]", "300", "2,000", "4 classes, accuracy", "features.npy", "300 x 6"):
        assert words in out
    assert out.rstrip().endswith("every table fits its checksums")
    code, out, _ = run(capsys, "info", str(papers))
    assert code == 0
    assert "author writes paper" in out


def test_info_as_json_counts_degrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", str(folder), "--json")
    facts = json.loads(out)
    assert code == 0
    degree = np.bincount(PAIRS[1], minlength=NODES)
    (edges,) = facts["edges"]
    assert edges["count"] == EDGES
    assert edges["in_degree"] == {
        "mean": pytest.approx(degree.mean()),
        "median": np.median(degree),
        "max": degree.max(),
        "zero": (degree == 0).sum(),
    }
    assert facts["nodes"]["node"]["tables"]["features"] == {
        "shape": [NODES, 6],
        "dtype": "float32",
        "scale": None,
        "row_bytes": 24,
        "bytes": 4096 + FEATURES.nbytes,
        "files": ["features.npy"],
    }
    assert facts["verified"] is False


def test_info_names_the_damaged_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy_of(folder, tmp_path) / "labels.npy"
    with file.open("r+b") as content:
        content.seek(-3, os.SEEK_END)
        content.write(b"x")
    assert run(capsys, "info", str(file.parent))[0] == 0
    code, out, err = run(capsys, "info", str(file.parent), "--verify")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"gnnsys: error: {file}: checksum 0 (from byte 4096)")


def test_convert_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="text is read through pyarrow")
    (tmp_path / "e.csv").write_text("bob,ann\nann,carl\n")
    (tmp_path / "n.csv").write_text("id,label,f\nann,x,1\nbob,y,nan\ncarl,x,3\n")
    command = ["convert", str(tmp_path / "e.csv"), str(tmp_path / "g")]
    nodes = ["--nodes", str(tmp_path / "n.csv"), "--nan", "keep"]
    code, out, _ = run(capsys, *command, *nodes, "--undirected")
    assert code == 0
    for words in ("2 classes", "NaN in features", "node_id.npy", "edge-list"):
        assert words in out
    code, _, err = run(capsys, *command)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"gnnsys: error: {tmp_path / 'g'}: exists already")
    command[2] = str(tmp_path / "h")
    code, out, _ = run(capsys, *command, "--json", "--random-split", "0.4", "0.3", "0.3")
    assert code == 0
    facts = json.loads(out.splitlines()[-1])
    assert facts["nodes"]["node"]["count"] == 3
    assert facts["source"]["random_split"] == "(0.4, 0.3, 0.3)"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", "3"], "--seed: goes with an edge list, but"),
        (["--num-nodes", "3"], "--num-nodes: goes with an edge list, but"),
        (["--memory", "much"], "--memory much: expected a number of bytes"),
    ],
)
def test_options_that_do_not_fit_are_told(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({}, tmp_path / "data.pt")
    command = ["convert", str(tmp_path / "data.pt"), str(tmp_path / "g"), *options]
    code, _, err = run(capsys, *command)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"gnnsys: error: {says}")
    assert [place.name for place in tmp_path.iterdir()] == ["data.pt"]


def test_the_order_of_a_tensor_is_kept_through_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: Tensor = torch.randn(NODES, 3)
    torch.save(values, tmp_path / "x.pt")
    np.save(tmp_path / "e.npy", PAIRS)
    options = ["--features", str(tmp_path / "x.pt"), "--dtype", "bfloat16", "--memory", "1KB"]
    code, _, _ = run(
        capsys, "convert", str(tmp_path / "e.npy"), str(tmp_path / "g"), *options, "--keep-order"
    )
    assert code == 0
    found = gnnsys.open_dataset(tmp_path / "g")
    delivered = found.features(device="cpu")[torch.arange(NODES)]
    assert torch.equal(delivered, values.to(torch.bfloat16).float())
    assert sorted(found.edge_table("edge_id").tolist()) == list(range(EDGES))


def test_bytes_of_a_cache_are_for_all_node_types_together(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "g", name="papers", heterogeneous=True) as writer:
        for kind, count in ((PAPER, 300), (AUTHOR, 100)):
            writer.add_nodes(count, kind)
            rows = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
            writer.write_nodes("features", cut_rows(rows), rows.shape, "float32", kind)
        path = writer.commit()
    features, _ = gnnsys.open_dataset(path).stores(device="cpu", cache="1600")
    stores = [features.table(kind, "x").store for kind in (PAPER, AUTHOR)]
    assert [store.capacity for store in stores] == [75, 25]
