"""Who owns which row."""

from __future__ import annotations

import numpy as np
import pytest

from gnnsys.errors import ArgumentError
from gnnsys.ranks.owners import Owners


@pytest.mark.parametrize("num_ids", [0, 1, 7, 100, 1000])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_every_id_has_one_owner_and_a_number_there(num_ids: int, world: int, block: int) -> None:
    owners, ids = Owners(num_ids, world, block), np.arange(num_ids)
    owner, number = owners.locate(ids)
    for rank in range(world):
        own = ids[owner == rank]
        assert owners.count(rank) == len(own)
        assert number[own].tolist() == list(range(len(own)))
        assert owners.ids(rank, np.arange(len(own))).tolist() == own.tolist()
        assert abs(len(own) - num_ids / world) <= block


def test_strided_and_neighbouring_ids_are_spread_evenly() -> None:
    owners = Owners(1 << 20, 4)
    for ids in (np.arange(0, 1 << 20, 4), np.arange(0, 1 << 20, 1 << 8), np.arange(4096)):
        shares = np.bincount(owners.locate(ids)[0], minlength=4) / len(ids)
        assert shares == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("setting", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_bad_numbers_are_refused(setting: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="owners of"):
        Owners(*setting)
