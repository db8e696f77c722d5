"""Arrays in files: the same rows from every kind of file, from any row on, in small blocks."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.convert import arrays, text
from gnnsys.convert.arrays import ArraySource, NpzMember
from gnnsys.convert.tables import open_array
from gnnsys.convert.text import TextTable
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    UnsupportedError,
)

pa = pytest.importorskip("pyarrow", reason="text and Parquet are read through pyarrow")
pytest.importorskip("pyarrow.parquet")

PROPERTY = settings(deadline=None, print_blob=True)
VALUES = np.random.default_rng(1).standard_normal((37, 3)).astype(np.float32)
VALUES[3, 1] = np.nan


def lines(values: NDArray[Any], mark: str = ",") -> str:
    """A line for each row; NaN as an empty field, where fields cannot be blank as nan."""
    missing = "nan" if mark == " " else ""
    rows = [
        [missing if np.isnan(value) else repr(value) for value in row] for row in values.tolist()
    ]
    return "".join(mark.join(row) + "\n" for row in rows)


def save_npz(path: Path, compressed: bool = False, **members: NDArray[Any]) -> None:
    (np.savez_compressed if compressed else np.savez)(path, allow_pickle=True, **members)


def save_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pa.parquet.write_table(pa.table(columns), path, **options)


def save_gz(path: Path, content: str) -> None:
    path.write_bytes(gzip.compress(content.encode()))


def as_npy(path: Path) -> str:
    np.save(path / "x.npy", VALUES)
    return "x.npy"


def as_fortran_npy(path: Path) -> str:
    np.save(path / "x.npy", np.asfortranarray(VALUES))
    return "x.npy"


def as_big_endian_npy(path: Path) -> str:
    np.save(path / "x.npy", VALUES.astype(">f4"))
    return "x.npy"


def as_npz(path: Path) -> str:
    save_npz(path / "x.npz", x=VALUES)
    return "x.npz"


def as_member(path: Path) -> str:
    save_npz(path / "x.npz", compressed=True, y=np.zeros(3), x=VALUES)
    return "x.npz:x"


def as_csv(path: Path) -> str:
    (path / "x.csv").write_text(lines(VALUES))
    return "x.csv"


def as_csv_with_header(path: Path) -> str:
    (path / "x.csv").write_text("\n# made by hand\na,b,c\n\n" + lines(VALUES))
    return "x.csv"


def as_gzipped_csv(path: Path) -> str:
    save_gz(path / "x.csv.gz", lines(VALUES))
    return "x.csv.gz"


def as_semicolons(path: Path) -> str:
    (path / "x.csv").write_text("a;b;c\r\n" + lines(VALUES, ";").replace("\n", "\r\n"))
    return "x.csv"


def as_tsv(path: Path) -> str:
    (path / "x.tsv").write_text("﻿" + lines(VALUES, "\t"))
    return "x.tsv"


def as_blanks(path: Path) -> str:
    ragged = lines(VALUES, " ").replace(" ", " \t ").replace("\n", "  \n\t")
    (path / "x.txt").write_text(f"% a comment\n  {ragged}")
    return "x.txt"


def as_parquet(path: Path) -> str:
    columns = {name: VALUES[:, place] for place, name in enumerate("abc")}
    save_parquet(path / "x.parquet", columns, row_group_size=10)
    return "x.parquet"


def as_tensor(path: Path) -> str:
    torch.save(torch.from_numpy(VALUES.T.copy()).T.requires_grad_(), path / "x.pt")
    return "x.pt"


KINDS: list[Callable[[Path], str]] = [
    as_npy, as_fortran_npy, as_big_endian_npy, as_npz, as_member, as_csv, as_csv_with_header,
    as_gzipped_csv, as_semicolons, as_tsv, as_blanks, as_parquet, as_tensor,
]  # fmt: skip


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    """Blocks of a few rows, as large files have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_BLOCK_BYTES", size)
        patch.setattr(text, "_BLOCK_BYTES", size)
        yield


def read(source: ArraySource, first: int = 0) -> NDArray[Any]:
    rest = np.empty((0, *source.shape[1:]), source.dtype)
    return np.concatenate([rest, *source.blocks(first)])


@pytest.mark.parametrize("save", KINDS)
@pytest.mark.parametrize("block_bytes", [130, 1 << 20])
def test_every_kind_of_file_gives_the_same_rows(
    save: Callable[[Path], str], block_bytes: int, tmp_path: Path
) -> None:
    with small_blocks(block_bytes):
        source = open_array(tmp_path / save(tmp_path))
        assert source.shape == (37, 3)
        assert source.dtype.kind == "f"
        for first in (0, 1, 10, 36, 37):
            rows = read(source, first)
            assert rows.dtype.itemsize == 4
            assert np.array_equal(rows, VALUES[first:], equal_nan=True)


@pytest.mark.parametrize("save", KINDS)
def test_blocks_are_small(save: Callable[[Path], str], tmp_path: Path) -> None:
    with small_blocks(130):
        blocks = list(open_array(tmp_path / save(tmp_path)).blocks())
    assert len(blocks) >= 3
    assert max(len(block) for block in blocks) <= 11


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("save", ["npy", "npz", "parquet", "pt"])
def test_binary_files_keep_their_type(save: str, dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 1], [0, 0]]).astype(dtype)
    path = tmp_path / f"x.{save}"
    if save == "npy":
        np.save(path, values)
    elif save == "npz":
        save_npz(path, x=values)
    elif save == "parquet":
        save_parquet(path, {"a": values[:, 0], "b": values[:, 1]})
    else:
        torch.save(torch.from_numpy(values), path)
    source = open_array(path)
    assert source.dtype == values.dtype
    assert np.array_equal(read(source), values)


def test_bfloat16_tensors_are_read_exactly(tmp_path: Path) -> None:
    values = torch.from_numpy(VALUES).to(torch.bfloat16)
    torch.save(values, tmp_path / "x.pt")
    with small_blocks(64):
        rows = read(open_array(tmp_path / "x.pt"))
    assert rows.dtype == np.float32
    assert np.array_equal(rows, values.float().numpy(), equal_nan=True)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (5, 0)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_without_elements_keep_their_shape(
    shape: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, np.zeros(shape))
    else:
        save_npz(path, x=np.zeros(shape))
    assert read(open_array(path)).shape == shape


# One column of text -------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "id\n"])
@pytest.mark.parametrize(
    ("rows", "values"),
    [
        (["3", "-1", "9007199254740993"], np.array([3, -1, (1 << 53) + 1])),
        (["3", "1.5", "2"], np.array([3, 1.5, 2])),
        (["0.5", "nan", "1e3"], np.array([0.5, np.nan, 1000])),
        (["1"] * 40 + ["0.25"], np.array([1.0] * 40 + [0.25])),  # beyond the first block
    ],
)
def test_one_column_is_a_vector_of_whole_numbers_where_all_are(
    header: str, rows: list[str], values: NDArray[Any], tmp_path: Path
) -> None:
    (tmp_path / "y.csv").write_text(header + "\n".join(rows) + "\n")
    with small_blocks(16):
        source = open_array(tmp_path / "y.csv")
        assert source.dtype == values.dtype
        assert source.shape == values.shape
        assert np.array_equal(read(source), values, equal_nan=True)


def test_a_gap_among_whole_numbers_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text("1\nnan\n2\n")
    with pytest.raises(FileFormatError, match=r"y\.csv: NaN among whole numbers; write 1\.0 for 1"):
        open_array(tmp_path / "y.csv")


# Text ---------------------------------------------------------------------------------------------


@PROPERTY
@given(
    st.sampled_from([".csv", ".tsv", ".txt"]),
    st.integers(1, 4),
    st.lists(st.sampled_from(["", "# c", "% \u2028 c", "#\x0c"]), max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.booleans(),
    st.booleans(),
    st.integers(64, 200),  # the first block holds comments and header
    st.sampled_from(["word", "1.2.3", "12x", "--1"]),
    st.data(),
)
def test_a_word_among_numbers_is_found_with_its_line_and_column(
    suffix: str,
    columns: int,
    comments: list[str],
    header: bool,
    gaps: list[int],
    crlf: bool,
    gzipped: bool,
    block_bytes: int,
    word: str,
    data: st.DataObject,
) -> None:
    mark = {".csv": ",", ".tsv": "\t", ".txt": "  "}[suffix]
    wrong_row = data.draw(st.integers(0, len(gaps) - 1))
    wrong_column = data.draw(st.integers(0, columns - 1))
    written = [*comments]
    names = [f"c{place}" for place in range(columns)]
    written += [mark.join(names)] if header else []
    for row, gap in enumerate(gaps):
        written += [""] * gap
        fields = [str(row)] * columns
        if row == wrong_row:
            fields[wrong_column] = word
            line = len(written) + 1
        written.append(mark.join(fields))
    content = ("\r\n" if crlf else "\n").join(written) + "\n"
    with TemporaryDirectory() as place, small_blocks(block_bytes):
        path = Path(place) / f"x{suffix}"
        path.write_bytes(content.encode())
        if gzipped:
            path = Path(place) / f"x{suffix}.gz"
            save_gz(path, content)
        names = names if header else [f"f{place}" for place in range(columns)]
        table = TextTable(path, header, types=dict.fromkeys(names, pa.int64()))
        with pytest.raises(FileFormatError) as caught:
            list(table.batches())
    expected = f"line {line}: expected int64, found '{word}'"
    assert str(caught.value) == f"{path}: column {names[wrong_column]}, {expected}"


@pytest.mark.parametrize("block_bytes", [32, 1 << 20])
@pytest.mark.parametrize("gap", ["", "\n\n"])
@pytest.mark.parametrize(("row", "columns"), [("7,8,9", 3), ("7", 1), ("7,8,9,10", 4)])
def test_a_row_of_other_columns_is_found_with_its_line(
    row: str, columns: int, gap: str, block_bytes: int, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("# one\n\na,b\n" + "1.5,2\n" * 30 + gap + f"{row}\n3,4\n")
    line = 34 + len(gap)
    with (
        small_blocks(block_bytes),
        pytest.raises(FileFormatError, match=f"line {line}: Expected 2 columns, got {columns}"),
    ):
        open_array(tmp_path / "x.csv")


@PROPERTY
@given(
    st.lists(st.lists(st.sampled_from("ab1."), min_size=1, max_size=3), min_size=1, max_size=30),
    # A tab alone in the first row would make tabs the only marks.
    st.tuples(st.sampled_from([" ", "  ", " \t "]), *[st.sampled_from([" ", "\t", " \t "])] * 2),
    st.sampled_from(["", " ", "\t  "]),
    st.sampled_from(["\n", " \n", "\r\n", "\t\r\n", "\n\n", "\n \t\n"]),
    st.integers(16, 60),
)
def test_any_blanks_may_stand_between_and_around_columns(
    words: list[list[str]], between: tuple[str, ...], before: str, after: str, block_bytes: int
) -> None:
    rows = [["".join(word), str(number)] for number, word in enumerate(words)]
    content = "".join(
        before + between[number % 3].join(row) + after for number, row in enumerate(rows)
    )
    with TemporaryDirectory() as place, small_blocks(block_bytes):
        path = Path(place) / "x.txt"
        path.write_text(f"# {content.splitlines()[0]}\n\n{content}", newline="")
        types = {"f0": pa.string(), "f1": pa.int64()}
        batches = list(TextTable(path, header=False, types=types).batches())
    found = [list(row.values()) for batch in batches for row in batch.to_pylist()]
    assert found == [[word, int(number)] for word, number in rows]


def test_tabs_keep_blanks_inside_words(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("New York\tRome\nRome\tLos Angeles\n")
    (batch,) = TextTable(tmp_path / "x.txt", header=False).batches()
    assert batch.to_pydict() == {"f0": ["New York", "Rome"], "f1": ["Rome", "Los Angeles"]}


def test_marks_inside_quotes_separate_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"name, first",age\n"Doe, J.",3\n')
    table = TextTable(tmp_path / "x.csv")
    (batch,) = table.batches()
    assert batch.to_pydict() == {"name, first": ["Doe, J."], "age": [3]}


def test_columns_of_one_name_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,a,b,a\n1,2,3,4\n")
    (batch,) = TextTable(tmp_path / "x.csv").batches()
    assert batch.to_pydict() == {"a": [1], "a.1": [2], "b": [3], "a.2": [4]}


@pytest.mark.parametrize(
    ("first", "header"),
    [("1,2", False), ("1,", False), (",nan", False), ("1e5,-inf", False), ("a,2", True),
     (",a", True), ("NA,x", True), ("1_0x,2", True)],
)  # fmt: skip
def test_a_header_has_a_field_that_is_no_number(first: str, header: bool, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{first}\n5,6\n")
    assert TextTable(tmp_path / "x.csv").header is header


@pytest.mark.parametrize("content", ["", "\n\n", "# only\n% comments\n"])
def test_text_without_rows_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(FileFormatError, match=r"x\.csv: empty, expected rows of numbers"):
        open_array(tmp_path / "x.csv")


def test_a_header_alone_is_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    assert read(open_array(tmp_path / "x.csv")).shape == (0, 2)


# Files that are not what they should be -----------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz", "x.npz:a", "x.csv", "x.csv.gz", "x.parquet", "x.pt"):
        with pytest.raises(MissingFileError, match=r"x\.[a-z.]+: no such file"):
            open_array(tmp_path / name)


def test_an_unknown_kind_is_an_argument_error(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(ArgumentError, match=r"x\.xlsx: unknown kind '\.xlsx'; expected \.npy"):
        open_array(tmp_path / "x.xlsx")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_a_single_number_is_no_array(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, np.float32(1))
    elif suffix == ".npz":
        save_npz(path, x=np.array(1))
    else:
        torch.save(torch.tensor(1), path)
    with pytest.raises(FileFormatError, match=r"x\.(npy|npz|pt): "):
        open_array(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".pt", ".csv.gz"])
def test_files_that_are_something_else_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    for content in (b"", b"a,b\n1,2\n", b"\x00" * 300):
        if (suffix, content[:1]) == (".csv.gz", b"a"):
            continue  # what is packed is told by its first bytes
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as caught:
            open_array(path)
        assert str(path) in str(caught.value)


def test_an_archive_under_the_name_of_an_array_is_told(tmp_path: Path) -> None:
    with open(tmp_path / "x.npy", "wb") as file:
        np.savez(file, x=VALUES)
    with pytest.raises(FileFormatError, match=r"x\.npy: a \.npz archive, expected a \.npy array"):
        open_array(tmp_path / "x.npy")


def test_members_are_told_where_the_name_is_missing_or_wrong(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", a=VALUES, b=VALUES)
    with pytest.raises(ArgumentError, match=r"x\.npz: holds a, b; name one as x\.npz:NAME"):
        open_array(tmp_path / "x.npz")
    with pytest.raises(FileFormatError, match=r"x\.npz: no array 'c'; it holds a, b"):
        open_array(f"{tmp_path / 'x.npz'}:c")
    save_npz(tmp_path / "none.npz")
    with pytest.raises(ArgumentError, match=r"none\.npz: holds no arrays"):
        open_array(tmp_path / "none.npz")


def test_members_that_are_no_numbers_or_in_fortran_order_are_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", words=np.array([{}], object), turned=np.asfortranarray(VALUES))
    with pytest.raises(FileFormatError, match="words: holds Python objects, expected numbers"):
        open_array(f"{tmp_path / 'x.npz'}:words")
    with pytest.raises(UnsupportedError, match="turned: Fortran order"):
        open_array(f"{tmp_path / 'x.npz'}:turned")
    turned = NpzMember(tmp_path / "x.npz", "turned", any_order=True)
    assert turned.fortran
    flat = np.concatenate(list(turned.flat_blocks(5, 20, step=3)))
    assert np.array_equal(flat, VALUES.T.ravel()[5:25], equal_nan=True)


def test_a_member_without_its_suffix_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(FileFormatError, match=r"x\.npz:x: damaged"):
        open_array(tmp_path / "x.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_of_a_member_is_found(compressed: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (500, 4))
    save_npz(tmp_path / "x.npz", compressed, x=values)
    whole = (tmp_path / "x.npz").read_bytes()
    for place in range(200, len(whole) - 200, 97):
        spoilt = bytearray(whole)
        spoilt[place] ^= 4
        (tmp_path / "x.npz").write_bytes(spoilt)
        with small_blocks(1000), pytest.raises(FileFormatError, match=r"x\.npz"):
            read(open_array(tmp_path / "x.npz"))


NPY = io.BytesIO()
np.save(NPY, VALUES)


@settings(PROPERTY, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=3))
@example([(26, 66)])  # a key of bytes among those of text
def test_a_damaged_npy_header_is_one_error_or_another_array(changes: list[tuple[int, int]]) -> None:
    spoilt = bytearray(NPY.getvalue())
    for place, value in changes:
        spoilt[place] = value
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        path.write_bytes(spoilt)
        try:
            open_array(path)
        except GnnsysError as error:
            caught = str(error)
        else:
            return
    assert str(path) in caught


@pytest.mark.parametrize("save", [as_npz, as_member, as_parquet, as_tensor, as_gzipped_csv])
def test_a_truncated_file_is_one_error(save: Callable[[Path], str], tmp_path: Path) -> None:
    place = tmp_path / save(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for kept in [*range(0, len(whole), 1 + len(whole) // 40), len(whole) - 1]:
        file.write_bytes(whole[:kept])
        with pytest.raises(FileFormatError) as caught:
            read(open_array(place))
        assert str(file) in str(caught.value)


def test_damage_inside_parquet_is_one_error(tmp_path: Path) -> None:
    save_parquet(tmp_path / "x.parquet", {"a": np.arange(5000.0)}, compression="zstd")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:40] + bytes(200) + whole[240:])
    with pytest.raises(FileFormatError, match=r"x\.parquet: damaged"):
        read(open_array(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": ["x"], "b": [1]}, r"columns a \(string\) are not numbers"),
        ({"a": [["x"]]}, r"columns a \(list<element: string>\) are not numbers"),
        ({}, "no columns, expected some"),
        ({"a": [1, None, 3]}, "column a has 1 empty entries, expected numbers"),
        ({"a": [True, None], "b": [0.5, 1.5]}, "column a has 1 empty entries"),
    ],
)
def test_parquet_that_is_no_matrix_is_refused(
    columns: dict[str, Any], says: str, tmp_path: Path
) -> None:
    save_parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(FileFormatError, match=rf"x\.parquet: {says}"):
        read(open_array(tmp_path / "x.parquet"))


def test_gaps_in_parquet_are_nan_where_there_are_floats(tmp_path: Path) -> None:
    save_parquet(tmp_path / "x.parquet", {"a": [1.5, None], "b": pa.array([None, 2], pa.int32())})
    expected = [[1.5, np.nan], [np.nan, 2]]
    assert np.array_equal(read(open_array(tmp_path / "x.parquet")), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"x": torch.ones(2)}, "holds a dict, expected a tensor"),
        (torch.eye(3).to_sparse(), "torch.sparse_coo of torch.float32, expected a dense tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn, expected a dense tensor"),
        (print, "torch cannot read a tensor"),
    ],
)
def test_what_is_no_tensor_is_refused(value: Any, says: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=rf"x\.pt: .*{says}"):
        open_array(tmp_path / "x.pt")
