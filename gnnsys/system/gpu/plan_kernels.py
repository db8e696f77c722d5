"""The launches that carry out a batch's plan of a cache (``cuda/cache/execute_plan.cuh``)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.system.gpu.device import Argument, Device, Launch
from gnnsys.system.gpu.kernels import THREADS, WARP, WORDS, Faults

__all__ = ["LISTS", "PlanLaunches", "Staging"]

LISTS = ("hits", "peers", "victim_in", "fills", "copies", "victim_out")
"""Of a plan: (n, columns) int32, in the order of the kernels' structure."""


class _List(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("rows", ctypes.c_int64))


class _Plan(ctypes.Structure):
    _fields_ = (("rows", ctypes.c_int64), *((name, _List) for name in LISTS))


class _Area(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p), ("num_rows", ctypes.c_int64), ("stride", ctypes.c_int64)
    )  # fmt: skip


class _Staging(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p), ("offsets", ctypes.c_void_p), ("num_rows", ctypes.c_int64)
    )  # fmt: skip


class _CacheMemory(ctypes.Structure):
    _fields_ = (
        ("slots", _Area),
        ("cells", _Area),
        ("staging", _Staging),
        ("peers", ctypes.c_void_p),
        ("num_peers", ctypes.c_int64),
        ("words", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Staging:
    """Rows that were read, where a device reads them."""

    address: int
    offsets: NDArray[np.int64]
    """(k,) bytes from there to each."""

    owner: Any
    """What keeps them."""

    @staticmethod
    def of_rows(rows: Tensor) -> Staging:
        """All rows of a tensor (k, row bytes) uint8 of the device."""
        return Staging(rows.data_ptr(), np.arange(len(rows)) * rows.shape[1], rows)


class PlanLaunches:
    """Moves rows between slots, cells, staging and outputs by two launches a batch.

    Batches are carried out in the order of the calls, on whichever streams they are launched.

    Args:
        device: that launches.
        slots: (n, row bytes) uint8 of the device.
        cells: (m, row bytes) uint8, likewise, or of the host and mapped.
        most_blocks: of a launch.
    """

    def __init__(self, device: Device, slots: Tensor, cells: Tensor, most_blocks: int) -> None:
        self._device, self._slots, self._cells = device, slots, cells
        self._most_blocks = most_blocks
        self._faults = Faults(slots.device)
        self._marks = torch.zeros(0, dtype=torch.int32, device=slots.device)
        # Whichever stream is next waits for what was made on this one.
        on_gpu = slots.is_cuda
        self._done = torch.cuda.current_stream(slots.device).record_event() if on_gpu else None

    def run(
        self, rows: int, lists: Sequence[NDArray[np.int32]], staging: Staging, out: Tensor
    ) -> None:
        """Carries a plan out.

        Args:
            rows: positions of the batch.
            lists: in the order of ``LISTS``.
            staging: the rows that were read.
            out: (rows, …) contiguous, of rows as they are stored.

        Raises:
            ArgumentError: a plan that does not fit the batch or the memory; on a GPU, one before.
        """
        stream = torch.cuda.current_stream(self._slots.device) if self._slots.is_cuda else None
        if stream is not None and self._done is not None:
            stream.wait_event(self._done)
        if len(self._marks) < rows:
            self._marks = torch.zeros(2 * rows, dtype=torch.int32, device=self._slots.device)
        self._launch(rows, lists, staging, out)
        if stream is not None:
            self._done = stream.record_event()
        self._faults.raise_earlier()

    def _launch(
        self, rows: int, lists: Sequence[NDArray[np.int32]], staging: Staging, out: Tensor
    ) -> None:
        row_bytes, offsets = self._slots.shape[1], staging.offsets
        places = (self._slots.data_ptr(), self._cells.data_ptr(), out.data_ptr())
        staged = int(np.gcd.reduce(offsets)) if len(offsets) else 0
        width = math.gcd(16, row_bytes, *places, staging.address, staged)
        words = row_bytes // width
        lanes = 1 << (words - 1).bit_length() if words <= WARP else 0
        arrays = _on_device([offsets, *lists], self._slots.device)
        at, *of_lists = arrays.addresses
        plan = _Plan(rows, *(_List(a, len(each)) for a, each in zip(of_lists, lists, strict=True)))
        memory = _CacheMemory(
            _Area(places[0], len(self._slots), row_bytes),
            _Area(places[1], len(self._cells), row_bytes),
            _Staging(staging.address, at, len(offsets)),
            None, 0, words,
        )  # fmt: skip
        word = WORDS[width]
        items = max(1, rows, sum(map(len, lists))) * (lanes or WARP)
        launch = Launch(min(self._most_blocks, -(-items // THREADS)), THREADS)
        arguments: list[Argument] = [
            plan, memory, places[2], self._marks.data_ptr(), self._faults.address,
        ]  # fmt: skip
        for name in ("move_out_of_slots", "move_into_slots"):
            kernel = self._device.kernel(
                "cuda/cache/execute_plan.cuh", f"{name}<{word}, {lanes}, Copy<{word}>>"
            )
            self._device.launch(kernel, launch, arguments)


@dataclass(frozen=True, slots=True)
class _Arrays:
    addresses: list[int]
    memory: Tensor
    """They lie in."""


def _on_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> _Arrays:
    """Arrays side by side in memory of the device, by one copy."""
    ends = np.cumsum([-(-array.nbytes // 8) * 8 for array in arrays])
    host = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    places, starts = host.numpy(), [0, *ends[:-1].tolist()]
    for start, array in zip(starts, arrays, strict=True):
        places[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    memory = host.to(device, non_blocking=True)
    return _Arrays([memory.data_ptr() + start for start in starts], memory)
