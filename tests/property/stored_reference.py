"""Rows in whole numbers with a scale, by their formula in numpy: the oracle of encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gnnsys.memory import FileStore, Quantised

MOST = {"int8": np.float32(127), "int4": np.float32(7)}


def scales_of(values: np.ndarray, dtype: str, scale: str) -> np.ndarray:
    """(rows, 1) or (1, columns) float32"""
    axis = 1 if scale == "row" else 0
    return np.abs(values).max(axis=axis, keepdims=True, initial=0) / MOST[dtype]


def encode(values: np.ndarray, dtype: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """The (rows, row_bytes) bytes of (rows, columns) float32, and what they are delivered as."""
    scales = scales_of(values, dtype, scale)
    wide = np.broadcast_to(scales, values.shape)
    quotients = np.divide(values, wide, out=np.zeros_like(values), where=wide > 0)
    codes = np.rint(quotients).astype(np.int8)
    rows = codes.view(np.uint8)
    if dtype == "int4":
        even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).view(np.uint8) & 15
        rows = even[:, ::2] | even[:, 1::2] << 4
    if scale == "row":
        rows = np.concatenate([scales.view(np.uint8), rows], axis=1)
    return rows, codes.astype(np.float32) * scales


def quantised(values: np.ndarray, dtype: Any, scale: str) -> Quantised:
    """How the table of these values is stored."""
    scales = scales_of(values, dtype, scale).ravel().tolist() if scale == "column" else []
    return Quantised(dtype, values.shape[1:], tuple(scales))


def save(path: Path, values: np.ndarray, dtype: str, scale: str) -> Quantised:
    """Writes the file of a table."""
    np.save(path, encode(values, dtype, scale)[0])
    return quantised(values, dtype, scale)


def open_store(path: Path, values: np.ndarray, stored: str, **options: Any) -> FileStore:
    """A table stored as "float32", "float16", or "int8 row" and the like, written where it is not.

    Its rows are ``delivered(values, stored)``.
    """
    dtype, _, scale = stored.partition(" ")
    if not scale:
        if not path.exists():
            np.save(path, values.astype(dtype))
        return FileStore(path, **options)
    encoding = quantised(values, dtype, scale)
    if not path.exists():
        save(path, values, dtype, scale)
    return FileStore(path, encoding=encoding, **options)


def delivered(values: np.ndarray, stored: str) -> np.ndarray:
    """(rows, columns) float32, or float16 of "float16"."""
    dtype, _, scale = stored.partition(" ")
    return encode(values, dtype, scale)[1] if scale else values.astype(dtype)
