"""Whole numbers: of Python and numpy, and nothing that only looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.errors import ArgumentError
from gnnsys.generate import generate_rmat
from gnnsys.system.whole import check_whole


@pytest.mark.parametrize("value", [1, 9, np.int8(5), np.uint64(9)])
def test_whole_numbers_are_returned_as_int(value: Any) -> None:
    found = check_whole("k", value, 1, 9)
    assert (type(found), found) == (int, int(value))


@pytest.mark.parametrize(
    "value",
    [0, 10, True, np.True_, 2.0, np.float32(2), "3", None, np.array(5), torch.tensor(5),
     torch.tensor(True)],
)  # fmt: skip
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"k: .*, expected a whole number from 1 to 9, or None"):
        check_whole("k", value, 1, 9, otherwise="or None")


def test_a_tensor_for_a_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"scale: tensor\(5\), expected a whole number"):
        generate_rmat(tmp_path / "g", scale=torch.tensor(5))
    assert not list(tmp_path.iterdir())
