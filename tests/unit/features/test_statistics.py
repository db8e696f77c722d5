"""Counts of what reading features costs, and the texts made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnsys.features.statistics import (
    DiskWatch,
    FeatureStats,
    add_counts,
    live_line,
    read_counts,
    stats_rows,
)
from gnnsys.memory import HostStore

READS = {
    "hits": 800,
    "victim_hits": 50,
    "bypasses": 20,
    "drops": 3,
    "evictions": 130,
    "requests": 140,
    "pages": 150,
    "bytes_read": 614_400,
    "io_wait_seconds": 0.5,
}
STATS = FeatureStats(
    seconds=2.0,
    rows={"cache": 800, "victim": 50, "file": 150},
    bytes={"cache": 819_200, "victim": 51_200, "file": 153_600},
    reads=READS,
    depth=64,
)


def test_the_live_line_has_hit_ratios_and_rates_of_the_time_it_is_about() -> None:
    assert live_line(STATS) == (
        "features: cache 80.0%, victim 5.0%, file 15.0% · 500 rows/s · "
        "disk 70 IOPS (depth 64), 307 kB/s · waiting 25%"
    )
    assert live_line(FeatureStats(seconds=1.0)) == ""
    assert live_line(FeatureStats(rows={"file": 1})) == ""


def test_a_difference_is_what_happened_in_between() -> None:
    later = FeatureStats(
        seconds=3.0, rows={"cache": 900, "new": 1}, bytes={}, reads=READS | {"hits": 900}
    )
    between = later - STATS
    assert between.seconds == 1.0
    assert between.rows == {"cache": 100, "new": 1}
    assert between.reads == dict.fromkeys(READS, 0) | {"hits": 100}
    assert add_counts(STATS.reads, between.reads) == later.reads


def test_the_table_has_every_count() -> None:
    rows = dict(stats_rows(STATS))
    assert rows == {
        "served by cache": "800 rows (80.0%), 819 kB",
        "served by victim": "50 rows (5.0%), 51.2 kB",
        "served by file": "150 rows (15.0%), 154 kB",
        "read and not kept": "20 rows",
        "rows that left the cache": "130 rows",
        "served by the victim buffer": "50 rows",
        "dropped by the victim buffer": "3 rows",
        "disk reads": "140 requests",
        "pages read": "150, 614 kB",
        "mean disk rate": "70 IOPS, 307 kB/s",
        "waited for reads": "0.50 s (25.0% of the time)",
    }


def test_rows_in_memory_have_no_reads() -> None:
    store = HostStore(torch.from_numpy(np.ones((3, 2), np.float32)))
    store.gather(torch.tensor([0]))
    assert read_counts(store) == {}


# A disk that is slower than its probe -------------------------------------------------------------


def watched(rate: float, waiting: float, *, batches: int = 40, probed: float = 10_000) -> list[str]:
    """Notes about a disk that answers ``rate`` pages a second of waiting; 0.1 s a batch."""
    watch = DiskWatch(probed)
    notes = []
    for batch in range(batches):
        waited = 0.1 * batch * waiting
        reads = {"requests": rate * waited, "pages": rate * waited, "io_wait_seconds": waited}
        notes.append(watch.look(FeatureStats(seconds=0.1 * batch, reads=reads)))
    return [note for note in notes if note is not None]


def test_a_disk_far_below_its_probe_is_told_once() -> None:
    [note] = watched(rate=3_000, waiting=0.9)
    assert "the disk answers 3,000 IOPS, its probe 10,000" in note


@pytest.mark.parametrize(
    ("rate", "waiting", "probed"),
    [
        (3_400, 0.9, 10_000),  # not below a third
        (3_000, 0.3, 10_000),  # not the limit
        (30, 0.9, 10_000),  # too few reads in the first batches
        (300, 0.9, 0),  # no probe
    ],
)
def test_other_disks_are_not_told(rate: float, waiting: float, probed: float) -> None:
    assert watched(rate, waiting, probed=probed) == []


def test_a_disk_that_becomes_slow_later_is_not_told() -> None:
    watch = DiskWatch(10_000)
    reads = {"requests": 9_000.0, "pages": 9_000.0, "io_wait_seconds": 1.0}
    assert watch.look(FeatureStats()) is None
    assert watch.look(FeatureStats(seconds=1.0, reads=reads)) is None
    slow = {"requests": 9_100.0, "pages": 9_100.0, "io_wait_seconds": 99.0}
    assert watch.look(FeatureStats(seconds=99.0, reads=slow)) is None
