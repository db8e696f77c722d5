"""What all ranks tell each other before something that they do together begins."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from gnnsys.compat import default_store
from gnnsys.errors import RankFailedError
from gnnsys.ranks.distributed import watch_ranks

__all__ = ["FAILED", "FAILURES", "Meeting", "machine_identity"]

_LOOK = datetime.timedelta(seconds=1)
FAILURES, FAILED = "gnnsys/failures", "failed"
"""Where a rank says what it cannot go on for."""
_numbers = itertools.count()


class Meeting:
    """A place in the store of the default process group, for whatever its backend is.

    Every rank makes its meetings in the same order: the n-th of one rank is the n-th of all.

    Args:
        purpose: what the ranks have to call, in errors.
        patience: seconds that a rank may come later than another.
    """

    def __init__(self, purpose: str, patience: float = 600.0) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._purpose, self._patience = purpose, patience
        self._liveness = watch_ranks()
        store = default_store().clone()
        self._store = PrefixStore(f"gnnsys/meeting/{next(_numbers)}", store)
        self._failures = PrefixStore(FAILURES, store)
        self._topics = itertools.count()

    def tell(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON can hold, in the order of the ranks.

        Raises:
            RankFailedError: a rank is gone, has not come, or has left the meeting by an exception.
        """
        topic = next(self._topics)
        self._store.set(f"{topic}/{self.rank}", json.dumps(value))
        return [json.loads(self._await(f"{topic}/{rank}", rank)) for rank in range(self.world)]

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Tells the others what this rank cannot go on for, so that they do not wait for it."""
        if error is not None and not isinstance(error, RankFailedError):
            self._store.set(FAILED, f"rank {self.rank}: {error}")

    def _await(self, key: str, rank: int) -> bytes:
        until = time.monotonic() + self._patience
        while not self._store.check([key]):
            for store in (self._store, self._failures):
                if store.check([FAILED]):
                    raise RankFailedError(bytes(store.get(FAILED)).decode())
            failed = self._liveness.failed
            if failed is not None or time.monotonic() > until:
                missing = rank if failed is None else failed
                raise RankFailedError(
                    f"rank {missing} of {self.world} does not come to {self._purpose}, which all "
                    "ranks call, in the same order",
                    missing,
                )
            with contextlib.suppress(dist.DistStoreError):
                self._store.wait([key], _LOOK)
        return bytes(self._store.get(key))


def machine_identity() -> str:
    """The same for processes that see each other's memory and loopback network, and for no others.

    >>> machine_identity() == machine_identity()
    True
    """
    with open("/proc/sys/kernel/random/boot_id") as file:
        parts = [file.read().strip()]
    return " ".join(parts + [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid")])
