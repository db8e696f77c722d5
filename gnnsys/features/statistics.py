"""What reading features has cost so far, and how it is told: by a line, a table, a note.

Owns ``FeatureStats``, a snapshot of counts, and the texts made of it. Reads no file and no clock.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnnsys.pages import numbers

__all__ = [
    "DiskWatch",
    "FeatureStats",
    "add_counts",
    "counts_of_ranks",
    "live_line",
    "memory_rows",
    "offload_rows",
    "read_counts",
    "stats_rows",
]

_NO_SUMS = ("prefilled", "capacity", "victim_cells", "resident", "hit_ratio")
"""Of a cache's ``stats``, those that do not add up over the sessions of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureStats:
    """Counts since the start of a run; those of a moment are told as a difference of two."""

    seconds: float = 0.0
    """Wall time of the run."""

    rows: Mapping[str, float] = field(default_factory=dict)
    """Feature rows served, by tier."""

    bytes: Mapping[str, float] = field(default_factory=dict)
    """Their bytes, by tier."""

    reads: Mapping[str, float] = field(default_factory=dict)
    """Counts of the cache and of its reads, see ``read_counts``; empty where there are none."""

    depth: int = 0
    """Reads that may be under way at a time; 0 where that is not known."""

    def __sub__(self, before: FeatureStats) -> FeatureStats:
        return dataclasses.replace(
            self,
            seconds=self.seconds - before.seconds,
            rows=_minus(self.rows, before.rows),
            bytes=_minus(self.bytes, before.bytes),
            reads=_minus(self.reads, before.reads),
        )


def read_counts(store: Any) -> dict[str, float]:
    """What a store counts of its cache and its reads; empty for rows in memory or a mapping.

    Names are those of ``CacheStats``; a file without a cache has ``requests``, ``pages`` (of 4096
    bytes), ``bytes_read`` and ``io_wait_seconds``.
    """
    if hasattr(store, "stats"):
        counts: dict[str, float] = store.stats.as_dict()
        return {name: count for name, count in counts.items() if name not in _NO_SUMS}
    reads = getattr(store, "read_stats", None)
    if reads is None or getattr(store, "storage", "mmap") == "mmap":
        return {}
    return {
        "requests": reads.requests,
        "pages": reads.pages,
        "bytes_read": reads.bytes_read,
        "io_wait_seconds": reads.seconds_waited,
    }


def add_counts(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The sum, name by name.

    >>> add_counts({"hits": 1}, {"hits": 2, "reads": 3})
    {'hits': 3, 'reads': 3}
    """
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def counts_of_ranks(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What ranks counted together: sums, but means of seconds, since they wait side by side.

    >>> counts_of_ranks([{"hits": 1, "io_wait_seconds": 1.0}, {"hits": 2, "io_wait_seconds": 3.0}])
    {'hits': 3, 'io_wait_seconds': 2.0}
    """
    total = functools.reduce(add_counts, counts, dict[str, float]())
    return {
        name: count / len(counts) if name.endswith("_seconds") else count
        for name, count in total.items()
    }


def live_line(recent: FeatureStats) -> str:
    """One line about the features served in a short time, which is ``recent.seconds`` long.

    >>> live_line(FeatureStats(seconds=0.5, rows={"cache": 900, "file": 100}))
    'features: cache 90.0%, file 10.0% · 2,000 rows/s'
    """
    rows, seconds = sum(recent.rows.values()), recent.seconds
    if rows <= 0 or seconds <= 0:
        return ""
    shares = ", ".join(f"{tier} {count / rows:.1%}" for tier, count in recent.rows.items())
    parts = [f"features: {shares}", f"{numbers.rate(rows / seconds)} rows/s"]
    reads = recent.reads
    if "requests" in reads:
        parts.append(
            f"disk {numbers.rate(reads['requests'] / seconds)} IOPS"
            + (f" (depth {recent.depth})" if recent.depth else "")
            + f", {numbers.traffic(reads.get('bytes_read', 0) / seconds)}/s"
        )
    if "io_wait_seconds" in reads:
        parts.append(f"waiting {min(1.0, reads['io_wait_seconds'] / seconds):.0%}")
    return " · ".join(parts)


def stats_rows(stats: FeatureStats) -> Iterator[tuple[str, str]]:
    """The final table, name and value: rows and bytes by tier, the cache, the disk.

    >>> list(stats_rows(FeatureStats(rows={"file": 8}, bytes={"file": 4096})))
    [('served by file', '8 rows (100.0%), 4.1 kB')]
    """
    total = sum(stats.rows.values())
    for tier, rows in stats.rows.items():
        share = rows / total if total else 0
        size = numbers.traffic(stats.bytes.get(tier, 0))
        yield f"served by {tier}", f"{numbers.count(rows)} rows ({share:.1%}), {size}"
    reads = stats.reads
    for name, label in (
        ("bypasses", "read and not kept"),
        ("evictions", "rows that left the cache"),
        ("victim_hits", "served by the victim buffer"),
        ("drops", "dropped by the victim buffer"),
    ):
        if name in reads:
            yield label, f"{numbers.count(reads[name])} rows"
    read = reads.get("bytes_read", 0)
    if "requests" in reads:
        yield "disk reads", f"{numbers.count(reads['requests'])} requests"
        yield "pages read", f"{numbers.count(reads.get('pages'))}, {numbers.traffic(read)}"
        if stats.seconds > 0:
            yield (
                "mean disk rate",
                f"{numbers.rate(reads['requests'] / stats.seconds)} IOPS, "
                f"{numbers.traffic(read / stats.seconds)}/s",
            )
    yield from _topology_rows(stats)
    if "io_wait_seconds" in reads:
        waited = reads["io_wait_seconds"]
        share = waited / stats.seconds if stats.seconds > 0 else 0
        yield "waited for reads", f"{numbers.duration(waited)} ({share:.1%} of the time)"


def _topology_rows(stats: FeatureStats) -> Iterator[tuple[str, str]]:
    """Neighbours by tier, where they are not mapped."""
    reads = stats.reads
    if "topology_read" not in reads:
        return
    total = reads["topology_kept"] + reads["topology_read"]
    for name, label in (("kept", "memory"), ("read", "file")):
        count = reads[f"topology_{name}"]
        share = count / total if total else 0
        yield f"neighbours from {label}", f"{numbers.count(count)} ({share:.1%})"
    size = numbers.traffic(reads["topology_bytes_read"])
    requests, pages = (numbers.count(reads[f"topology_{name}"]) for name in ("requests", "pages"))
    yield "reads of neighbours", f"{requests} requests, {pages} pages, {size}"
    waited = reads["topology_wait_seconds"]
    share = waited / stats.seconds if stats.seconds > 0 else 0
    yield "samplers waited for reads", f"{numbers.duration(waited)} ({share:.1%} of the time)"


def memory_rows(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The table of memory by name, name and value, with what was measured beside it.

    Args:
        memory: ``names``, each with its bytes ``planned`` and ``held`` by all ``ranks`` of the
            machine; where it was measured, ``peak``, ``anonymous`` and ``file`` of one of them;
            ``total`` where one was set. As in result.json.

    >>> list(memory_rows({"names": {"labels": {"planned": 1 << 20, "held": 0}}}))
    [('labels', '1 MiB'), ('in all', '1 MiB')]
    """
    names: Mapping[str, Mapping[str, int]] = memory.get("names") or {}
    sizes = {name: max(entry["planned"], entry["held"]) for name, entry in names.items()}
    if not sizes:
        return
    yield from ((name, numbers.memory(size)) for name, size in sizes.items())
    given = f" of {numbers.memory(memory['total'])}" if memory.get("total") else ""
    yield "in all", numbers.memory(sum(sizes.values())) + given
    if {"peak", "anonymous", "file"} <= memory.keys():
        peak, own, files = (numbers.memory(memory[key]) for key in ("peak", "anonymous", "file"))
        whose = "measured, of one rank" if memory.get("ranks", 1) != 1 else "measured"
        yield whose, f"{peak} at most, {own} and {files} of files now"


def offload_rows(offload: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The table of activations in the last step, name and value, what was foretold beside it.

    Args:
        offload: as in result.json; empty where none leave memory.

    >>> step = {"plain": 4 << 20, "masked": 2 << 20, "recomputed": 0, "stored": 1 << 20}
    >>> step |= {"peak": 1 << 20, "stall": 0.5, "seconds": 2.0, "predicted_peak": 1 << 20}
    >>> dict(offload_rows(step | {"predicted_stall": 0.25, "predicted_seconds": 1.75}))["waited"]
    '0.50 s, 0.25 s foretold'
    """
    if not offload:
        return
    sizes = {"all": "plain", "as bits": "masked", "computed again": "recomputed"}
    for name, key in {**sizes, "moved out": "stored"}.items():
        yield name, numbers.memory(offload[key])
    measures = {"peak": numbers.memory, "stall": numbers.duration, "seconds": numbers.duration}
    names = {"peak": "in memory at most", "stall": "waited", "seconds": "step"}
    for key, told in measures.items():
        foretold = offload[f"predicted_{key}"]
        beside = "" if foretold is None else f", {told(foretold)} foretold"
        yield names[key], f"{told(offload[key])}{beside}"


class DiskWatch:
    """Compares what a disk answers in the first batches with what its probe found.

    Cold volumes of clouds do this: blocks that were never read come from elsewhere, at a hundredth
    of the usual rate.

    Args:
        probed: random reads of 4096 bytes a second that the probe found; 0 where there was none.
    """

    _REQUESTS = 256
    _WAITED = 0.5  # seconds
    _BATCHES = 32
    _SLOW = 3

    def __init__(self, probed: float) -> None:
        self._probed = probed
        self._batches = 0
        self._first: FeatureStats | None = None
        self._done = probed <= 0

    def look(self, stats: FeatureStats) -> str | None:
        """Called after each batch with the counts so far; a note where the disk is slow, once."""
        if self._done:
            return None
        if self._first is None:
            self._first = stats
            return None
        self._batches += 1
        seen = stats - self._first
        waited, pages = seen.reads.get("io_wait_seconds", 0.0), seen.reads.get("pages", 0)
        enough = seen.reads.get("requests", 0) >= self._REQUESTS and waited >= self._WAITED
        # Where it was waited for little, the disk was not asked for all it can give.
        limited = enough and waited >= seen.seconds / 2
        self._done = limited or self._batches >= self._BATCHES
        # Pages rather than requests, some of which are for several neighbouring pages.
        if not limited or pages / waited >= self._probed / self._SLOW:
            return None
        answered = seen.reads["requests"] / waited
        return (
            f"the disk answers {answered:,.0f} IOPS, its probe {self._probed:,.0f}: a cold cloud "
            "volume, or busy with something else? One sequential pass over the features warms it"
        )


def _minus(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in now.items()}
