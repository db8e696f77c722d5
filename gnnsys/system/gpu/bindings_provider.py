"""CUDA by NVIDIA's ``cuda.bindings``, which torch's own CUDA wheels bring from 2.14 on."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from gnnsys.errors import BuildError, DeviceError
from gnnsys.system.gpu.provider import Provider

__all__ = ["make"]

_MODULES = ("cuda.bindings", *(f"cuda.bindings.{name}" for name in ("driver", "runtime", "nvrtc")))

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class _BindingsProvider(Provider):
    def __init__(self, version: str, driver: Any, runtime: Any, nvrtc: Any) -> None:
        self._driver, self._runtime, self._nvrtc = driver, runtime, nvrtc
        self.name = f"cuda.bindings {version}"
        self.nvrtc = "{}.{}".format(*_asked(nvrtc.nvrtcVersion))

    def compile(self, source: str, options: Sequence[str], instance: str) -> tuple[bytes, str]:
        nvrtc, name = self._nvrtc, instance.encode()
        texts = [option.encode() for option in options]
        (program,) = _asked(nvrtc.nvrtcCreateProgram, source.encode(), b"kernel.cu", 0, None, None)
        try:
            _asked(nvrtc.nvrtcAddNameExpression, program, name)
            try:
                _asked(nvrtc.nvrtcCompileProgram, program, len(texts), texts)
            except DeviceError as error:
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode()
                raise BuildError(f"{instance}: NVRTC {self.nvrtc}: {error}\n{log}") from error
            (lowered,) = _asked(nvrtc.nvrtcGetLoweredName, program, name)
            return self._read(program, "CUBIN"), lowered.decode()
        finally:
            _asked(nvrtc.nvrtcDestroyProgram, program)

    def _read(self, program: Any, what: str) -> bytes:
        (size,) = _asked(getattr(self._nvrtc, f"nvrtcGet{what}Size"), program)
        text = bytes(size)
        _asked(getattr(self._nvrtc, f"nvrtcGet{what}"), program, text)
        return text

    def bind(self, index: int) -> None:
        _asked(self._runtime.cudaSetDevice, index)

    def load(self, cubin: bytes, name: str) -> int:
        (module,) = _asked(self._driver.cuModuleLoadData, cubin)
        (function,) = _asked(self._driver.cuModuleGetFunction, module, name.encode())
        return int(function)

    def attribute(self, number: int, index: int) -> int:
        kind = self._runtime.cudaDeviceAttr(number)
        (value,) = _asked(self._runtime.cudaDeviceGetAttribute, kind, index)
        return int(value)

    def register(self, address: int, nbytes: int, flags: int) -> None:
        _asked(self._runtime.cudaHostRegister, address, nbytes, flags)

    def unregister(self, address: int) -> None:
        _asked(self._runtime.cudaHostUnregister, address)

    def allocate(self, nbytes: int) -> int:
        (address,) = _asked(self._runtime.cudaMalloc, nbytes)
        return int(address)

    def free(self, address: int) -> None:
        _asked(self._runtime.cudaFree, address)

    def export(self, address: int) -> bytes:
        (handle,) = _asked(self._runtime.cudaIpcGetMemHandle, address)
        return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)

    def open(self, handle: bytes) -> int:
        told = self._runtime.cudaIpcMemHandle_t()
        ctypes.memmove(told.getPtr(), handle, _HANDLE_BYTES)
        (address,) = _asked(self._runtime.cudaIpcOpenMemHandle, told, _LAZY_PEER_ACCESS)
        return int(address)

    def close(self, address: int) -> None:
        _asked(self._runtime.cudaIpcCloseMemHandle, address)

    def can_read(self, index: int, peer: int) -> bool:
        (can,) = _asked(self._runtime.cudaDeviceCanAccessPeer, index, peer)
        return bool(can)

    def bus_id(self, index: int) -> str:
        (name,) = _asked(self._runtime.cudaDeviceGetPCIBusId, 32, index)
        return str(name.partition(b"\0")[0].decode())


def make() -> Provider:
    """NVIDIA's bindings, where they can be used.

    Raises:
        DeviceError: why they cannot.
    """
    try:
        bindings, *modules = map(importlib.import_module, _MODULES)
    except ImportError as error:
        raise DeviceError(f"cannot be imported ({error})") from error
    return _BindingsProvider(bindings.__version__, *modules)


def _asked(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What is returned beside the code; it raises where a library is missing."""
    try:
        status, *values = call(*arguments)
    except RuntimeError as error:
        raise DeviceError(f"cuda.bindings: {error}") from error
    if int(status) != 0:
        raise DeviceError(f"cuda.bindings: {status.name}", int(status))
    return tuple(values)
