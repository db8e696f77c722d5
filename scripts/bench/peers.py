"""Peers that run in Python environments of their own, one process each, asked line by line.

A worker (``workers/``) answers each line of JSON with a line of JSON. Whatever happens to it, the
benchmark goes on: a worker that dies, hangs or answers nonsense becomes a ``PeerError``, with the
last lines of what it wrote to its standard error.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness import BenchError

__all__ = ["Peer", "PeerError"]

_STOP_SECONDS = 10
_TAIL_LINES = 5
_CHUNK_BYTES = 1 << 16


class PeerError(BenchError):
    """A peer cannot answer; it gets no further requests."""


class Peer:
    """A worker process.

    Args:
        python: the interpreter of the peer's environment.
        script: that ``workers.protocol.serve``s.
        arguments: of the script.
        timeout: seconds that an answer may take, the first one, which says ready, too.

    Raises:
        PeerError: it does not start.
    """

    def __init__(
        self, python: Path, script: Path, arguments: Sequence[str] = (), *, timeout: float = 900
    ) -> None:
        self._timeout = timeout
        self._failure: str | None = None
        self._received = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python, script, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(f"{python}: does not start: {error.strerror}") from error
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a worker may not read
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            PeerError: the worker reports an error, is dead, or was found to be before.
        """
        if self._failure is not None:
            raise PeerError(self._failure)
        try:
            self._send(json.dumps(request).encode() + b"\n")
        except OSError:
            self._mourn()
        return self._answer()

    def close(self) -> None:
        """Ends the process, politely first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        deadline = time.monotonic() + self._timeout
        rest = memoryview(line)
        while rest:
            self._wait(pipe, selectors.EVENT_WRITE, deadline)
            rest = rest[os.write(pipe, rest) :]

    def _answer(self) -> dict[str, Any]:
        line = self._read_line()
        try:
            answer = json.loads(line)
            if "error" in answer:
                raise PeerError(str(answer["error"]))
            result = answer["result"]
        except (ValueError, TypeError, KeyError):
            self._give_up(f"answered {line[:80]!r}, which is not the protocol")
        return result

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._received:
            self._wait(pipe, selectors.EVENT_READ, deadline)
            chunk = os.read(pipe, _CHUNK_BYTES)
            if not chunk:
                self._mourn()
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self._give_up(f"gave no answer within {self._timeout:g} s")

    def _give_up(self, why: str) -> NoReturn:
        self._process.kill()  # what it might answer later would be taken for another answer
        self._fail(why)

    def _mourn(self) -> NoReturn:
        try:
            self._fail(f"died, exit status {self._process.wait(_STOP_SECONDS)}")
        except subprocess.TimeoutExpired:
            self._give_up("closed its output")

    def _fail(self, why: str) -> NoReturn:
        self._errors.seek(0)
        written = self._errors.read().decode(errors="replace").strip()
        tail = " | ".join(written.splitlines()[-_TAIL_LINES:])
        self._failure = f"{why}: {tail}" if tail else why
        raise PeerError(self._failure)
