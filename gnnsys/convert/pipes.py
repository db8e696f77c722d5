"""Tables that arrive through pipes: ``/dev/stdin`` and ``<(zcat …)``. Readers want to come back.

What a pipe holds is copied to a file without a name, which is gone with the process, however that
ends.
"""

from __future__ import annotations

import dataclasses
import os
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from gnnsys.convert.spec import EdgeListSpec
from gnnsys.errors import FileFormatError, GnnsysError, MissingFileError
from gnnsys.system.files import as_storage_error

__all__ = ["is_pipe", "without_pipes"]

_SUFFIXES = {b"PAR1": ".parquet", b"\x93NUM": ".npy", b"PK\x03\x04": ".npz"}
_BLOCK_BYTES = 1 << 20
_PATIENCE_S = 10.0
"""For somebody to write into a pipe at all."""


def is_pipe(path: Path) -> bool:
    """Whether a path is a pipe, or a file that is named as what the process has open."""
    return path.is_fifo() or (path.is_file() and path.parts[:2] == ("/", "dev"))


@contextmanager
def without_pipes(
    spec: EdgeListSpec, folder: Path
) -> Iterator[tuple[EdgeListSpec, dict[str, str]]]:
    """Copies what arrives through pipes to files for as long as the ``with`` lasts.

    Args:
        spec: of the edge list, of whose files some may be pipes.
        folder: on a disk with room; the default for temporary files where it is not there.

    Yields:
        The same with files in place of pipes, and what these are called, by their files.

    Raises:
        MissingFileError: nobody writes into a pipe.
        FileFormatError: nothing came.
        StorageError: no room.
    """
    with ExitStack() as stack:
        called: dict[str, str] = {}
        changes: dict[str, Any] = {}
        parts = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        paths = {name: part for name, part in parts.items() if isinstance(part, Path)}
        files = {name: Path(part) for name, part in spec.edge_files().items()}
        for name, file in (paths | files).items():
            if is_pipe(file):
                place = _copy(stack, file, folder if folder.is_dir() else None)
                changes[name] = place if name in paths else str(place)
                called[str(place)] = str(file)
        try:
            yield dataclasses.replace(spec, **changes), called
        except GnnsysError as error:
            message = str(error)
            for copied, pipe in called.items():
                message = message.replace(copied, pipe)
            error.args = (message,)
            raise


def _copy(stack: ExitStack, pipe: Path, folder: Path | None) -> Path:
    links = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gnnsys-")))
    target = pipe
    if pipe.is_fifo():
        with as_storage_error(folder or links):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            _fill(file, pipe)
        target = Path(f"/proc/self/fd/{file.fileno()}")
    with open(target, "rb") as opened:
        first = opened.read(4)
    if not first:
        raise FileFormatError(f"{pipe}: nothing came through it, expected a table")
    place = links / (pipe.name + _SUFFIXES.get(first, ".txt"))
    place.symlink_to(target)
    return place


def _fill(file: IO[bytes], pipe: Path) -> None:
    for block in _blocks(pipe):
        file.write(block)
    file.flush()


def _blocks(pipe: Path) -> Iterator[bytes]:
    """What comes through a pipe; without a writer, opening it plainly would wait for ever."""
    begun, end = False, time.monotonic() + _PATIENCE_S
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            ready = poll.poll(1000)
            try:
                block = os.read(descriptor, _BLOCK_BYTES)
            except BlockingIOError:  # whoever writes takes time
                begun = True
                continue
            if block:
                begun = True
                yield block
            elif begun or ready:
                return
            elif time.monotonic() > end:
                raise MissingFileError(
                    f"{pipe}: a pipe into which nobody wrote within {_PATIENCE_S:.0f} s; begin to "
                    "write before, or give a file"
                )
    finally:
        os.close(descriptor)
