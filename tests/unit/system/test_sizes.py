"""Numbers of bytes on the command line."""

from __future__ import annotations

import pytest

from gnnsys.errors import ArgumentError
from gnnsys.system.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("12", 12),
        ("12B", 12),
        ("1k", 1 << 10),
        ("500 MB", 500 << 20),
        ("1.5GiB", 3 << 29),
        ("2Tb", 2 << 40),
        ("0.1kb", 102),
        ("9007199254740993", (1 << 53) + 1),  # a float would lose the last bit
    ],
)
def test_units_are_powers_of_1024(text: str, expected: int) -> None:
    assert parse_bytes(text, "--memory") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1,5GB", "1e9", "2PB", "nan", "9" * 400])
def test_other_text_is_one_error(text: str) -> None:
    with pytest.raises(ArgumentError, match=f"--memory {text}: expected a number of bytes, such"):
        parse_bytes(text, "--memory")
