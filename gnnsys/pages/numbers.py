"""Numbers as a report shows them; any float is fine, also NaN."""

from __future__ import annotations

import math
from typing import Any

from gnnsys.system.sizes import size_text

__all__ = [
    "NOTHING",
    "count",
    "duration",
    "memory",
    "memory_unit",
    "metric",
    "plain",
    "rate",
    "traffic",
    "traffic_unit",
]

NOTHING = "—"
"""Stands where there is no value."""

_TRAFFIC_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MEMORY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def metric(value: float | None) -> str:
    """Of a metric or a loss.

    >>> metric(0.81234), metric(float("nan")), metric(None)
    ('0.8123', 'NaN', '—')
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def count(value: float | None) -> str:
    """Of whole things, all digits.

    >>> count(1234567)
    '1,234,567'
    """
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if math.isfinite(value) else _not_finite(value)


def rate(value: float) -> str:
    """Of things per second, three digits at least.

    >>> rate(12345.6), rate(1.23456)
    ('12,346', '1.23')
    """
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Of a time.

    >>> duration(0.034), duration(75.2), duration(7384)
    ('0.03 s', '1 min 15 s', '2 h 3 min')
    """
    if not math.isfinite(seconds):
        return _not_finite(seconds)
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def traffic(value: float) -> str:
    """Of bytes moved, in decimal units as disks and links are rated.

    >>> traffic(5_120_000)
    '5.12 MB'
    """
    if not math.isfinite(value):
        return _not_finite(value)
    unit, size = traffic_unit(abs(value))
    scaled = value / size
    return f"{scaled:.0f} {unit}" if scaled >= 99.95 else f"{scaled:.3g} {unit}"


def memory(value: float) -> str:
    """Of bytes held, in binary units as memory is sold.

    >>> memory(3 << 29)
    '1.5 GiB'
    """
    return size_text(value) if math.isfinite(value) else _not_finite(value)


def traffic_unit(largest: float) -> tuple[str, float]:
    """The unit for an axis that reaches to ``largest`` bytes, and its size in bytes.

    >>> traffic_unit(2_500_000)
    ('MB', 1000000)
    """
    return _unit(largest, 1000, _TRAFFIC_UNITS)


def memory_unit(largest: float) -> tuple[str, float]:
    """Likewise, of memory.

    >>> memory_unit(5 << 30)
    ('GiB', 1073741824)
    """
    return _unit(largest, 1024, _MEMORY_UNITS)


def plain(value: Any) -> str:
    """Of an option or a fact about the machine, whatever its type.

    >>> plain(True), plain(None), plain([15, 10]), plain(0.0005)
    ('true', '—', '15, 10', '0.0005')
    """
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or NOTHING
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(each)}" for key, each in value.items()) or NOTHING
    if isinstance(value, float) and not math.isfinite(value):
        return _not_finite(value)
    return str(value)


def _unit(largest: float, step: int, units: tuple[str, ...]) -> tuple[str, float]:
    place = 0
    while place + 1 < len(units) and largest >= step ** (place + 1):
        place += 1
    return units[place], step**place


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "-∞"
