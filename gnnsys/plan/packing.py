"""What ``gnnsys train --pack`` would cost and bring: pure arithmetic over a planned cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable
from gnnsys.plan.estimate import Traffic, estimate_epoch
from gnnsys.plan.hardware import Hardware

__all__ = ["packing_facts", "packing_table"]

_REQUEST = 64 << 10
"""Bytes of a read where rows follow one another."""
_REUSED = 5
"""Epochs of the example that packs once for several."""


def packing_facts(
    bound: Mapping[str, Any],
    table_bytes: int,
    hardware: Hardware,
    epoch_batches: int,
    step_seconds: float,
) -> dict[str, float]:
    """Of a cache that knows all batches of an epoch, whose misses are packed.

    Args:
        bound: facts of that cache, see ``case_facts``.
        table_bytes: of the features.
        hardware: what it runs on; its disk writes as fast as it reads.
        epoch_batches: batches of an epoch.
        step_seconds: of computing for a batch.

    Returns:
        ``bytes`` packed for an epoch, ``pass_seconds`` of packing, and ``epoch_seconds`` after it.

    >>> cache = {"row_bytes": 100, "epoch": {"rows": 50e6, "rows_read": 10e6}}
    >>> disk = Hardware(name="", disk_iops=1e5, disk_bandwidth=1e9, memory_bandwidth=10e9)
    >>> packing_facts(cache, 4 * 10**9, disk, 100, 0.0)
    {'bytes': 1000000000.0, 'pass_seconds': 5.0, 'epoch_seconds': 1.0}
    """
    epoch, row_bytes = bound["epoch"], bound["row_bytes"]
    packed = epoch["rows_read"] * row_bytes
    traffic = Traffic(
        rows=epoch["rows"],
        rows_read=epoch["rows_read"],
        pages_read=packed / _REQUEST,
        bytes_read=packed,
        row_bytes=row_bytes,
    )
    estimate = estimate_epoch(traffic, hardware, batches=epoch_batches, step_seconds=step_seconds)
    return {
        "bytes": packed,
        "pass_seconds": (table_bytes + packed) / hardware.disk_bandwidth if packed else 0.0,
        "epoch_seconds": estimate.seconds,
    }


def packing_table(plan: Mapping[str, Any]) -> TextTable:
    """What a terminal and a page show of every budget."""
    body = []
    for budget in plan["budgets"]:
        facts = budget["packing"]
        again = facts["epoch_seconds"] + facts["pass_seconds"] / _REUSED
        seconds = facts["pass_seconds"], facts["epoch_seconds"], again
        size = numbers.traffic(facts["bytes"])
        body.append([budget["budget"], size, *map(numbers.duration, seconds)])
    head = ("budget", "packed", "packing", "an epoch then", f"with packing once in {_REUSED}")
    return TextTable("An epoch, packed before it runs (gnnsys train --pack)", head, body)
