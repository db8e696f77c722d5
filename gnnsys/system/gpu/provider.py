"""What reaches CUDA: CuPy or NVIDIA's own bindings, behind the same few calls.

Each lies in a module of its own, which imports the package. Errors of CUDA become ``DeviceError``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal, Protocol, cast

from gnnsys.errors import DeviceError

__all__ = ["INSTALL", "PROVIDERS", "Provider", "ProviderName", "find_provider"]

ProviderName = Literal["cupy", "bindings"]

PROVIDERS: tuple[ProviderName, ...] = ("cupy", "bindings")
"""In the order in which they are tried."""

INSTALL = "pip install 'gnnsys[cuda13]', or [cuda12] for a driver or a torch of CUDA 12"


class Provider(Protocol):
    """Calls of CUDA and of NVRTC; one object for all devices and threads.

    Raises:
        DeviceError: what CUDA refuses; ``status`` is its code.
    """

    name: str
    """Package and version, such as ``CuPy 14.2.0``."""

    nvrtc: str
    """Version of NVRTC, which compiles; such as ``13.5``."""

    def compile(self, source: str, options: Sequence[str], instance: str) -> tuple[bytes, str]:
        """A cubin that has an instance of a template, and the mangled name of that.

        Raises:
            BuildError: NVRTC's log.
        """

    def bind(self, index: int) -> None:
        """Makes a device the one of this thread, and its context."""

    def load(self, cubin: bytes, name: str) -> int:
        """A function of a cubin, for the device of this thread; loaded for good."""

    def attribute(self, number: int, index: int) -> int:
        """A number of ``cudaDeviceAttr``, of a device."""

    def register(self, address: int, nbytes: int, flags: int) -> None:
        """``cudaHostRegister``."""

    def unregister(self, address: int) -> None:
        """``cudaHostUnregister``."""

    def allocate(self, nbytes: int) -> int:
        """``cudaMalloc``, on the device of this thread; the address."""

    def free(self, address: int) -> None:
        """``cudaFree``."""

    def export(self, address: int) -> bytes:
        """``cudaIpcGetMemHandle`` of what was allocated: 64 bytes for ``open`` in others."""

    def open(self, handle: bytes) -> int:
        """``cudaIpcOpenMemHandle`` for the device of this thread, which gets access to the peer's;
        the address."""

    def close(self, address: int) -> None:
        """``cudaIpcCloseMemHandle``."""

    def can_read(self, index: int, peer: int) -> bool:
        """``cudaDeviceCanAccessPeer``, of two devices that this process sees."""

    def bus_id(self, index: int) -> str:
        """``cudaDeviceGetPCIBusId``: the same in all processes."""


def find_provider(wanted: ProviderName | None = None) -> Provider:
    """The first provider that is installed and finds NVRTC; whether there is a driver is seen when
    something is asked of it.

    Args:
        wanted: None for any.

    Raises:
        DeviceError: why each one cannot be used.
    """
    refused = []
    for name in PROVIDERS if wanted is None else (wanted,):
        module = importlib.import_module(f"gnnsys.system.gpu.{name}_provider")
        try:
            return cast(Provider, module.make())
        except DeviceError as error:
            refused.append(" ".join(f"{name}: {error}".split()))
    raise DeviceError("; ".join(refused if wanted else [*refused, INSTALL]))
