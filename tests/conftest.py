"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DATA = "GNNSYS_TEST_DATA"


@pytest.fixture(scope="session")
def real_graphs() -> Path:
    """The folder of real graphs, read-only; a test without it is skipped."""
    folder = Path(os.environ.get(_DATA, Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not (folder / "Cora" / "raw").is_dir():
        pytest.skip(f"no real graphs at {folder}: name their folder in {_DATA}")
    return folder.resolve()
