"""What all ranks tell each other before something that they do together begins."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from gnnsys.compat import default_store
from gnnsys.errors import GnnsysError, RankFailedError
from gnnsys.ranks.distributed import watch_ranks
from gnnsys.ranks.liveness import store_connection
from gnnsys.system.background import result_of

__all__ = ["FAILED", "FAILURES", "Meeting", "machine_identity"]

_LOOK = 0.02  # seconds between two looks; waiting in the store, torch would log each second
_LONG_LOOK = 0.2  # as they become
_TELL_WITHIN = 5.0
FAILURES, FAILED = "gnnsys/failures", "failed"
"""Where a rank says what it cannot go on for."""
_numbers = itertools.count()


class Meeting:
    """A place in the store of the default process group, for whatever its backend is.

    The store is asked by threads of their own: where its host is stopped, or cut off, it never
    answers.

    Every rank makes its meetings in the same order: the n-th of one rank is the n-th of all.

    Args:
        purpose: what the ranks have to call, in errors.
        patience: seconds that a rank may come later than another.
    """

    def __init__(self, purpose: str, patience: float = 600.0) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._purpose, self._patience = purpose, patience
        self._topics = itertools.count()
        self.undo = contextlib.ExitStack()
        """What is called where this rank leaves the meeting by an exception."""
        place = f"gnnsys/meeting/{next(_numbers)}"
        self._store = PrefixStore(place, default_store())
        try:
            self._liveness = watch_ranks()
            store = store_connection(default_store())
        except GnnsysError as error:
            self._tell_failure(error)
            raise
        self._store = PrefixStore(place, store)
        self._failures = PrefixStore(FAILURES, store)

    def tell(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON can hold, in the order of the ranks.

        Raises:
            RankFailedError: a rank is gone, has not come, or has left the meeting by an exception.
        """
        topic, until = next(self._topics), time.monotonic() + self._patience
        text = json.dumps(value)
        found: list[Any] = []  # of the ranks that have told, in their order
        left = threading.Event()

        def look() -> None:
            self._check_liveness()
            if left.is_set() or time.monotonic() > until:
                raise self._missing(len(found))

        def gather() -> None:
            self._store.set(f"{topic}/{self.rank}", text)
            for rank in range(self.world):
                found.append(json.loads(self._await(f"{topic}/{rank}", rank, look)))

        try:
            self._ask(gather, look)
        finally:
            left.set()
        return found

    @cached_property
    def machines(self) -> list[str]:
        """The ``machine_identity`` of each rank; the first time, all ranks ask for it together."""
        return self.tell(machine_identity())

    def check(self) -> None:
        """Raises RankFailedError where a rank is gone, or has left the meeting by an exception."""
        self._check_liveness()
        self._ask(self._check_failures, self._check_liveness)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Tells the others what this rank cannot go on for, so that they do not wait for it."""
        if error is None:
            self.undo.pop_all()
        else:
            self._tell_failure(error)
            self.undo.close()

    def _tell_failure(self, error: BaseException) -> None:
        if isinstance(error.__cause__, dist.DistError):
            return
        told = str(error) or type(error).__name__
        if not isinstance(error, RankFailedError):  # which names a rank
            told = f"rank {self.rank}: {told}"

        def tell() -> None:
            self._store.compare_set(FAILED, "", told)  # nothing, where another was the first

        def give_up() -> None:
            raise RankFailedError("the store does not answer", 0)

        with contextlib.suppress(RuntimeError):  # the store may be what is gone
            result_of(tell, give_up, every=_TELL_WITHIN)

    def _ask(self, work: Callable[[], None], look: Callable[[], None]) -> None:
        try:
            result_of(work, look)
        except dist.DistError as error:
            raise RankFailedError(
                f"the place where the {self.world} ranks have met is gone, mostly with rank 0", 0
            ) from error

    def _await(self, key: str, rank: int, look: Callable[[], None]) -> bytes:
        wait = _LOOK
        while True:
            has_ended = self._liveness.has_ended(rank)
            if self._store.check([key]):
                return bytes(self._store.get(key))
            self._check_failures()
            if has_ended:
                raise self._missing(rank)
            look()
            time.sleep(wait)
            wait = min(1.1 * wait, _LONG_LOOK)

    def _check_failures(self) -> None:
        for store in (self._store, self._failures):
            if store.check([FAILED]):
                raise RankFailedError(bytes(store.get(FAILED)).decode())

    def _check_liveness(self) -> None:
        if (failed := self._liveness.failed) is not None:
            raise self._missing(failed)

    def _missing(self, rank: int) -> RankFailedError:
        return RankFailedError(
            f"rank {rank} of {self.world} does not come to {self._purpose}, which all ranks call, "
            "in the same order",
            rank,
        )


def machine_identity() -> str:
    """The same for processes that see each other's memory and loopback network, and for no others.

    >>> machine_identity() == machine_identity()
    True
    """
    with open("/proc/sys/kernel/random/boot_id") as file:
        parts = [file.read().strip()]
    return " ".join(parts + [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid")])
