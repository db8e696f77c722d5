"""The kernels as functions: arguments are checked, then a specialisation is chosen and launched.

Tensors are those that the device reaches; no function waits for its kernel.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.system.gpu.device import Argument, Device, Launch

__all__ = [
    "IDS",
    "MOST_BLOCKS",
    "MOST_FANOUT",
    "THREADS",
    "WARP",
    "WORDS",
    "Choice",
    "Faults",
    "NodeTable",
    "Rows",
    "Sampling",
    "Stream",
    "can_cast",
    "gather_rows",
]

THREADS = 256
"""Of a block."""
_FLIGHT = 4  # rows of a lane that are under way
MOST_BLOCKS = 64
"""Of a launch, 8 to a multiprocessor: 5 to 12 of those saturate a PCIe link (Min et al., 2021), and
the rest is for training."""
WARP = 32
_SCAN_TILE = 1024
MOST_FANOUT = 2048
"""Of neighbours that kernels draw; -1, which takes all, apart."""
WORDS = {1: "u8", 2: "u16", 4: "u32", 8: "uint2", 16: "uint4"}
IDS = {torch.int64: "i64", torch.int32: "i32"}
"""Types of ids, as sources name them."""
_ELEMENTS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
_CASTS = {torch.float32, torch.float64}
_NARROWED = {(torch.float32, torch.float16), (torch.float32, torch.bfloat16)}
_FAULTS: dict[int, tuple[type[Exception], str]] = {
    1: (RowIndexError, "ids: {} is no row of the table"),
    2: (ArgumentError, "indptr: does not ascend within the edges at node {}"),
    3: (ArgumentError, "indices: {} is no node of the graph"),
    4: (RuntimeError, "a hash table is full, at id {}"),
    5: (RowIndexError, "edge_index: edge {} changed: its node has no row any more"),
    6: (ArgumentError, "plan: position {} is outside the batch, or given twice"),
    7: (ArgumentError, "plan: {} positions, not those of the batch"),
    8: (ArgumentError, "plan: no slot {}"),
    9: (ArgumentError, "plan: no cell {}"),
    10: (ArgumentError, "plan: no staging row {}"),
    11: (ArgumentError, "plan: no peer {}"),
    12: (RowIndexError, "index: that of row {} changed: there is no such row of x any more"),
}
"""By the numbers of ``Fault`` in ``device.cuh``."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table that a device reads where they lie.

    >>> Rows.of(torch.zeros(3, 5)).row_bytes
    20
    """

    address: int
    """Of the first row, as the device sees it."""
    count: int
    columns: int
    """Elements of a row."""
    stride: int
    """Bytes from row to row."""
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.dtype.itemsize

    @staticmethod
    def of(table: Tensor) -> Rows:
        """Those of a tensor (rows, columns) whose rows are contiguous."""
        if table.dim() != 2 or (table.shape[1] > 1 and table.stride(1) != 1):
            raise ArgumentError(
                f"table: {tuple(table.shape)} with strides {table.stride()}, expected (rows, "
                "columns) with contiguous rows"
            )
        stride = table.stride(0) * table.itemsize
        return Rows(table.data_ptr(), table.shape[0], table.shape[1], stride, table.dtype)


class Faults:
    """What kernels find wrong, in memory of the device; the first fault stays until it is raised.

    Args:
        device: of torch.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._words = torch.zeros(3, dtype=torch.int32, device=device)
        self.address = self._words.data_ptr()
        """Where the device writes them."""
        self._looked: tuple[Tensor, torch.cuda.Event] | None = None

    def raise_found(self) -> None:
        """Raises what was found since the last call; waits for the device.

        Raises:
            RowIndexError: an id of no row.
            ArgumentError: a graph whose arrays point outside themselves.
        """
        self._raise(self._words)

    def raise_earlier(self) -> None:
        """As ``raise_found``, but does not wait: what a launch on a GPU finds is raised some calls
        later."""
        if not self._words.is_cuda:
            self._raise(self._words)
            return
        if torch.cuda.is_current_stream_capturing():  # which nothing may be asked of
            return
        if self._looked is not None:
            words, copied = self._looked
            if not copied.query():
                return
            self._looked = None
            self._raise(words)
        words = torch.empty(3, dtype=torch.int32, pin_memory=True)
        words.copy_(self._words, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._words.device))
        self._looked = words, copied

    def _raise(self, words: Tensor) -> None:
        what, low, high = words.tolist()
        if what == 0:
            return
        self._words.zero_()
        error, text = _FAULTS[what]
        raise error(text.format((high << 32) | (low & 0xFFFFFFFF)))


def gather_rows(
    device: Device, rows: Rows, ids: Tensor, out: Tensor, faults: Faults, *, most_blocks: int
) -> None:
    """Copies rows by id to ``out``, cast to its type; rows that are not there become zeros.

    Kernels: ``cuda/rows/gather_rows.cuh`` (PyTorch-Direct; Min et al., VLDB 2021).

    Args:
        device: that launches.
        rows: what is read.
        ids: (n,) int64 or int32, contiguous.
        out: (n, columns), contiguous.
        faults: told of an id of no row.
        most_blocks: of 256 threads: few of them saturate a bus, and leave the rest to training.

    Raises:
        ArgumentError: a shape or a layout that does not fit.
        DTypeError: an element type that is not cast on a device.
    """
    _check_contiguous("ids", ids, 1)
    _check_contiguous("out", out, 2)
    if ids.dtype not in IDS:
        raise DTypeError(f"ids: {ids.dtype}, expected torch.int64 or torch.int32")
    if tuple(out.shape) != (len(ids), rows.columns):
        raise ArgumentError(f"out: {tuple(out.shape)}, expected {(len(ids), rows.columns)}")
    if most_blocks < 1:
        raise ArgumentError(f"most_blocks: {most_blocks}, expected at least 1")
    if out.numel() == 0:
        return
    width, put = _choose_word(rows, out)
    words, id_type = rows.row_bytes // width, IDS[ids.dtype]
    if words <= WARP:
        lanes = 1 << (words - 1).bit_length()
        at_a_time = THREADS // lanes * _FLIGHT
    else:
        lanes, at_a_time = 0, THREADS // WARP
    blocks = min(most_blocks, -(-len(ids) // at_a_time))
    device.launch(
        device.kernel(
            "cuda/rows/gather_rows.cuh", f"gather_rows<{WORDS[width]}, {lanes}, {put}, {id_type}>"
        ),
        Launch(blocks, THREADS),
        [
            rows.address,
            rows.count,
            rows.stride,
            words,
            ids.data_ptr(),
            len(ids),
            out.data_ptr(),
            faults.address,
        ],
    )


class Choice(ctypes.Structure):
    """How many edges of a target are drawn, and how."""

    _fields_ = (("fanout", ctypes.c_int64), ("replace", ctypes.c_int64))


class Stream(ctypes.Structure):
    """Whose random numbers are drawn; see ``gnnsys.rng``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("seed", "epoch", "group", "hop", "edge_type")
    )


class _NodeTable(ctypes.Structure):
    _fields_ = (("entries", ctypes.c_void_p), ("mask", ctypes.c_uint64))


class Sampling:
    """The launches of neighbour sampling over a CSC; kernels: ``cuda/sampler``.

    Arrays are tensors of the device, contiguous; names and shapes are those of the sources.

    Args:
        device: that launches.
        indptr: (nodes + 1,) int64.
        indices: (edges,) int32 or int64.
        faults: told of a graph whose arrays point outside themselves.
        most_blocks: of a launch.
    """

    def __init__(
        self, device: Device, indptr: Tensor, indices: Tensor, faults: Faults, most_blocks: int
    ) -> None:
        self._device, self._indptr, self._indices = device, indptr, indices
        self._faults, self._most_blocks = faults, most_blocks
        self._id = IDS[indices.dtype]

    def count_edges(self, targets: Tensor, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        """``first``, ``degree`` and ``count`` of each target, (n,)."""
        n = len(targets)
        first, count = torch.empty_like(targets), torch.empty_like(targets)
        degree = torch.empty(n, dtype=torch.int32, device=targets.device)
        self._launch(
            "sample_neighbors", "count_edges", n, self._indptr, len(self._indptr) - 1,
            len(self._indices), targets, n, choice, first, degree, count,
            self._faults.address,
        )  # fmt: skip
        return first, degree, count

    def prefix_sum(self, counts: Tensor) -> Tensor:
        """(n + 1,) int64 of (n,) int64 or uint8 counts."""
        n, kind = len(counts), "i64" if counts.dtype == torch.int64 else "u8"
        tiles = -(-n // _SCAN_TILE)
        sums = torch.empty(tiles, dtype=torch.int64, device=counts.device)
        offsets = torch.zeros(n + 1, dtype=torch.int64, device=counts.device)
        self._launch("prefix_sum", f"sum_tiles<{kind}>", n, counts, n, sums)
        self._launch("prefix_sum", "scan_sums", 1, sums, tiles, offsets[n:])
        self._launch("prefix_sum", f"scan_tiles<{kind}>", n, counts, n, sums, offsets)
        return offsets

    def pick(
        self, targets: Tensor, first: Tensor, degree: Tensor, offsets: Tensor, choice: Choice,
        stream: Stream, position: Tensor,
    ) -> None:  # fmt: skip
        """Draws the ``position`` (edges,) int64 of targets that do not take all their edges."""
        size = 1 << max(0, choice.fanout - 1).bit_length()
        one_block = size > WARP
        name = f"pick_by_block<{max(64, size)}>" if one_block else f"pick_by_lanes<{size}>"
        items = len(targets) * (THREADS if one_block else size)
        self._launch(
            "sample_neighbors", name, items, targets, first, degree, offsets, len(targets), choice,
            stream, position,
        )  # fmt: skip

    def read_neighbors(
        self, first: Tensor, degree: Tensor, offsets: Tensor, choice: Choice, first_place: int,
        position: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``source`` (edges,) of the indices' type and ``col`` (edges,) int64."""
        source = torch.empty(len(position), dtype=self._indices.dtype, device=position.device)
        col = torch.empty_like(position)
        self._launch(
            "sample_neighbors", f"read_neighbors<{self._id}>", len(position), self._indices,
            len(self._indptr) - 1, first, degree, offsets, len(first), choice, first_place,
            position, source, col, self._faults.address,
        )  # fmt: skip
        return source, col

    def add_nodes(self, table: NodeTable, ids: Tensor, first_place: int) -> Tensor:
        """Gives ids places in the batch; returns their ``entry`` (n,)."""
        entry = torch.empty(len(ids), dtype=torch.int32, device=ids.device)
        self._launch(
            "relabel", f"add_nodes<{IDS[ids.dtype]}>", len(ids), table.argument, ids, len(ids),
            first_place, entry, self._faults.address,
        )  # fmt: skip
        return entry

    def mark_new(self, table: NodeTable, entry: Tensor, first_place: int) -> Tensor:
        """``is_new`` (n,) uint8."""
        is_new = torch.empty(len(entry), dtype=torch.uint8, device=entry.device)
        self._launch(
            "relabel",
            "mark_new",
            len(entry),
            table.argument,
            entry,
            len(entry),
            first_place,
            is_new,
        )
        return is_new

    def place_new_nodes(
        self, table: NodeTable, ids: Tensor, entry: Tensor, new_before: Tensor, first_place: int,
        node: Tensor,
    ) -> None:  # fmt: skip
        """Appends new nodes to ``node``."""
        self._launch(
            "relabel", f"place_new_nodes<{IDS[ids.dtype]}>", len(ids), table.argument, ids, entry,
            new_before, len(ids), first_place, node,
        )  # fmt: skip

    def read_places(self, table: NodeTable, entry: Tensor) -> Tensor:
        """``row`` (n,) int64: the place of each id in the batch."""
        row = torch.empty(len(entry), dtype=torch.int64, device=entry.device)
        self._launch("relabel", "read_places", len(entry), table.argument, entry, len(entry), row)
        return row

    def _launch(self, header: str, instance: str, items: int, *arguments: Any) -> None:
        """Runs a kernel on as many threads as there are items, if there are any."""
        if items == 0:
            return
        kernel = self._device.kernel(f"cuda/sampler/{header}.cuh", instance)
        blocks = 1 if instance == "scan_sums" else min(self._most_blocks, -(-items // THREADS))
        packed: list[Argument] = [
            each.data_ptr() if isinstance(each, Tensor) else each for each in arguments
        ]
        self._device.launch(kernel, Launch(blocks, THREADS), packed)


class NodeTable:
    """A hash table of ``cuda/sampler/node_table.cuh``, for so many ids.

    Args:
        ids: that it will have held at most.
        device: of torch.
    """

    def __init__(self, ids: int, device: torch.device | str) -> None:
        self.capacity = 1 << max(4, (2 * ids - 1).bit_length())
        self._entries = torch.full((self.capacity, 2), -1, dtype=torch.int64, device=device)
        self.argument = _NodeTable(self._entries.data_ptr(), self.capacity - 1)
        """What kernels take."""


def can_cast(stored: torch.dtype, delivered: torch.dtype) -> bool:
    """Whether kernels deliver elements of one type as another."""
    return stored in _ELEMENTS and (delivered in _CASTS or (stored, delivered) in _NARROWED)


def _choose_word(rows: Rows, out: Tensor) -> tuple[int, str]:
    """Bytes of a word of the rows, the widest that all addresses allow, and what becomes of it."""
    width = math.gcd(16, rows.address, rows.row_bytes, rows.stride if rows.count > 1 else 0)
    stored, delivered = rows.dtype, out.dtype
    if stored == delivered:
        width = math.gcd(width, out.data_ptr())
        return width, f"Copy<{WORDS[width]}>"
    if not can_cast(stored, delivered):
        raise DTypeError(f"out: rows of {stored} are not cast to {delivered} on a device")
    # The elements of a word are stored by at most 16 bytes at a time.
    while out.data_ptr() % min(16, width // stored.itemsize * delivered.itemsize):
        width //= 2
    word, kinds = WORDS[width], (_ELEMENTS[stored], _ELEMENTS[delivered])
    return width, f"Decode<{word}, {kinds[0]}, {kinds[1]}>"


def _check_contiguous(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.dim() != dims or not tensor.is_contiguous():
        raise ArgumentError(
            f"{name}: {tuple(tensor.shape)} with strides {tensor.stride()}, expected {dims} "
            "dimensions, contiguous"
        )
