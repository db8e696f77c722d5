"""Kernels of ``csrc/cuda``: compiled when they are first used, and launched.

``Device`` says what is asked of a device: of ``CudaDevice``, which CuPy or NVIDIA's bindings reach,
and of ``HostExecutorDevice``, which executes kernels on the CPU.
"""

from gnnsys.system.gpu.device import Device, Launch
from gnnsys.system.gpu.host_executor import HostExecutorDevice, Schedule
from gnnsys.system.gpu.placement import kernel_device

__all__ = ["Device", "HostExecutorDevice", "Launch", "Schedule", "kernel_device"]
