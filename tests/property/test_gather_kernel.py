"""The GPU's gather of rows, executed on the CPU, against torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.errors import ArgumentError, BuildError, DTypeError, RowIndexError
from gnnsys.system.gpu import HostExecutorDevice, Schedule
from gnnsys.system.gpu.kernels import Faults, Rows, gather_rows

DRAW = torch.Generator().manual_seed(11)
BIG = 1 << 33

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def table_of(dtype: torch.dtype, rows: int, columns: int, padding: int, offset: int) -> Tensor:
    """Rows that begin `offset` elements behind a multiple of 16 bytes, `padding` apart."""
    stride = columns + padding
    bits = torch.randint(-100, 100, (offset + rows * stride,), generator=DRAW)
    return bits.to(dtype)[offset:].view(rows, stride)[:, :columns]


CASES = [
    # dtype, delivered, columns, elements between rows, elements before the first
    (torch.float32, torch.float32, 100, 0, 0),  # 25 words of 16 bytes
    (torch.float32, torch.float32, 1024, 4, 4),  # long rows
    (torch.float32, torch.float32, 33, 0, 1),  # words of 4 bytes, and long
    (torch.uint8, torch.uint8, 3, 2, 1),
    (torch.float16, torch.float32, 64, 0, 0),
    (torch.float32, torch.bfloat16, 300, 4, 0),
]


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}"[6:])
@settings(max_examples=15, deadline=None)  # the first compiles
@given(data=st.data())
def test_rows_are_those_that_torch_selects(case: Any, data: st.DataObject) -> None:
    stored, delivered, columns, padding, offset = case
    rows = data.draw(st.integers(1, 40))
    table = table_of(stored, rows, columns, padding, offset)
    ids = torch.tensor(
        data.draw(st.lists(st.integers(0, rows - 1), max_size=150)), dtype=torch.int64
    )
    schedule = Schedule(
        data.draw(st.sampled_from(["ascending", "descending", "random"])),
        data.draw(st.integers(0, 1000)),
        data.draw(st.integers(1, 3)),
    )
    out = torch.full((len(ids), columns), 77, dtype=delivered)
    faults = Faults()
    most = data.draw(st.integers(1, 4))
    device = HostExecutorDevice(schedule)
    gather_rows(device, Rows.of(table), ids, out, faults, most_blocks=most)
    faults.raise_found()
    assert torch.equal(out, table[ids].to(delivered))


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 5, BIG, -BIG])
def test_an_id_of_no_row_gives_zeros_and_an_error(wrong: int) -> None:
    table, faults = torch.randn(5, 100), Faults()
    ids = torch.tensor([1, wrong, 4])
    out = torch.full((3, 100), 7.0)
    gather_rows(HostExecutorDevice(), Rows.of(table), ids, out, faults, most_blocks=2)
    assert torch.equal(out, torch.stack([table[1], torch.zeros(100), table[4]]))
    with pytest.raises(RowIndexError, match=f"ids: {wrong} is no row"):
        faults.raise_found()
    faults.raise_found()  # once


@needs_compiler
def test_addresses_beyond_32_bits_are_reached() -> None:
    table, stride = torch.randn(4, 100), 400
    first = Rows.of(table)
    far = Rows(first.address - BIG * stride, BIG + 4, 100, stride, torch.float32)
    out = torch.zeros(2, 100)
    ids = torch.tensor([BIG + 3, BIG])
    gather_rows(HostExecutorDevice(), far, ids, out, Faults(), most_blocks=1)
    assert torch.equal(out, table[[3, 0]])


@needs_compiler
def test_what_does_not_fit_is_refused_by_name() -> None:
    device, rows, faults = HostExecutorDevice(), Rows.of(torch.randn(5, 3)), Faults()
    ids, out = torch.tensor([1]), torch.empty(1, 3)

    def gather(**other: Any) -> None:
        options: dict[str, Any] = {"ids": ids, "out": out, "most_blocks": 1} | other
        gather_rows(device, rows, options.pop("ids"), options.pop("out"), faults, **options)

    with pytest.raises(DTypeError, match=r"ids: torch.float32, expected torch.int64"):
        gather(ids=torch.tensor([1.0]))
    with pytest.raises(ArgumentError, match=r"ids: \(1, 1\)"):
        gather(ids=torch.tensor([[1]]))
    with pytest.raises(ArgumentError, match=r"out: \(1, 3\) with strides \(6, 2\)"):
        gather(out=torch.empty(1, 6)[:, ::2])
    with pytest.raises(ArgumentError, match=r"out: \(2, 3\), expected \(1, 3\)"):
        gather(out=torch.empty(2, 3))
    with pytest.raises(DTypeError, match=r"out: rows of torch.float32 are not cast to torch.int64"):
        gather(out=torch.empty(1, 3, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="most_blocks: 0"):
        gather(most_blocks=0)
    with pytest.raises(ArgumentError, match="table: "):
        Rows.of(torch.zeros(4, 4).t()[:, :2])
    gather(ids=ids[:0], out=out[:0])  # nothing to do


def test_without_a_compiler_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match="which is not on PATH"):
        HostExecutorDevice()


@needs_compiler
def test_a_kernel_that_is_not_there_is_an_error_of_the_compiler() -> None:
    with pytest.raises(BuildError, match=r"gather_no_rows<u8>: .* cannot compile"):
        HostExecutorDevice().kernel("cuda/rows/gather_rows.cuh", "gather_no_rows<u8>")
