"""Which rank of a distributed run is gone.

A process that was killed closes its connections, but only those who talk to it notice, and what
they then do looks like another failure to their own neighbours. So every rank writes a beat to the
process group's store now and then, and looks at those of all others; one that gives up says because
of whom before it leaves. The number that is reported is then the same on all ranks.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store

from gnnsys.errors import ResourceError
from gnnsys.system.background import start_thread

__all__ = ["Liveness", "store_connection"]


def store_connection(store: Any) -> Store:
    """Another connection to a store, which other threads may wait in.

    Raises:
        ResourceError: no file can be opened any more.
    """
    try:
        socket.socket().close()  # torch would try again for minutes
    except OSError as error:
        raise ResourceError(
            error.errno, f"no connection to the other ranks ({error.strerror}); raise ulimit -n"
        ) from error
    own: Store = store.clone()
    return own


class Liveness:
    """Watches the other ranks in a thread of its own.

    Args:
        store: of the process group.
        rank: of this process.
        world: number of ranks.
        interval: seconds between two beats.
        dead_after: seconds without a beat after which a rank counts as gone.
        first_within: seconds that a rank may need to its first beat: it may still load data.

    Raises:
        ResourceError: the system refuses a thread or a socket.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world: int,
        interval: float = 1.0,
        dead_after: float = 20.0,
        first_within: float = 600.0,
    ) -> None:
        self._rank, self._interval, self.dead_after = rank, interval, dead_after
        self._first_within = first_within
        self._others = [other for other in range(world) if other != rank]
        # A connection of its own: the main thread may wait for something in the store.
        self._store = PrefixStore("gnnsys/liveness", store_connection(store))
        self._failed: int | None = None
        self._done: set[int] = set()
        self._runs = self._asking = 0
        self._asked = dict.fromkeys(self._others, 0)  # to end, each the number of its run
        self._stopped = threading.Event()
        self._write(0)
        self._looked = time.monotonic()
        self._missed = self._looked, self._looked  # a look that nothing follows, and since when
        self._process = os.getpid()
        self._thread = start_thread(self._watch, "gnnsys-liveness")

    @property
    def failed(self) -> int | None:
        """The rank that is gone; None while all are there."""
        looked, now = self._looked, time.monotonic()
        if now - looked > self.dead_after:
            # The store does not answer; or this process was stopped, and looks again at once.
            if self._missed[0] != looked:
                self._missed = looked, now
            elif now - self._missed[1] > 2 * self._interval:
                self._fail(0)
        return self._failed

    def has_ended(self, rank: int) -> bool:
        """Whether a rank has said that it has done its part."""
        return rank in self._done

    def wait_for_verdict(self, suspect: int) -> int | None:
        """Waits until it is known who is gone, but no longer than it should take.

        Args:
            suspect: a rank whose connection has broken.
        """
        until = time.monotonic() + self.dead_after + 5 * self._interval
        while self.failed is None and suspect not in self._done and time.monotonic() < until:
            time.sleep(self._interval / 10)
        return self._failed

    def begin_run(self) -> int:
        """A number for a run that all ranks begin, the same on all."""
        self._runs += 1
        return self._runs

    def ask_to_end(self, run: int) -> None:
        """Tells the others, within a beat, that this rank was asked to end a run."""
        self._asking = run

    def is_asked_to_end(self, run: int) -> bool:
        """Whether one of the others has told so."""
        return run in self._asked.values()

    def leave(self, because_of: int) -> None:
        """Tells the others that this rank gives up, and because of whom."""
        self._end(f"left {because_of}", [other for other in self._others if other != because_of])

    def stop(self) -> None:
        """To be called when this rank has done its part: its silence then means nothing."""
        if not self._stopped.is_set() and self._process == os.getpid():
            self._end("done", self._others)

    def _end(self, word: str, others: list[int]) -> None:
        """Says a last word.

        Rank 0 mostly holds the store: were it gone before the others have read why, they would take
        it for the one that failed. So it stays until they have ended, too, for a few beats at most.
        """
        self._stopped.set()
        # It must neither write after this nor be in the store at exit.
        self._thread.join(5 * self._interval)
        if self._thread.is_alive():
            return  # the store does not answer
        keys = [f"beat/{other}" for other in others]
        until = time.monotonic() + 5 * self._interval
        try:
            self._store.set(f"beat/{self._rank}", word)
            while self._rank == 0 and time.monotonic() < until:
                known = [self._store.get(key) for key in keys if self._store.check([key])]
                if all(beat.startswith((b"left", b"done")) for beat in known):
                    return
                time.sleep(self._interval / 10)
        except Exception:  # the store may be what is gone
            return

    def _write(self, number: int) -> None:
        self._store.set(f"beat/{self._rank}", f"beat {number} {self._asking}")

    def _watch(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        number = 0
        while not self._stopped.wait(self._interval):
            number += 1
            now = time.monotonic()
            if now - self._looked > self.dead_after / 2:
                seen.clear()  # who was stopped, or slow, cannot tell whether others were silent
            self._looked = now
            try:
                self._write(number)
                for other in self._others:
                    key = f"beat/{other}"
                    beat = self._store.get(key) if self._store.check([key]) else b""
                    self._judge(other, beat, seen, now)
            except Exception:  # whatever it is: the store does not answer
                # A rank 0 that is done closes it while others still have something to receive.
                if not self._stopped.wait(2 * self._interval):
                    self._fail(0)
            if self._failed is not None:
                return

    def _judge(
        self, other: int, beat: bytes, seen: dict[int, tuple[bytes, float]], now: float
    ) -> None:
        word, *numbers = beat.decode().split() or [""]
        if word == "left":
            self._fail(int(numbers[0]))
        if word == "done":
            self._done.add(other)
            return
        if word == "beat":
            self._asked[other] = int(numbers[1])
        before, since = seen.setdefault(other, (beat, now))
        if beat != before:
            seen[other] = beat, now
        elif now - since > (self.dead_after if beat else self._first_within):
            self._fail(other)

    def _fail(self, rank: int) -> None:
        if not self._stopped.is_set() and self._failed is None:
            self._failed = rank
