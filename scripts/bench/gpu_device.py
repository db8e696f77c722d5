"""The device of the entries that measure kernels: a GPU, or for a trial the CPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from harness import BenchError, Implementation, Sample, timed
from torch import Tensor

from gnnsys.system.gpu import Device, kernel_device
from gnnsys.system.gpu.device import Mapping

__all__ = ["Gpu", "add_device_option", "implement"]


class Gpu:
    """A device, and the memory that it reads.

    Args:
        name: "cuda", or "simt" for the CPU, which has one kind of memory alone.

    Raises:
        BenchError: there is no CUDA device.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cuda = name == "cuda"
        if self.is_cuda and not torch.cuda.is_available():
            raise BenchError("--device cuda: torch finds no CUDA device; use --device simt")
        self.torch_device = torch.device("cuda", 0) if self.is_cuda else torch.device("cpu")
        self.device = self._open()

    def _open(self) -> Device:
        device = kernel_device("cuda" if self.is_cuda else "simt")
        if device is None:
            raise BenchError("--device cuda: neither CuPy nor cuda.bindings reaches it")
        return device

    def register(self, memory: Tensor, stack: ExitStack) -> None:
        """Lets the device read host memory where it is, until the stack ends."""
        if self.is_cuda:
            stack.callback(Mapping(self.device, memory).close)

    def pinned(self, like: Tensor) -> Tensor:
        """Host memory of the driver's, of a tensor's shape and type."""
        return torch.empty_like(like, pin_memory=self.is_cuda)

    def timed(self, job: Callable[[], dict[str, float]]) -> Sample:
        """Times a job and what it leaves to the device; the job returns the amounts."""
        amounts: dict[str, float] = {}

        def finish() -> None:
            amounts.update(job())
            self.wait()

        self.wait()
        sample = timed(finish)
        sample.amounts = amounts
        return sample

    def wait(self) -> None:
        """For all that the device has to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def describe(self) -> dict[str, str | int]:
        """What figures depend on."""
        if not self.is_cuda:
            return {"device": "simt: kernels executed on the CPU, no figure is a GPU's"}
        found = torch.cuda.get_device_properties(self.torch_device)
        return {
            "device": found.name,
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "cuda": str(torch.version.cuda),
        }


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device`` of the entries."""
    parser.add_argument(
        "--device",
        choices=("cuda", "simt"),
        default="cuda",
        help="simt: the CPU executes the kernels, to try the entry out; default cuda",
    )


def implement(
    name: str, run: Callable[[int], Sample], check: Callable[[], None] = lambda: None
) -> Implementation:
    """A way of a device: where one fails the others go on, since the machine at hand is new to all.

    Args: see ``Implementation``.
    """
    return Implementation(name=name, check=_told(check), run=_told(run), is_peer=True)


def _told(action: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever an action raises as the harness's error."""

    @wraps(action)
    def act(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except BenchError:
            raise
        except Exception as error:
            raise BenchError(f"{type(error).__name__}: {error}") from error

    return act
