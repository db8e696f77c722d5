"""What the columns of a table are: whether its first row names them; indexes, ids, ends of edges.

Owns the rules. A table of edges, in this order:

1. A first row with usual names of both ends, or with an empty first name, or one field shorter than
   all others, or with a word above nothing but numbers, names the columns.
2. A first row with a number in it does not, but ``0,1,…`` may, as pandas writes it: refused.
3. Words above words: they are an edge where one of them is an id of other rows, too; names where
   they have no digits and all below them have some, or where both say that they are ids (friend_id,
   friendName) and no id below does; else refused.
4. A column without a name, or Parquet's index, is an index and left out.
5. Usual names are the ends, wherever they stand. Else the first two columns, unless a third one is
   not known to be an attribute, the first one is a usual target, or it counts the rows: refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from gnnsys.convert.dialect import Dialect, TableOptions, is_number, is_whole
from gnnsys.errors import ArgumentError, FileFormatError

__all__ = [
    "EMPTY",
    "choose_columns",
    "choose_ends",
    "find_id",
    "has_edge_header",
    "has_header",
    "index_columns",
    "is_index",
    "usual_ends",
    "whole_floats",
]

EMPTY = {"", "NA", "N/A", "NULL", "null", "NaN", "nan", "None", "<NA>"}
"""Fields in place of a number or a class that is not known."""

_SOURCES = ("source", "src", "from", "start", "origin", "subject", "sender", "citing")
_TARGETS = (
    "target",
    "tgt",
    "dst",
    "dest",
    "destination",
    "to",
    "end",
    "object",
    "receiver",
    "cited",
)
_PAIRS = (("u", "v"), ("i", "j"), ("row", "col"), ("row", "column"), ("node1", "node2"),
          ("head", "tail"), ("user", "item"), ("follower", "followee"), ("id1", "id2"),
          ("parent", "child"), ("user", "friend"), ("member", "group"), ("author", "paper"),
          ("employee", "manager"), ("buyer", "seller"), ("payer", "payee"))  # fmt: skip
_ATTRIBUTES = {
    "weight", "w", "value", "val", "time", "timestamp", "ts", "t", "date", "year", "type", "label",
    "rating", "score", "count", "sign", "relation", "rel", "predicate", "attr", "edgeid", "key",
    "text",
}  # fmt: skip
_IDS = ("id", "nodeid", "node", "vertex", "vertexid", "vid", "nid")
_SAYS_ID = re.compile(r"(.*(_| |-|:))?(id|name|key|code|uri|iri)|.*[a-z](Id|ID|Name|Key)")
"""Names of columns that say that they hold ids: friend_id, friendId."""
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")


def _letters(name: str) -> str:
    """A name without case and marks: startid of ``:START_ID(User)``."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*\)", "", name).lower())


def _plain(name: str) -> str:
    """A name without case, marks and what says that it is an id: start of ``:START_ID(User)``."""
    plain = _letters(name)
    return re.sub(r"(?<=.)(nodeid|nodeidx|vertexid|node|vertex|idx|id)$", "", plain) or plain


def usual_ends(names: Sequence[str]) -> tuple[str, str] | None:
    """The columns of sources and targets where they have usual names, and one each.

    >>> usual_ends(["weight", "tgt", "src"])
    ('src', 'tgt')
    """
    plain = [_plain(name) for name in names]
    for sources, targets in ((_SOURCES, _TARGETS), *(((a,), (b,)) for a, b in _PAIRS)):
        first = [place for place, name in enumerate(plain) if name in sources]
        second = [place for place, name in enumerate(plain) if name in targets]
        if len(first) == len(second) == 1:
            return names[first[0]], names[second[0]]
    return None


def find_id(names: Sequence[str]) -> str:
    """The column of node ids: one with a usual name, else the first."""
    known = [_letters(name) for name in names]
    return names[next((known.index(usual) for usual in _IDS if usual in known), 0)]


def choose_columns(
    path: Path, names: Sequence[str], given: Sequence[str], option: str
) -> list[str]:
    """The columns that an option names.

    Args:
        path: of the table.
        names: of its columns.
        given: names; numbers from 0, where no column is called so; ``FIRST..LAST`` of either.
        option: what to call it in messages.

    Raises:
        ArgumentError: a column that is not there, or one twice.

    >>> choose_columns(Path("n.csv"), ["id", "a", "b", "c"], ["c", "1..b"], "--feature-columns")
    ['c', 'a', 'b']
    """
    chosen: list[str] = []
    for part in given:
        first, dots, last = part.partition("..")
        if part in names or not dots:
            chosen.append(names[_place_of(path, names, part, option)])
            continue
        start, end = (_place_of(path, names, each, option) for each in (first, last))
        if start > end:
            raise ArgumentError(f"{option} {part}: {first} stands after {last} in {path}")
        chosen += names[start : end + 1]
    twice = next((name for place, name in enumerate(chosen) if name in chosen[:place]), None)
    if twice is not None:
        raise ArgumentError(f"{option} {' '.join(given)}: column {twice} is named twice")
    return chosen


def _place_of(path: Path, names: Sequence[str], column: str, option: str) -> int:
    if column in names:
        return names.index(column)
    if column.isdecimal() and int(column) < len(names):
        return int(column)
    raise _absent(path, names, column, f"{option} {column}")


def _absent(path: Path, names: Sequence[str], column: str, given: str) -> ArgumentError:
    near = difflib.get_close_matches(column, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ArgumentError(f"{given}: {path} has {', '.join(names) or 'no columns'}{hint}")


def index_columns(names: Sequence[str], extra: bool = False) -> list[str]:
    """Columns that are an index: the first, where it has no name, and those of pandas.

    Args:
        names: of the columns.
        extra: whether rows have one field more than the first row has names.
    """
    found = [name for name in names if is_index(name)]
    return found or ([names[0]] if names and (extra or not names[0]) else [])


def is_index(name: str) -> bool:
    """Whether pandas calls an index without a name so."""
    return _INDEX.fullmatch(name) is not None


def _is_short(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all rows but the first have one field more than it."""
    return len(rows) > 1 and all(len(row) == len(rows[0]) + 1 for row in rows[1:])


def _counts_columns(row: Sequence[str]) -> bool:
    """Whether a row is 0, 1, …, as pandas calls columns without names, after its index or not."""
    fields = list(row[1:] if row and row[0] == "" else row)
    return len(fields) > 1 and fields == [str(place) for place in range(len(fields))]


def _names_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a word stands above nothing but numbers."""
    first, *others = rows
    for place, name in enumerate(first):
        below = {row[place] for row in others if place < len(row)} - EMPTY
        if name not in EMPTY and not is_number(name) and below and all(map(is_number, below)):
            return True
    return False


def _unclear(path: Path, row: Sequence[str]) -> FileFormatError:
    return FileFormatError(
        f"{path}: begins with {', '.join(row[:4])}, which may be names of columns or a row; "
        "--header yes or --header no says which"
    )


def has_header(path: Path, dialect: Dialect, options: TableOptions) -> bool:
    """Whether the first row of a table names its columns, a table of numbers above all.

    Raises:
        FileFormatError: it may or may not.
    """
    rows = dialect.rows
    forced = options.header != "auto" and not options.only_where_unclear
    if forced or not rows:
        return options.header == "yes"
    if _is_short(rows) or any(not is_number(field) and field not in EMPTY for field in rows[0]):
        return True
    if _counts_columns(rows[0]):
        if rows[0][0] == "":
            return True
        if options.header == "auto":
            raise _unclear(path, rows[0])
        return options.header == "yes"
    return False


def has_edge_header(path: Path, dialect: Dialect, options: TableOptions) -> bool:
    """Whether the first row of an edge list names its columns, by rules 1 to 3.

    Raises:
        FileFormatError: it may or may not.
    """
    rows = dialect.rows
    if options.header != "auto" or not rows:
        return options.header == "yes"
    first, others = rows[0], rows[1:]
    if usual_ends(first) or _is_short(rows) or (first[0] == "" and len(first) > 2):
        return True
    if _counts_columns(first) and dialect.delimiter in (",", ";") and not dialect.commented:
        raise _unclear(path, first)
    if any(map(is_number, first)):
        return False
    if others and _names_numbers(rows):
        return True
    ids = {field for row in others for field in row[:2]}
    if ids.intersection(first[:2]):
        return False
    digits = [any(mark.isdigit() for mark in field) for field in first[:2]]
    below = [any(mark.isdigit() for mark in field) for row in others for field in row[:2]]
    if below and all(below) and not any(digits):
        return True
    say_id = len(first) > 1 and all(map(_SAYS_ID.fullmatch, first[:2]))
    if say_id and others and not any(map(_SAYS_ID.fullmatch, ids)):
        return True
    raise _unclear(path, first)


def choose_ends(
    path: Path,
    names: Sequence[str],
    columns: tuple[str, str] | None,
    *,
    named: bool = True,
    rows: Sequence[Sequence[str]] = (),
) -> tuple[str, str]:
    """The columns of sources and targets, by rule 5.

    Args:
        path: of the file.
        names: of its columns, without an index.
        columns: what ``--columns`` says.
        named: whether the file names its columns.
        rows: the first ones, where they are text.

    Raises:
        ArgumentError: columns that are not there, or one twice.
        FileFormatError: one column, or none; or it is not clear which.
    """
    if columns is not None:
        for column in columns:
            if column not in names:
                raise _absent(path, names, column, f"--columns {' '.join(columns)}")
        if columns[0] == columns[1]:
            raise ArgumentError(f"--columns {' '.join(columns)}: expected two columns")
        return columns
    if len(names) < 2:
        raise FileFormatError(
            f"{path}: {len(names)} columns, expected sources and targets; --delimiter says what "
            "separates columns of text"
        )
    found = usual_ends(names) if named else None
    if found is None:
        why = _why_unclear(names, rows, named)
        if why:
            raise FileFormatError(
                f"{path}: {why}; --columns SOURCE TARGET says which of {', '.join(names[:8])} are "
                "the ends"
            )
    return found or (names[0], names[1])


def _why_unclear(names: Sequence[str], rows: Sequence[Sequence[str]], named: bool) -> str:
    """Why the first two of several columns are perhaps not the ends."""
    if named:
        other = next((name for name in names[2:] if _plain(name) not in _ATTRIBUTES), None)
        odd = next((name for name in names[:2] if _plain(name) in {*_ATTRIBUTES, "id"}), other)
        if odd is not None:
            return f"no usual names of ends, and a column {odd}"
        if _plain(names[0]) in _TARGETS or _plain(names[1]) in _SOURCES:
            return f"{names[0]} and {names[1]} are perhaps a target and a source"
        return ""
    if len(names) == 2:
        return ""
    third = {row[2] for row in rows if len(row) > 2} - EMPTY
    if not all(map(is_number, third)):
        return "no names of columns, and words in the third"
    first = [row[0] for row in rows]
    for start in (0, 1):
        if len(first) > 2 * start and first == [str(start + place) for place in range(len(first))]:
            return "no names of columns, and the first counts the rows"
    return ""


def whole_floats(values: Sequence[str]) -> bool:
    """Whether a column's ids are whole numbers that are written as floats, in part."""
    return all(map(is_whole, values)) and any("." in value for value in values)
