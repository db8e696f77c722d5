"""Rows in whole numbers with a scale are those of the formula, bit for bit, wherever they are."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.cache.store import CachedStore
from gnnsys.errors import DTypeError, FileFormatError, UnsupportedError
from gnnsys.memory import FileStore, Quantised
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import RowIds
from gnnsys.system.extension import core

sys.path.insert(0, str(Path(__file__).parent))
from shared_ranks import BACKENDS, ROWS, Disk, make_ranks
from stored_reference import encode, open_store, quantised, save, scales_of

KINDS = [(dtype, scale) for dtype in ("int8", "int4") for scale in ("row", "column")]


def table(rows: int, columns: int) -> np.ndarray:
    """Values of several magnitudes, a row and a column of zeros."""
    draw = np.random.default_rng(rows + columns)
    values = draw.standard_normal((rows, columns)) * 10 ** draw.uniform(-20, 20, (rows, 1))
    values[rows // 2] = values[:, columns // 2] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize(("dtype", "scale"), KINDS)
def test_codes_are_the_nearest_and_off_by_half_a_scale_at_most(dtype: Any, scale: str) -> None:
    for columns in [*range(1, 20), 128, 600]:
        values = table(50, columns)
        encoding, (stored, expected) = quantised(values, dtype, scale), encode(values, dtype, scale)
        found = encoding.encode(torch.from_numpy(values))
        assert np.array_equal(found.numpy(), stored)
        assert encoding.row_bytes == stored.shape[1]
        decoded = encoding.decode(found).numpy()
        assert np.array_equal(decoded, expected)
        assert np.array_equal(encoding._decode_by_torch(found).numpy(), expected)  # of a GPU
        off = np.abs(values.astype(np.float64) - decoded)
        assert (off <= scales_of(values, dtype, scale).astype(np.float64) * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("isa", core.isas())
@pytest.mark.parametrize("stored", [*map(" ".join, KINDS), "float16", "bfloat16"])
def test_each_instruction_set_decodes_rows_of_every_size_and_nothing_else(
    stored: str, isa: str, tmp_path: Path
) -> None:
    # The largest output is written past the caches, since its rows are whole lines.
    for columns, count in [(1, 7), (2, 40), (7, 40), (16, 40), (33, 40), (130, 40), (528, 2000)]:
        path = tmp_path / f"{columns}.npy"
        if " " in stored:
            values = table(97, columns)
            store = open_store(path, values, stored, isa=isa)
            expected = torch.from_numpy(encode(values, *stored.split())[1])
        else:
            kind = getattr(torch, stored)
            halves = np.random.default_rng(columns).integers(0, 1 << 16, (97, columns), np.uint16)
            np.save(path, halves)
            store = FileStore(path, encoding=kind, dtype=torch.float32, isa=isa)
            expected = torch.from_numpy(halves).view(kind).float()
        ids = torch.from_numpy(np.random.default_rng(columns).integers(0, 97, count))
        guarded = torch.full((count + 32, columns), 3.0)
        store.gather(ids, out=guarded[16:-16])
        assert torch.equal(bits(guarded[16:-16]), bits(expected[ids])), columns
        assert bool((guarded[:16] == 3).all())
        assert bool((guarded[-16:] == 3).all())


def bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_that_share_a_cache_decode_its_rows(backend: str) -> None:
    values = table(ROWS, 6)
    stored, decoded = encode(values, "int8", "row")
    expected = torch.from_numpy(decoded)
    encoding = Encoding(torch.uint8, torch.float32, quantised(values, "int8", "row"))
    engines = make_ranks(2, backend=backend, source=Disk(stored))
    ids = RowIds(torch.tensor([3, 39, 3, 0]))
    for engine in engines:
        out = torch.empty(4, 6)
        assert torch.equal(engine.gather(ids, None, None, encoding), expected[ids])
        assert engine.gather(ids, out, None, encoding) is out
        assert torch.equal(out, expected[ids])
    for engine in engines:
        engine.close()


def test_rows_are_written_where_each_has_its_scale(tmp_path: Path) -> None:
    values = table(30, 5)
    new = torch.from_numpy(table(31, 5)[:2])
    store = open_store(tmp_path / "row.npy", values, "int4 row", writable=True)
    store.write(torch.tensor([7, 2]), new)
    expected = encode(values, "int4", "row")[1]
    expected[[7, 2]] = encode(new.numpy(), "int4", "row")[1]
    assert np.array_equal(store.read_range(0, 30).numpy(), expected)
    with pytest.raises(DTypeError, match="nan at position 1, column 3"):
        store.write(torch.tensor([0, 1]), torch.tensor([[1.0] * 5, [1, 2, 3, np.nan, 5]]))
    by_column = open_store(tmp_path / "column.npy", values, "int8 column", writable=True)
    with pytest.raises(UnsupportedError, match="int8 with a scale for each column"):
        by_column.write(torch.tensor([0]), new[:1])


def test_a_store_says_how_its_rows_are_stored_and_goes_through_pickle(tmp_path: Path) -> None:
    values = table(30, 5)
    store = open_store(tmp_path / "x.npy", values, "int8 column")
    assert (store.shape, store.dtype, store.row_bytes) == ((30, 5), torch.float32, 5)
    assert (store.facts()["stored as"], store.facts()["row"]) == ("int8", "5 float32")
    cached = CachedStore(store, cache=4).with_dtype(torch.bfloat16)
    expected = torch.from_numpy(encode(values, "int8", "column")[1])
    ids = torch.arange(30)
    for other in (pickle.loads(pickle.dumps(each)) for each in (store, cached)):
        assert torch.equal(other.gather(ids), expected.to(other.dtype))


def test_a_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.npy", table(30, 5), "int8", "row")
    with pytest.raises(FileFormatError, match=r"x\.npy: rows of 9 bytes, expected 8"):
        FileStore(tmp_path / "x.npy", encoding=Quantised("int8", (4,)))
