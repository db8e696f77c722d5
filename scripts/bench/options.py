"""Parsers of command lines and of option values that benchmarks share."""

from __future__ import annotations

import argparse

__all__ = ["make_parser", "positive", "positive_list"]


def make_parser(name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser of an entry, whose help keeps the lines of its description and its examples."""
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return value


def positive_list(text: str) -> list[int]:
    """Integers of at least 1, separated by commas, none twice."""
    values = [positive(part) for part in text.split(",")]
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"'{text}' names a value twice")
    return values
