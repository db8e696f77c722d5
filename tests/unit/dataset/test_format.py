"""graph.json: what is written is read back; whatever else it holds is one error with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    EDGE_TYPE,
    NODE_TYPE,
    EdgeSet,
    EdgeType,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
    Task,
    edge_folder,
    is_dtype,
    node_folder,
    read_manifest,
)
from gnnsys.errors import FileFormatError, GnnsysError, MissingFileError

PROPERTY = settings(deadline=None, print_blob=True)
NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(["_", "__", "a_", "a__b", ".", "..", "/"])
EDGE_TYPES = st.tuples(NAMES, NAMES, NAMES)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "float32", "node", "f4,f4", "S0", "O", "<M8[s]", "{", "../x"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def table(path: str, shape: tuple[int, ...], dtype: str) -> Table:
    encoding = Encoding.of(dtype, shape)
    data = shape[0] * encoding.row_stride
    crc32 = ("0123abcd",) * -(-data // CHECKSUM_CHUNK)
    shard = Shard(path=f"{path}.npy", rows=shape[0], bytes=4096 + data, crc32=crc32)
    return Table(shape=shape, encoding=encoding, shards=(shard,))


def small() -> Manifest:
    """Five nodes with features of more than one checksum, seven edges."""
    nodes = {
        "features": table("features", (5, 1 << 20), "float32"),
        "labels": table("labels", (5,), "int64"),
        "train": table("train", (2,), "int64"),
        "node_id": table("node_id", (5,), "S3"),
    }
    edges = {
        "indptr": table("indptr", (6,), "int64"),
        "indices": table("indices", (7,), "int32"),
        "edge_features": table("edge_features", (7, 3), "bfloat16"),
    }
    return Manifest(
        name="small",
        heterogeneous=False,
        nodes={NODE_TYPE: NodeSet(count=5, tables=nodes)},
        edges={EDGE_TYPE: EdgeSet(count=7, tables=edges)},
        task=Task(node_type=NODE_TYPE, num_classes=4),
        source={"kind": "edge-list", "nan": {"features": 2}},
    )


def content() -> dict[str, Any]:
    return json.loads(small().to_json())


def write(folder: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / "graph.json").write_text(text, encoding="utf-8")
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, small().to_json())) == small()


@PROPERTY
@given(
    st.dictionaries(NAMES, st.integers(0, 9), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 9), NAMES, st.integers(0, 9)), max_size=4),
    NAMES,
    st.data(),
)
def test_heterogeneous_graphs_are_read_back(
    counts: dict[str, int],
    relations: list[tuple[int, str, int]],
    name: str,
    data: st.DataObject,
) -> None:
    types = list(counts)
    edges = {}
    for source, relation, target in relations:
        ends = types[source % len(types)], types[target % len(types)]
        tables = {
            "indptr": table("p", (counts[ends[1]] + 1,), "int64"),
            "indices": table("i", (3,), "int64"),
        }
        edges[ends[0], relation, ends[1]] = EdgeSet(count=3, tables=tables)
    task = Task(node_type=data.draw(st.sampled_from(types)), num_classes=2, multi_label=True)
    manifest = Manifest(
        name=name,
        heterogeneous=True,
        nodes={kind: NodeSet(count=count) for kind, count in counts.items()},
        edges=edges,
        task=data.draw(st.sampled_from([task, None])),
    )
    with TemporaryDirectory() as folder:
        assert read_manifest(write(Path(folder), manifest.to_json())) == manifest


@PROPERTY
@given(st.lists(EDGE_TYPES, min_size=2, max_size=2, unique=True))
def test_every_edge_type_has_a_folder_of_its_own(types: list[EdgeType]) -> None:
    folders = [edge_folder(True, edge_type) for edge_type in types]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.startswith("edges/")
        assert folder.endswith("/")
        assert folder.count("/") == 2
        assert Path(folder).parts[1] not in (".", "..")


@PROPERTY
@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_every_node_type_has_a_folder_of_its_own(types: list[str]) -> None:
    folders = [node_folder(True, node_type) for node_type in types]
    assert folders[0] != folders[1]
    assert all(Path(folder).parts[1] not in (".", "..") for folder in folders)
    assert all(folder.count("/") == 2 for folder in folders)


def test_a_homogeneous_graph_lies_at_the_top() -> None:
    assert node_folder(False, NODE_TYPE) == edge_folder(False, EDGE_TYPE) == ""


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("float32", True),
        ("bfloat16", True),
        ("S12", True),
        ("uint64", True),
        ("S0", False),
        ("S", False),
        ("str32", False),
        ("object", False),
        ("float32,int8", False),
        ("datetime64[s]", False),
        (">f4", False),
        ("", False),
    ],
)
def test_tables_hold_numbers_and_bytes(name: str, holds: bool) -> None:
    assert is_dtype(name) is holds


# What is wrong ------------------------------------------------------------------------------------


def features(value: dict[str, Any]) -> dict[str, Any]:
    return value["nodes"]["node"]["tables"]["features"]


def shard(value: dict[str, Any]) -> dict[str, Any]:
    return features(value)["shards"][0]


def second_edge_type(value: dict[str, Any]) -> None:
    value["heterogeneous"] = True
    value["edges"].append(value["edges"][0])


def narrow_features(value: dict[str, Any], scales: list[float]) -> None:
    features(value).update(shape=[5, len(scales)])
    features(value)["encoding"].update(dtype="int8", scale="column", scales=scales)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda v: v.update(format="ogb"), "format is 'ogb', expected 'gnnsys"),
    "newer": (lambda v: v.update(version=3), "version 3, this gnnsys reads 1 to 2; upgrade"),
    "version 0": (lambda v: v.update(version=0), "version 0, this gnnsys reads 1"),
    "newer random numbers": (lambda v: v.update(rng=99), "rng 99, this gnnsys reads 1 to"),
    "version true": (lambda v: v.update(version=True), "version is True, expected an integer"),
    "no name": (lambda v: v.pop("name"), "no name"),
    "nodes a list": (lambda v: v.update(nodes=[]), r"nodes is \[\], expected an object"),
    "a count below 0": (
        lambda v: v["nodes"]["node"].update(count=-1),
        r"nodes\.node\.count is -1, expected at least 0",
    ),
    "rows unlike the nodes": (
        lambda v: v["nodes"]["node"].update(count=6),
        r"nodes\.node\.tables\.features has 5 rows, expected 6 by the counts",
    ),
    "rows unlike the edges": (
        lambda v: v["edges"][0].update(count=8),
        r"edges\[0\]\.tables\.indices has 7 rows, expected 8",
    ),
    "no indices": (
        lambda v: v["edges"][0]["tables"].pop("indices"),
        r"edges\[0\] has no table indices",
    ),
    "an unknown node type": (
        lambda v: v["edges"][0].update(type=["node", "to", "author"]),
        r"edges\[0\]\.type names the node type 'author', which is not among \['node'\]",
    ),
    "an edge type of two parts": (
        lambda v: v["edges"][0].update(type=["node", "node"]),
        "expected source, relation, target",
    ),
    "an edge type twice": (second_edge_type, r"edges\[1\]\.type is .* once more"),
    "other types in a homogeneous graph": (
        lambda v: v["nodes"].update(author={"count": 0, "tables": {}}),
        "not heterogeneous, but has node types",
    ),
    "a scalar shape": (lambda v: features(v).update(shape=[]), r"features\.shape is \(\)"),
    "an unknown dtype": (
        lambda v: features(v)["encoding"].update(dtype="float7"),
        "dtype is 'float7', expected",
    ),
    "a wrong stride": (
        lambda v: features(v)["encoding"].update(row_stride=8),
        r"row_stride is 8, expected 4194304 bytes",
    ),
    "int4 without a scale": (
        lambda v: features(v)["encoding"].update(dtype="int4"),
        "encoding is int4 without a scale: row or column",
    ),
    "floats with a scale": (
        lambda v: features(v)["encoding"].update(scale="row"),
        "dtype is 'float32' with a scale, expected one of int8, int4",
    ),
    "a scale of something else": (
        lambda v: features(v)["encoding"].update(dtype="int8", scale="table"),
        "encoding.scale is 'table', expected one of 'row', 'column'",
    ),
    "no scales": (
        lambda v: features(v)["encoding"].update(dtype="int8", scale="column"),
        "encoding.scales has 0 entries, expected 1048576: one for each column",
    ),
    "scales beside those of rows": (
        lambda v: features(v)["encoding"].update(dtype="int8", scale="row", scales=[1.0]),
        "encoding.scales has 1 entries, expected 0: each row has its own",
    ),
    "a scale below 0": (
        lambda v: narrow_features(v, [0.5, -1.0]),
        r"encoding.scales\[1\] is -1.0, expected a float32 from 0",
    ),
    "no shards": (lambda v: features(v).update(shards=[]), r"shards of .* hold 0 rows"),
    "rows missing": (
        lambda v: shard(v).update(rows=4, crc32=["00000000"]),
        "hold 4 rows, its shape says 5",
    ),
    "too few checksums": (
        lambda v: shard(v).update(crc32=["00000000"]),
        r"crc32 has 1 entries, expected 2: one for each 16777216 of its 20971520 bytes",
    ),
    "fewer bytes than rows": (
        lambda v: shard(v).update(bytes=100),
        r"bytes is 100, expected at least the 20971520 of 5 rows",
    ),
    "a task of an unknown type": (
        lambda v: v["task"].update(node_type="author"),
        r"task\.node_type is 'author', expected one of \['node'\]",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_error_with_its_place(name: str, tmp_path: Path) -> None:
    spoil, says = FAULTS[name]
    value = content()
    spoil(value)
    with pytest.raises(FileFormatError, match=says) as caught:
        read_manifest(write(tmp_path, value))
    assert str(tmp_path / "graph.json") in str(caught.value)


def test_folders_of_versions_before_quantised_tables_are_read(tmp_path: Path) -> None:
    value = content()
    assert value["version"] == 1
    features(value)["encoding"] = {
        "dtype": "float32", "scale": None, "zero": None, "row_stride": 4194304,
    }  # fmt: skip
    assert read_manifest(write(tmp_path, value)) == small()


@pytest.mark.parametrize(
    ("dtype", "scale", "row_bytes"),
    [("int8", "row", 9), ("int8", "column", 5), ("int4", "row", 7), ("int4", "column", 3)],
)
def test_a_quantised_table_makes_the_folder_of_version_2(
    dtype: str, scale: Any, row_bytes: int, tmp_path: Path
) -> None:
    scales = (0.1, 0.0, 1e-40, 3.4e38, 1.0) if scale == "column" else ()
    encoding = Encoding.of(dtype, (5, 5), scale, scales)
    assert encoding.row_stride == row_bytes
    assert encoding.file_shape((5, 5)) == (5, row_bytes)
    shard = Shard(path="x.npy", rows=5, bytes=4096, crc32=("01234567",))
    manifest = small()
    table = Table(shape=(5, 5), encoding=encoding, shards=(shard,))
    manifest.nodes["node"].tables["features"] = table
    value = json.loads(manifest.to_json())
    assert value["version"] == 2
    assert read_manifest(write(tmp_path, value)) == manifest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ('{"format": "gnnsys dat', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"version": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", "format is 'list'"),
        ("null", "format is 'NoneType'"),
    ],
)
def test_other_text_is_one_error(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=says) as caught:
        read_manifest(write(tmp_path, text))
    assert str(tmp_path / "graph.json") in str(caught.value)


def test_bytes_that_are_no_text_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match=r"graph\.json: not JSON .*invalid start byte"):
        read_manifest(tmp_path)


def test_a_folder_without_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(MissingFileError, match=r"graph\.json: no such file.*gnnsys convert"):
            read_manifest(folder)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of a JSON value, as what holds it and its key there."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(entries):
        yield value, key
        if isinstance(entry, (dict, list)):
            yield from places(entry)


@settings(PROPERTY, max_examples=300)
@given(st.data())
def test_any_entry_may_be_anything(data: st.DataObject) -> None:
    value = content()
    for _ in range(data.draw(st.integers(1, 2))):
        holder, key = data.draw(st.sampled_from(list(places(value))))
        if data.draw(st.booleans()):
            holder[key] = data.draw(JSON)
        elif isinstance(holder, dict):
            del holder[key]
    with TemporaryDirectory() as folder:
        write(Path(folder), value)
        with suppress(GnnsysError):
            read_manifest(Path(folder))
