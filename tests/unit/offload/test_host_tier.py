"""Activations of a GPU wait in the memory of the host, as tried on the host executor's device."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gnnsys.offload.copies
from gnnsys.choices import OffloadPolicy
from gnnsys.errors import StorageError, TooLargeError
from gnnsys.offload import ActivationOffload
from gnnsys.offload.copies import StreamCopies
from gnnsys.offload.spill_file import Extent
from gnnsys.offload.tiers import Tier, make_tier
from gnnsys.system.budget import ACTIVATIONS, process_budget
from gnnsys.system.gpu import HostExecutorDevice
from gnnsys.system.gpu.host_streams import HostStreams
from gnnsys.system.gpu.placement import kernels_of_cpu_tensors
from tests.unit.offload.training import STORAGE, Residual, losses_and_state, same_bits

CPU = torch.device("cpu")
PINNED = 128 << 10
"""Bytes that a storage takes in pinned memory."""

BUDGET = 4 * STORAGE


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """CPU tensors are a GPU's; computing leaves other threads a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        yield
    torch.set_num_threads(threads)


def tanh() -> nn.Module:
    """Saves much, by value."""
    return Residual(torch.tanh)


def tier_of(offload: ActivationOffload) -> Tier:
    keeper = offload._keeper
    assert keeper is not None
    assert keeper._tier is not None
    return keeper._tier


def in_use(offload: ActivationOffload) -> list[int]:
    """Bytes of the pool, the staging and the file after a step."""
    gc.collect()
    assert offload._keeper is not None
    assert offload._keeper.is_idle()
    return places_in_use(tier_of(offload))


def places_in_use(tier: Tier) -> list[int]:
    copies = tier._copies
    assert isinstance(copies, StreamCopies)
    places = (tier._pool, copies.staging, tier._file)
    return [place.in_use for place in places if place is not None]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("policies", "host_budget"),
    [
        (("host",), 64 * PINNED),
        (("mask", "recompute", "host"), 64 * PINNED),
        (("host", "disk"), 3 * PINNED),
        (("host", "disk"), 1),
        (("disk",), None),
    ],
)
def test_weights_are_those_of_plain_training(
    policies: tuple[OffloadPolicy, ...], host_budget: int | None, inside: bool, tmp_path: Path
) -> None:
    plain = losses_and_state(tanh, None)
    offload = ActivationOffload(
        BUDGET, folder=tmp_path, policies=policies, host_budget=host_budget, least_bytes=1024
    )
    assert same_bits(losses_and_state(tanh, offload, inside=inside), plain)
    stats, tier = offload.stats, tier_of(offload)
    assert 0 < stats.peak <= BUDGET
    assert stats.stored > 0
    assert stats.loaded > 0
    assert not any(in_use(offload))
    out = tier._copies.copied_out.nbytes
    written = 0 if tier._file is None else tier._file.written
    assert (written > 0) == ("disk" in policies)
    assert (out > written) == (host_budget not in (None, 1))
    offload.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("order", ["early", "late", *range(4)])
def test_weights_are_right_whatever_streams_do_first(
    order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"order": "random", "seed": order} if isinstance(order, int) else {"order": order}
    monkeypatch.setattr(gnnsys.offload.copies, "HostStreams", partial(HostStreams, **schedule))
    offload = ActivationOffload(
        BUDGET, folder=tmp_path, host_budget=3 * PINNED, policies=("host", "disk"), least_bytes=1024
    )
    assert same_bits(losses_and_state(tanh, offload), losses_and_state(tanh, None))
    assert not any(in_use(offload))
    offload.close()


@pytest.mark.parametrize(
    ("policies", "error", "says"),
    [
        (("host",), TooLargeError, "no 125 KiB are left in the memory of the host: "
         "256 KiB of at most 256 KiB are in use; give a larger host_budget, or allow"),
        (("host", "disk"), StorageError, r"no 128000 bytes .*: 131072 of at most 131072 bytes .*; "
         "of the host's memory, 256 KiB of at most 256 KiB are in use"),
    ],
)  # fmt: skip
def test_where_neither_has_room_an_error_has_the_numbers(
    policies: tuple[OffloadPolicy, ...], error: type[Exception], says: str, tmp_path: Path
) -> None:
    offload = ActivationOffload(
        2 * STORAGE, folder=tmp_path, policies=policies, host_budget=2 * PINNED, disk_budget=PINNED
    )
    with pytest.raises(error, match=says):
        losses_and_state(tanh, offload)
    assert not any(in_use(offload))
    offload.close()


def test_a_gpu_without_room_for_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullStreams(HostStreams):
        is_full = True

        def device_memory(self, stream: Any, nbytes: int) -> torch.Tensor:
            if FullStreams.is_full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().device_memory(stream, nbytes)

    monkeypatch.setattr(gnnsys.offload.copies, "HostStreams", FullStreams)
    offload = ActivationOffload(BUDGET, policies=("host",), host_budget=64 * PINNED)
    with pytest.raises(torch.OutOfMemoryError):
        losses_and_state(tanh, offload)
    assert not any(in_use(offload))
    FullStreams.is_full = False
    assert same_bits(losses_and_state(tanh, offload), losses_and_state(tanh, None))
    offload.close()


def test_memory_of_the_host_comes_first_and_again_once_it_is_free(tmp_path: Path) -> None:
    tier = make_tier(CPU, ("host", "disk"), tmp_path, 2 * PINNED, None)
    assert tier is not None
    places = [tier.allocate(PINNED) for _ in range(3)]
    assert [type(place) for place in places] == [torch.Tensor, torch.Tensor, Extent]
    stored = [torch.full((PINNED,), i, dtype=torch.uint8) for i in range(3)]
    for data, place in zip(stored, places, strict=True):
        tier.store(data, place).result()
    for data, place in zip(stored, places, strict=True):
        arrival = tier.load(place, PINNED).result()
        arrival.join()
        assert torch.equal(arrival.tensor, data)
    file, copies = tier._file, tier._copies
    assert file is not None
    assert (file.written, file.read_bytes) == (PINNED, PINNED)
    # Of all bytes, in the time of both.
    out, back = tier.bandwidths()
    assert out == pytest.approx(3 * PINNED / (file.write_seconds + copies.copied_out.seconds))
    assert back == pytest.approx(3 * PINNED / (file.read_seconds + copies.copied_back.seconds))
    for place in places:
        tier.free(place)
    del places[:], place, arrival
    assert not any(places_in_use(tier))
    assert isinstance(tier.allocate(PINNED), torch.Tensor)
    tier.close()


def test_half_of_what_is_left_is_the_host_s_by_default() -> None:
    with process_budget().run(1 << 30):
        left = process_budget().left(of=ACTIVATIONS)
        tier = make_tier(CPU, ("host",), None, None, None)
    assert tier is not None
    assert tier._pool is not None
    assert tier._pool.budget == left // 2
    assert tier.bandwidths() == (float("inf"), float("inf"))
    tier.close()


def test_the_memory_of_the_cpu_is_the_host_s() -> None:
    with kernels_of_cpu_tensors(None):
        assert make_tier(CPU, ("host", "recompute"), None, None, None) is None
        tier = make_tier(CPU, ("host", "disk"), None, None, None)
        assert tier is not None
        assert isinstance(tier.allocate(1), Extent)
        tier.close()
