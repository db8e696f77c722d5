"""What is told of simulated caches: counts, traffic and time of an epoch, as data for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gnnsys.cache.simulator import SimulationResult
from gnnsys.cache.stats import hit_ratio
from gnnsys.plan.caches import Case
from gnnsys.plan.estimate import Estimate, Traffic, estimate_epoch
from gnnsys.plan.hardware import Hardware

__all__ = ["case_facts", "total_facts"]

_SERVED = ("hits", "victim_hits", "misses", "copies")
_COUNTS = (*_SERVED, "bypasses", "drops")
_SIZES = ("capacity", "victim_cells", "cache_bytes")
_OF_AN_EPOCH = ("rows", "rows_read", "pages_read", "bytes_read", "reads", "bytes_missed")


def case_facts(
    case: Case,
    result: SimulationResult,
    hardware: Hardware,
    epoch_batches: int,
    step_seconds: float,
) -> dict[str, Any]:
    """A cache and how it did, scaled to an epoch of so many batches."""
    scale = epoch_batches / result.batches
    traffic = Traffic(
        rows=result.rows * scale,
        rows_read=result.misses * scale,
        pages_read=result.pages * scale,
        bytes_read=result.bytes_read * scale,
        row_bytes=case.row_bytes,
    )
    estimate = estimate_epoch(traffic, hardware, batches=epoch_batches, step_seconds=step_seconds)
    return {
        **dataclasses.asdict(case),
        "cache_bytes": case.capacity * case.row_bytes,
        "hit_ratio": result.hit_ratio,
        **{name: getattr(result, name) for name in _COUNTS},
        "epoch": {
            **dataclasses.asdict(traffic),
            "reads": traffic.reads,
            "bytes_missed": traffic.rows_read * case.row_bytes,
        },
        "estimate": _estimate_facts(estimate),
    }


def total_facts(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The caches of several tables in one role, together: their sums, and each under ``tables``.

    Args:
        tables: facts of each.
    """
    counts = {name: sum(each[name] for each in tables) for name in (*_COUNTS, *_SIZES)}
    rows = sum(counts[name] for name in _SERVED)
    parts = {
        name: sum(each["estimate"][name] for each in tables)
        for name in ("disk_reads", "disk_bytes", "memory")
    }
    estimate = Estimate(**parts, compute=tables[0]["estimate"]["compute"])  # once for all tables
    return {
        "role": tables[0]["role"],
        "policy": tables[0]["policy"],
        "hit_ratio": hit_ratio(rows, counts["copies"], counts["misses"]),
        **counts,
        "epoch": {name: sum(each["epoch"][name] for each in tables) for name in _OF_AN_EPOCH},
        "estimate": _estimate_facts(estimate),
        "tables": {each["table"]: each for each in tables},
    }


def _estimate_facts(estimate: Estimate) -> dict[str, Any]:
    return {
        **dataclasses.asdict(estimate),
        "seconds": estimate.seconds,
        "limit": estimate.limit,
    }
