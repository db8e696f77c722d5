"""When training is warned of stale rows."""

from __future__ import annotations

import pytest

from gnnsys.training.staleness import StalenessWatch


def notes(losses: list[float], staleness: list[float]) -> list[int]:
    """Epochs in which a warning is given."""
    watch = StalenessWatch()
    told = [watch.look(loss, [0.1, old]) for loss, old in zip(losses, staleness, strict=True)]
    return [epoch for epoch, note in enumerate(told) if note]


def test_a_warning_needs_both_to_grow_and_comes_once() -> None:
    up, down, flat = [1.5**i for i in range(20)], [0.9**i for i in range(20)], [1.0] * 20
    assert notes(up, up) == [9]
    assert notes(up, flat) == notes(flat, up) == notes(down, up) == notes(up, down) == []


@pytest.mark.parametrize("period", [5, 23])
def test_staleness_that_rises_after_each_snapshot_is_no_reason(period: int) -> None:
    losses = [1 / (1 + 0.1 * epoch) for epoch in range(100)]
    assert notes(losses, [0.1 * (epoch % period) for epoch in range(100)]) == []


def test_the_advice_names_the_layer_and_the_options() -> None:
    watch = StalenessWatch()
    told = [watch.look(2.0**epoch, [0.1, 2.0**epoch, 0.2]) for epoch in range(10)][-1]
    assert told is not None
    assert "layer 1's rows" in told
    for option in ("--snapshot-period", "--lr", "--boundary-gradient-scale 1", "--ways"):
        assert option in told
