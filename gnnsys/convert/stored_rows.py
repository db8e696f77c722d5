"""Rows of floats in the precision that they are stored in, with what that changes measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Overflow, Scale
from gnnsys.convert.arrays import ArraySource, MatrixRows, narrow, widen
from gnnsys.dataset.format import Encoding, Table
from gnnsys.dataset.writer import DatasetWriter
from gnnsys.errors import FileFormatError
from gnnsys.system.extension import core
from gnnsys.system.threads import num_threads

__all__ = ["QUANTISED", "StoredRows", "encode", "read_floats"]

QUANTISED = ("int8", "int4")
"""Element types that go with a scale."""

_GREATEST = {"int8": 127, "int4": 7}


@dataclass(slots=True)
class _Tally:
    """What storing changed so far."""

    most: float = 0.0
    squares: float = 0.0
    elements: int = 0
    overflow: int = 0


class StoredRows:
    """Rows of floats as they are stored.

    Args:
        rows: (n, …) floats.
        label: what to call them in messages.
        dtype: to store them in.
        scale: of int8 and int4; ``column`` takes a pass before.
        overflow: what to do with values beyond ``dtype``.

    >>> rows = MatrixRows(np.array([[1.0, 0.5]], np.float32))
    >>> stored = StoredRows(rows, "x", "int8")
    >>> stored.encoding.row_stride, stored.restore(stored.store(next(rows.blocks()), 0)).round(2)
    (6, array([[1. , 0.5]], dtype=float32))
    """

    def __init__(
        self,
        rows: ArraySource,
        label: str,
        dtype: str,
        scale: Scale = "row",
        overflow: Overflow = "refuse",
    ) -> None:
        self.rows, self.label, self.dtype = rows, label, dtype
        self._overflow = overflow
        self._scale = scale if dtype in QUANTISED else None

    @cached_property
    def encoding(self) -> Encoding:
        """Of the table."""
        scales = self._column_scales() if self._scale == "column" else ()
        return Encoding.of(self.dtype, self.rows.shape, self._scale, scales)

    def write_to(self, writer: DatasetWriter, place: str, first: int) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on, for the table at ``place``, which ``writer`` writes."""
        tally = _Tally(**writer.recall(place, {})) if first else _Tally()
        for block in self.rows.blocks(first):
            stored = self.store(block, first)
            self._measure(block, stored, tally)
            first += len(block)
            writer.keep(place, asdict(tally))
            yield stored

    def tell(self, writer: DatasetWriter, place: str) -> None:
        """Notes what was changed in the table that was written at ``place``."""
        tally = _Tally(**writer.recall(place, {}))
        if tally.overflow:
            writer.overflow[place] = tally.overflow
        if self.dtype != "float32":
            rms = float(np.sqrt(tally.squares / max(1, tally.elements)))
            writer.round_trip[place] = {"max": tally.most, "rms": rms}

    def store(self, block: NDArray[Any], first: int) -> NDArray[Any]:
        """Rows from number ``first`` on as they are stored.

        Raises:
            FileFormatError: a value that is NaN or infinite and has no code.
        """
        if self._scale is None:
            if block.dtype == np.float64 and self.dtype == "float32":
                return narrow(block, self.label)
            return encode(block, self.dtype)
        flat = _flat(block)
        codes, bad = self._coding.encode(flat)
        if bad >= 0:
            row, column = divmod(bad, flat.shape[1])
            given = block.reshape(len(block), -1)[row, column]
            if np.isfinite(given):
                raise FileFormatError(
                    f"{self.label}: {given} in row {first + row}, column {column}, is beyond "
                    "float32; scale the features"
                )
            raise FileFormatError(
                f"{self.label}: {flat[row, column]} in row {first + row}, column {column}, which "
                f"{self.dtype} cannot store; --nan zero or --nan mean replaces it"
            )
        stored: NDArray[np.uint8] = codes.reshape(len(block), -1)
        return stored

    def restore(self, stored: NDArray[Any]) -> NDArray[Any]:
        """What stored rows are delivered as."""
        if self._scale is not None:
            return _decode(self._coding, stored, self.rows.shape)
        return widen(stored) if self.dtype == "bfloat16" else stored.astype(np.float32, copy=False)

    @cached_property
    def _coding(self) -> core.RowCoding:
        return _coding_of(self.encoding, self.rows.shape)

    def _measure(self, block: NDArray[Any], stored: NDArray[Any], tally: _Tally) -> None:
        restored = self.restore(stored)
        finite = np.isfinite(block)
        lost = finite & ~np.isfinite(restored)
        tally.overflow += int(lost.sum())
        if lost.any() and self._overflow == "refuse":
            raise FileFormatError(
                f"{self.label}: holds {block[lost][0]}, beyond {self.dtype}, as are "
                f"{tally.overflow} values so far; scale the features, or --overflow allow stores "
                "them as infinite"
            )
        if self.dtype == "float32":
            return
        known, given = _flat(finite & ~lost), _flat(block)
        magnitudes = np.where(known, np.abs(given), 0)
        if self._scale == "column":
            most = np.float32(_GREATEST[self.dtype]) * np.asarray(self.encoding.scales, np.float32)
        else:
            most = magnitudes.max(axis=1, initial=0)[:, None]
        with np.errstate(invalid="ignore"):
            changed = np.where(known, np.abs(given - _flat(restored)), 0)
        shares = np.divide(changed, most, out=np.zeros_like(changed), where=most > 0)
        tally.most = max(tally.most, float(shares.max(initial=0)))
        tally.squares += float(np.square(shares, dtype=np.float64).sum())
        tally.elements += int(known.sum())

    def _column_scales(self) -> tuple[float, ...]:
        columns = int(np.prod(self.rows.shape[1:], dtype=np.int64))
        most = np.zeros(columns, np.float32)
        for block in self.rows.blocks():
            flat = _flat(block)
            np.maximum(most, np.abs(flat).max(axis=0, initial=0, where=np.isfinite(flat)), out=most)
        return tuple((most / np.float32(_GREATEST[self.dtype])).tolist())


def read_floats(table: Table, rows: NDArray[Any]) -> ArraySource:
    """The floats that a table's file stands for.

    Args:
        table: of floats, or quantised.
        rows: its file, mapped.
    """
    if table.encoding.scale is None:
        return MatrixRows(rows, bits=table.encoding.dtype == "bfloat16")
    return _DecodedRows(table, rows)


class _DecodedRows:
    """Quantised rows as float32."""

    dtype = np.dtype(np.float32)

    def __init__(self, table: Table, rows: NDArray[Any]) -> None:
        self.shape: tuple[int, ...] = table.shape
        self._stored = MatrixRows(rows)
        self._coding = _coding_of(table.encoding, table.shape)

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on."""
        return (_decode(self._coding, block, self.shape) for block in self._stored.blocks(first))


def _flat(block: NDArray[Any]) -> NDArray[Any]:
    """(n, columns), of float32 where they are floats."""
    kind = np.float32 if block.dtype.kind == "f" else block.dtype
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(block.reshape(len(block), -1), kind)


def _coding_of(encoding: Encoding, shape: tuple[int, ...]) -> core.RowCoding:
    columns = int(np.prod(shape[1:], dtype=np.int64))
    return core.RowCoding(encoding.dtype, columns, list(encoding.scales))


def _decode(
    coding: core.RowCoding, stored: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    dense = np.ascontiguousarray(stored)
    out = np.empty((len(dense), *shape[1:]), np.float32)
    coding.decode(dense.ctypes.data, len(dense), out.ctypes.data, num_threads(0))
    return out


def encode(block: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rows as they are stored; bfloat16 as the uint16 of its bits, rounded to nearest even.

    >>> encode(np.array([1.0, -2.0], np.float32), "bfloat16").tolist()
    [16256, 49152]
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return block.astype(dtype, copy=False)
    import torch

    from gnnsys.memory.alloc import view_array

    single = view_array(np.ascontiguousarray(block, dtype=np.float32))
    return single.to(torch.bfloat16).view(torch.uint16).numpy()
