"""Edge lists become the CSC that numpy makes of them, whatever the file, the memory, the blocks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gnnsys
from gnnsys.convert import arrays, edge_files, text
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.csc import EdgeSort, write_csc
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.writer import DatasetWriter
from gnnsys.errors import FileFormatError

pa = pytest.importorskip("pyarrow", reason="text and Parquet are read through pyarrow")
pytest.importorskip("pyarrow.parquet")

Array = NDArray[Any]
PROPERTY = settings(deadline=None, print_blob=True, max_examples=60)
NODES, EDGES = 40, 150


def random_edges(seed: int, nodes: int = NODES, edges: int = EDGES) -> Array:
    """(2, edges) with duplicates and loops; the last nodes have no edges."""
    return np.random.default_rng(seed).integers(0, max(1, nodes - 3), (2, edges))


PAIRS = random_edges(0)


@contextmanager
def small_blocks(edges: int) -> Iterator[None]:
    """Blocks of a few edges and rows, as large files have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_files, "_BLOCK_EDGES", edges)
        patch.setattr(arrays, "_BLOCK_BYTES", 16 * edges)
        patch.setattr(text, "_BLOCK_BYTES", max(64, 16 * edges))
        yield


def convert(
    place: Path, edges: Path, options: ConvertOptions | None = None, **spec: Any
) -> gnnsys.Dataset:
    described = EdgeListSpec(edges=edges, name="some", **spec)
    return gnnsys.open_dataset(
        convert_edge_list(described, place / "g", options or ConvertOptions())
    )


def save(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


def sorted_by_numpy(pairs: Array, nodes: int, undirected: bool) -> tuple[Array, Array, Array]:
    """The CSC, and the number that each edge had, by a sort of all edges at once."""
    source, target = pairs.astype(np.int64)
    number = np.arange(len(source))
    if undirected:
        other = source != target
        source, target = np.r_[source, target[other]], np.r_[target, source[other]]
        number = np.r_[number, number[other]]
    order = np.lexsort((number, source, target))
    indptr = np.r_[0, np.cumsum(np.bincount(target, minlength=nodes))]
    return indptr, source[order], number[order]


def tables(folder: Path) -> dict[str, bytes]:
    """Files of the tables, and what graph.json says of them."""
    found = {place.name: place.read_bytes() for place in folder.glob("*.npy")}
    content = json.loads((folder / "graph.json").read_text())
    del content["source"]
    return {**found, "graph.json": json.dumps(content).encode()}


# The sort -----------------------------------------------------------------------------------------


@PROPERTY
@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=80),
    st.sampled_from(["int32", "int64", "uint64", "uint8", ">i4"]),
    st.integers(0, 60),
    st.booleans(),
    st.booleans(),
    st.integers(1, 2000),
    st.integers(1, 3),
    st.integers(1, 50),
)
def test_conversion_equals_a_sort_of_all_edges(
    nodes: int,
    drawn: list[tuple[int, int]],
    dtype: str,
    hub: int,
    undirected: bool,
    keep_order: bool,
    memory: int,
    threads: int,
    block: int,
) -> None:
    pairs = np.array([*drawn, *[(row, 0) for row in range(hub)]], int).reshape(-1, 2).T % nodes
    options = ConvertOptions(undirected=undirected, memory=memory, threads=threads)
    with TemporaryDirectory() as folder, small_blocks(block):
        edges = save(Path(folder) / "e.npy", pairs.astype(dtype))
        found = convert(Path(folder), edges, options, num_nodes=nodes, keep_order=keep_order)
        indptr, indices, number = sorted_by_numpy(pairs, nodes, undirected)
        assert np.array_equal(found.edge_table("indptr"), indptr)
        assert np.array_equal(found.edge_table("indices"), indices)
        assert found.edge_table("indices").dtype == np.int32
        assert found.has("edge_id", ("node", "to", "node")) is keep_order
        if keep_order:
            assert np.array_equal(found.edge_table("edge_id"), number)
        # scipy adds duplicates up, which keeps how many there are.
        ones = np.ones(pairs.shape[1], np.int64)
        matrix = scipy.sparse.coo_matrix((ones, tuple(pairs)), (nodes, nodes)).tocsc()
        if undirected:
            matrix = matrix + matrix.T - scipy.sparse.diags_array(matrix.diagonal(), dtype=np.int64)
        ours = scipy.sparse.csc_matrix(
            (np.ones(len(indices), np.int64), np.array(found.edge_table("indices")), indptr),
            (nodes, nodes),
        )
        assert (ours != matrix).nnz == 0
        found.verify()


def test_memory_threads_and_blocks_change_no_byte(tmp_path: Path) -> None:
    pairs = random_edges(1, 2000, 30_000)
    pairs[1, :9000] = 77  # a hub of more edges than all but the largest budget
    edges = save(tmp_path / "e.npy", pairs)
    found = []
    for run, (memory, threads, block) in enumerate(
        [(2 << 30, 1, 1 << 21), (300_000, 2, 4000), (40_000, 3, 7001), (3000, 1, 15_000)]
    ):
        place = tmp_path / str(run)
        place.mkdir()
        with small_blocks(block):
            options = ConvertOptions(memory=memory, threads=threads, undirected=True)
            convert(place, edges, options, keep_order=True)
        found.append({name: (place / "g" / name).read_bytes() for name in tables(place / "g")})
    assert all(other == found[0] for other in found[1:])
    indptr, indices, number = sorted_by_numpy(pairs, 1997, True)
    expected = {"indptr": indptr, "indices": indices.astype(np.int32), "edge_id": number}
    for name, values in expected.items():
        assert found[0][f"{name}.npy"][4096:] == values.tobytes()


@pytest.mark.parametrize(
    ("pairs", "num_nodes", "expected"),
    [
        (np.empty((2, 0), np.int64), None, [0]),
        (np.empty((2, 0), np.int64), 0, [0]),
        (np.empty((2, 0), np.int32), 3, [0, 0, 0, 0]),
        (np.zeros((2, 1), np.int64), None, [0, 1]),
        (np.array([[5], [2]]), None, [0, 0, 0, 1, 1, 1, 1]),
        (np.array([[2], [5]]), 8, [0, 0, 0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_small_graphs_and_isolated_nodes(
    pairs: Array, num_nodes: int | None, expected: list[int], tmp_path: Path
) -> None:
    found = convert(tmp_path, save(tmp_path / "e.npy", pairs), num_nodes=num_nodes)
    assert found.edge_table("indptr").tolist() == expected
    assert found.num_nodes() == len(expected) - 1
    assert found.num_edges() == pairs.shape[1]
    found.verify()


def test_ids_beyond_int32_are_kept_where_there_are_so_many_nodes(tmp_path: Path) -> None:
    far = (1 << 31) + 5
    source, target = np.array([far, 3, far - 1, 3]), np.array([1, 0, 1, 0])

    def read(first: int) -> Iterator[tuple[Array, Array]]:
        for edge in range(first, 4):
            yield source[edge : edge + 1], target[edge : edge + 1]

    with DatasetWriter(tmp_path / "g", name="far", heterogeneous=True) as writer:
        writer.add_nodes(far + 1, "a")
        writer.add_nodes(2, "b")
        write_csc(EdgeSort(writer=writer, label="far", edge_type=("a", "to", "b"), memory=1), read)
        folder = writer.commit()
    indices = np.load(folder / "edges" / "a__to__b" / "indices.npy")
    assert indices.dtype == np.int64
    assert indices.tolist() == [3, 3, far - 1, far]


# Kinds of files -----------------------------------------------------------------------------------


def write_text(path: Path, mark: str, before: str = "", after: str = "\n") -> Path:
    rows = "".join(f"{source}{mark}{target}{after}" for source, target in PAIRS.T.tolist())
    path.write_text(before + rows, newline="")
    return path


def as_two_rows(path: Path) -> Path:
    return save(path / "e.npy", PAIRS)


def as_pairs(path: Path) -> Path:
    return save(path / "e.npy", np.ascontiguousarray(PAIRS.T, np.int32))


def as_turned(path: Path) -> Path:
    return save(path / "e.npy", np.asfortranarray(PAIRS))


def as_edge_index(path: Path) -> Path:
    np.savez(path / "e.npz", edge_index=PAIRS, other=np.zeros(3))
    return path / "e.npz"


def as_compressed(path: Path) -> Path:
    np.savez_compressed(path / "e.npz", anything=PAIRS.T.astype(np.uint32).copy())
    return path / "e.npz"


def as_turned_member(path: Path) -> Path:
    np.savez(path / "e.npz", edge_index=np.ascontiguousarray(PAIRS.T).T)
    return path / "e.npz"


def as_turned_pairs(path: Path) -> Path:
    np.savez(path / "e.npz", edge_index=np.asfortranarray(PAIRS.T))
    return path / "e.npz"


def as_two_members(path: Path) -> Path:
    np.savez_compressed(path / "e.npz", src=PAIRS[0].astype(np.int16), dst=PAIRS[1], w=PAIRS[0])
    return path / "e.npz"


def as_named_member(path: Path) -> Path:
    np.savez(path / "e.npz", a=PAIRS, b=PAIRS[:, :3])
    return Path(f"{path / 'e.npz'}:a")


def as_parquet(path: Path) -> Path:
    table = pa.table({"w": PAIRS[0], "dst": PAIRS[1], "src": PAIRS[0]})
    pa.parquet.write_table(table, path / "e.parquet", row_group_size=11)
    return path / "e.parquet"


def as_csv(path: Path) -> Path:
    return write_text(path / "e.csv", ",")


def as_csv_with_header(path: Path) -> Path:
    return write_text(path / "e.csv", ",", "# hand made\n\nSource,Target\n")


def as_csv_with_odd_header(path: Path) -> Path:
    return write_text(path / "e.csv", ",", '"a ""b""",c\r\n', "\r\n")


def as_gzipped_csv(path: Path) -> Path:
    content = write_text(path / "e.csv", ",", "u,v\n").read_bytes()
    (path / "e.csv.gz").write_bytes(gzip.compress(content))
    return path / "e.csv.gz"


def as_tsv(path: Path) -> Path:
    return write_text(path / "e.tsv", "\t")


def as_snap(path: Path) -> Path:
    comments = "# Undirected graph: ../some.txt\n# FromNodeId\tToNodeId\n"
    return write_text(path / "e.txt", "\t", comments)


def as_aligned(path: Path) -> Path:
    rows = "".join(f"{source:5d} {target:5d}  \n" for source, target in PAIRS.T.tolist())
    (path / "e.txt").write_text("% sym\n" + rows)
    return path / "e.txt"


KINDS: list[Callable[[Path], Path]] = [
    as_two_rows, as_pairs, as_turned, as_edge_index, as_compressed, as_turned_member,
    as_turned_pairs, as_two_members, as_named_member, as_parquet, as_csv, as_csv_with_header,
    as_csv_with_odd_header, as_gzipped_csv, as_tsv, as_snap, as_aligned,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 1 << 21])
def test_every_kind_of_file_gives_the_same_folder(
    kind: Callable[[Path], Path], block: int, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {"num_nodes": NODES, "keep_order": True}
    expected = convert(tmp_path, save(tmp_path / "expected.npy", PAIRS), **spec)
    assert np.array_equal(expected.edge_table("edge_id"), sorted_by_numpy(PAIRS, NODES, False)[2])
    (tmp_path / "other").mkdir()
    with small_blocks(block):
        found = convert(tmp_path / "other", kind(tmp_path / "other"), **spec)
    assert tables(found.path) == tables(expected.path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 1 << 21])
def test_every_kind_of_file_numbers_names_alike(
    kind: Callable[[Path], Path], block: int, tmp_path: Path
) -> None:
    expected = convert(tmp_path, save(tmp_path / "expected.npy", PAIRS), ids="names")
    (tmp_path / "other").mkdir()
    with small_blocks(block):
        found = convert(tmp_path / "other", kind(tmp_path / "other"), ids="names")
    assert tables(found.path) == tables(expected.path)


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    columns = {"id": np.arange(EDGES), "to": PAIRS[0], "from": PAIRS[1], "t": PAIRS[0]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "e.parquet")
    rows = "\n".join(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
    (tmp_path / "e.csv").write_text(f"id,to,from,t\n{rows}\n")
    for suffix in ("parquet", "csv"):
        for columns_wanted, reverse in ((None, True), (("to", "from"), False)):
            place = tmp_path / f"{suffix}-{reverse}"
            place.mkdir()
            found = convert(place, tmp_path / f"e.{suffix}", columns=columns_wanted)
            expected = PAIRS[::-1] if reverse else PAIRS
            nodes = found.num_nodes()
            indptr, indices, _ = sorted_by_numpy(expected, nodes, False)
            assert np.array_equal(found.edge_table("indptr"), indptr)
            assert np.array_equal(found.edge_table("indices"), indices)


@pytest.mark.parametrize(("header", "edges"), [("yes", 1), ("no", 2)])
def test_a_first_row_of_words_above_words_is_refused_unless_told(
    header: str, edges: int, tmp_path: Path
) -> None:
    (tmp_path / "e.csv").write_text("x,y\nb,a\n")
    with pytest.raises(FileFormatError, match=r"begins with x, y, .*--header yes or --header no"):
        convert(tmp_path, tmp_path / "e.csv")
    assert convert(tmp_path, tmp_path / "e.csv", header=header).num_edges() == edges


def test_a_header_alone_is_a_graph_without_edges(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("src,dst\n")
    found = convert(tmp_path, tmp_path / "e.csv", num_nodes=4)
    assert (found.num_nodes(), found.num_edges()) == (4, 0)


# Names --------------------------------------------------------------------------------------------


def by_appearance(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Any], Array]:
    """Names in the order in which they appear, edge by edge, and the edges by their numbers."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return names, np.array([[names.index(name) for name in pair] for pair in pairs]).T


WORDS = [("bob", "ann"), ("ann", "Zoë, M."), ("bob", "bob"), ("7", "ann"), ("Zoë, M.", "7")]


def words_as_csv(path: Path) -> Path:
    rows = "".join(f'"{source}","{target}"\n' for source, target in WORDS)
    (path / "e.csv").write_text("source,target\n" + rows)
    return path / "e.csv"


def words_as_tsv(path: Path) -> Path:
    rows = "".join(f"{source}\t{target}\n" for source, target in WORDS)
    (path / "e.tsv").write_text(rows)
    return path / "e.tsv"


def words_as_parquet(path: Path) -> Path:
    source, target = (pa.array(list(names)) for names in zip(*WORDS, strict=True))
    columns = {"u": source.dictionary_encode(), "v": target.cast(pa.large_string())}
    pa.parquet.write_table(pa.table(columns), path / "e.parquet")
    return path / "e.parquet"


@pytest.mark.parametrize("kind", [words_as_csv, words_as_tsv, words_as_parquet])
@pytest.mark.parametrize("ids", ["auto", "names"])
@pytest.mark.parametrize("block", [2, 1 << 21])
def test_words_are_numbered_as_they_appear(
    kind: Callable[[Path], Path], ids: str, block: int, tmp_path: Path
) -> None:
    names, pairs = by_appearance(WORDS)
    with small_blocks(block):
        found = convert(tmp_path, kind(tmp_path), ids=ids)
    assert [name.decode() for name in found.node_table("node_id").tolist()] == names
    assert np.array_equal(found.edge_table("indices"), sorted_by_numpy(pairs, 4, False)[1])
    assert np.array_equal(found.edge_table("indptr"), sorted_by_numpy(pairs, 4, False)[0])


@pytest.mark.parametrize("suffix", ["npy", "csv", "parquet"])
@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        ([5, 10**12, -7, 5, 10**12], np.int64),
        ([2**64 - 1, 3, 2**63, 3, 2**64 - 1], np.uint64),  # as hashes are
    ],
)
def test_sparse_numbers_are_numbered_as_they_appear(
    ids: list[int], dtype: Any, suffix: str, tmp_path: Path
) -> None:
    edges = list(pairwise(ids))
    path = tmp_path / f"e.{suffix}"
    if suffix == "npy":
        np.save(path, np.array(edges, dtype).T)
    elif suffix == "csv":
        path.write_text("".join(f"{source},{target}\n" for source, target in edges))
    else:
        source, target = (np.array(side, dtype) for side in zip(*edges, strict=True))
        pa.parquet.write_table(pa.table({"src": source, "dst": target}), path)
    names, pairs = by_appearance(edges)
    found = convert(tmp_path, path, ids="names")
    assert found.node_table("node_id").dtype == dtype
    assert found.node_table("node_id").tolist() == names
    assert np.array_equal(found.edge_table("indices"), sorted_by_numpy(pairs, 3, False)[1])


def test_words_after_numbers_are_names_too(tmp_path: Path) -> None:
    edges = [("1", "2"), ("2", "x"), ("01", "1")]
    (tmp_path / "e.csv").write_text("".join(f"{source},{target}\n" for source, target in edges))
    found = convert(tmp_path, tmp_path / "e.csv", ids="names")
    assert found.node_table("node_id").tolist() == [b"1", b"2", b"x", b"01"]


# Node tables --------------------------------------------------------------------------------------

TABLE = {
    "name": ["x1", "007", "y", "8"],
    "f": [0.5, None, 2.25, -1.0],
    "Label": ["cat", "dog", "", "ant"],
    "g": [1, 2, None, 4],
    "split": ["train", "", "Valid", "test"],
    "time": [5, 1 << 40, 7, 8],
}
NAMED = [("x1", "x1"), ("8", "x1"), ("007", "8"), ("8", "x1"), ("y", "x1")]


def nodes_as_csv(path: Path) -> Path:
    rows = zip(*TABLE.values(), strict=True)
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    lines = [",".join(row) for row in [list(TABLE), *texts]]
    (path / "n.csv").write_text("\n".join(lines) + "\n")
    return path / "n.csv"


def nodes_as_parquet(path: Path) -> Path:
    pa.parquet.write_table(pa.table(TABLE), path / "n.parquet", row_group_size=3)
    return path / "n.parquet"


@pytest.mark.parametrize("kind", [nodes_as_csv, nodes_as_parquet])
@pytest.mark.parametrize("ids", ["auto", "names"])
def test_a_node_table_gives_numbers_features_labels_splits_and_times(
    kind: Callable[[Path], Path], ids: str, tmp_path: Path
) -> None:
    (tmp_path / "e.csv").write_text("".join(f"{a},{b}\n" for a, b in NAMED))
    options = ConvertOptions(nan="keep")
    found = convert(tmp_path, tmp_path / "e.csv", options, ids=ids, nodes=kind(tmp_path))
    assert found.node_table("node_id").tolist() == [b"x1", b"007", b"y", b"8"]
    assert found.edge_table("indptr").tolist() == [0, 4, 4, 4, 5]
    assert found.edge_table("indices").tolist() == [0, 2, 3, 3, 1]
    features = np.array([[0.5, 1], [np.nan, 2], [2.25, np.nan], [-1, 4]], np.float32)
    assert np.array_equal(found.node_table("features"), features, equal_nan=True)
    assert found.node_table("labels").tolist() == [1, 2, -1, 0]
    assert found.manifest.source["classes"] == ["ant", "cat", "dog"]
    assert found.task is not None
    assert found.task.num_classes == 3
    assert [found.split(part).tolist() for part in ("train", "val", "test")] == [[0], [2], [3]]
    assert found.node_table("time").tolist() == [5, 1 << 40, 7, 8]
    assert found.manifest.source["nan"] == {"features": 2}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("labels", "stored", "classes"),
    [
        (["2", "0", "-1"], [2, 0, -1], None),
        (["1.0", "", "0"], [1, -1, 0], None),
        (["true", "false", "true"], [1, 0, 1], ["false", "true"]),
        (["b", "NA", "a"], [1, -1, 0], ["a", "b"]),
        (["1"] * 2 + ["x"], [0, 0, 1], ["1", "x"]),
    ],
)
def test_labels_are_numbers_or_words(
    labels: list[str], stored: list[int], classes: list[str] | None, suffix: str, tmp_path: Path
) -> None:
    edges = save(tmp_path / "e.npy", np.array([[30, 20], [20, 10]]))
    if suffix == "csv":
        rows = "".join(f"{10 * (row + 1)},{label}\n" for row, label in enumerate(labels))
        (tmp_path / "n.csv").write_text("id,label\n" + rows)
    else:
        pa.parquet.write_table(
            pa.table({"id": [10, 20, 30], "label": labels}), tmp_path / "n.parquet"
        )
    found = convert(tmp_path, edges, nodes=tmp_path / f"n.{suffix}")
    assert found.node_table("labels").tolist() == stored
    assert found.manifest.source.get("classes") == classes
    assert found.node_table("node_id").tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("column", "stored"),
    [([1, None, 0], [1, -1, 0]), ([1.0, None, 2.0], [1, -1, 2]), ([True, False, None], [1, 0, -1])],
)
def test_typed_labels_may_have_gaps(column: list[Any], stored: list[int], tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"id": [10, 20, 30], "label": column}), tmp_path / "n.parquet")
    edges = save(tmp_path / "e.npy", np.array([[30], [20]]))
    found = convert(tmp_path, edges, nodes=tmp_path / "n.parquet")
    assert found.node_table("labels").tolist() == stored


@pytest.mark.parametrize("ids", [np.array([9, 4, 7]), np.array(["x", "y", "z"])])
def test_a_node_table_may_be_ids_alone(ids: Array, tmp_path: Path) -> None:
    first, _, third = ids.tolist()
    (tmp_path / "e.csv").write_text(f"{third},{first}\n")
    nodes = save(tmp_path / "n.npy", ids)
    found = convert(tmp_path, tmp_path / "e.csv", nodes=nodes, header="no")
    assert found.edge_table("indptr").tolist() == [0, 1, 1, 1]
    assert found.edge_table("indices").tolist() == [2]
    expected = [str(name).encode() if ids.dtype.kind == "U" else name for name in ids.tolist()]
    assert found.node_table("node_id").tolist() == expected


def test_dense_ids_may_have_a_node_table_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("id,f\n0,0.5\n1,1.5\n2,2.5\n")
    edges = save(tmp_path / "e.npy", np.array([[2], [0]]))
    found = convert(tmp_path, edges, ids="dense", nodes=tmp_path / "n.csv")
    assert found.node_table("features").tolist() == [[0.5], [1.5], [2.5]]
    assert not found.has("node_id")


# Features, labels, splits -------------------------------------------------------------------------

FEATURES = np.random.default_rng(2).standard_normal((NODES, 3))


def features_npy(path: Path) -> Path:
    return save(path / "x.npy", FEATURES)


def features_npz(path: Path) -> Path:
    np.savez_compressed(path / "x.npz", y=np.zeros(2), x=FEATURES.astype(np.float32))
    return Path(f"{path / 'x.npz'}:x")


def features_csv(path: Path) -> Path:
    rows = "".join(",".join(map(repr, row)) + "\n" for row in FEATURES.tolist())
    (path / "x.csv").write_text("a,b,c\n" + rows)
    return path / "x.csv"


def features_parquet(path: Path) -> Path:
    columns = {name: FEATURES[:, place] for place, name in enumerate("abc")}
    pa.parquet.write_table(pa.table(columns), path / "x.parquet")
    return path / "x.parquet"


def features_pt(path: Path) -> Path:
    torch.save(torch.from_numpy(FEATURES.astype(np.float32)), path / "x.pt")
    return path / "x.pt"


@pytest.mark.parametrize(
    "kind", [features_npy, features_npz, features_csv, features_parquet, features_pt]
)
@pytest.mark.parametrize("dtype", ["keep", "float32", "float16", "bfloat16"])
def test_features_are_rounded_as_torch_does_and_delivered_as_float32(
    kind: Callable[[Path], Path], dtype: Any, tmp_path: Path
) -> None:
    edges = save(tmp_path / "e.npy", PAIRS)
    options = ConvertOptions(dtype=dtype)
    with small_blocks(5):
        found = convert(tmp_path, edges, options, features=kind(tmp_path))
    single = torch.from_numpy(FEATURES.astype(np.float32))
    rounded = single if dtype == "keep" else single.to(getattr(torch, dtype))
    x = found.features(device="cpu")
    assert x.dtype == torch.float32
    assert torch.equal(x[torch.arange(NODES)], rounded.float())
    mapped = np.load(found.path / "features.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype.itemsize == rounded.element_size()
    raw = (found.path / "features.npy").read_bytes()[4096:]
    assert raw == rounded.view(torch.uint8).numpy().tobytes()
    assert found.num_nodes() == NODES


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16"])
def test_features_of_other_types_are_kept(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (NODES, 2)).astype(dtype)
    edges = save(tmp_path / "e.npy", PAIRS)
    options = ConvertOptions(dtype="keep" if dtype == "float16" else "bfloat16")
    found = convert(tmp_path, edges, options, features=save(tmp_path / "x.npy", values))
    assert found.node_table("features").dtype == values.dtype
    delivered = found.features(device="cpu")[torch.arange(NODES)]
    assert np.array_equal(delivered.numpy(), values)


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_one_feature_is_a_column(suffix: str, tmp_path: Path) -> None:
    values = np.arange(NODES, dtype=np.float32) / 4
    if suffix == "npy":
        np.save(tmp_path / "x.npy", values)
    else:
        (tmp_path / "x.csv").write_text("\n".join(map(str, values.tolist())) + "\n")
    edges = save(tmp_path / "e.npy", PAIRS)
    found = convert(tmp_path, edges, features=tmp_path / f"x.{suffix}")
    assert np.array_equal(found.node_table("features"), values[:, None])


@pytest.mark.parametrize(
    ("labels", "stored", "classes"),
    [
        (np.arange(NODES) % 7, np.arange(NODES) % 7, 7),
        ((np.arange(NODES) % 7).astype(np.uint8)[:, None], np.arange(NODES) % 7, 7),
        (np.r_[np.nan, np.full(NODES - 1, 2.0)], np.r_[-1, np.full(NODES - 1, 2)], 3),
        (np.r_[-5, np.zeros(NODES - 1, np.int32)], np.r_[-5, np.zeros(NODES - 1)], 1),
    ],
)
def test_classes_are_whole_numbers_or_unknown(
    labels: Array, stored: Array, classes: int, tmp_path: Path
) -> None:
    edges = save(tmp_path / "e.npy", PAIRS)
    found = convert(tmp_path, edges, labels=save(tmp_path / "y.npy", labels))
    assert found.node_table("labels").dtype == np.int64
    assert np.array_equal(found.node_table("labels"), stored)
    assert found.task is not None
    assert (found.task.num_classes, found.task.multi_label) == (classes, False)
    assert found.num_nodes() == NODES


def test_columns_of_labels_are_several_labels(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (NODES, 4)).astype(np.float64)
    labels[3, 1] = np.nan
    edges = save(tmp_path / "e.npy", PAIRS)
    found = convert(tmp_path, edges, labels=save(tmp_path / "y.npy", labels))
    assert found.task is not None
    assert (found.task.num_classes, found.task.multi_label) == (4, True)
    assert np.array_equal(found.node_table("labels"), labels, equal_nan=True)
    assert found.node_table("labels").dtype == np.float32


@pytest.mark.parametrize("header", ["", "id\n"])
def test_splits_are_masks_or_ids(header: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random(NODES) < 0.5
    (tmp_path / "val.csv").write_text(header + "7\n3\n0\n")
    np.savez(tmp_path / "s.npz", test=np.array([9, 8], np.uint8))
    found = convert(
        tmp_path,
        save(tmp_path / "e.npy", PAIRS),
        num_nodes=NODES,
        train=save(tmp_path / "train.npy", mask),
        val=tmp_path / "val.csv",
        test=Path(f"{tmp_path / 's.npz'}:test"),
    )
    assert found.split("train").tolist() == np.flatnonzero(mask).tolist()
    assert found.split("val").tolist() == [7, 3, 0]
    assert found.split("test").tolist() == [9, 8]


LABELLED = np.where(np.arange(NODES) % 4 == 1, -1, np.arange(NODES) % 3)


@pytest.mark.parametrize(
    "labels",
    [
        LABELLED,
        LABELLED[:, None],
        np.where(LABELLED < 0, np.nan, LABELLED),
        np.where(LABELLED < 0, np.nan, 1.0)[:, None] * np.array([1.0, 0.0]),
        None,
    ],
)
def test_random_splits_have_their_shares_of_labelled_nodes(
    labels: Array | None, tmp_path: Path
) -> None:
    edges = save(tmp_path / "e.npy", PAIRS)
    path = None if labels is None else save(tmp_path / "y.npy", labels)
    spec: dict[str, Any] = {"labels": path, "num_nodes": NODES, "random_split": (0.5, 0.2, 0.1)}
    parts = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        found = convert(tmp_path / str(number), edges, seed=seed, **spec)
        parts.append([found.split(part).tolist() for part in ("train", "val", "test")])
    known = np.arange(NODES) if labels is None else np.flatnonzero(LABELLED >= 0)
    drawn = [node for part in parts[0] for node in part]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(known.tolist())
    shares = [round(share * len(known)) for share in (0.5, 0.2, 0.1)]
    assert [len(part) for part in parts[0]] == pytest.approx(shares, abs=1)
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]


# Edge attributes ----------------------------------------------------------------------------------

TIMES = 1_700_000_000 + np.arange(EDGES)  # float32 would merge 128 of them
WEIGHTS = np.random.default_rng(3).random(EDGES)
ROWS = np.random.default_rng(4).standard_normal((EDGES, 2)).astype(np.float32)


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "parquet", "csv.gz"])
def test_columns_of_the_edge_list_follow_their_edges(
    suffix: str, undirected: bool, tmp_path: Path
) -> None:
    columns = {"src": PAIRS[0], "dst": PAIRS[1], "at": TIMES, "strength": WEIGHTS}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    content = "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)])
    path = tmp_path / f"e.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(pa.table(columns), path, row_group_size=13)
    else:
        path.write_bytes(content.encode() if suffix == "csv" else gzip.compress(content.encode()))
    options = ConvertOptions(undirected=undirected, memory=700)
    with small_blocks(9):
        found = convert(tmp_path, path, options, edge_time="at", edge_weight="strength")
    number = sorted_by_numpy(PAIRS, found.num_nodes(), undirected)[2]
    assert found.edge_table("edge_time").dtype == np.int64
    assert np.array_equal(found.edge_table("edge_time"), TIMES[number])
    assert found.edge_table("edge_weight").dtype == np.float32
    assert np.array_equal(found.edge_table("edge_weight"), WEIGHTS.astype(np.float32)[number])


@pytest.mark.parametrize("edges", [as_two_rows, as_csv_with_header])
@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet", "pt"])
def test_files_of_edge_rows_follow_their_edges(
    suffix: str, edges: Callable[[Path], Path], tmp_path: Path
) -> None:
    path, name = tmp_path / f"f.{suffix}", f"{tmp_path / 'f'}.{suffix}"
    if suffix == "npy":
        np.save(path, ROWS.astype(">f8"))
    elif suffix == "npz":
        np.savez_compressed(path, other=TIMES, rows=ROWS)
        name += ":rows"
    elif suffix == "csv":
        path.write_text("".join(f"{a!r},{b!r}\n" for a, b in ROWS.tolist()))
    elif suffix == "parquet":
        pa.parquet.write_table(pa.table({"a": ROWS[:, 0], "b": ROWS[:, 1]}), path)
    else:
        torch.save(torch.from_numpy(ROWS), path)
    with small_blocks(9):
        found = convert(tmp_path, edges(tmp_path), edge_features=name, num_nodes=NODES)
    number = sorted_by_numpy(PAIRS, NODES, False)[2]
    assert found.edge_table("edge_features").dtype == np.float32
    assert np.array_equal(found.edge_table("edge_features"), ROWS[number])


def test_fractions_of_times_are_kept(tmp_path: Path) -> None:
    times = TIMES + 0.25
    (tmp_path / "t.csv").write_text("at\n" + "".join(f"{time!r}\n" for time in times.tolist()))
    edges = save(tmp_path / "e.npy", PAIRS)
    found = convert(tmp_path, edges, edge_time=str(tmp_path / "t.csv"))
    number = sorted_by_numpy(PAIRS, found.num_nodes(), False)[2]
    assert np.array_equal(found.edge_table("edge_time"), times[number])
