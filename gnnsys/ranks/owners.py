"""Which rank owns a row, and under which number: a hash that any rank computes by itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import ArgumentError
from gnnsys.rng import mix64

__all__ = ["Owners"]


class Owners:
    """Divides ids among ranks, evenly to a block, whatever the graph's order of nodes is.

    Ids come in blocks, and as many blocks as there are ranks in a group, one for each rank: block
    b of group g is that of rank ``(b + turn(g)) % world``, a turn being a 64-bit mixer's. So a rank
    numbers its own ids from 0 without a gap and in their order, and a table over them needs no
    hashing.

    Args:
        num_ids: ids are in ``[0, num_ids)``.
        world: number of ranks.
        block: ids beside each other with one owner, such as rows of the same pages.

    Raises:
        ArgumentError: a number is out of range.

    >>> owners = Owners(num_ids=10, world=2)
    >>> owner, number = owners.locate(np.arange(10))
    >>> owner.tolist(), number.tolist()
    ([0, 1, 0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    >>> owners.ids(1, np.array([0, 1, 2])).tolist(), owners.count(1)
    ([1, 3, 4], 5)
    """

    def __init__(self, num_ids: int, world: int, block: int = 1) -> None:
        if num_ids < 0 or world < 1 or block < 1:
            raise ArgumentError(
                f"owners of {num_ids} ids in blocks of {block} among {world} ranks: expected "
                "at least no id, one rank and blocks of one"
            )
        self.num_ids, self.world, self.block = num_ids, world, block

    def locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) the owner of each id, and its number among the owner's."""
        # numpy divides by a number fast, and takes remainders slowly.
        blocks = ids // self.block
        groups = ids // (self.block * self.world)
        owner = blocks - groups * self.world + self._turn(groups)
        owner -= self.world * (owner >= self.world)
        return owner, ids - (blocks - groups) * self.block

    def divide(
        self, ids: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
        """For each rank the positions of its ids in (n,) ``ids``, and these ids' numbers there."""
        owner, number = self.locate(ids)
        # Sorts small numbers by counting.
        order = np.argsort(owner.astype(np.uint16), kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=self.world))[:-1]
        return np.split(order, ends), np.split(number[order], ends)

    def ids(self, rank: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the ids of a rank that have these numbers; ascending where they ascend."""
        groups = numbers // self.block
        place = rank - self._turn(groups)
        place += self.world * (place < 0)
        return numbers + (groups * (self.world - 1) + place) * self.block

    def count(self, rank: int) -> int:
        """Number of ids that a rank owns: their numbers are ``[0, count)``."""
        whole, rest = divmod(self.num_ids, self.block * self.world)
        place = int((rank - self._turn(np.array([whole]))[0]) % self.world)
        return whole * self.block + min(max(rest - place * self.block, 0), self.block)

    def _turn(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        # The product's upper half (Lemire, "Fast random integer generation in an interval", 2019).
        mixed = mix64(groups.astype(np.uint64)) >> np.uint64(32)
        return ((mixed * np.uint64(self.world)) >> np.uint64(32)).astype(np.int64)
