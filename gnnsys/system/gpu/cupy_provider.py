"""CUDA by CuPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gnnsys.errors import BuildError, DeviceError
from gnnsys.system.gpu.provider import Provider

__all__ = ["make"]

_BROKEN = {"14.1.0"}
"""Versions that packages on CuPy exclude."""

T = TypeVar("T")


class _CupyProvider(Provider):
    def __init__(self, cupy: Any) -> None:
        self._driver, self._runtime = cupy.cuda.driver, cupy.cuda.runtime
        self._nvrtc = cupy.cuda.nvrtc
        self.name = f"CuPy {cupy.__version__}"
        self.nvrtc = "{}.{}".format(*_asked(self._nvrtc.getVersion))

    def compile(self, source: str, options: Sequence[str], instance: str) -> tuple[bytes, str]:
        nvrtc = self._nvrtc
        program = _asked(nvrtc.createProgram, source, "kernel.cu", [], [])
        try:
            nvrtc.addNameExpression(program, instance)
            try:
                nvrtc.compileProgram(program, tuple(options))
            except nvrtc.NVRTCError as error:
                log = nvrtc.getProgramLog(program)
                raise BuildError(f"{instance}: NVRTC {self.nvrtc}: {error}\n{log}") from error
            return nvrtc.getCUBIN(program), nvrtc.getLoweredName(program, instance)
        finally:
            nvrtc.destroyProgram(program)

    def bind(self, index: int) -> None:
        _asked(self._runtime.setDevice, index)

    def load(self, cubin: bytes, name: str) -> int:
        module = _asked(self._driver.moduleLoadData, cubin)
        return _asked(self._driver.moduleGetFunction, module, name)

    def attribute(self, number: int, index: int) -> int:
        return _asked(self._runtime.deviceGetAttribute, number, index)

    def register(self, address: int, nbytes: int, flags: int) -> None:
        _asked(self._runtime.hostRegister, address, nbytes, flags)

    def unregister(self, address: int) -> None:
        _asked(self._runtime.hostUnregister, address)

    def allocate(self, nbytes: int) -> int:
        return _asked(self._runtime.malloc, nbytes)

    def free(self, address: int) -> None:
        _asked(self._runtime.free, address)

    def export(self, address: int) -> bytes:
        return bytes(_asked(self._runtime.ipcGetMemHandle, address))

    def open(self, handle: bytes) -> int:
        return _asked(self._runtime.ipcOpenMemHandle, handle)

    def close(self, address: int) -> None:
        _asked(self._runtime.ipcCloseMemHandle, address)

    def can_read(self, index: int, peer: int) -> bool:
        return bool(_asked(self._runtime.deviceCanAccessPeer, index, peer))

    def bus_id(self, index: int) -> str:
        return _asked(self._runtime.deviceGetPCIBusId, index)


def make() -> Provider:
    """CuPy, where it can be used.

    Raises:
        DeviceError: why it cannot.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceError(f"cannot be imported ({error})") from error
    if cupy.__version__ in _BROKEN:
        raise DeviceError(f"CuPy {cupy.__version__} is known to be broken; install another version")
    return _CupyProvider(cupy)


def _asked(call: Callable[..., T], *arguments: Any) -> T:
    """What CuPy answers; it raises where it misses a library, too."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise DeviceError(f"CuPy: {error}", getattr(error, "status", None)) from error
