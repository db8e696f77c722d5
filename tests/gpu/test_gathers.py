"""Rows that kernels of a GPU gather, bit for bit those of the table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gnnsys
from gnnsys.errors import RowIndexError
from gnnsys.memory.alloc import in_pages_of_its_own
from gnnsys.system.gpu.device import Mapping
from gnnsys.system.gpu.kernels import Faults, Rows, gather_rows

ROWS, WANTED = 500, 1500


@contextlib.contextmanager
def readable(gpu: Any, table: Tensor) -> Iterator[Rows]:
    """Rows of host memory as the device reads them."""
    if gpu.torch_device.type == "cuda":
        with contextlib.closing(Mapping(gpu.device, table)):
            yield Rows.of(table)
    else:
        yield Rows.of(table)


def random_table(dtype: torch.dtype, columns: int) -> Tensor:
    """Any bits, and rows that begin anywhere."""
    draw = torch.Generator().manual_seed(columns)
    nbytes = (columns + 3) * dtype.itemsize
    words = torch.randint(256, (ROWS, nbytes), generator=draw, dtype=torch.uint8)
    return in_pages_of_its_own(words).view(dtype)[:, 1 : columns + 1]


def random_ids(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(ROWS, (WANTED,), generator=torch.Generator().manual_seed(1), dtype=dtype)


def bits(rows: Tensor) -> Tensor:
    return rows.cpu().contiguous().view(torch.uint8)


def gather(gpu: Any, rows: Rows, ids: Tensor, dtype: torch.dtype, faults: Faults) -> Tensor:
    out = torch.empty(len(ids), rows.columns, dtype=dtype, device=gpu.torch_device)
    gather_rows(gpu.device, rows, ids.to(gpu.torch_device), out, faults, most_blocks=7)
    return out


@pytest.mark.parametrize("columns", [1, 3, 16, 100, 1030])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("place", ["registered", "device"])
def test_rows_are_those_of_the_table(
    gpu: Any, place: str, dtype: torch.dtype, columns: int
) -> None:
    table, faults = random_table(dtype, columns), Faults(gpu.torch_device)
    with contextlib.ExitStack() as stack:
        if place == "device":
            there = table.to(gpu.torch_device)
            rows = Rows.of(there)
        else:
            rows = stack.enter_context(readable(gpu, table))
        for ids in (random_ids(), random_ids(torch.int32)):
            found = gather(gpu, rows, ids, dtype, faults)
            assert torch.equal(bits(found), bits(table[ids.long()]))
    faults.raise_found()


@pytest.mark.parametrize(
    ("stored", "delivered"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.int8, torch.float32),
    ],
    ids=str,
)
def test_rows_are_cast_as_torch_casts(
    gpu: Any, stored: torch.dtype, delivered: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(2)
    table = in_pages_of_its_own((torch.randn(ROWS, 40, generator=draw) * 50).to(stored))
    ids, faults = random_ids(), Faults(gpu.torch_device)
    with readable(gpu, table) as rows:
        found = gather(gpu, rows, ids, delivered, faults)
        assert torch.equal(bits(found), bits(table[ids].to(delivered)))


@pytest.mark.parametrize("bad", [-1, ROWS, 1 << 40])
def test_an_id_of_no_row_gives_zeros_and_is_told(gpu: Any, bad: int) -> None:
    table = in_pages_of_its_own(torch.ones(ROWS, 5))
    ids, faults = random_ids(), Faults(gpu.torch_device)
    ids[WANTED // 2] = bad
    with readable(gpu, table) as rows:
        found = gather(gpu, rows, ids, torch.float32, faults).cpu()
    assert found.sum() == (WANTED - 1) * 5
    assert found[WANTED // 2].abs().sum() == 0
    with pytest.raises(RowIndexError, match=str(bad)):
        faults.raise_found()


@pytest.mark.parametrize("source", ["tensor", "read-only file in memory"])
def test_a_unified_tensor_delivers_rows_on_the_device(
    gpu: Any, source: str, tmp_path: Path
) -> None:
    table = random_table(torch.int32, 33)
    rows: Any = table
    if source != "tensor":
        np.save(tmp_path / "rows.npy", table.numpy())
        rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    x = gnnsys.unified(rows, device=gpu.name)
    for ids in (random_ids(), random_ids()[:1], random_ids()[:0]):
        found = x[ids]
        assert found.device == gpu.torch_device
        assert torch.equal(found.cpu(), table[ids])
    assert sum(tier.rows for tier in x.counters.tiers().values()) == WANTED + 1
