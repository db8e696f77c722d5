"""UnifiedTensor against torch: the same values, bit for bit, and a copy."""

from __future__ import annotations

import array
import copy
import io
import math
import os
import pickle
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader.utils import filter_data
from torch_geometric.loader.utils import index_select as pyg_index_select

from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    GnnsysError,
    MissingFileError,
    ReadOnlyError,
    RowIndexError,
    TooLargeError,
)
from gnnsys.unified_tensor import UnifiedTensor, unified

pytestmark = [
    pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex128,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
ROWS = 7
SHAPES = [(ROWS,), (ROWS, 5), (ROWS, 5, 3), (ROWS, 5, 3, 2)]


def table(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random bits; floating types also hold -0.0, NaN and infinity."""
    draw = np.random.default_rng(seed)
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.from_numpy(draw.integers(0, 2, count).astype(bool)).view(shape)
    raw = torch.from_numpy(draw.integers(0, 256, count * dtype.itemsize, dtype=np.uint8))
    values = raw.view(dtype)
    if dtype.is_floating_point or dtype.is_complex:
        special = torch.tensor([-0.0, math.nan, math.inf, -math.nan])[:count]
        values[: len(special)] = special.to(dtype)
    return values.view(shape)


def bits(tensor: Tensor) -> Tensor:
    values = tensor.resolve_conj().resolve_neg()
    flat = torch.empty(values.numel(), dtype=values.dtype).copy_(values.reshape(-1))
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def same(found: Tensor, expected: Tensor) -> bool:
    return (
        type(found) is Tensor
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.equal(bits(found), bits(expected))
    )


@dataclass
class Source:
    """A unified tensor, the values it must give, and a way to read its source again."""

    x: UnifiedTensor
    expected: Tensor
    read: Callable[[], Tensor]
    memory: Tensor | None = None

    def is_untouched(self) -> bool:
        return torch.equal(bits(self.read()), bits(self.expected))

    def shares_memory_with(self, result: Tensor) -> bool:
        if self.memory is None or result.numel() == 0:
            return False
        ours, theirs = self.memory.untyped_storage(), result.untyped_storage()
        first, last = ours.data_ptr(), ours.data_ptr() + ours.nbytes()
        return theirs.data_ptr() < last and first < theirs.data_ptr() + theirs.nbytes()


def host(source: Tensor) -> Source:
    return Source(unified(source, device="cpu"), source.clone(), lambda: source, source)


def from_numpy(array: np.ndarray) -> Source:
    alias = np.asarray(array)
    if not alias.flags.writeable:  # a view that torch takes without a warning; never written to
        alias = np.frombuffer(alias, alias.dtype).reshape(alias.shape)
    with np.errstate(all="ignore"):
        memory = _alias(alias)
    return Source(unified(array, device="cpu"), memory.clone(), lambda: memory, memory)


def _alias(array: np.ndarray) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def with_more_rows(dtype: torch.dtype, shape: tuple[int, ...], times: int) -> Tensor:
    return table(dtype, (shape[0] * times, *shape[1:]))


def wider(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return table(dtype, (*shape[:-1], shape[-1] + 4))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def memory_mapped(array: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "mapped.npy", array)
    return np.load(folder / "mapped.npy", mmap_mode="r")


HOST_KINDS: dict[str, Callable[[torch.dtype, tuple[int, ...]], Tensor]] = {
    "contiguous": table,
    "offset": lambda dtype, shape: with_more_rows(dtype, shape, 2)[ROWS:],
    "row_strided": lambda dtype, shape: with_more_rows(dtype, shape, 2)[::2],
    "column_sliced": lambda dtype, shape: wider(dtype, shape)[..., 1:-3],
    "column_strided": lambda dtype, shape: (
        wider(dtype, shape)[..., : 2 * shape[-1] : 2]
        if shape[-1] <= 4
        else wider(dtype, (*shape[:-1], 2 * shape[-1]))[..., : 2 * shape[-1] : 2]
    ),
    "transposed": lambda dtype, shape: table(dtype, shape[::-1]).permute(
        *reversed(range(len(shape)))
    ),
    "expanded": lambda dtype, shape: table(dtype, (1, *shape[1:])).expand(shape),
    "expanded_columns": lambda dtype, shape: table(dtype, (*shape[:-1], 1)).expand(shape),
}
NUMPY_KINDS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "numpy": lambda array, folder: array,
    "numpy_row_strided": lambda array, folder: np.repeat(array, 2, axis=0)[::2],
    "numpy_fortran": lambda array, folder: np.asfortranarray(array),
    "numpy_read_only": lambda array, folder: read_only(array),
    "numpy_memory_mapped": memory_mapped,
}


def npy(values: Tensor, path: Path) -> UnifiedTensor:
    """A .npy file of any dtype; bfloat16 as the uint16 that numpy can name."""
    if values.dtype == torch.bfloat16:
        np.save(path, values.contiguous().view(torch.int16).numpy().view(np.uint16))
        return unified(path, encoding=torch.bfloat16, device="cpu")
    np.save(path, values.contiguous().numpy())
    return unified(path, device="cpu")


def raw(values: Tensor, path: Path, offset: int) -> UnifiedTensor:
    path.write_bytes(b"\xa5" * offset + bits(values).numpy().tobytes() + b"trailing")
    return unified(path, shape=values.shape, encoding=values.dtype, offset=offset, device="cpu")


def in_file(x: UnifiedTensor, values: Tensor) -> Source:
    if values.numel() == 0:
        return Source(x, values, lambda: values)
    path, offset = Path(x.store.path), None

    def read() -> Tensor:
        nonlocal offset
        data = path.read_bytes()
        raw_values = bits(values).numpy().tobytes()
        if offset is None:
            offset = data.index(raw_values)
        found = bytearray(data[offset : offset + len(raw_values)])
        return torch.frombuffer(found, dtype=torch.uint8).view(values.dtype).view(values.shape)

    return Source(x, values, read)


def make(kind: str, dtype: torch.dtype, shape: tuple[int, ...], folder: Path) -> Source:
    if kind in HOST_KINDS:
        return host(HOST_KINDS[kind](dtype, shape))
    values = table(dtype, shape)
    if kind in NUMPY_KINDS:
        return from_numpy(NUMPY_KINDS[kind](values.numpy(), folder))
    path = folder / f"{kind}-{len(shape)}"
    if kind == "npy":
        return in_file(npy(values, path.with_suffix(".npy")), values)
    return in_file(raw(values, path, offset=0 if kind == "raw" else 13), values)


KINDS = [*HOST_KINDS, *NUMPY_KINDS, "npy", "raw", "raw_offset"]
TIERS = ["contiguous", "row_strided", "transposed", "npy"]


def t(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


class Index:
    def __index__(self) -> int:
        return 2


ROW_MASK = torch.tensor([True, False, True, True, False, False, True])
COLUMN_MASK = torch.tensor([True, False, False, True, True])
PLANE_MASK = torch.arange(ROWS * 5).view(ROWS, 5) % 3 == 1
CUBE_MASK = torch.arange(ROWS * 15).view(ROWS, 5, 3) % 4 == 1

# The index kinds of the issue; every dtype and every kind of source is held against all of them.
CORE: dict[str, Any] = {
    "int": 3,
    "negative int": -2,
    "list": [4, 0, 0, -1],
    "ids": t(5, 0, 5, 6, 2),
    "negative ids": t(-1, 0, -ROWS, 3),
    "int32 ids": t(6, -6, 1, dtype=torch.int32),
    "empty ids": t(),
    "n-d ids": t(0, 1, 6, -1, 4, 4).view(2, 3),
    "mask": ROW_MASK,
    "empty mask": torch.zeros(ROWS, dtype=torch.bool),
    "plane mask": PLANE_MASK,
    "cube mask": CUBE_MASK,
    "slice": slice(1, 5, 2),
    "all": slice(None),
    "ids and slice": (t(3, 1), slice(1, 4)),
    "slice and ids": (slice(2, 6), t(0, 4, 0)),
    "ids and ids": (t(6, 0, 1), t(4, 0, 4)),
    "none": None,
    "ellipsis": ...,
    "outside": t(0, ROWS),
}

# Everything else that torch takes or refuses, one test each.
INDICES: dict[str, Any] = {
    **CORE,
    "int beyond": ROWS,
    "int below": -ROWS - 1,
    "largest int": 2**63 - 1,
    "0-dim": torch.tensor(4),
    "0-dim negative": torch.tensor(-1),
    "0-dim int32": torch.tensor(1, dtype=torch.int32),
    "0-dim int16": torch.tensor(1, dtype=torch.int16),
    "0-dim int8": torch.tensor(-2, dtype=torch.int8),
    "0-dim uint8, a mask": torch.tensor(1, dtype=torch.uint8),
    "0-dim uint8, an empty mask": torch.tensor(0, dtype=torch.uint8),
    "0-dim bool": torch.tensor(True),
    "0-dim bool, an empty mask": torch.tensor(False),
    "0-dim float": torch.tensor(1.0),
    "true": True,
    "false": False,
    "numpy bool": np.True_,
    "float": 1.0,
    "complex": 1j,
    "text": "a",
    "bytes": b"a",
    "set": {1},
    "dict": {1: 2},
    "object": object(),
    "__index__": Index(),
    "array": array.array("q", [3, 0]),
    "deque": deque([3, 0]),
    "range": range(1, 6, 2),
    "range down": range(-1, -5, -1),
    "range beyond": range(5, 9),
    "empty range": range(0),
    "empty list": [],
    "list of numpy ints": [np.int64(1), np.int32(-1)],
    "list of bools": ROW_MASK.tolist(),
    "short list of bools": [True, False],
    "list of bools and ints": [True, 2],
    "list of texts": ["a"],
    "numpy int64": np.int64(2),
    "numpy int8": np.int8(-1),
    "numpy uint64": np.uint64(1),
    "numpy float": np.float64(1),
    "empty numpy ints": np.empty(0, np.int64),
    "empty numpy array": np.array([]),
    "numpy mask": ROW_MASK.numpy(),
    "numpy plane mask": PLANE_MASK.numpy(),
    "numpy uint8 mask": ROW_MASK.numpy().astype(np.uint8),
    "numpy n-d": np.array([[0, -1], [3, 3]]),
    "numpy strided": np.arange(6)[::2],
    "numpy read-only": read_only(np.arange(3)),
    **{
        f"numpy {name} ids": np.array([3, 0, 6, 3], dtype=name)
        for name in ["int64", "int32", "int16", "int8", "uint16", "uint32", "uint64"]
    },
    **{
        f"0-dim numpy {name}": np.array(3, dtype=name)
        for name in ["int64", "int32", "int16", "int8", "uint16", "uint32", "uint64"]
    },
    "int32 ids, empty": t(dtype=torch.int32),
    "int16 ids": t(1, 2, dtype=torch.int16),
    "int8 ids": t(1, 2, dtype=torch.int8),
    "uint16 ids": t(1, 2).to(torch.uint16),
    "float ids": torch.tensor([1.0, 2.0]),
    "empty float ids": torch.tensor([]),
    "complex ids": torch.tensor([1j]),
    "lowest id": t(-(2**63)),
    "highest id": t(2**63 - 1),
    "id below": t(0, -ROWS - 1),
    "int32 id below": t(0, -ROWS - 1, dtype=torch.int32),
    "strided ids": torch.arange(6)[::2],
    "expanded ids": torch.tensor([3]).expand(4),
    "empty n-d ids": torch.empty(0, 3, dtype=torch.int64),
    "n-d ids beyond": t(0, 1, ROWS, 2).view(2, 2),
    "parameter": torch.nn.Parameter(t(3, 1), requires_grad=False),
    "uint8 mask": ROW_MASK.to(torch.uint8),
    "uint8 plane mask": PLANE_MASK.to(torch.uint8),
    "uint8 ids, a short mask": t(1, 2, dtype=torch.uint8),
    "short mask": ROW_MASK[:3],
    "long mask": torch.ones(ROWS + 1, dtype=torch.bool),
    "empty long mask": torch.zeros(ROWS + 1, dtype=torch.bool),
    "no mask": torch.zeros(0, dtype=torch.bool),
    "narrow plane mask": torch.ones(ROWS, 2, dtype=torch.bool),
    "wide plane mask": F.pad(PLANE_MASK, (0, 3)),
    "flat cube mask": torch.ones(ROWS, 5, 1, dtype=torch.bool),
    "mask of too many dimensions": torch.ones(ROWS, 5, 3, 2, 1, dtype=torch.bool),
    "transposed plane mask": PLANE_MASK.t().contiguous().t(),
    "slice none": slice(None, None, None),
    "slice beyond": slice(-100, 100, 3),
    "slice empty": slice(5, 1),
    "slice from the end": slice(-3, None),
    "slice of numpy ints": slice(np.int64(1), np.int64(4)),
    "slice of tensors": slice(torch.tensor(1), torch.tensor(3)),
    "slice of bool": slice(True, None),
    "slice huge": slice(0, 2**62),
    "slice backwards": slice(None, None, -1),
    "slice step 0": slice(None, None, 0),
    "slice float": slice(0.0, 2),
    "slice text": slice("a", None),
    "()": (),
    "(true, 1)": (True, 1),
    "(1, true)": (1, True),
    "(1, false)": (1, False),
    "(none, 1)": (None, 1),
    "(1, none)": (1, None),
    "(none, none, ids)": (None, None, t(1, 2)),
    "(ids, none)": (t(1, 2), None),
    "(ids, none, ids)": (t(1, 2), None, t(0, 1)),
    "(ellipsis, 1)": (..., 1),
    "(ellipsis, none)": (..., None),
    "(none, ellipsis)": (None, ...),
    "(ellipsis, ellipsis)": (..., ...),
    "(1, ellipsis)": (1, ...),
    "(1, ellipsis, 1)": (1, ..., 1),
    "(ellipsis, 1, 0)": (..., 1, 0),
    "(ellipsis, 1, 0, 0)": (..., 1, 0, 0),
    "(ellipsis, 1, 0, 0, 0)": (..., 1, 0, 0, 0),
    "(0, ellipsis, ellipsis)": (0, ..., ...),
    "(ellipsis, 1, ellipsis)": (..., 1, ...),
    "(ids, ellipsis)": (t(1, 6), ...),
    "(ellipsis, ids)": (..., t(0, 1)),
    "(ids, ellipsis, ids)": (t(1, 6), ..., t(0, 1)),
    "(mask, ellipsis)": (ROW_MASK, ...),
    "(ellipsis, slice)": (..., slice(0, 1)),
    "(0, 0)": (0, 0),
    "(0, 0, 0, 0)": (0, 0, 0, 0),
    "(0, 0, 0, 0, 0)": (0, 0, 0, 0, 0),
    "(0, beyond)": (0, 99),
    "(slice, beyond)": (slice(None), t(99)),
    "(none, beyond)": (None, t(99)),
    "(ids, 1)": (t(1, 6), 1),
    "(1, ids)": (1, t(0, 4)),
    "(1, slice, ids)": (1, slice(None), t(0, 2)),
    "(0-dim, ids)": (torch.tensor(1), t(0, 4)),
    "(0-dim, 0-dim)": (torch.tensor(1), torch.tensor(-1)),
    "(0-dim, slice, ids)": (torch.tensor(1), slice(None), t(0, 2)),
    "(ids, slice, ids)": (t(1, 6, 6), slice(1, 3), t(0, 2, 1)),
    "(ids, slice, 1)": (t(1, 6, 6), slice(1, 3), 1),
    "(column of ids, ids)": (t(1, 6).view(2, 1), t(0, 4, 2)),
    "(one id, ids)": (t(1), t(0, 4, 2)),
    "(2 ids, 3 ids)": (t(1, 6), t(0, 4, 2)),
    "(n-d ids, slice)": (t(1, 6, 0, 0).view(2, 2), slice(2)),
    "(int32 ids, ids)": (t(1, 6, dtype=torch.int32), t(0, 4)),
    "(empty ids, slice)": (t(), slice(1)),
    "(list, list)": ([0, 1], [1, 2]),
    "(list,)": ([0, 1],),
    "(1, list)": (1, [0, 1]),
    "(range, 1)": (range(2), 1),
    "(tuple, 2)": ((0, 1), 2),
    "(numpy, slice)": (np.array([0, 1], dtype=np.int16), slice(2)),
    "(mask, slice)": (ROW_MASK, slice(1, 3)),
    "(mask, 4 ids)": (ROW_MASK, t(0, 4, 2, 1)),
    "(mask, 3 ids)": (ROW_MASK, t(0, 4, 2)),
    "(mask, mask)": (ROW_MASK, torch.tensor([True, True, False, True, True])),
    "(mask, other mask)": (ROW_MASK, COLUMN_MASK),
    "(slice, mask)": (slice(None), COLUMN_MASK),
    "(ids, mask)": (t(1, 2, 3), COLUMN_MASK),
    "(plane mask, 1)": (PLANE_MASK, 1),
    "(plane mask, slice)": (PLANE_MASK, slice(1)),
    "(slice, slice, slice)": (slice(1, 6, 2), slice(None, None, 2), slice(1)),
    "(ids, true)": (t(1, 2), True),
    "(ids, false)": (t(1, 2), False),
    "(true, ids)": (True, t(1, 2)),
    "(false, ids)": (False, t(1, 2)),
    "(0-dim bool, ids)": (torch.tensor(True), t(1, 2)),
    "torch.Size": torch.Size([0, 1]),
}


def outcome(action: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        # numpy before 2.3 takes np.bool for a number, and says that it will not.
        warnings.filterwarnings("ignore", "In future, it will be an error for 'np.bool'")
        try:
            return action()
        except Exception as error:
            return error


def check_agrees(source: Source, name: str, index: Any) -> None:
    """Ours gives torch's values as a copy, or raises the kind of error that torch raises."""
    expected = outcome(lambda: source.expected[index])
    found = outcome(lambda: source.x[index])
    what = f"{name} of {tuple(source.expected.shape)} {source.expected.dtype}"
    if isinstance(expected, Exception):
        kinds = (GnnsysError, type(expected))
        assert isinstance(found, kinds), f"{what}: torch {expected!r}, ours {found!r}"
        return
    if isinstance(found, Exception):
        raise AssertionError(f"{what}: torch gives {tuple(expected.shape)}") from found
    assert same(found, expected), f"{what}: {found} != {expected}"
    assert not found.requires_grad, what
    assert not source.shares_memory_with(found), f"{what}: shares memory with the source"
    found.fill_(1)
    assert source.is_untouched(), f"{what}: writing to the result changed the source"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_indexing_equals_torch_for_every_dtype_and_source(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    if dtype == torch.bfloat16 and kind in NUMPY_KINDS:
        with pytest.raises(DTypeError, match="uint16"):  # numpy has no bfloat16
            unified(table(dtype, (2, 2)).view(torch.int16).numpy().view(np.uint16))
        return
    for shape in SHAPES:
        source = make(kind, dtype, shape, tmp_path)
        for name, index in CORE.items():
            check_agrees(source, name, index)


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("tier", TIERS)
def test_every_index_agrees_with_torch(tier: str, name: str, tmp_path: Path) -> None:
    for shape in SHAPES:
        check_agrees(make(tier, torch.float32, shape, tmp_path), name, INDICES[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (5, 0), (0, 0), (4, 0, 3), (4, 3, 0), (1, 1)])
def test_empty_tables_and_zero_width_rows_agree_with_torch(
    shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    values = table(dtype, shape)
    sources = [host(values), in_file(npy(values, tmp_path / "x.npy"), values)]
    if dtype != torch.bfloat16:
        sources += [from_numpy(values.numpy()), from_numpy(read_only(values.numpy().copy()))]
    indices = [t(), t(0), t(-1), t(0, 0, 3), 0, slice(None), slice(1, 3), [], None, ...]
    indices += [torch.ones(shape[:1], dtype=torch.bool), torch.ones(shape, dtype=torch.bool)]
    for source in sources:
        for index in indices:
            check_agrees(source, repr(index), index)
        assert len(source.x) == shape[0]
        with pytest.raises(RowIndexError, match="is outside the rows"):
            source.x[t(0, 9)]  # torch looks at no id where rows have no elements


@pytest.mark.parametrize(
    "nested", [[[0, 1], [2, 3]], [[6]], [[True] * 5] * ROWS, [[[0], [1]]]], ids=str
)
@pytest.mark.parametrize("tier", TIERS)
def test_a_nested_list_is_the_tensor_that_it_spells(
    tier: str, nested: list[Any], tmp_path: Path
) -> None:
    # torch is about to change from a tuple of lists to this: x[torch.tensor(nested)].
    source = make(tier, torch.float32, (ROWS, 5, 3), tmp_path)
    assert same(source.x[nested], source.expected[torch.tensor(nested)])


@pytest.mark.parametrize(
    "index",
    [
        *[2**70, -(2**70), [2**70], [1.0, 2.0], [1.5], [[0, 1], [2]], [slice(2), 1], [..., 1]],
        *[[None, 1], [t(0, 1), t(1, 2)], np.array([1.5]), np.array([1j]), np.array(["a"])],
        *[np.array([None]), np.array([0], dtype="datetime64[s]"), np.array([1], dtype=">i4")],
        ROW_MASK.to_sparse(),
    ],
    ids=str,
)
def test_an_index_that_torch_takes_by_accident_or_not_at_all_raises_or_agrees(index: Any) -> None:
    source = host(table(torch.float32, (ROWS, 5)))
    found = outcome(lambda: source.x[index])
    if isinstance(found, Exception):
        assert isinstance(found, GnnsysError), repr(found)
        assert isinstance(found, (IndexError, TypeError, ValueError))
    else:
        assert same(found, source.expected[torch.as_tensor(np.asarray(index).astype(np.int64))])


def test_backward_numpy_ids_are_taken_or_refused_clearly() -> None:
    source = host(table(torch.float32, (ROWS, 5)))
    ids = np.arange(ROWS)[::-1]
    found = outcome(lambda: source.x[ids])
    if isinstance(found, Exception):
        assert isinstance(found, GnnsysError), repr(found)
    else:
        assert same(found, source.expected[ids.copy()])


def test_an_id_error_names_the_id_its_position_and_the_rows() -> None:
    x = host(table(torch.float32, (ROWS, 5))).x
    with pytest.raises(RowIndexError, match=r"id 12 at position 2 .*\[0, 7\)"):
        x[t(1, -7, 12, 99)]
    with pytest.raises(RowIndexError, match=r"mask of shape \(3,\) != \(7,\)"):
        x[ROW_MASK[:3]]


def test_ids_may_be_unified_tensors_themselves() -> None:
    values = table(torch.float32, (ROWS, 5))
    ids = t(5, 0, -1)
    x, lazy_ids = unified(values, device="cpu"), unified(ids, device="cpu")
    assert same(x[lazy_ids], values[ids])
    assert same(values[lazy_ids], values[ids])
    assert same(x[unified(ROW_MASK, device="cpu")], values[ROW_MASK])


def test_negative_int32_ids_reach_rows_past_the_range_of_int32() -> None:
    x = unified(torch.tensor([[3.0, 4.0]]).expand(2**33, 2), device="cpu")
    ids = t(-1, 5, dtype=torch.int32)
    assert x[ids].tolist() == [[3.0, 4.0], [3.0, 4.0]]


def test_a_slice_takes_memory_for_its_rows_only() -> None:
    x = unified(torch.tensor([[3.0, 4.0]]).expand(2**45, 2), device="cpu")
    assert x[5:8].tolist() == [[3.0, 4.0]] * 3
    assert x[:: 2**44, 1].tolist() == [4.0, 4.0]


# Functions that gather ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_index_select_equals_torch(tier: str, dtype: torch.dtype, tmp_path: Path) -> None:
    for shape in SHAPES:
        source = make(tier, dtype, shape, tmp_path)
        for ids in [t(3, 0, 0), t(), t(2, dtype=torch.int32), torch.tensor(1), t(0, 1, 9)[::2]]:
            for dim in range(-len(shape), len(shape)):
                expected = outcome(partial(torch.index_select, source.expected, dim, ids))
                found = outcome(partial(torch.index_select, source.x, dim, ids))
                if isinstance(expected, Exception):
                    assert isinstance(found, (IndexError, RuntimeError)), (dim, ids, found)
                else:
                    assert same(found, expected), (dim, ids)
        assert source.is_untouched()


@pytest.mark.parametrize(
    "ids", [t(0, ROWS), t(-1), t(0, 1).view(1, 2), t(1, dtype=torch.int16), torch.tensor([1.0])]
)
def test_index_select_refuses_what_torch_refuses(ids: Tensor) -> None:
    source = host(table(torch.float32, (ROWS, 5)))
    expected = outcome(lambda: source.expected.index_select(0, ids))
    found = outcome(lambda: source.x.index_select(0, ids))
    assert isinstance(expected, Exception)
    assert isinstance(found, type(expected)), (expected, found)


@pytest.mark.parametrize("tier", TIERS)
def test_index_select_writes_to_out(tier: str, tmp_path: Path) -> None:
    source = make(tier, torch.float32, (ROWS, 5), tmp_path)
    ids = t(6, 0, 6)
    outs = [torch.empty(3, 5), torch.empty(0), torch.empty(5, 3).t(), torch.empty(3, 10)[:, ::2]]
    for out in outs:
        given = torch.index_select(source.x, 0, ids, out=out)
        assert given is out
        assert same(out, source.expected[ids])
    columns = torch.empty(ROWS, 2)
    torch.index_select(source.x, 1, t(4, 1), out=columns)
    assert same(columns, source.expected[:, [4, 1]])
    with pytest.raises(RuntimeError, match="same scalar type"):
        torch.index_select(source.x, 0, ids, out=torch.empty(3, 5, dtype=torch.float64))
    with pytest.raises(IndexError):
        torch.index_select(source.x, 0, t(ROWS), out=torch.empty(1, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_embedding_equals_torch(tier: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = make(tier, dtype, (ROWS, 5), tmp_path)
    layer = torch.nn.Embedding.from_pretrained(source.x)
    for ids in [t(3, 0), t(), torch.tensor(2), t(0, 1, 5, 6).view(2, 2), t(4, dtype=torch.int32)]:
        expected = F.embedding(ids, source.expected)
        assert same(F.embedding(ids, source.x), expected)
        assert same(F.embedding(ids, source.x, padding_idx=0), expected)
        assert same(layer(ids), expected)
    for ids in [t(-1), t(ROWS)]:
        with pytest.raises(IndexError):
            F.embedding(ids, source.x)


@pytest.mark.parametrize("tier", TIERS)
def test_iteration_gives_copies_of_the_rows(tier: str, tmp_path: Path) -> None:
    for shape in SHAPES:
        source = make(tier, torch.float32, shape, tmp_path)
        for rows, expected in [
            (list(source.x), list(source.expected)),
            (list(reversed(source.x)), list(reversed(source.expected))),
        ]:
            assert len(rows) == ROWS
            for row, wanted in zip(rows, expected, strict=True):
                assert same(row, wanted)
                assert not source.shares_memory_with(row)


# Any other operator runs on the whole -------------------------------------------------------------

SMALL = torch.arange(ROWS * 5).remainder(11).sub(4).to(torch.float32).view(ROWS, 5)  # exact sums
WEIGHT = torch.arange(15.0).sub(7).view(5, 3)
OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x.mean(0),
    "sum": lambda x: x.sum(),
    "max": lambda x: x.max(0),
    "argmax": lambda x: x.argmax(1),
    "sort": lambda x: x.sort(dim=0, stable=True),
    "cumsum": lambda x: x.cumsum(0),
    "unique": lambda x: torch.unique(x),
    "nonzero": lambda x: x.nonzero(),
    "matmul": lambda x: x @ WEIGHT,
    "matmul from the left": lambda x: WEIGHT.t() @ x.t(),
    "matmul with itself": lambda x: x @ x.t(),
    "linear": lambda x: F.linear(x, WEIGHT.t(), torch.ones(3)),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "cat": lambda x: torch.cat([x, SMALL, x]),
    "cat of columns": lambda x: torch.cat([SMALL, x], dim=1),
    "stack": lambda x: torch.stack([x, x], dim=1),
    "equal elements": lambda x: x == SMALL,
    "equal elements, reflected": lambda x: SMALL.eq(x),
    "less": lambda x: x < 0,
    "add": lambda x: x + 1,
    "subtract from": lambda x: 1 - x,
    "of two": lambda x: x * x,
    "negative": lambda x: -x,
    "normalize": lambda x: F.normalize(x, p=1.0),
    "where": lambda x: torch.where(x > 0, x, SMALL),
    "clone": lambda x: x.clone(),
    "view": lambda x: x.view(5, ROWS),
    "transpose": lambda x: x.t(),
    "T": lambda x: x.T,
    "flatten": lambda x: x.flatten(),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "repeat": lambda x: x.repeat(2, 1),
    "split": lambda x: x.split(3),
    "chunk": lambda x: x.chunk(2, dim=1),
    "unbind": lambda x: x.unbind(1),
    "narrow": lambda x: x.narrow(0, 2, 3),
    "select": lambda x: x.select(0, -1),
    "torch.gather": lambda x: torch.gather(x, 1, torch.ones(ROWS, 2, dtype=torch.int64)),
    "gather of elements": lambda x: x.gather(0, torch.tensor([[0, 3, 6, 2, 2]])),
    "take": lambda x: x.take(t(0, 9)),
    "source of an addition": lambda x: torch.zeros(ROWS, 5).add_(x),
    "source of a scatter": lambda x: torch.zeros(ROWS, 5).index_add_(0, t(*range(ROWS)), x),
    "source of an assignment": lambda x: torch.zeros(ROWS, 5).copy_(x),
    "zeros_like": lambda x: torch.zeros_like(x),
    "new_zeros": lambda x: x.new_zeros(2, 3),
    "new_full": lambda x: x.new_full((2,), 3.0),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
    "embedding_bag": lambda x: F.embedding_bag(t(0, 1, 2, 2).view(2, 2), x, mode="sum"),
    "vmap": lambda x: torch.vmap(lambda row: row.sum())(x),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("tier", ["host", "file"])
def test_operators_on_the_whole_equal_torch(tier: str, name: str, tmp_path: Path) -> None:
    values = SMALL.clone()
    source = host(values) if tier == "host" else in_file(npy(values, tmp_path / "x.npy"), values)
    expected, found = OPERATORS[name](SMALL), OPERATORS[name](source.x)
    if isinstance(expected, Tensor):
        expected, found = [expected], [found]
    for ours, theirs in zip(found, expected, strict=True):
        view = isinstance(ours, UnifiedTensor)  # of host memory, and as read-only as the whole
        assert same(ours.materialize() if view else ours, theirs)
    assert source.is_untouched()


def test_operators_on_a_host_tensor_do_not_copy_it() -> None:
    x = unified(torch.ones(1, 2).expand(2**45, 2), device="cpu")
    assert x.t().shape == (2, 2**45)
    assert x.narrow(0, 2**44, 2).sum().item() == 4


@pytest.mark.parametrize("tier", ["host", "file"])
def test_python_protocols_equal_torch(tier: str, tmp_path: Path) -> None:
    x = unified(SMALL, device="cpu") if tier == "host" else npy(SMALL, tmp_path / "x.npy")
    assert isinstance(x, Tensor)
    assert len(x) == ROWS
    assert x.shape == x.size() == (ROWS, 5)
    assert (x.dim(), x.numel(), x.element_size(), x.nbytes) == (2, ROWS * 5, 4, ROWS * 20)
    assert (x.stride(), x.is_contiguous(), x.is_floating_point()) == ((5, 1), True, True)
    assert x.device == torch.device("cpu")
    assert x.layout == torch.strided
    assert not x.requires_grad
    assert not x.is_cuda
    assert x.is_leaf
    assert 6.0 in x
    assert 6.5 not in x
    assert torch.equal(x, SMALL)
    assert torch.equal(SMALL, x)
    assert not torch.equal(x, SMALL + 1)
    torch.testing.assert_close(x, SMALL, rtol=0, atol=0)
    assert x.tolist() == SMALL.tolist()
    assert np.array_equal(x.numpy(), SMALL.numpy())
    assert np.array_equal(np.asarray(x), SMALL.numpy())
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert x[3, 2].item() == SMALL[3, 2].item()
    assert len({x, x}) == 1
    assert "UnifiedTensor" in repr(x)
    assert str(x) == repr(x) == f"{x}"
    one = unified(torch.tensor([2.0]), device="cpu")
    assert (one.item(), float(one), int(one), bool(one)) == (2.0, 2.0, 2, True)


def test_gradients_flow_to_what_meets_the_tensor() -> None:
    x = unified(SMALL, device="cpu")
    for use in [lambda v, w: v @ w, lambda v, w: F.linear(v, w.t())]:
        ours, theirs = (WEIGHT.clone().requires_grad_() for _ in range(2))
        use(x, ours).sum().backward()
        use(SMALL, theirs).sum().backward()
        assert same(ours.grad, theirs.grad)


def sparse_file(path: Path, nbytes: int) -> UnifiedTensor:
    path.touch()
    os.truncate(path, nbytes)
    return unified(path, shape=(nbytes // 4096, 1024), encoding=torch.float32, device="cpu")


def test_a_large_file_is_gathered_from_but_never_read_whole(tmp_path: Path) -> None:
    x = sparse_file(tmp_path / "large", (1 << 30) + 4096)
    last = len(x) - 1
    assert same(x[t(last, 0)], torch.zeros(2, 1024))
    assert same(x[last, 5:7], torch.zeros(2))
    assert same(x.new_zeros(2), torch.zeros(2))
    assert repr(x)
    uses = [lambda: x.mean(), lambda: x @ torch.ones(1024, 1), lambda: torch.cat([x, x])]
    uses += [lambda: x + 1, lambda: x[..., 0], lambda: x.numpy(), lambda: x.tolist()]
    for use in uses:
        with pytest.raises(TooLargeError, match=r"(?s)materialize\(\).*gnnsys\.inference"):
            use()


# Read-only ----------------------------------------------------------------------------------------


def set_item(x: Tensor) -> None:
    x[0] = 1


def add_in_place(x: Tensor) -> None:
    x += 1


def set_data(x: Tensor) -> None:
    x.data = torch.zeros(ROWS, 5)


def set_requires_grad(x: Tensor) -> None:
    x.requires_grad = True


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "x[0] = 1": set_item,
    "x += 1": add_in_place,
    "x.data =": set_data,
    "requires_grad =": set_requires_grad,
    "requires_grad_": lambda x: x.requires_grad_(),
    "Parameter": lambda x: torch.nn.Parameter(x),
    "zero_": lambda x: x.zero_(),
    "copy_": lambda x: x.copy_(torch.zeros(ROWS, 5)),
    "fill_diagonal_": lambda x: x.fill_diagonal_(9.0),
    "index_put_": lambda x: x.index_put_((t(0),), torch.tensor(9.0)),
    "index_add_": lambda x: x.index_add_(0, t(0), torch.ones(1, 5)),
    "index_fill_": lambda x: x.index_fill_(0, t(0), 9.0),
    "masked_fill_": lambda x: x.masked_fill_(ROW_MASK.view(-1, 1), 9.0),
    "scatter_": lambda x: x.scatter_(0, t(0).view(1, 1), 9.0),
    "put_": lambda x: x.put_(t(0), torch.tensor([9.0])),
    "out=": lambda x: torch.add(SMALL, 1, out=x),
    "index_select out=": lambda x: torch.index_select(SMALL, 0, t(*range(ROWS)), out=x),
    "index_select of itself": lambda x: torch.index_select(x, 0, t(*range(ROWS)), out=x),
    "foreach": lambda x: torch._foreach_add_([x], 1),
    "embedding max_norm": lambda x: F.embedding(t(0), x, max_norm=1.0),
    "relu_": lambda x: F.relu(x, inplace=True),
    "init": lambda x: torch.nn.init.xavier_uniform_(x),
    "detach().zero_": lambda x: x.detach().zero_(),
    "data.zero_": lambda x: x.data.zero_(),
    "resize_": lambda x: x.resize_(2),
    "set_": lambda x: x.set_(torch.zeros(2)),
    "unsqueeze_": lambda x: x.unsqueeze_(0),
    "t_": lambda x: x.t_(),
    "swapaxes_": lambda x: x.swapaxes_(0, 1),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("tier", ["host", "file"])
def test_writing_raises_and_names_materialize(tier: str, name: str, tmp_path: Path) -> None:
    values = SMALL.clone()
    source = host(values) if tier == "host" else in_file(npy(values, tmp_path / "x.npy"), values)
    found = outcome(lambda: WRITES[name](source.x))
    assert source.is_untouched(), f"the source was written to: {values}"
    assert isinstance(found, ReadOnlyError), repr(found)
    assert ".materialize()" in str(found)
    assert same(source.x[t(0, 6)], source.expected[t(0, 6)])
    assert source.x.shape == (ROWS, 5)


def test_requires_grad_false_is_allowed() -> None:
    x = unified(SMALL, device="cpu")
    x.requires_grad = False
    assert x.requires_grad_(False) is x


def test_nothing_handed_out_is_a_writable_view_of_a_read_only_array(tmp_path: Path) -> None:
    # Writing to such a view would end the process where the array is mapped read-only.
    source = from_numpy(memory_mapped(SMALL.numpy(), tmp_path))
    uses = [lambda x: x[...], lambda x: x[None], lambda x: x[:, 0], lambda x: x[..., 0],
            lambda x: x[True], lambda x: x.t(), lambda x: x.view(-1), lambda x: x.unsqueeze(0),
            lambda x: x.select(0, 1), lambda x: x.narrow(0, 1, 2), lambda x: next(iter(x)),
            lambda x: x.unbind(0)[0], lambda x: x.split(2)[0], lambda x: x.flatten(),
            lambda x: x.materialize(), lambda x: x.clone()]  # fmt: skip
    for place, use in enumerate(uses):
        assert not source.shares_memory_with(use(source.x)), f"use {place}"
    for as_array in [source.x.numpy(), np.asarray(source.x)]:
        apart = not source.shares_memory_with(_alias(as_array))
        assert apart or not as_array.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_materialize_is_an_ordinary_copy(kind: str, tmp_path: Path) -> None:
    source = make(kind, torch.float32, (ROWS, 5, 3), tmp_path)
    copied = source.x.materialize()
    assert same(copied, source.expected)
    assert not source.shares_memory_with(copied)
    copied.fill_(1)
    copied.requires_grad_()
    assert source.is_untouched()
    assert same(source.x.double().materialize(), source.expected.double())


def survives(action: Callable[[], Any]) -> str:
    """What ``action`` gives in a forked child, where a crash ends only that process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, repr(outcome(action))[:2000].encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process ended by signal {os.WTERMSIG(status)}"
    return text


@pytest.mark.parametrize(
    "use",
    [lambda x: x.apply_(lambda v: 1.0), lambda x: x.map2_(x, x, lambda a, b, c: 1.0),
     lambda x: x.map_(SMALL, lambda a, b: 1.0)],
    ids=["apply_", "map2_", "map_"],
)  # fmt: skip
def test_elementwise_python_writes_raise_and_never_crash(use: Callable[[Tensor], Any]) -> None:
    x = unified(SMALL, device="cpu")
    assert "Error" in survives(lambda: use(x))


@pytest.mark.parametrize("exchange", [torch.from_dlpack, np.from_dlpack], ids=["torch", "numpy"])
def test_dlpack_gives_the_values_or_an_error_and_never_a_wild_read(
    exchange: Callable[[Any], Any],
) -> None:
    x = unified(SMALL, device="cpu")
    found = survives(lambda: exchange(x).tolist())
    assert "Error" in found or found == repr(SMALL.tolist())


# Placement and dtype ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to("cpu"),
        lambda x: x.to(torch.device("cpu")),
        lambda x: x.to(torch.float32),
        lambda x: x.to(torch.zeros(1)),
        lambda x: x.to("cpu", non_blocking=True, copy=True),
        lambda x: x.cpu(),
        lambda x: x.pin_memory(),
        lambda x: x.share_memory_(),
        lambda x: x.contiguous(),
        lambda x: x.detach(),
        lambda x: copy.copy(x),
        lambda x: Data(x=x).to("cpu").x,
        lambda x: Data(x=x).cpu().x,
        lambda x: Data(x=x).share_memory_().x,
        lambda x: Data(x=x).contiguous().x,
        lambda x: Data(x=x).detach().x,
        lambda x: copy.copy(Data(x=x)).x,
    ],
)
@pytest.mark.parametrize("tier", ["host", "file"])
def test_moving_the_whole_never_copies_the_rows(
    tier: str, move: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    values = SMALL.clone()
    x = unified(values, device="cpu") if tier == "host" else npy(values, tmp_path / "x.npy")
    moved = move(x)
    assert isinstance(moved, UnifiedTensor)
    assert moved.device == torch.device("cpu")
    assert moved.dtype == torch.float32
    assert x.counters.tiers() == {}
    if tier == "host":
        values.add_(1)  # seen through the same memory
    assert same(moved[t(3, 0)], values[t(3, 0)])


CASTS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]] = {
    "half": (lambda x: x.half(), torch.float16),
    "bfloat16": (lambda x: x.bfloat16(), torch.bfloat16),
    "double": (lambda x: x.double(), torch.float64),
    "int": (lambda x: x.int(), torch.int32),
    "long": (lambda x: x.long(), torch.int64),
    "bool": (lambda x: x.bool(), torch.bool),
    "to": (lambda x: x.to(torch.float16), torch.float16),
    "to with device": (lambda x: x.to("cpu", torch.int8), torch.int8),
    "to with names": (lambda x: x.to(dtype=torch.complex64, device="cpu"), torch.complex64),
    "to another": (lambda x: x.to(torch.zeros(1, dtype=torch.float64)), torch.float64),
    "type": (lambda x: x.type(torch.float64), torch.float64),
    "type by name": (lambda x: x.type("torch.HalfTensor"), torch.float16),
    "type_as": (lambda x: x.type_as(torch.zeros(1).half()), torch.float16),
    "twice": (lambda x: x.half().double(), torch.float64),
    "there and back": (lambda x: x.half().float(), torch.float32),
}


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("tier", TIERS)
def test_a_cast_sets_the_delivered_dtype(tier: str, name: str, tmp_path: Path) -> None:
    cast, dtype = CASTS[name]
    if tier == "npy":
        x = npy(SMALL, tmp_path / "x.npy")
    elif tier == "transposed":
        x = unified(SMALL.t().contiguous().t(), device="cpu")
    else:
        x = unified(SMALL.clone(), device="cpu")
    delivered = cast(x)
    assert isinstance(delivered, UnifiedTensor)
    assert delivered.dtype == delivered[t(0)].dtype == dtype
    for index in [t(6, 0, 0), 3, slice(1, 4), ROW_MASK, (t(1, 2), t(0, 4)), ..., t()]:
        assert same(delivered[index], SMALL.to(dtype)[index])
    assert same(torch.index_select(delivered, 0, t(2, 5)), SMALL.to(dtype)[t(2, 5)])
    assert same(delivered + 0, SMALL.to(dtype) + 0)
    assert same(delivered.materialize(), SMALL.to(dtype))
    assert same(x[t(6)], SMALL[t(6)])  # the first keeps its own
    assert x.counters.served(x.store.tier).rows > 0


def test_a_cast_and_its_origin_count_together() -> None:
    x = unified(SMALL, device="cpu")
    half = x.half()
    assert half[t(0, 1)].dtype == torch.float16
    assert x[t(0)].dtype == torch.float32
    assert x.counters.served("host").rows == half.counters.served("host").rows == 3


class Shared:
    """An array of another library, of which DLPack alone is known."""

    def __init__(self, array: np.ndarray) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_arrays_of_other_libraries_are_taken_by_dlpack() -> None:
    rows, ids = np.arange(12.0).reshape(4, 3), np.array([2, -1])
    x = unified(Shared(rows))  # type: ignore[arg-type]
    rows[2] = 7.0
    assert np.array_equal(x[Shared(ids)].numpy(), rows[ids])
    assert np.array_equal(x.store.gather(Shared(ids[:1])).numpy(), rows[ids[:1]])


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda: unified(None), DTypeError),
        (lambda: unified([[1.0]]), DTypeError),
        (lambda: unified(torch.tensor(1.0)), ArgumentError),
        (lambda: unified(np.float32(1.0)), GnnsysError),
        (lambda: unified(np.array(1.0)), ArgumentError),
        (lambda: unified(torch.eye(3).to_sparse()), ArgumentError),
        (lambda: unified(torch.ones(3, device="meta")), ArgumentError),
        (lambda: unified(torch.ones(3, requires_grad=True)), ArgumentError),
        (lambda: unified(torch.ones(3).to(torch.uint16)), DTypeError),
        (lambda: unified(torch.nested.nested_tensor([torch.ones(3)])), GnnsysError),
        (lambda: unified(np.array([1, "a"], dtype=object)), DTypeError),
        (lambda: unified(read_only(np.array([1, "a"], dtype=object))), DTypeError),
        (lambda: unified(np.array(["a"])), DTypeError),
        (lambda: unified(np.zeros(3, dtype=[("a", "f4")])), DTypeError),
        (lambda: unified(np.arange(5, dtype=">i4")), DTypeError),
        (lambda: unified(np.arange(5)[::-1]), DTypeError),
        (lambda: unified(unified(torch.ones(3))), ArgumentError),
        (lambda: unified(torch.ones(3), device="meta"), ArgumentError),
        (lambda: unified(torch.ones(3), device="nonsense"), ArgumentError),
        (lambda: unified(torch.ones(3), threads=-1), ArgumentError),
        (lambda: unified(torch.ones(3), dtype="float16"), DTypeError),
        (lambda: unified(torch.ones(3), dtype=torch.quint8), DTypeError),
        (lambda: unified(torch.ones(3), shape=(3,)), ArgumentError),
        (lambda: unified(torch.ones(3), encoding=torch.float32), ArgumentError),
        (lambda: unified(torch.ones(3), offset=4), ArgumentError),
        (lambda: unified(torch.ones(3)).to("meta"), ArgumentError),
        (lambda: unified(torch.ones(3)).to(torch.uint16), DTypeError),
    ],
)
def test_a_bad_source_or_option_raises_one_clear_error(
    use: Callable[[], Any], error: type[GnnsysError]
) -> None:
    with pytest.raises(error, match=r"source|device|threads|dtype|shape|encoding|offset"):
        use()


# Memory that is not ours --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*HOST_KINDS, "numpy", "numpy_row_strided"])
def test_a_host_source_is_read_in_place(kind: str, tmp_path: Path) -> None:
    source = make(kind, torch.float32, (ROWS, 5), tmp_path)
    assert source.memory is not None
    first = source.memory[0]
    first.copy_(torch.full_like(first, 42.0) if "columns" not in kind else first)
    assert same(source.x[t(0)], source.memory[t(0)])


def test_a_source_that_moves_to_shared_memory_is_followed() -> None:
    # A DataLoader that spawns workers, and share_memory_(), change where the values lie.
    values = table(torch.float32, (1000, 64))
    x = unified(values, device="cpu")
    before = x[t(3, 999)]
    values.share_memory_()
    values[3] = 7.0
    assert same(x[t(3, 999)], values[t(3, 999)])
    assert same(x[t(999)], before[1:])


def test_a_source_lives_as_long_as_the_tensor() -> None:
    x = unified(table(torch.float32, (1000, 64)), device="cpu")
    y = unified(table(torch.float32, (1000, 64)).numpy(), device="cpu")
    litter = [torch.full((1000, 64), 1.0) for _ in range(4)]
    expected = table(torch.float32, (1000, 64))[t(3, 999)]
    assert same(x[t(3, 999)], expected)
    assert same(y[t(3, 999)], expected)
    assert litter


# Pickle, deepcopy, torch.save ---------------------------------------------------------------------


def by_torch_save(x: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "torch.save": by_torch_save,
    "pickle in Data": lambda x: pickle.loads(pickle.dumps(Data(x=x))).x,
    "deepcopy of Data": lambda x: copy.deepcopy(Data(x=x)).x,
    "torch.save of Data": lambda x: by_torch_save(Data(x=x)).x,
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_keep_values_dtype_and_independence(kind: str, name: str, tmp_path: Path) -> None:
    source = make(kind, torch.float32, (ROWS, 5), tmp_path)
    x = source.x.half()
    copied = COPIES[name](x)
    assert isinstance(copied, UnifiedTensor)
    assert copied.device == x.device
    assert copied.dtype == torch.float16
    expected = source.expected.half()[t(3, -1)]
    assert same(copied[t(3, -1)], expected)
    if source.memory is not None and "read_only" not in kind and "mapped" not in kind:
        source.memory[:, :1].fill_(5)
        assert same(copied[t(3, -1)], expected)


@pytest.mark.parametrize("save", [pickle.dumps, lambda x: pickle.dumps(Data(x=x))])
def test_a_pickled_file_tensor_holds_the_path_and_no_rows(
    save: Callable[[Any], bytes], tmp_path: Path
) -> None:
    x = npy(torch.zeros(4096, 16), tmp_path / "x.npy")
    data = save(x)
    assert str(tmp_path / "x.npy").encode() in data
    assert len(data) < 4096
    assert copy.deepcopy(x).store.path == x.store.path
    (tmp_path / "x.npy").unlink()
    with pytest.raises(MissingFileError, match=r"x\.npy"):
        pickle.loads(data)


def test_pickled_raw_files_keep_their_options(tmp_path: Path) -> None:
    values = table(torch.bfloat16, (ROWS, 5))
    for x in [raw(values, tmp_path / "raw", offset=13), npy(values, tmp_path / "x.npy")]:
        assert same(pickle.loads(pickle.dumps(x))[t(6, 0)], values[t(6, 0)])


# PyTorch Geometric --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tier", ["contiguous", "npy"])
def test_a_worker_can_make_a_shared_output_the_way_pyg_does(
    tier: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    for shape in [(ROWS,), (ROWS, 5), (ROWS, 5, 3)]:
        source = make(tier, dtype, shape, tmp_path)
        size = [3, *shape[1:]]
        nbytes = math.prod(size) * source.x.element_size()
        out = source.x.new(source.x.untyped_storage()._new_shared(nbytes)).view(size)
        assert out.is_shared()
        given = torch.index_select(source.x, 0, t(6, 0, 6), out=out)
        assert given is out
        assert same(out, source.expected[t(6, 0, 6)])


@pytest.mark.parametrize("tier", ["contiguous", "npy"])
def test_pyg_filters_unified_features_as_it_does_plain_ones(tier: str, tmp_path: Path) -> None:
    source = make(tier, torch.float32, (ROWS, 5), tmp_path)
    labels = t(*range(ROWS))
    edges = torch.tensor([[0, 1, 2, 6], [1, 2, 6, 0]])
    weights = table(torch.float32, (4, 2))
    plain = Data(x=source.expected, y=labels, edge_index=edges, w=weights)
    ours = Data(x=source.x, y=unified(labels, device="cpu"), edge_index=edges,
                w=unified(weights, device="cpu"))  # fmt: skip
    assert ours.num_nodes == ROWS
    assert ours.num_node_features == 5
    assert ours.is_node_attr("x")
    assert ours.validate()
    assert "x=[7, 5]" in repr(ours)
    node, row, col = t(6, 2, 0), t(1, 2), t(0, 0)
    for edge, permutation in [(t(3, 1), None), (t(0, 2), t(3, 2, 1, 0))]:
        expected = filter_data(plain, node, row, col, edge, permutation)
        found = filter_data(ours, node, row, col, edge, permutation)
        for key in ["x", "y", "w", "edge_index"]:
            assert same(found[key], expected[key]), key
    assert same(pyg_index_select(source.x, t(1, 1, dtype=torch.int32)), source.expected[t(1, 1)])
    assert same(pyg_index_select(source.x, t(4, 0), dim=1), source.expected[:, [4, 0]])
    mask = ROW_MASK
    assert same(ours.subgraph(mask).x, plain.subgraph(mask).x)


@pytest.mark.slow
def test_a_compiled_model_fed_gathered_batches_equals_one_fed_plain_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
    )
    compiled = torch.compile(model, fullgraph=True)
    expected = SMALL
    for x in [unified(SMALL, device="cpu"), npy(SMALL, tmp_path / "x.npy")]:
        for ids in [t(0, 1, 6), t(5, 5, 2)]:
            assert same(compiled(x[ids]).detach(), compiled(expected[ids]).detach())


# Counters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "rows"),
    [
        (lambda x: x[t(5, 0, 5, 6)], 4),
        (lambda x: x[t(5, 0, 5, 6).view(2, 2)], 4),
        (lambda x: x[3], 1),
        (lambda x: x[3, 2], 1),
        (lambda x: x[1:6:2], 3),
        (lambda x: x[:], ROWS),
        (lambda x: x[ROW_MASK], 4),
        (lambda x: x[t()], 0),
        (lambda x: x[[1, 2]], 2),
        (lambda x: x[t(1, 2), t(0, 0)], 2),
        (lambda x: x[1:3, t(0, 0)], 2),
        (lambda x: x.index_select(0, t(1, 2, 2)), 3),
        (lambda x: F.embedding(t(1, 2, 3, 4).view(2, 2), x), 4),
        (lambda x: [x[t(0)] for _ in range(5)], 5),
    ],
)
@pytest.mark.parametrize("tier", ["host", "file"])
def test_counters_by_tier_add_up_to_the_rows_asked_for(
    tier: str, use: Callable[[Tensor], Any], rows: int, tmp_path: Path
) -> None:
    x = unified(SMALL, device="cpu") if tier == "host" else npy(SMALL, tmp_path / "x.npy")
    use(x)
    served = x.counters.tiers()
    assert sum(part.rows for part in served.values()) == rows
    assert sum(part.bytes for part in served.values()) == rows * 20
    assert set(served) <= {tier}


def test_a_mask_over_elements_gathers_no_row_more_than_once() -> None:
    x = unified(SMALL, device="cpu")
    mask = torch.ones(ROWS, 5, dtype=torch.bool)
    assert same(x[mask], SMALL[mask])
    assert x.counters.served("host").rows <= ROWS


def test_a_refused_gather_is_not_counted() -> None:
    x = unified(SMALL, device="cpu")
    for bad in [t(0, ROWS), 99, ROW_MASK[:2]]:
        with pytest.raises(RowIndexError):
            x[bad]
    assert x.counters.tiers() == {}
