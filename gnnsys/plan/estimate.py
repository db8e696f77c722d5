"""How long an epoch takes that reads so much: pure arithmetic over counts and speeds."""

from __future__ import annotations

from dataclasses import dataclass

from gnnsys.plan.hardware import Hardware

__all__ = ["PARTS", "Estimate", "Traffic", "estimate_epoch"]

PARTS = {
    "disk_reads": "disk reads",
    "disk_bytes": "disk bandwidth",
    "memory": "memory bandwidth",
    "compute": "computing",
}
"""The parts of an epoch that may take longest, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What an epoch moves."""

    rows: float
    """Rows asked for."""

    rows_read: float
    """Of these, from the disk."""

    pages_read: float
    """Pages of 4 KiB that hold them, each once a batch."""

    bytes_read: float
    """Of these pages."""

    row_bytes: int

    @property
    def reads(self) -> float:
        """Of the disk: rows or pages, whichever are fewer, for rows of a page come together and a
        row of several pages in one request."""
        return min(self.rows_read, self.pages_read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Times of an epoch whose parts run at once, so that the longest is that of the epoch."""

    disk_reads: float
    """Seconds the disk takes to answer so many reads."""

    disk_bytes: float
    """Seconds it takes to move so many bytes."""

    memory: float
    """Seconds to copy rows to where they are used."""

    compute: float
    """Seconds of training itself, as the user gave them."""

    @property
    def seconds(self) -> float:
        """Of the epoch."""
        return max(self.disk_reads, self.disk_bytes, self.memory, self.compute)

    @property
    def limit(self) -> str:
        """What takes longest."""
        return PARTS[max(reversed(PARTS), key=lambda part: float(getattr(self, part)))]


def estimate_epoch(
    traffic: Traffic, hardware: Hardware, *, batches: float, step_seconds: float = 0.0
) -> Estimate:
    """The time of an epoch on some hardware.

    Every row is copied once to the batch, and one from the disk once more on its way.

    Args:
        traffic: of the epoch.
        hardware: what it runs on.
        batches: of the epoch.
        step_seconds: of computing for a batch.

    >>> traffic = Traffic(rows=300, rows_read=100, pages_read=50, bytes_read=50 * 4096, row_bytes=8)
    >>> machine = Hardware(name="", disk_iops=100, disk_bandwidth=1e9, memory_bandwidth=1e9)
    >>> found = estimate_epoch(traffic, machine, batches=2)
    >>> found.seconds, found.limit
    (0.5, 'disk reads')
    """
    return Estimate(
        disk_reads=traffic.reads / hardware.disk_iops,
        disk_bytes=traffic.bytes_read / hardware.disk_bandwidth,
        memory=(traffic.rows + traffic.rows_read) * traffic.row_bytes / hardware.memory_bandwidth,
        compute=batches * step_seconds,
    )
