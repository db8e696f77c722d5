"""Misfits in parsed text are one error that names file, place, value, expectation and way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import pytest

from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.system.records import as_record, place_of

Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    count: Count
    shape: tuple[int, ...] = ()
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    name: str
    parts: dict[str, Part]
    more: list[dict[str, Part]] = field(default_factory=list)
    window: int | Literal["auto"] = "auto"


def whole(**changes: Any) -> dict[str, Any]:
    return {"name": "w", "parts": {"a": {"count": 1}, "b c": {"count": 2}}} | changes


def test_what_fits_becomes_the_record_without_other_fields() -> None:
    content = whole(other=3, more=[{"x": {"count": 0, "shape": [1, 2]}}])
    assert as_record(content, Whole, "f", "w") == Whole(
        name="w",
        parts={"a": Part(count=1), "b c": Part(count=2)},
        more=[{"x": Part(count=0, shape=(1, 2))}],
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (3, "it is 3, expected an object"),
        ({"parts": {}}, "no name"),
        (whole(name=1), "name is 1, expected a text"),
        (whole(parts=[]), "parts is [], expected an object"),
        (whole(parts={"a": {"count": 1}, "b": {}}), "no parts.b.count"),
        (whole(parts={"a b": {"count": True}}), "parts['a b'].count is True, expected an integer"),
        (whole(parts={"a": {"count": -1}}), "parts.a.count is -1, expected at least 0"),
        (
            whole(parts={"a": {"count": 1, "shape": [1, 2.5]}}),
            "parts.a.shape[1] is 2.5, expected an integer",
        ),
        (
            whole(parts={"a": {"count": 1, "mode": "odd"}}),
            "parts.a.mode is 'odd', expected one of 'fast', 'slow'",
        ),
        (
            whole(more=[{}, {"a": {"count": 1}, "b": {"count": None}}]),
            "more[1].b.count is None, expected an integer",
        ),
        (
            # Two faults: the one that is told is the first.
            whole(parts={"a": {"count": 1}, "b": {"count": "x"}, "c": {"count": "y"}}),
            "parts.b.count is 'x', expected an integer",
        ),
        (whole(window="x"), "window is 'x', expected one of an integer, 'auto'"),
        (whole(window=0.5), "window is 0.5, expected one of an integer, 'auto'"),
        (whole(parts={"a": {"count": 1}, 3: {"count": 1}}), "parts"),
    ],
)
def test_a_misfit_is_told_whole(content: Any, says: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        as_record(content, Whole, "f.json", "mend it")
    told = str(caught.value)
    assert told.startswith(f"f.json: {says}")
    assert told.endswith("; mend it")


def test_the_error_may_be_another() -> None:
    with pytest.raises(ArgumentError, match=r"^f\.toml: no name; w$"):
        as_record({}, Whole, "f.toml", "w", ArgumentError)


def test_places_read_like_an_expression() -> None:
    assert place_of([]) == ""
    assert place_of(["edges", 0, "a.b", "c"]) == "edges[0]['a.b'].c"
