"""Every store gathers what torch's indexing gathers, whatever the shape, dtype, ISA and threads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.errors import ReadOnlyError, RowIndexError
from gnnsys.memory import FileStore, HostStore
from gnnsys.memory.encoding import SUPPORTED_DTYPES
from gnnsys.system.extension import core

ROW_BYTES = [*range(1, 140), 255, 256, 257, 511, 512, 513, 1000, 4095, 4096, 4097, 9000]


def table(rows: int, row_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), dtype=np.uint8)


def ids_of(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, rows, count))


@pytest.mark.parametrize("isa", core.isas())
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_of_every_size_are_copied_bit_for_bit(isa: str, threads: int) -> None:
    for row_bytes in ROW_BYTES:
        values = table(97, row_bytes)
        ids = ids_of(97, 501)
        store = HostStore(values, threads=threads, isa=isa)
        assert np.array_equal(store.gather(ids).numpy(), values[ids.numpy()]), row_bytes
        assert np.array_equal(store.gather(ids.int()).numpy(), values[ids.numpy()]), row_bytes


@pytest.mark.parametrize("isa", core.isas())
def test_nothing_beyond_the_output_is_written(isa: str) -> None:
    for row_bytes in ROW_BYTES:
        values = table(31, row_bytes)
        ids = ids_of(31, 40)
        guarded = torch.full((42, row_bytes), 171, dtype=torch.uint8)
        HostStore(values, isa=isa).gather(ids, out=guarded[1:-1])
        assert np.array_equal(guarded[1:-1].numpy(), values[ids.numpy()])
        assert bool((guarded[0] == 171).all())
        assert bool((guarded[-1] == 171).all())


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 300),
    inner=st.lists(st.integers(0, 9), max_size=3),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    count=st.integers(0, 700),
    threads=st.integers(1, 4),
    isa=st.sampled_from(core.isas()),
    seed=st.integers(0, 2**32 - 1),
)
def test_host_and_file_stores_equal_fancy_indexing(
    rows: int,
    inner: list[int],
    dtype: torch.dtype,
    count: int,
    threads: int,
    isa: str,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 100, (rows, *inner), generator=draw).to(dtype)
    ids = torch.randint(0, max(rows, 1), (count if rows else 0,), generator=draw)
    with tempfile.TemporaryDirectory() as folder:
        encoding = dtype if dtype == torch.bfloat16 else None
        path = Path(folder) / "x.npy"
        np.save(path, (values.view(torch.int16) if encoding else values).numpy())
        stores = [
            HostStore(values, threads=threads, isa=isa),
            FileStore(path, encoding=encoding, threads=threads, isa=isa),
        ]
        for store in stores:
            assert torch.equal(store.gather(ids), values[ids])
            served = store.counters.served(store.tier)
            assert (served.rows, served.bytes) == (len(ids), len(ids) * store.row_bytes)
            for wrong in (rows, -1):
                with pytest.raises(RowIndexError, match=f"id {wrong} at position {len(ids)} "):
                    store.gather(torch.cat([ids, torch.tensor([wrong])]))


@settings(max_examples=60, deadline=None)
@given(
    stored=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int8]),
    delivered=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    rows=st.integers(1, 2000),
    width=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_cast_on_the_way_equals_casting_afterwards(
    stored: torch.dtype, delivered: torch.dtype, rows: int, width: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = (torch.randn(50, width, generator=draw) * 20).to(stored)
    ids = torch.randint(0, 50, (rows,), generator=draw)
    expected = values[ids].to(delivered)
    out = torch.empty(rows, width, dtype=delivered)
    assert torch.equal(HostStore(values, dtype=delivered).gather(ids), expected)
    assert HostStore(values, dtype=delivered).gather(ids, out=out) is out
    assert torch.equal(out, expected)


def test_an_output_stays_as_it_was_while_others_are_gathered() -> None:
    values = torch.arange(4096.0 * 256).view(4096, 256)
    store = HostStore(values)
    kept = []
    for seed in range(30):
        ids = ids_of(4096, 1000 + seed, seed)
        kept.append((ids, store.gather(ids)))
        if seed % 3 == 0:
            del kept[0]
    for ids, rows in kept:
        assert torch.equal(rows, values[ids])


def test_writes_show_in_a_writable_store_and_are_refused_elsewhere() -> None:
    values = torch.zeros(5, 3)
    HostStore(values, writable=True).write(torch.tensor([1, 4]), torch.ones(2, 3))
    assert values.sum(1).tolist() == [0, 3, 0, 0, 3]
    with pytest.raises(ReadOnlyError, match="writable=True"):
        HostStore(values).write(torch.tensor([1]), torch.ones(1, 3))
