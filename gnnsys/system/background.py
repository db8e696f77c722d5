"""Threads for what may take for ever, or may be refused one. Standard library."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from gnnsys.errors import ResourceError

__all__ = ["result_of", "run_outside", "start_thread"]

T = TypeVar("T")


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """A thread that does something, and that a process does not wait for at its end.

    Raises:
        ResourceError: the system refuses it.

    >>> start_thread(lambda: None, "gnnsys-example").join()
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(
            errno.EAGAIN, f"the system starts no more threads ({name}); raise ulimit -u or pids.max"
        ) from error
    return thread


def result_of(work: Callable[[], T], look: Callable[[], None], every: float = 1.0) -> T:
    """What ``work`` gives or raises, which is done in a thread that may never end; in this one
    where no more are started, as at the end of Python.

    Args:
        look: called now and then until it has ended; an exception gives it up.
        every: seconds between two looks.

    >>> result_of(lambda: 3, look=lambda: None)
    3
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    try:
        thread = start_thread(run, "gnnsys-waits")
    except ResourceError:
        return work()
    thread.join(every)
    while thread.is_alive():
        look()
        thread.join(every)
    if errors:
        raise errors[0]
    return results[0]


def run_outside(work: Callable[[], object]) -> None:
    """Does something that waits for threads of gnnsys, for whoever is collected as garbage.

    The garbage collector may run in one of these threads, which cannot wait for itself: then
    another thread does it.

    >>> run_outside(lambda: print("done"))
    done
    """
    if threading.current_thread().name.startswith("gnnsys-"):
        threading.Thread(target=work).start()
    else:
        work()
