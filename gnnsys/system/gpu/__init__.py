"""Kernels of ``csrc/cuda``: compiled when they are first used, and launched.

``Device`` is what a provider of that does; ``HostExecutorDevice`` executes them on the CPU.
"""

from gnnsys.system.gpu.device import Device, Launch
from gnnsys.system.gpu.host_executor import HostExecutorDevice, Schedule

__all__ = ["Device", "HostExecutorDevice", "Launch", "Schedule"]
