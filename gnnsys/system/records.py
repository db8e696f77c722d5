"""Makes dataclasses of what was parsed from JSON, TOML or YAML; a misfit is one error of ours."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from gnnsys.errors import FileFormatError, GnnsysError, MissingFileError
from gnnsys.system.files import read_text_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["as_record", "json_text", "place_of", "read_toml"]

_T = TypeVar("_T")
_Key = str | int

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "nothing",
}


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON without the NaN and Infinity that strict readers refuse: such a number is null.

    Of an object, ``non_finite`` says which numbers those were, by their places.

    >>> json_text({"loss": float("nan"), "val": {"accuracy": 0.5}})
    '{"loss": null, "val": {"accuracy": 0.5}, "non_finite": {"loss": "NaN"}}'
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        places: dict[str, str] = {}
        content = _finite(content, [], places)
        if isinstance(content, dict):
            content["non_finite"] = places
        return json.dumps(content, indent=indent, allow_nan=False)


def _finite(content: Any, trail: list[_Key], places: dict[str, str]) -> Any:
    """A copy with null for numbers that are not finite, whose places are noted."""
    if isinstance(content, Mapping):
        return {key: _finite(each, [*trail, key], places) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(each, [*trail, key], places) for key, each in enumerate(content)]
    if isinstance(content, float) and not math.isfinite(content):
        places[place_of(trail)] = json.dumps(content)
        return None
    return content


def read_toml(path: Path, name: str, way_out: str) -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        name: how an error calls a file that is not there.
        way_out: what a user can do then.

    Raises:
        MissingFileError, FileFormatError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(read_text_file(path, "TOML"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{name}: no such file; {way_out}") from None
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{path}: is not TOML ({error}); mend it") from error


def as_record(
    content: Any,
    kind: type[_T],
    source: str,
    way_out: str,
    error: type[GnnsysError] = FileFormatError,
) -> _T:
    """``content`` as a dataclass, or as another type that msgspec knows.

    Fields that ``kind`` lacks are left out.

    Args:
        content: dicts, lists, texts, numbers, truth values and None.
        kind: of the record.
        source: the file, and what of it was parsed; errors begin with it.
        way_out: what a user can do about a fault; errors end with it.
        error: that is raised.

    Raises:
        FileFormatError: a field that is not there or of another type: names its place, what it
            is and what was expected.
        GnnsysError: as ``__post_init__`` of a record raises.

    >>> as_record({"a": [1, "x"]}, dict[str, list[int]], "f.json", "mend it")
    Traceback (most recent call last):
    ...
    gnnsys.errors.FileFormatError: f.json: a[1] is 'x', expected an integer; mend it
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as fault:
        if isinstance(fault.__cause__, GnnsysError):  # by the record's own checks
            raise fault.__cause__ from None
        raise error(f"{source}: {_told(fault, content, kind)}; {way_out}") from None


def place_of(trail: Sequence[_Key]) -> str:
    """How errors name the place to which keys and numbers lead.

    >>> place_of(["nodes", "a b", 3, "count"])
    "nodes['a b'][3].count"
    """
    steps = (f".{key}" if str(key).isidentifier() else f"[{key!r}]" for key in trail)
    return "".join(steps).removeprefix(".")


def _told(fault: msgspec.ValidationError, content: Any, kind: Any) -> str:
    what, _, path = str(fault).partition(" - at ")
    trail, value, hint = _follow(path, fault, content, kind)
    place = place_of(trail)
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return f"no {place_of([*trail, missing[1]])}"
    found = f"{place or 'it'} is {value!r}"
    expected = re.match(r"Expected `([^`]*)`(?: ([<>])= (.*))?", what)
    choices = _choices(hint)
    if any(choice not in _WORDS.values() for choice in choices):
        return f"{found}, expected one of {', '.join(choices)}"
    if expected and expected[2]:
        return f"{found}, expected at {'least' if expected[2] == '>' else 'most'} {expected[3]}"
    if expected:
        names = expected[1].split(" | ")
        return f"{found}, expected {' or '.join(_WORDS.get(name, name) for name in names)}"
    return f"{found}: {what}"


def _follow(
    path: str, fault: msgspec.ValidationError, content: Any, kind: Any
) -> tuple[list[_Key], Any, Any]:
    """Keys to the place of a fault, what is there, and the type it is to have where known."""
    trail: list[_Key] = []
    value, hint = content, kind
    for name, number in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path):
        key: _Key = name or (int(number) if number != "..." else "")
        if number == "...":  # msgspec does not tell the key: it is the first that fails alone
            key = next(each for each in value if _fails(fault, content, kind, trail, each, value))
        if get_origin(hint) in (Union, UnionType):
            hint = next(each for each in get_args(hint) if each is not NoneType)
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint).get(name)
        else:  # of dict[str, T], list[T] or tuple[T, ...]
            hint = next((each for each in get_args(hint) if each is not str), None)
        trail.append(key)
        value = value[key]
    return trail, value, hint


def _fails(
    fault: msgspec.ValidationError, content: Any, kind: Any, trail: list[_Key], key: _Key, held: Any
) -> bool:
    try:
        msgspec.convert(_replaced(content, trail, {key: held[key]}), kind)
    except msgspec.ValidationError as again:
        return str(again) == str(fault)
    return False


def _replaced(content: Any, trail: Sequence[_Key], new: Any) -> Any:
    if not trail:
        return new
    copy = content.copy()
    copy[trail[0]] = _replaced(content[trail[0]], trail[1:], new)
    return copy


def _choices(hint: Any) -> list[str]:
    """All values that a type's literals name, and its other types by name."""
    if get_origin(hint) is Literal:
        return [repr(value) for value in get_args(hint)]
    parts = [choice for part in get_args(hint) for choice in _choices(part)]
    return parts or ([_WORDS[hint.__name__]] if getattr(hint, "__name__", "") in _WORDS else [])
