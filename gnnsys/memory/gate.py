"""Who may use what can be closed, and who waits for whom."""

from __future__ import annotations

import os
import threading

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
        self._inside = 0
        self._closed = False
        self._change = threading.Condition()
        self._process = os.getpid()

    def __enter__(self) -> None:
        with self._change:
            if self._closed:
                raise ArgumentError(f"{self._name}: this store was closed")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._inside -= 1
            self._change.notify_all()

    def close(self) -> bool:
        """Waits until nobody is inside, and lets nobody in; whether it was open.

        Not to be called from inside.
        """
        with self._change:
            was_open, self._closed = not self._closed, True
            # A forked child has none of the threads that were inside when it was made.
            if self._process == os.getpid():
                self._change.wait_for(lambda: self._inside == 0)
        return was_open
