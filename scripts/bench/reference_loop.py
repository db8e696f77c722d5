"""The C loop of csrc/tests/rows/gather_reference.c, built for this machine when it is needed."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
from harness import BenchError
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ReferenceLoop"]

_SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "tests" / "rows" / "gather_reference.c"
_FLAGS = ("-O3", "-march=native", "-pthread", "-shared", "-fPIC")


class ReferenceLoop:
    """Gathers rows as fast as plain C does here.

    Args:
        folder: that takes the shared library.

    Raises:
        BenchError: there is no C compiler ($CC, or cc), or it fails.
    """

    def __init__(self, folder: Path) -> None:
        self.compiler = shlex.split(os.environ.get("CC", "cc"))
        library = folder / "libgather_reference.so"
        self._run_compiler(*_FLAGS, "-o", str(library), str(_SOURCE))
        self.version = self._run_compiler("--version").splitlines()[0]
        self.flags = " ".join(_FLAGS)
        loaded = ctypes.CDLL(str(library))
        self._gather = loaded.gather_reference
        self._gather.argtypes = [ctypes.c_void_p] * 3 + [
            ctypes.c_int,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_int,
        ]
        self._streams = loaded.gather_reference_streams
        self._streams.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def _run_compiler(self, *arguments: str) -> str:
        try:
            done = subprocess.run([*self.compiler, *arguments], capture_output=True, text=True)
        except OSError as error:
            raise BenchError(
                f"C compiler '{shlex.join(self.compiler)}' does not start ({error.strerror}): "
                "install one, or name it in $CC"
            ) from error
        if done.returncode:
            raise BenchError(f"'{shlex.join(self.compiler)}' fails on {_SOURCE}:\n{done.stderr}")
        return done.stdout

    def gather(self, table: Tensor, ids: NDArray[np.generic], out: Tensor, threads: int) -> Tensor:
        """``out[i] = table[ids[i]]`` for int64 or uint32 ids, which nobody checks."""
        row_bytes = table.shape[1] * table.element_size()
        status = self._gather(
            table.data_ptr(),
            out.data_ptr(),
            ids.ctypes.data,
            ids.itemsize,
            len(ids),
            row_bytes,
            threads,
        )
        if status:
            raise BenchError(f"gather_reference: {os.strerror(status)}")
        return out

    def streams(self, out: Tensor) -> bool:
        """Whether rows go to ``out`` by non-temporal stores."""
        return bool(self._streams(out.data_ptr(), out.shape[1] * out.element_size()))
