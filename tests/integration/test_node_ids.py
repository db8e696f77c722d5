"""Ids of any length: a long one does not pad all, and all come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnsys.commands.cli import main
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.node_ids import NodeIds, pack_ids
from gnnsys.errors import FileFormatError

LONG = "é" * 5000


def convert(place: Path, names: list[str]) -> Dataset:
    lines = [f"{a},{b}\n" for a, b in zip(names, [*names[1:], names[0]], strict=True)]
    (place / "e.csv").write_text("source,target\n" + "".join(lines))
    assert main(["convert", str(place / "e.csv"), str(place / "out"), "--ids", "names"]) == 0
    return open_dataset(place / "out")


@pytest.mark.parametrize("long", [True, False])
def test_one_long_id_does_not_pad_all(long: bool, tmp_path: Path) -> None:
    names = [f"node {number}" for number in range(3000)]
    names[1234] = LONG if long else "other"
    found = convert(tmp_path, names)
    files = [file for file in found.path.iterdir() if file.name.startswith("node_id")]
    assert sum(file.stat().st_size for file in files) < 100_000
    assert {file.name for file in files} == (
        {"node_id_ends.npy", "node_id_text.npy"} if long else {"node_id.npy"}
    )
    ids = found.node_ids()
    assert ids is not None
    assert len(ids) == len(names)
    assert ids[:].tolist() == names
    assert ids[np.array([1234, 0, 2999])].tolist() == [names[1234], names[0], names[2999]]
    assert ids[1230:1240:3].tolist() == names[1230:1240:3]
    found.verify()
    target = tmp_path / "graphbolt"
    assert main(["convert", str(found.path), str(target), "--to", "graphbolt"]) == 0


def test_numbers_are_numbers_and_no_ids_are_none(tmp_path: Path) -> None:
    found = convert(tmp_path, ["7", "12", "3"])
    ids = found.node_ids()
    assert ids is not None
    assert ids[:].tolist() == [7, 12, 3]
    (tmp_path / "out").rename(tmp_path / "first")
    assert main(["convert", str(tmp_path / "e.csv"), str(tmp_path / "out")]) == 0
    assert open_dataset(tmp_path / "out").node_ids() is None


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
                | st.just("x" * 300), max_size=20))  # fmt: skip
def test_words_come_back_from_either_layout(words: list[str]) -> None:
    tables = pack_ids(words)
    padded = tables.get("node_id")
    ends = tables.get("node_id_ends", np.empty(0, np.int64))
    text = tables.get("node_id_text", np.empty(0, np.uint8))
    assert NodeIds(padded, ends, text, Path("x"))[:].tolist() == words


@pytest.mark.parametrize("ends", [[5, 3, 9000], [-1, 5], [1, 2]])
def test_ends_that_do_not_fit_are_refused(ends: list[int], tmp_path: Path) -> None:
    text = np.frombuffer(b"x" * 9000, np.uint8)
    with pytest.raises(FileFormatError, match="ends: does not ascend to the 9000 bytes"):
        NodeIds(None, np.array(ends), text, Path("ends"))
