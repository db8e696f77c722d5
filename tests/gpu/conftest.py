"""What the tests of a GPU share: each is skipped where there is none.

With ``GNNSYS_TEST_GPU=simt`` those that run kernels do so on the CPU, which tries the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gnnsys.errors import DeviceError
from gnnsys.system.gpu import Device, HostExecutorDevice
from gnnsys.system.gpu.cuda import CudaDevice
from gnnsys.system.gpu.provider import find_provider

_FOLDER = Path(__file__).parent
_HAS_GPU = torch.cuda.is_available()
_ON_CPU = os.environ.get("GNNSYS_TEST_GPU") == "simt"
_PROVIDERS = ["simt"] if _ON_CPU else ["cupy", "bindings"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(_FOLDER):
            continue
        item.add_marker(pytest.mark.gpu)
        runs_here = _ON_CPU and "gpu" in getattr(item, "fixturenames", ())
        if not (_HAS_GPU or runs_here):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class Gpu:
    """A device that runs kernels, and where its memory is."""

    def __init__(self, name: str, device: Device, torch_device: torch.device) -> None:
        self.name, self.device, self.torch_device = name, device, torch_device


@pytest.fixture(params=_PROVIDERS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The first GPU by each provider that is installed; gnnsys uses that one meanwhile."""
    if request.param == "simt":
        return Gpu("simt", HostExecutorDevice(), torch.device("cpu"))
    try:
        device = CudaDevice(torch.device("cuda", 0), find_provider(request.param))
    except DeviceError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(CudaDevice, "of", staticmethod(lambda _: device))
    return Gpu("cuda", device, torch.device("cuda", 0))
