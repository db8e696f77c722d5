"""Copies beside computing: right whatever streams do first, and wrong without any of the waits."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.offload.copies import HostPool, StreamCopies, copies_for
from gnnsys.system.gpu import HostExecutorDevice
from gnnsys.system.gpu.host_streams import HostStream, HostStreams
from gnnsys.system.gpu.placement import kernels_of_cpu_tensors

N, TENSORS, STEPS = 64, 5, 2
SHARED, FORGOTTEN = 1, 2
SCHEDULES: list[dict[str, Any]] = [
    {"order": "early"},
    {"order": "late"},
    *({"order": "random", "seed": seed} for seed in range(20)),
]
WAITS = [("wait", "_start"), ("synchronize", "wait"), ("wait", "back"), ("wait", "join"),
         ("wait", "__del__"), ("share", "join")]  # fmt: skip
"""Of copies: what is called, and by which function of them."""


class DamagedStreams(HostStreams):
    """Leaves out one of the waits."""

    missing: tuple[str, str] | None = None

    def wait(self, stream: HostStream, event: Any) -> None:
        if self.missing != ("wait", sys._getframe(1).f_code.co_name):
            super().wait(stream, event)

    def synchronize(self, event: Any) -> None:
        if self.missing != ("synchronize", sys._getframe(1).f_code.co_name):
            super().synchronize(event)

    def share(self, tensor: Tensor, stream: HostStream) -> None:
        if self.missing != ("share", sys._getframe(1).f_code.co_name):
            super().share(tensor, stream)


class Trainer:
    """Computes on streams, sends what it computed out of the device, and has it back."""

    def __init__(self, streams: HostStreams, staging_bytes: int = 1 << 20) -> None:
        self.streams = streams
        self.copies = StreamCopies(streams, staging_bytes)
        self.computing, self.other = streams.new(computes=True), streams.new(computes=True)
        self.seen: list[tuple[NDArray[np.uint8], int]] = []

    def train(self, into: list[Tensor] | None = None) -> bool:
        """Whether all that was seen is right."""
        for step in range(STEPS):
            with self.streams.computing_on(self.computing):
                waits = []
                for i in range(TENSORS):
                    waits.append(self.copies.out(self.filled(16 * step + i), into and into[i]))
                hosts = [wait() for wait in waits]
                del waits
                self.seen += [(host.numpy().copy(), 16 * step + i) for i, host in enumerate(hosts)]
                for i in reversed(range(TENSORS)):
                    self.have_back(i, hosts.pop(), 16 * step + i)
        for stream in (self.computing, self.other):
            self.streams.synchronize(self.streams.record(stream))
        assert len(self.seen) == STEPS * (3 * TENSORS - 1)
        return all((found == value).all() for found, value in self.seen)

    def have_back(self, i: int, host: Tensor, value: int) -> None:
        computed = self.filled(100 + i)  # in memory that was let go of
        arrival = self.copies.back(host)
        del host
        user = self.other if i == SHARED else self.computing
        if i != FORGOTTEN:
            with self.streams.computing_on(user):
                arrival.join()
                self.look(arrival.tensor, value, user)
        self.look(computed, 100 + i, self.computing)

    def filled(self, value: int) -> Tensor:
        tensor = self.streams.device_memory(self.computing, N)
        memory = memory_of(tensor)
        self.streams.give(self.computing, lambda: memory.fill(value))
        return tensor

    def look(self, tensor: Tensor, value: int, stream: HostStream) -> None:
        """The stream notes what is there once it comes to it."""
        memory = memory_of(tensor)
        self.streams.give(stream, lambda: self.seen.append((memory.copy(), value)))


def memory_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Which may be let go of before a stream comes to it."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * N).from_address(tensor.data_ptr()))


def unpinned(nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


@pytest.mark.parametrize("staging_bytes", [0, 2 * N, 1 << 20])
def test_copies_are_right_whatever_streams_do_first(staging_bytes: int) -> None:
    for schedule in SCHEDULES:
        assert Trainer(HostStreams(**schedule), staging_bytes).train(), schedule


@pytest.mark.parametrize("missing", WAITS, ids=" of ".join)
def test_each_wait_is_needed(missing: tuple[str, str]) -> None:
    def goes_right(schedule: dict[str, Any]) -> bool:
        streams = DamagedStreams(**schedule)
        streams.missing = missing
        return Trainer(streams).train()

    assert not all(map(goes_right, SCHEDULES))


def test_copies_go_into_memory_of_a_pool() -> None:
    pool = HostPool(TENSORS * N, unpinned)
    into = [held for _ in range(TENSORS) if (held := pool.hold(N)) is not None]
    assert pool.hold(1) is None
    assert Trainer(HostStreams("early"), staging_bytes=0).train(into)
    del into[0]
    assert pool.in_use == (TENSORS - 1) * N


def test_staging_stays_within_its_bound_and_is_given_back() -> None:
    trainer = Trainer(HostStreams("late"), staging_bytes=2 * N)
    staging = trainer.copies.staging
    waits = [trainer.copies.out(trainer.filled(i)) for i in range(4)]
    assert staging.in_use == 2 * N
    for i, wait in enumerate(waits):
        assert (wait() == i).all()
    del wait
    waits.clear()
    assert staging.in_use == 0


def test_a_tensor_counts_as_the_power_of_two_that_torch_keeps() -> None:
    pool = HostPool(1000, unpinned)
    held = pool.hold(300)
    assert held is not None
    assert held.shape == (300,)
    assert pool.in_use == 512
    assert pool.hold(257) is None
    assert pool.hold(256) is not None


def test_memory_that_the_system_does_not_pin_is_not_had() -> None:
    def refuse(nbytes: int) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    pool = HostPool(1000, refuse)
    assert pool.hold(300) is None
    assert pool.in_use == 0


def test_copies_that_are_done_are_counted() -> None:
    trainer = Trainer(HostStreams("late"))
    copies = trainer.copies
    waits = [copies.out(trainer.filled(i)) for i in range(3)]
    assert copies.copied_out.nbytes == 0
    hosts = [wait() for wait in waits]
    arrivals = [copies.back(host) for host in hosts]
    assert copies.copied_back.nbytes == 0
    arrivals[1].join()
    assert copies.copied_out.nbytes == 3 * N
    assert copies.copied_back.nbytes == 2 * N
    assert copies.copied_out.seconds > 0
    assert copies.copied_back.seconds > 0


def test_the_cpu_has_no_copies() -> None:
    copies = copies_for(torch.device("cpu"))
    data = torch.arange(N, dtype=torch.uint8)
    assert copies.out(data)() is data
    arrival = copies.back(data)
    arrival.join()
    assert arrival.tensor is data


def test_tensors_of_the_host_executor_are_copied_as_late_as_may_be() -> None:
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        copies = copies_for(torch.device("cpu"))
    data = torch.arange(N, dtype=torch.uint8)
    host = copies.out(data)()
    assert host is not data
    assert torch.equal(host, data)
    arrival = copies.back(host)
    assert not torch.equal(arrival.tensor, data)
    arrival.join()
    assert torch.equal(arrival.tensor, data)


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(ArgumentError, match="device: meta, whose activations do not leave it"):
        copies_for(torch.device("meta"))
