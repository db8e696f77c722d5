"""One thread that does what it is given, one after another."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from gnnsys.errors import ArgumentError
from gnnsys.system.background import start_thread

__all__ = ["Worker"]

T = TypeVar("T")
_Work = tuple["Future[Any]", Callable[[], Any]]


class Worker:
    """A thread that does what is submitted, in that order; what it raises goes to the future.

    The thread starts with the first work, and ends by ``close``, with this object or with Python.

    Args:
        name: of the thread, which begins with "gnnsys-".

    >>> worker = Worker("gnnsys-example")
    >>> worker.submit(lambda: 3).result()
    3
    >>> worker.close()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        _workers.add(self)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Has ``work`` done after all that was submitted before; a future may be cancelled as long
        as it waits.

        Raises:
            ResourceError: the system refuses the thread; nothing was submitted.
            ArgumentError: the worker was closed, or belongs to the process this one was forked of.
        """
        if self._process != os.getpid():
            raise ArgumentError(
                f"{self._name}: its thread is in process {self._process}, this is process "
                f"{os.getpid()}, forked of it; make another one here"
            )
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise ArgumentError(f"{self._name}: work was submitted after it was closed")
            if self._thread is None:
                queue = self._queue  # not self, which the thread would keep
                self._thread = start_thread(lambda: _do_all(queue), self._name)
            self._queue.put((future, work))
        return future

    def close(self) -> None:
        """Takes no more work and waits until all that was submitted is done, except when called by
        it. A forked child leaves its parent's thread alone."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            self._queue.put(None)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __del__(self) -> None:
        self._queue.put(None)


def _do_all(queue: SimpleQueue[_Work | None]) -> None:
    while (item := queue.get()) is not None:
        future, work = item
        is_wanted = future.set_running_or_notify_cancel()
        result = fault = None
        if is_wanted:
            try:
                result = work()
            except BaseException as error:
                fault = error
        del item, work  # what they hold goes before anyone learns that it is done
        if fault is not None:
            future.set_exception(fault)
        elif is_wanted:
            future.set_result(result)
        del future, result, fault


def _close_all() -> None:
    # A thread that still works while Python ends would end the process by a signal.
    for worker in list(_workers):
        worker.close()


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
atexit.register(_close_all)
