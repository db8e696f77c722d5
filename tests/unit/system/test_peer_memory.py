"""Memory of a GPU in several processes, against a driver that keeps the rules of CUDA IPC."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch

from gnnsys.commands import doctor
from gnnsys.errors import DeviceError
from gnnsys.system.gpu import peer_memory
from gnnsys.system.gpu.peer_memory import OUT_OF_MEMORY, CudaPeerMemory
from gnnsys.system.gpu.provider import Provider


@dataclass
class Driver:
    """Of a machine: memory of its GPUs, and who has it open."""

    gpus: int = 3
    apart: set[tuple[int, int]] = field(default_factory=set)
    free: int = 1200
    exports: bool = True
    made: dict[int, tuple[object, int, int]] = field(default_factory=dict)
    """By address: the process, the GPU and the bytes."""
    opened: list[int] = field(default_factory=list)


class Process(Provider):
    """What a process that sees some of the GPUs calls."""

    def __init__(self, driver: Driver, sees: list[int]) -> None:
        self._driver, self._sees, self._current = driver, sees, sees[0]
        self._mapped: dict[int, int] = {}

    def bind(self, index: int) -> None:
        self._current = self._sees[index]

    def allocate(self, nbytes: int) -> int:
        if nbytes > self._driver.free:
            raise DeviceError("cudaErrorMemoryAllocation", OUT_OF_MEMORY)
        address = 256 * (1 + len(self._driver.made))
        self._driver.free -= nbytes
        self._driver.made[address] = self, self._current, nbytes
        return address

    def free(self, address: int) -> None:
        owner, _, nbytes = self._driver.made[address]
        assert owner is self
        assert address not in self._driver.opened, "undefined while another has it open"
        self._driver.free += nbytes
        del self._driver.made[address]

    def export(self, address: int) -> bytes:
        if not self._driver.exports:
            raise DeviceError("cudaErrorNotSupported", 801)
        return address.to_bytes(64, "little")

    def open(self, handle: bytes) -> int:
        assert len(handle) == 64
        address = int.from_bytes(handle, "little")
        owner, gpu, _ = self._driver.made[address]
        if owner is self or (self._current, gpu) in self._driver.apart:
            raise DeviceError("cudaErrorPeerAccessUnsupported", 217)
        self._driver.opened.append(address)
        mapped = (1 << 32) + 256 * len(self._driver.opened)
        self._mapped[mapped] = address
        return mapped

    def close(self, address: int) -> None:
        self._driver.opened.remove(self._mapped.pop(address))

    def can_read(self, index: int, peer: int) -> bool:
        assert index != peer
        return (self._sees[index], self._sees[peer]) not in self._driver.apart

    def bus_id(self, index: int) -> str:
        if index >= len(self._sees):
            raise DeviceError("cudaErrorInvalidDevice", 101)
        return f"0000:{self._sees[index]:02d}:00.0"


def memory_of(
    driver: Driver, gpu: int, *, nbytes: int = 300, all_seen: bool = True
) -> CudaPeerMemory:
    sees = list(range(driver.gpus)) if all_seen else [gpu]
    process, index = Process(driver, sees), gpu if all_seen else 0
    process.bind(index)
    device = torch.device("cuda", index)
    return CudaPeerMemory(process, device, nbytes, nullcontext)


@pytest.mark.parametrize("all_seen", [True, False])
def test_each_reads_the_memory_of_all_and_frees_its_own_last(all_seen: bool) -> None:
    driver = Driver()
    ranks = [memory_of(driver, gpu, all_seen=all_seen) for gpu in (0, 1, 2)]
    assert len({rank.address for rank in ranks}) == 3
    for rank in ranks:
        found = [rank.open(other.where, 300) for other in ranks if other is not rank]
        assert len(set(found)) == 2
    assert sorted(driver.opened) == sorted(2 * [rank.address for rank in ranks])

    together = threading.Barrier(3)

    def part(rank: CudaPeerMemory) -> None:
        rank.leave()
        together.wait()
        rank.free()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(part, ranks))
    assert not driver.opened
    assert not driver.made


def test_memory_that_another_may_have_open_is_kept() -> None:
    driver = Driver()
    own, other = memory_of(driver, 0), memory_of(driver, 1)
    own.open(other.where, 300)
    other.open(own.where, 300)
    own.leave()
    assert driver.opened == [own.address]
    assert len(driver.made) == 2


def test_memory_that_cannot_be_had_or_told_of_is_refused() -> None:
    with pytest.raises(DeviceError) as raised:
        memory_of(Driver(free=299), 0)
    assert raised.value.status == OUT_OF_MEMORY
    driver = Driver(exports=False)
    with pytest.raises(DeviceError, match="NotSupported"):
        memory_of(driver, 0)
    assert not driver.made


@pytest.mark.parametrize("all_seen", [True, False])
def test_gpus_without_peer_access_are_refused(all_seen: bool) -> None:
    driver = Driver(apart={(0, 2)})
    ranks = [memory_of(driver, gpu, all_seen=all_seen) for gpu in (0, 1, 2, 0)]
    told = "cuda:0 has no peer access to the GPU at 0000:02:00.0" if all_seen else "Unsupported"
    ranks[0].open(ranks[1].where, 300)
    ranks[0].open(ranks[3].where, 300)  # on the same GPU
    ranks[2].open(ranks[0].where, 300)
    with pytest.raises(DeviceError, match=told):
        ranks[0].open(ranks[2].where, 300)


def test_the_doctor_tells_which_gpus_cannot_read_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    monkeypatch.setattr(peer_memory, "find_provider", lambda: Process(driver, [0, 1, 2]))
    assert doctor._shared_cache()[1] == "shm; peer on 3 GPUs"
    driver.apart = {(1, 0), (2, 1)}
    assert doctor._shared_cache()[1].endswith("do not read each other's memory: 1 of 0, 2 of 1")
