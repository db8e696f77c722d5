"""Which device runs kernels, and which those of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.system.device import SIMT
from gnnsys.system.gpu.device import Device
from gnnsys.system.gpu.host_executor import HostExecutorDevice

__all__ = [
    "device_of",
    "device_of_cpu_tensors",
    "kernel_device",
    "kernels_for",
    "kernels_of_cpu_tensors",
]

_of_cpu_tensors: ContextVar[Device | None] = ContextVar("device of CPU tensors", default=None)


def kernel_device(device: str | torch.device | Device) -> Device | None:
    """The device of that name; None for the CPU, and for a GPU that nothing reaches, which is
    logged once.

    Args:
        device: "cpu", "cuda", "cuda:1", "simt", a torch device, or one that runs kernels.

    Raises:
        ArgumentError: another name, or a GPU that is not there.
        BuildError: simt, without a C++ compiler.

    >>> kernel_device("cpu") is None
    True
    >>> kernel_device("simt")
    HostExecutorDevice()
    """
    if not isinstance(device, (str, torch.device)):
        return device
    if device == SIMT:
        return HostExecutorDevice()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(f"device: {device!r}, expected cpu, cuda or simt") from error
    if chosen.type == "cpu":
        return None
    if chosen.type != "cuda":
        raise ArgumentError(f"device: {chosen}, expected cpu, cuda or simt")
    if not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"device: {chosen}, but torch finds no such device; use 'cpu'")
    return _cuda_device(chosen)


def device_of(tensor: Tensor) -> Device | None:
    """What runs the kernels of a tensor; None where native code or torch computes in their place.

    That is its GPU for a CUDA tensor, unless nothing reaches it, and for a CPU tensor the device of
    ``kernels_of_cpu_tensors``.

    >>> device_of(torch.zeros(1)) is None
    True
    """
    if tensor.device.type == "cuda":
        return _cuda_device(tensor.device)
    return device_of_cpu_tensors() if tensor.device.type == "cpu" else None


def device_of_cpu_tensors() -> Device | None:
    """The device of the innermost ``kernels_of_cpu_tensors`` of this thread."""
    return _of_cpu_tensors.get()


@contextmanager
def kernels_of_cpu_tensors(device: Device | None) -> Iterator[None]:
    """Within it, this thread's sums over CPU tensors are computed by kernels, and so are their
    derivatives, whenever and wherever these are asked for.

    Args:
        device: that reaches memory of the process; None for native code.

    >>> from gnnsys.system.gpu import HostExecutorDevice
    >>> device = HostExecutorDevice()
    >>> with kernels_of_cpu_tensors(device):
    ...     device_of(torch.zeros(1)) is device
    True
    """
    token = _of_cpu_tensors.set(device)
    try:
        yield
    finally:
        _of_cpu_tensors.reset(token)


def kernels_for(device: str) -> AbstractContextManager[None]:
    """Within it, CPU tensors are summed by the kernels that ``--device`` asks for, if it does.

    Raises:
        BuildError: simt, on a machine without a C++ compiler.
    """
    return kernels_of_cpu_tensors(kernel_device(SIMT) if device == SIMT else None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cuda_device(device: torch.device) -> Device | None:
    from gnnsys.system.gpu.cuda import CudaDevice

    return CudaDevice.of(device)
