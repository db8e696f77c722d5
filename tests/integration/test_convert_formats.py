"""Graphs in the formats that people have: the same edges as the library that knows the format."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse

from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.errors import ArgumentError, FileFormatError

NODES = 20
MATRIX = scipy.sparse.random(NODES, NODES, 0.1, "coo", rng=np.random.default_rng(3))


def convert(place: Path, file: Path, **options: Any) -> Dataset:
    spec = EdgeListSpec(edges=file, name="g", **options)
    return open_dataset(convert_edge_list(spec, place / f"{file.name}.out", ConvertOptions()))


def edges_of(found: Dataset) -> Counter[tuple[str, str]]:
    """By the names of their nodes."""
    indptr = np.asarray(found.edge_table("indptr"))
    tables = found.manifest.nodes["node"].tables
    ids = np.asarray(found.node_table("node_id")) if "node_id" in tables else np.arange(len(indptr))
    names = [each.decode() if isinstance(each, bytes) else str(each) for each in ids.tolist()]
    targets = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    pairs = zip(found.edge_table("indices").tolist(), targets.tolist(), strict=True)
    return Counter((names[source], names[target]) for source, target in pairs)


def pairs_of(matrix: Any) -> Counter[tuple[str, str]]:
    coo = scipy.sparse.coo_matrix(matrix)
    return Counter(zip(map(str, coo.row), map(str, coo.col), strict=True))


# Matrices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "dia"])
@pytest.mark.parametrize("compressed", [False, True])
def test_scipys_matrices_keep_their_nodes_and_values(
    layout: str, compressed: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.npz"
    scipy.sparse.save_npz(file, MATRIX.asformat(layout), compressed=compressed)
    expected = scipy.sparse.load_npz(file).tocoo()
    found = convert(tmp_path, file, edge_weight="values")
    assert found.num_nodes() == NODES  # those without edges, too
    assert edges_of(found) == pairs_of(expected)
    back = scipy.sparse.csc_matrix(
        tuple(np.asarray(found.edge_table(name)) for name in ("edge_weight", "indices", "indptr")),
        shape=(NODES, NODES),
    )
    assert np.array_equal(back.toarray(), expected.toarray().astype(np.float32))


@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric"])
@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
@pytest.mark.parametrize("name", ["m.mtx", "m.txt", "m.mtx.gz", "m.csv.xz"])
def test_matrix_market_is_read_as_scipy_does(
    symmetry: str, field: str, name: str, tmp_path: Path
) -> None:
    matrix = MATRIX
    if symmetry != "general":
        matrix = MATRIX + (MATRIX.T if symmetry == "symmetric" else -MATRIX.T)
    if field == "integer":
        matrix = scipy.sparse.coo_matrix(np.ceil(matrix.toarray() * 10).astype(int))
        matrix = (
            matrix if symmetry == "general" else matrix + matrix.T * (-1) ** (symmetry[1] == "k")
        )
    if (symmetry, field) == ("skew-symmetric", "pattern"):
        pytest.skip("no such matrix in the format")
    plain = tmp_path / "plain.mtx"
    scipy.io.mmwrite(plain, scipy.sparse.coo_matrix(matrix), field=field, symmetry=symmetry)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    found = convert(tmp_path, tmp_path / name)
    assert found.num_nodes() == NODES
    assert edges_of(found) == pairs_of(scipy.io.mmread(plain))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("%%MatrixMarket matrix array real general\n2 2\n1\n2\n3\n4\n", "dense array"),
        ("%%MatrixMarket matrix coordinate real general\n2 3 1\n1 3 0.5\n", r"shape \(2, 3\)"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 3\n1 2 0.5\n", "not a whole"),
        ("1 2 0.5\n", "does not begin with %%MatrixMarket; --format text"),
    ],
)
def test_a_matrix_that_is_no_graph_is_refused(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "m.mtx").write_text(content)
    with pytest.raises(FileFormatError, match=f"m.mtx: .*{told}"):
        convert(tmp_path, tmp_path / "m.mtx")


# Text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [True, False, ["weight"]])
@pytest.mark.parametrize("delimiter", [" ", "\t", ","])
def test_networkx_edge_lists(data: Any, delimiter: str, tmp_path: Path) -> None:
    graph = nx.gnp_random_graph(NODES, 0.2, seed=1, directed=True)
    for number, (source, target) in enumerate(graph.edges):
        graph.edges[source, target].update(weight=number / 2, color="red, or so")
    file = tmp_path / "e.edgelist"
    nx.write_edgelist(graph, file, data=data, delimiter=delimiter)
    found = convert(tmp_path, file, header="no", ids="names", delimiter="auto")
    assert edges_of(found) == Counter((str(u), str(v)) for u, v in graph.edges)


def as_konect(file: Path) -> None:
    file.write_text("% sym weighted\n% 3 9 9\n1 2\t1 1082008561\n1 3\t2 1082008562\n2 3\t1 5\n")


def as_r_table(file: Path) -> None:
    """``write.table`` with its row names, which have no column name."""
    file.write_text('"from" "to" "w"\n"1" 1 2 0.5\n"2" 1 3 0.5\n"3" 2 3 1\n')


def as_trailing(file: Path) -> None:
    file.write_text("source,target,w\n1,2,7,\n1,3,8,\n2,3,9,\n")


def as_r_csv(file: Path) -> None:
    file.write_text('"","from","to"\n"1",1,2\n"2",1,3\n"3",2,3\n')


def as_neo4j(file: Path) -> None:
    file.write_text(
        ':START_ID(Actor),role:string[],:END_ID(Film),:TYPE\n1,"x;y",2,IN\n1,"z",3,IN\n2,"",3,IN\n'
    )


def as_excel(file: Path) -> None:
    file.write_bytes("sep=;\r\nfrom;to\r\n1;2\r\n1;3\r\n2;3\r\n".encode("utf-16"))


def as_spaced(file: Path) -> None:
    file.write_text('source, target, kind\n1, 2, "a, b"\n1, 3, "c"\n2, 3, "d"\n')


def as_floats(file: Path) -> None:
    file.write_text("id,source_id,target_id\n7,1.0,2\n8,1.0,3\n9,2.0,3\n")


def as_latin(file: Path) -> None:
    file.write_bytes("source,target,name\n1,2,é\n1,3,à\n2,3,ü\n".encode("latin-1"))


def as_wide(file: Path) -> None:
    file.write_text(f"source,target,text\n1,2,{'x' * 300_000}\n1,3,y\n2,3,z\n")


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (as_konect, {}), (as_r_table, {}), (as_r_csv, {}), (as_neo4j, {}), (as_excel, {}),
        (as_spaced, {}), (as_trailing, {}), (as_floats, {}), (as_wide, {}),
        (as_latin, {"encoding": "latin-1"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_dialects_of_text_give_the_same_edges(
    write: Callable[[Path], None],
    options: dict[str, Any],
    pack: Callable[[bytes], bytes],
    tmp_path: Path,
) -> None:
    file = tmp_path / "e.txt"
    write(file)
    file.write_bytes(pack(file.read_bytes()))
    found = convert(tmp_path, file, ids="names", **options)
    assert edges_of(found) == Counter([("1", "2"), ("1", "3"), ("2", "3")])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_packed_file_that_is_cut_off_is_one_error(
    pack: Callable[[bytes], bytes], kept: float, tmp_path: Path
) -> None:
    pairs = np.random.default_rng(0).integers(0, 1 << 30, (200_000, 2))
    packed = pack("".join(f"{source} {target}\n" for source, target in pairs).encode())
    (tmp_path / "e.txt").write_bytes(packed[: int(kept * len(packed))])
    with pytest.raises(FileFormatError, match=r"e\.txt: "):
        convert(tmp_path, tmp_path / "e.txt", ids="names")
    assert not list(tmp_path.glob("*.out*"))


@pytest.mark.parametrize(
    ("content", "option"),
    [
        ("0,1\n1,2\n", "--header"),
        ("ann,bob\nbob,cem\ncem,dan\n", ""),
        ("ann,bob\ncem,dan\n", "--header"),
        ("a\tknows\tb\nb\tknows\tc\n", "--columns"),
        ("0,5,7\n1,7,9\n2,9,5\n", "--columns"),
        ("cited,paper\n1,2\n", "--columns"),
        ("1,5;2,5\n3,5;4,5\n", "--delimiter"),
        ("1 2,5\n3 4,5\n", "--delimiter"),
        ("1.5,2\n2.5,3\n", "--columns"),
        ("source,target\n1,2,3,4\n", "--delimiter"),
        ("source,target\n1,é\n", "--encoding"),
        ("friend_id,buddy_id\nann,bob\nbob,cem\ncem,dan\n", ""),
        ("friendName,buddyName\nann,bob\nbob,cem\ncem,dan\n", ""),
        ("friend_id,buddy_id\nann,bob_id\nbob,cem_id\n", "--header"),
        ("user,friend\nann,bob\nbob,cem\ncem,dan\n", ""),
        ("colour,shape\nann,bob\nbob,cem\n", "--header"),
    ],
)
def test_what_cannot_be_known_is_refused_with_the_option(
    content: str, option: str, tmp_path: Path
) -> None:
    (tmp_path / "e.csv").write_bytes(content.encode("latin-1"))
    if not option:
        assert sum(edges_of(convert(tmp_path, tmp_path / "e.csv")).values()) == 3
        return
    with pytest.raises((FileFormatError, ArgumentError), match=option):
        convert(tmp_path, tmp_path / "e.csv", ids="auto" if option != "--encoding" else "names")


# Nodes and features -------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_nodes_keeps_rows_with_their_ids(
    index: bool, suffix: str, tmp_path: Path
) -> None:
    frame = pd.DataFrame(
        {"id": [2.0, 1.0, 0.0], "label": ["x", None, "y"], "f": [0.5, 1.5, 2.5]}, index=[9, 4, 7]
    )
    file = tmp_path / f"n.{suffix}"
    frame.to_csv(file, index=index) if suffix == "csv" else frame.to_parquet(file, index=index)
    (tmp_path / "e.csv").write_text("source,target\n0,1\n1,2\n")
    found = convert(tmp_path, tmp_path / "e.csv", nodes=file)
    assert found.node_table("node_id").tolist() == [2, 1, 0]
    assert found.node_table("features").tolist() == [[0.5], [1.5], [2.5]]
    assert found.node_table("labels").tolist() == [0, -1, 1]


@pytest.mark.parametrize("index", [False, True])
def test_numbers_that_pandas_calls_columns_by_are_no_row(index: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    frame.to_csv(tmp_path / "x.csv", index=index)
    np.save(tmp_path / "e.npy", np.array([[0, 1], [1, 2]]))
    options: dict[str, Any] = {"features": tmp_path / "x.csv"}
    if not index:
        with pytest.raises(FileFormatError, match=r"x\.csv: begins with 0, 1, 2, 3.*--header"):
            convert(tmp_path, tmp_path / "e.npy", **options)
        options["header"] = "yes"
    found = convert(tmp_path, tmp_path / "e.npy", **options)
    assert np.array_equal(found.node_table("features"), frame.to_numpy())


@pytest.mark.parametrize("named", [True, False])
def test_an_index_of_parquet_stands_first_or_is_left_out(named: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame({"b": [7, 12, 4], "a": [3, 7, 5]}, index=[5, 6, 9])
    frame = frame.set_index("a") if named else frame[["a", "b"]]
    frame.to_parquet(tmp_path / "e.parquet")
    found = convert(tmp_path, tmp_path / "e.parquet", ids="names")
    assert edges_of(found) == Counter([("3", "7"), ("7", "12"), ("5", "4")])


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["source", "source"])
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(FileFormatError, match=r"e\.parquet: .*several are called 'source'"):
        convert(tmp_path, tmp_path / "e.parquet")


def test_whole_numbers_that_float32_rounds_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "e.csv").write_text("source,target\na,b\n")
    for name, value in (("fine", 2**25), ("rounded", 2**26 + 1)):
        (tmp_path / f"{name}.csv").write_text(f"id,f,g\na,{value},0.5\nb,1,2\n")
        convert(tmp_path, tmp_path / "e.csv", nodes=tmp_path / f"{name}.csv")
        told = [record.getMessage() for record in caplog.records]
        assert any(f"{name}.csv: whole numbers" in each for each in told) == (name == "rounded")
        (tmp_path / "e.csv.out").rename(tmp_path / name)


def test_the_file_that_has_too_few_rows_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.array([[3, 7], [7, 12]]))
    np.save(tmp_path / "x.npy", np.ones((4, 13), np.float32))
    with pytest.raises(FileFormatError, match=r"x\.npy has 4 rows, one for each node"):
        convert(tmp_path, tmp_path / "e.npy", features=tmp_path / "x.npy")


# The command --------------------------------------------------------------------------------------


def test_a_dry_run_tells_how_files_are_understood_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, nodes = tmp_path / "e.csv", tmp_path / "n.csv"
    file.write_text(",paper,cited,year\n0,3,7,1999\n1,7,12,2001\n")
    nodes.write_text("name,id,label\na,3,1\nb,7,0\nc,12,1\n")
    arguments = ["convert", str(file), str(tmp_path / "out"), "--nodes", str(nodes), "--dry-run"]
    assert main([*arguments, "--edge-time", "year", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        str(file): {
            "format": "text", "delimiter": "comma", "header": True,
            "index, left out": "without a name", "source": "paper", "target": "cited",
            "edge_time": "year", "ids": "names", "first edges": [["3", "7"], ["7", "12"]],
        },
        str(nodes): {
            "format": "text", "delimiter": "comma", "header": True, "rows": 3, "id": "id",
            "label": "label", "features": ["name"],
        },
    }  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "3 -> 7, 7 -> 12" in shown
    assert "columns, left out" in shown
    assert not (tmp_path / "out").exists()
    assert main([*arguments[:2], str(tmp_path / "out"), "--columns", "paper", "paper"]) == 2
    assert "--columns paper paper: expected two columns" in capsys.readouterr().err
