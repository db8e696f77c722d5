"""A transport between processes, over torch.distributed."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from gnnsys.compat import default_store
from gnnsys.errors import RankFailedError
from gnnsys.ranks.liveness import Liveness
from gnnsys.ranks.transport import Ledger, Receipt, Work
from gnnsys.system.background import start_thread

__all__ = ["DistributedTransport", "watch_ranks"]

T = TypeVar("T")

_LOOK = 0.2  # seconds between two looks at who is alive
_POLL = 50e-6  # seconds between two looks at a GPU


class DistributedTransport:
    """Sends and receives point to point in the default process group, or another of all ranks.

    One thread at a time may use it. CPU tensors need a group with gloo, CUDA tensors one with NCCL;
    ``torch.distributed.init_process_group()`` makes both. Gloo's operations cannot be asked whether
    they are done, so a thread for each peer and direction waits for them; NCCL's are started
    together where a rank is about to wait, so that two ranks that exchange tensors do not block
    each other.
    """

    def __init__(self, group: Any = None) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = group
        self.ledger = Ledger()
        self._liveness = watch_ranks() if self.world > 1 else None
        self._waiters: dict[tuple[str, int], _Waiter] = {}
        self._sent: list[_Pending] = []
        self._to_launch: list[tuple[dist.P2POp, _Pending]] = []

    def send(self, tensor: Tensor, to: int, kind: str) -> None:
        if not tensor.numel():
            return
        self.ledger.count(tensor, kind)
        pending = _Pending(kind, tensor, to)
        # What has left need not be kept; an error is told of by flush.
        self._sent = [each for each in self._sent if each.error or not each.done()]
        self._sent.append(pending)
        self._start(dist.isend, pending)

    def receive(self, into: Tensor, source: int, kind: str) -> Receipt:
        pending = _Pending(kind, into, source)
        if into.numel():
            self._start(dist.irecv, pending)
        else:
            pending.end(None)
        return pending

    def launch(self) -> None:
        if self._to_launch:
            operations, pendings = zip(*self._to_launch, strict=True)
            self._to_launch.clear()
            works = dist.batch_isend_irecv(list(operations))
            for pending in pendings:  # one work may stand for all
                pending.works = works

    def flush(self) -> None:
        self.launch()
        for pending in self._sent:
            self._wait(pending)
        self._sent.clear()

    def drive(self, work: Work[T]) -> T:
        """Runs a generator; returns what it returns.

        Raises:
            RankFailedError: another rank is gone, whether or not this one waits for it.
        """
        while True:
            try:
                receipt = next(work)
            except StopIteration as stop:
                self.launch()
                return stop.value
            self.launch()
            assert isinstance(receipt, _Pending)
            self._wait(receipt)

    def _start(self, operation: Any, pending: _Pending) -> None:
        tensor, peer = pending.tensor, pending.peer
        if tensor.is_cuda:
            self._to_launch.append((dist.P2POp(operation, tensor, peer, self._group), pending))
            return
        try:
            work = operation(tensor, peer, self._group)
        except RuntimeError as error:
            pending.end(error)
            return
        key = operation.__name__, peer
        if key not in self._waiters:
            self._waiters[key] = _Waiter(f"gnnsys-{operation.__name__}-{peer}")
        self._waiters[key].take(work, pending)

    def _wait(self, pending: _Pending) -> None:
        if not pending.done():
            begun = time.perf_counter()
            while not pending.wait(_LOOK):
                if self._liveness is not None and self._liveness.failed is not None:
                    raise self._give_up(self._liveness.failed)
            self.ledger.seconds_waited[pending.kind] += time.perf_counter() - begun
        if pending.error is not None:
            assert self._liveness is not None
            failed = self._liveness.wait_for_verdict(pending.peer)
            raise self._give_up(pending.peer if failed is None else failed) from pending.error

    def _give_up(self, failed: int) -> RankFailedError:
        assert self._liveness is not None
        self._liveness.leave(because_of=failed)
        atexit.unregister(_exit_at_once)
        atexit.register(_exit_at_once)
        return RankFailedError(
            f"rank {failed} of {self.world} is gone or no longer answers; this rank, {self.rank}, "
            "cannot go on without it",
            failed,
        )


class _Pending:
    """A send or a receive on its way."""

    def __init__(self, kind: str, tensor: Tensor, peer: int) -> None:
        self.kind, self.tensor, self.peer = kind, tensor, peer
        self.works: list[dist.Work] = []
        """Of NCCL, to be asked; else a thread calls ``end``."""
        self.error: Exception | None = None
        self._ended = threading.Event()

    def end(self, error: Exception | None) -> None:
        self.error = error
        self._ended.set()

    def done(self) -> bool:
        if self.works and all(work.is_completed() for work in self.works):
            for work in self.works:
                work.wait()  # lets the current stream wait, and tells of errors
            self.works = []
            self._ended.set()
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits a while; returns whether it is done."""
        if not self.tensor.is_cuda:
            return self._ended.wait(seconds)
        until = time.monotonic() + seconds
        while not self.done() and time.monotonic() < until:
            time.sleep(_POLL)
        return self.done()


class _Waiter:
    """A thread that waits for gloo's operations one after another."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[dist.Work, _Pending]] = queue.SimpleQueue()
        start_thread(self._run, name)

    def take(self, work: dist.Work, pending: _Pending) -> None:
        self._queue.put((work, pending))

    def _run(self) -> None:
        while True:
            work, pending = self._queue.get()
            try:
                work.wait()
            except RuntimeError as error:
                pending.end(error)
            else:
                pending.end(None)


def _exit_at_once() -> None:
    """Ends the process. Gloo cannot break off what threads still wait for, and would abort when
    Python takes them down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


_watched: tuple[Any, Liveness, Callable[[], object]] | None = None


def watch_ranks() -> Liveness:
    """Watches the ranks of the default process group, once for all transports of that group."""
    global _watched
    store = default_store()
    if _watched is None or _watched[0] is not store:
        if _watched is not None:
            _watched[2]()
        liveness = Liveness(store, dist.get_rank(), dist.get_world_size())
        # At the end of Python after what was made later has ended, such as a shared cache.
        _watched = store, liveness, weakref.finalize(Liveness, liveness.stop)
    return _watched[1]
