"""Who may use what can be closed, and who waits for whom."""

from __future__ import annotations

import os
import threading
import weakref

from gnnsys.errors import ArgumentError

__all__ = ["Gate"]


class Gate:
    """Lets calls pass until it is closed; closing waits for those that passed to end.

    Args:
        name: of what it guards, in the error.

    >>> gate = Gate("x.npy")
    >>> with gate:
    ...     pass
    >>> gate.close(), gate.close()
    (True, False)
    >>> with gate:
    ...     pass
    Traceback (most recent call last):
    gnnsys.errors.ArgumentError: x.npy: this store was closed
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = False
        self._begin()
        _gates.add(self)

    @property
    def is_closed(self) -> bool:
        """Whether it lets no call pass any more."""
        return self._closed

    def _begin(self) -> None:
        self._inside = 0
        self._lock = threading.Lock()  # taken as it is by each call: a condition takes longer
        self._change = threading.Condition(self._lock)

    def __enter__(self) -> None:
        with self._lock:
            if self._closed:
                raise ArgumentError(f"{self._name}: this store was closed")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._closed:
                self._change.notify_all()

    def close(self) -> bool:
        """Waits until nobody is inside, and lets nobody in; whether it was open.

        Not to be called from inside.
        """
        with self._change:
            was_open, self._closed = not self._closed, True
            self._change.wait_for(lambda: self._inside == 0)
        return was_open


def _begin_anew() -> None:
    """In a forked child, which has none of the threads that were inside or held a lock."""
    for gate in list(_gates):
        gate._begin()


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()
os.register_at_fork(after_in_child=_begin_anew)
