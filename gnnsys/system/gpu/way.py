"""By which of two ways a device gets rows of host memory: what was measured of it decides."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from gnnsys.system.gpu.device import Device
from gnnsys.system.profiles import load_profile, save_profile

__all__ = [
    "WAYS",
    "Speed",
    "Way",
    "WayProfile",
    "choose_way",
    "faster_way",
    "load_ways",
    "save_ways",
]

Way = Literal["zero-copy", "staged"]
WAYS: tuple[Way, ...] = ("zero-copy", "staged")

_SHORTEST, _LONGEST = 64, 24 << 10
"""Bytes of rows that are read in place where nothing was measured: requests of less than half of
128 bytes do not fill a link, and a copy engine carries long rows as fast and by itself."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of rows of one size, in bytes a second."""

    row_bytes: int
    zero_copy: float
    staged: float


@dataclass(frozen=True, slots=True)
class WayProfile:
    """What ``gnnsys doctor --probe`` measured."""

    speeds: list[Speed]
    """By size."""

    when: str
    """ISO 8601 in UTC."""


def load_ways(torch_device: torch.device) -> WayProfile | None:
    """What was measured of devices of that name in this machine; None where nothing was."""
    found = load_profile("gpus", _name_of(torch_device))
    try:
        if found is None:
            return None
        return WayProfile([Speed(**each) for each in found["speeds"]], found["when"])
    except (KeyError, TypeError):  # of another version
        return None


def save_ways(torch_device: torch.device, profile: WayProfile) -> bool:
    """Keeps what was measured; whether it could be written."""
    return save_profile("gpus", _name_of(torch_device), asdict(profile))


def choose_way(device: Device, row_bytes: int) -> Way:
    """The faster way for rows of so many bytes, as measured for the nearest size.

    >>> from gnnsys.system.gpu import HostExecutorDevice
    >>> choose_way(HostExecutorDevice(), 400)
    'zero-copy'
    """
    if device.torch_device.type == "cpu":  # where kernels are executed to be tested
        return "zero-copy"
    return faster_way(load_ways(device.torch_device), row_bytes)


def faster_way(profile: WayProfile | None, row_bytes: int) -> Way:
    """What a profile says of rows of so many bytes; without one, what is known of such links."""
    if profile is None or not profile.speeds:
        return "zero-copy" if _SHORTEST <= row_bytes <= _LONGEST else "staged"
    size = math.log(max(1, row_bytes))
    nearest = min(profile.speeds, key=lambda speed: abs(math.log(speed.row_bytes) - size))
    return "zero-copy" if nearest.zero_copy >= nearest.staged else "staged"


def _name_of(torch_device: torch.device) -> str:
    on_cpu = torch_device.type == "cpu"
    name = "cpu" if on_cpu else torch.cuda.get_device_name(torch_device)
    return f"{name} of {platform.node()}"  # the link counts, too
