"""What ranks with a shared cache tell each other.

Owns the kinds of messages, ``Kind``, and the batch that a rank has told the owners of its rows,
``SharedTicket``, as far as they have answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.tickets import Ticket

__all__ = ["NOTHING", "Kind", "SharedTicket"]

NOTHING = np.empty(0, np.uint8)
"""The payload of a message that is all in its numbers."""

_NOWHERE = np.empty(0, np.int64)


class Kind(IntEnum):
    """Kinds of messages, with their numbers and what follows these."""

    ANNOUNCE = auto()
    """Stream, batch: a rank will ask for these rows, numbers of the owner's own."""

    END = auto()
    """Stream, count: a rank has no further batch in it."""

    REACH = auto()
    """Stream, batch: a rank is done with those before."""

    ROWS = auto()
    """Stream, batch, rows that were read: where an owner has them, or the rows."""

    ASK = auto()
    """Question: which of these rows, that it did not announce, has the owner?"""

    ANSWER = auto()
    """Question: where they are, or the rows, and a bit for each that was asked for."""

    RELEASE = auto()
    """Question: the rank has read what it was told."""

    LEAVE = auto()
    """A rank has closed its part."""

    FAIL = auto()
    """Why a rank cannot go on, as text."""


@dataclass(slots=True, eq=False)
class SharedTicket(Ticket):
    """Of a batch that its rows' owners were told; ``number`` is its index in the stream."""

    stream: int = -1
    positions: Sequence[NDArray[np.int64]] = ()
    """For each owner those of its rows in the batch."""
    addresses: NDArray[np.int64] = field(default_factory=lambda: _NOWHERE)
    """(n,) of each row, as far as owners have told."""
    kept: list[Any] = field(default_factory=list)
    """What owners have told, rows that they sent among it."""
    reads: list[int] = field(default_factory=list)
    """For each owner the rows that were read for this batch; -1 where it has not told."""

    @property
    def is_complete(self) -> bool:
        return min(self.reads) >= 0

    def release(self) -> None:
        """Lets go of the memory: whoever keeps the ticket has no use for it."""
        self.positions, self.addresses, self.kept = (), _NOWHERE, []
