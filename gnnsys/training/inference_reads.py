"""How the inputs of a layer are read: as targets need them, or all in sequence. Numbers alone.

Owns the choice, by the bytes that either way reads from a disk. Nothing is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gnnsys.choices import EvalReads

__all__ = ["GROUP", "SUMS", "Passes", "Reads", "choose_reads", "piece_of"]

GROUP = 1024
"""Rows that a layer computes at a time where its inputs are read in sequence; others are multiples
of it."""

SUMS = "sums of evaluation"
"""Name in the budget."""

_CHUNK = 32 << 20
"""Bytes of rows that are read at a time, at most, and a share of the memory."""
_CHUNKS = 8
_PIECE = 1 << 20
"""Bytes of inputs of the targets whose outputs are written at a time."""
_PAGE = 4096
"""Bytes that a disk reads at least."""
_OF_A_TARGET = 8
"""Bytes of a target beside its sum: how far its neighbours have come."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes over the inputs of a layer, one for each window of targets."""

    count: int
    window: int
    """Targets whose sums are held together."""
    chunk: int
    """Rows of sources that are read at a time."""
    nbytes: int
    """Of memory, roughly."""

    @classmethod
    def of(cls, targets: int, row_bytes: int, message_bytes: int, memory: int) -> Passes:
        """As few as fit.

        Args:
            targets: of the layer, or of a rank's share.
            row_bytes: of an input in memory.
            message_bytes: of a sum.
            memory: bytes that are to be enough; a group of targets is held in any case.

        >>> Passes.of(10_000, 100, 400, memory=6 << 20)
        Passes(count=1, window=10240, chunk=1024, nbytes=4792320)
        """
        of_source = 2 * row_bytes + message_bytes  # one chunk is read while another is summed
        chunk = _whole(min(_CHUNK, memory // _CHUNKS) // max(1, of_source))
        of_target = message_bytes + _OF_A_TARGET
        most = _whole((memory - chunk * of_source) // of_target)
        count = max(1, -(-targets // most))
        window = min(most, _whole(-(-targets // count) + GROUP - 1))
        return cls(count, window, chunk, chunk * of_source + window * of_target)


@dataclass(frozen=True, slots=True)
class Reads:
    """How a layer's inputs are read, and the bytes that either way reads from a disk."""

    way: Literal["gather", "sequential"]
    gathered: int
    sequential: int
    passes: int
    memory: int
    """Bytes that sequential reading takes; 0 for none."""


def choose_reads(
    mode: EvalReads,
    *,
    nodes: int,
    edges: int,
    row_bytes: int,
    delivered_bytes: int,
    message_bytes: int | None,
    memory: int,
    kept: int,
    resident: bool = False,
) -> Reads:
    """The way that reads fewer bytes, unless ``mode`` names one.

    A gathered row costs whole pages, for each edge; as large a part of the rows as fits in memory
    stays there. A pass costs the bytes of all rows, and those of the targets are read once more.

    Args:
        mode: one of these ways, or auto.
        nodes: of the graph; ``edges`` likewise.
        row_bytes: of an input, as it is stored.
        delivered_bytes: of an input in memory.
        message_bytes: of a sum; None for a layer that cannot be computed so.
        memory: bytes that sequential reading may take.
        kept: bytes of the inputs that stay in memory where they are gathered, at most.
        resident: the inputs lie in memory.

    >>> sizes = {"row_bytes": 1024, "delivered_bytes": 1024, "message_bytes": 1024}
    >>> sizes |= {"nodes": 1 << 20, "edges": 1 << 24, "memory": 128 << 20, "kept": 256 << 20}
    >>> found = choose_reads("auto", **sizes)
    >>> found.way, found.gathered >> 30, found.sequential >> 30, found.passes
    ('sequential', 48, 11, 10)
    """
    inputs = nodes * row_bytes
    missed = 0.0 if resident or inputs <= kept else 1 - kept / inputs
    pages = -(-row_bytes // _PAGE) * _PAGE
    gathered = int(missed * (edges * pages + inputs))
    if message_bytes is None:
        return Reads("gather", gathered, 0, 0, 0)
    passes = Passes.of(nodes, delivered_bytes, message_bytes, memory)
    sequential = 0 if resident else (passes.count + 1) * inputs
    if mode == "gather" or (mode == "auto" and gathered <= sequential):
        return Reads("gather", gathered, sequential, passes.count, 0)
    return Reads("sequential", gathered, sequential, passes.count, passes.nbytes)


def piece_of(row_bytes: int) -> int:
    """Targets whose outputs are computed and written at a time."""
    return _whole(_PIECE // max(1, row_bytes))


def _whole(rows: int) -> int:
    """So many rows or fewer, in whole groups, but one."""
    return max(1, rows // GROUP) * GROUP
