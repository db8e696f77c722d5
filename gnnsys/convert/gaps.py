"""NaN and infinite values in features: refused, kept, or replaced."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import GapPolicy
from gnnsys.convert.arrays import ArraySource
from gnnsys.errors import FileFormatError

__all__ = ["WithoutGaps"]

_log = logging.getLogger(__name__)


class WithoutGaps:
    """Rows of floats in which no value is NaN or infinite.

    Args:
        source: (rows, …) floats.
        label: what to call them in messages.
        policy: refuse; zero; or mean, of the column's finite values, which takes a pass before.
        names: of the columns, where they have any.

    Raises:
        FileFormatError: with mean, a column without a finite value.
    """

    def __init__(
        self, source: ArraySource, label: str, policy: GapPolicy, names: Sequence[str] = ()
    ) -> None:
        self._source, self._label, self._policy = source, label, policy
        self.shape, self.dtype = source.shape, source.dtype
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        self._names = names if len(names) == width else [str(place) for place in range(width)]
        self._fill = self._means() if policy == "mean" else np.zeros(width)

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on.

        Raises:
            FileFormatError: with refuse, the first such value, and how many there are.
        """
        found = 0
        for block in self._source.blocks(first):
            gaps = ~np.isfinite(block)
            count = int(gaps.sum())
            if not count:
                yield block
                continue
            if self._policy == "refuse":
                raise self._refusal()
            found += count
            fill = self._fill.reshape(block.shape[1:]).astype(block.dtype)
            yield np.where(gaps, fill, block)
        if found:
            _log.warning(
                "%s: %d values that are NaN or infinite became %s",
                self._label, found, "0" if self._policy == "zero" else "the mean of their column",
            )  # fmt: skip

    def _flat(self) -> Iterator[NDArray[Any]]:
        return (block.reshape(len(block), -1) for block in self._source.blocks())

    def _means(self) -> NDArray[np.float64]:
        """Of each column's finite values."""
        sums, counts = np.zeros(len(self._names)), np.zeros(len(self._names), np.int64)
        for block in self._flat():
            finite = np.isfinite(block)
            sums += np.sum(block, axis=0, where=finite, dtype=np.float64)
            counts += finite.sum(axis=0)
        if self.shape[0] and not counts.all():
            name = self._names[int(np.argmin(counts))]
            raise FileFormatError(
                f"{self._label}: column {name} has no finite value and so no mean; --nan zero "
                "fills it with 0"
            )
        return sums / np.maximum(counts, 1)

    def _refusal(self) -> FileFormatError:
        row = count = 0
        first: tuple[int, int] | None = None
        for block in self._flat():
            gaps = ~np.isfinite(block)
            if first is None and gaps.any():
                place, column = np.argwhere(gaps)[0].tolist()
                first = row + place, column
            count += int(gaps.sum())
            row += len(block)
        at, column = first or (0, 0)
        return FileFormatError(
            f"{self._label}: {count} features are NaN or infinite, the first in row {at}, column "
            f"{self._names[column]}; --nan zero or --nan mean replaces them, --nan keep keeps them"
        )
