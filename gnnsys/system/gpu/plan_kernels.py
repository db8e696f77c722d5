"""The launches that carry out a batch's plan of a cache (``cuda/cache/execute_plan.cuh``)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.system.gpu.device import Argument, Device, Launch
from gnnsys.system.gpu.kernels import THREADS, WARP, WORDS, Faults

__all__ = ["LISTS", "PlanLaunches"]

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


class PlanLaunches:
    """Moves rows between slots, cells, staging and outputs by two launches a batch.

    Args:
        device: that launches.
        slots: (n, row bytes) uint8 of the device.
        cells: (m, row bytes) uint8, likewise.
        most_blocks: of a launch.
    """

    def __init__(self, device: Device, slots: Tensor, cells: Tensor, most_blocks: int) -> None:
        self._device, self._slots, self._cells = device, slots, cells
        self._most_blocks = most_blocks
        self._faults = Faults(slots.device)
        self._marks = torch.zeros(0, dtype=torch.int32, device=slots.device)

    def run(
        self,
        rows: int,
        lists: Sequence[NDArray[np.int32]],
        staging: int,
        offsets: NDArray[np.int64],
        out: Tensor,
    ) -> None:
        """Carries a plan out.

        Args:
            rows: positions of the batch.
            lists: in the order of ``LISTS``.
            staging: address of the rows that were read.
            offsets: (k,) bytes from there to each.
            out: (rows, …) contiguous, of rows as they are stored.

        Raises:
            ArgumentError: a plan that does not fit the batch or the memory.
        """
        row_bytes = self._slots.shape[1]
        if len(self._marks) < rows:
            self._marks = torch.zeros(2 * rows, dtype=torch.int32, device=self._slots.device)
        places = (self._slots.data_ptr(), self._cells.data_ptr(), out.data_ptr())
        staged = int(np.gcd.reduce(offsets)) if len(offsets) else 0
        width = math.gcd(16, row_bytes, *places, staging, staged)
        words = row_bytes // width
        lanes = 1 << (words - 1).bit_length() if words <= WARP else 0
        plan = _Plan(rows, *(_List(each.ctypes.data, len(each)) for each in lists))
        memory = _CacheMemory(
            _Area(places[0], len(self._slots), row_bytes),
            _Area(places[1], len(self._cells), row_bytes),
            _Staging(staging, offsets.ctypes.data, len(offsets)),
            None, 0, words,
        )  # fmt: skip
        word = WORDS[width]
        items = max(1, rows, sum(map(len, lists))) * (lanes or WARP)
        launch = Launch(min(self._most_blocks, -(-items // THREADS)), THREADS)
        arguments: list[Argument] = [
            plan, memory, ctypes.c_void_p(places[2]), ctypes.c_void_p(self._marks.data_ptr()),
            ctypes.c_void_p(self._faults.address),
        ]  # fmt: skip
        for name in ("move_out_of_slots", "move_into_slots"):
            kernel = self._device.kernel(
                "cuda/cache/execute_plan.cuh", f"{name}<{word}, {lanes}, Copy<{word}>>"
            )
            self._device.launch(kernel, launch, arguments)
        self._faults.raise_found()
