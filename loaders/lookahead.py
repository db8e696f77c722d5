"""Work done ahead of whoever consumes it: two stages in threads, results in order.

Owns ``Lookahead`` and all threads of the loaders. Imports ``system`` alone and knows nothing of
graphs. Invariants: an item passes the first stage, then the second, and comes out in
its place; no item begins the first stage while ``window`` are begun and not taken; while the
consumer is busy, at most one has begun the second; no thread outlives the iteration, however it
ends.

The items themselves are drawn in the consumer's thread, one for each that is taken, as
``torch.utils.data.DataLoader`` does: a sampler may use the global random state.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from gnnsys.system.background import run_outside

__all__ = ["Lookahead", "Work", "stages_paused"]

_log = logging.getLogger(__name__)
_RELEASE_SECONDS = 0.02
"""What a consumer's loop takes at most from getting a result to letting the one before it go."""


class Work(Protocol):
    """What is done with an item. Each stage runs in one thread, which may not be the consumer's."""

    def sample(self, item: Any) -> Any:
        """The first stage."""

    def finish(self) -> None:
        """Told after the last item has passed the first stage, in its thread; not where there are
        no threads, or the iteration ends before."""

    def fetch(self, sampled: Any) -> Any:
        """The second stage, of what the first one returned."""

    def discard(self, sampled: Sequence[Any]) -> None:
        """Told at the end of what passed the first stage and not the second, in order; perhaps of
        nothing."""


class Lookahead(Iterator[Any]):
    """Yields ``work.fetch(work.sample(item))`` for every item, computed ahead.

    An exception in a stage is raised in the consumer, at the item that it is about: of the same
    type where one can be made from a text, with the item and the stage in the text, and with the
    original as its cause. The iteration then ends. It also ends when this object is closed, let go
    of or collected, and when the interpreter exits. Threads may share it: each result goes to one.

    Args:
        items: what to work on; ``str(item)`` names one in an error.
        work: the two stages.
        window: items in work or waiting at any time, or a function that says how many and is asked
            at each step; 0 does everything in the consumer's thread, and stays 0.
        timeout: seconds to wait for an item; 0 waits without end.

    Raises:
        RuntimeError: an item took longer than ``timeout``, or the process was forked since.

    >>> class Square:
    ...     def sample(self, item): return item
    ...     def finish(self): pass
    ...     def fetch(self, sampled): return sampled * sampled
    ...     def discard(self, sampled): pass
    >>> list(Lookahead(range(4), Square(), window=2))
    [0, 1, 4, 9]
    """

    def __init__(
        self,
        items: Iterable[Any],
        work: Work,
        *,
        window: int | Callable[[], int],
        timeout: float = 0.0,
    ) -> None:
        self._items = iter(items)
        self._window = window if callable(window) else lambda: window
        self._ahead = self._window() > 0
        self._timeout = timeout
        self._stages = _Stages(work, threads=self._ahead)
        # Not __del__: it would not run at exit. The threads know the stages, never this object.
        self._finish = weakref.finalize(self, self._stages.close)
        self._turn = threading.RLock()  # consumers may be several threads

    def __next__(self) -> Any:
        if self._ahead and self._finish.alive:
            self._stages.check_process()  # a fork may have copied the lock while it was held
        with self._turn:
            if not self._finish.alive:
                raise StopIteration
            try:
                return self._take_ahead() if self._ahead else self._take_now()
            except BaseException as error:  # StopIteration too
                if isinstance(error, Exception) and not self._finish.alive:
                    raise StopIteration from None  # another thread closed it meanwhile
                self.close()
                raise

    def close(self) -> None:
        """Ends the iteration: waits for the stages to finish what they are doing."""
        self._finish()

    def _take_now(self) -> Any:
        return self._stages.run(next(self._items))

    def _take_ahead(self) -> Any:
        self._feed()
        if not self._stages.in_flight:
            raise StopIteration
        result = self._stages.take(self._timeout)
        self._feed()
        return result

    def _feed(self) -> None:
        while len(self._stages.in_flight) < self._window():
            try:
                item = next(self._items)
            except StopIteration:
                self._stages.finish()
                break
            except Exception as error:  # told in its turn, after the items before it
                self._stages.start_failed(error)
                self._items = iter(())
            else:
                self._stages.start(item)
        self._stages.fetch_next()


@dataclass(slots=True)
class _InFlight:
    item: Any
    sampled: Future[Any] | None  # None once it is fetched
    fetched: Future[Any] | None = None


class _Stages:
    """The threads of one iteration and what they are working on."""

    def __init__(self, work: Work, *, threads: bool) -> None:
        self.in_flight: deque[_InFlight] = deque()
        self._work = work
        self._failed = False  # only the fetching thread reads and writes it
        self._finished = False
        self._process = os.getpid()
        self._taken: tuple[Callable[[], Any], ...] = (_nothing, _nothing)  # the last two results
        self._awaits_release = True
        self.gates = (threading.RLock(), threading.RLock())  # one held while each stage works
        if threads:
            self._sampling, self._fetching = (
                ThreadPoolExecutor(1, f"gnnsys-{name}", _enter, (id(self),))
                for name in ("sample", "fetch")
            )
            _running[id(self)] = self

    def check_process(self) -> None:
        """Raises RuntimeError in a forked child: the threads are its parent's."""
        if self._process != os.getpid():
            raise RuntimeError(
                f"this iterator's threads run in process {self._process}, which was forked into "
                f"{os.getpid()}: make a new one here with iter(loader)"
            )

    def run(self, item: Any) -> Any:
        """Both stages here and now."""
        sampled = self._sample(item)
        try:
            return self._fetch(item, sampled)
        except BaseException:
            self._discard([sampled])
            raise

    def start(self, item: Any) -> None:
        self.in_flight.append(_InFlight(item, self._sampling.submit(self._sample, item)))

    def finish(self) -> None:
        """Has the work told, once, that no further item is started."""
        if not self._finished:
            self._finished = True
            self._sampling.submit(self._finish)

    def start_failed(self, error: Exception) -> None:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        self.in_flight.append(_InFlight(None, failed))

    def fetch_next(self) -> None:
        """Sees to it that the next item is fetched, and no further one: results are large."""
        if self.in_flight and self.in_flight[0].fetched is None:
            self.in_flight[0].fetched = self._fetching.submit(
                self._fetch_sampled, self.in_flight[0], self._taken[0]
            )

    def take(self, timeout: float) -> Any:
        """The next item's result, once it is there."""
        fetched = self.in_flight[0].fetched
        assert fetched is not None
        if timeout and not wait([fetched], timeout).done:
            raise RuntimeError(f"{self.in_flight[0].item}: not there after timeout={timeout} s")
        result = fetched.result()
        self.in_flight.popleft()
        self._taken = (self._taken[1], _refer(result))
        return result

    def _sample(self, item: Any) -> Any:
        with self.gates[0], _Origin(item, "sampling"):
            return self._work.sample(item)

    def _fetch(self, item: Any, sampled: Any) -> Any:
        with self.gates[1], _Origin(item, "fetching"):
            return self._work.fetch(sampled)

    def _fetch_sampled(self, entry: _InFlight, held: Callable[[], Any]) -> Any:
        assert entry.sampled is not None
        self._await_release(held)
        if self._failed:  # the iteration ends there, and nothing after it is fetched
            raise CancelledError
        try:
            result = self._fetch(entry.item, entry.sampled.result())
        except BaseException:
            self._failed = True
            raise
        entry.sampled = None
        return result

    def _await_release(self, held: Callable[[], Any]) -> None:
        """Waits for the consumer to let a result go, so that the next one can take its memory.

        A loop lets one go as soon as it has the next; who keeps results is waited for once.
        """
        deadline = time.monotonic() + _RELEASE_SECONDS
        while self._awaits_release and held is not _nothing:
            time.sleep(_RELEASE_SECONDS / 200)  # at least once: memory returns a little later
            if held() is None:
                return
            self._awaits_release = time.monotonic() < deadline

    def close(self) -> None:
        if self._process != os.getpid():
            return
        run_outside(self._close)

    def _close(self) -> None:
        if id(self) in _running:
            for executor in (self._fetching, self._sampling):
                executor.shutdown(wait=False, cancel_futures=True)
            for executor in (self._fetching, self._sampling):
                executor.shutdown()
            del _running[id(self)]
        left = [entry.sampled for entry in self.in_flight if entry.sampled is not None]
        self.in_flight.clear()
        self._discard([s.result() for s in left if not s.cancelled() and not s.exception()])

    def _finish(self) -> None:
        try:
            with self.gates[0]:
                self._work.finish()
        except Exception:  # such as of a store that was closed, of which the items before tell
            _log.debug("who was told of items ahead could not be told of the last", exc_info=True)

    def _discard(self, sampled: list[Any]) -> None:
        try:
            self._work.discard(sampled)
        except Exception:  # there may be an error under way already, which tells more
            _log.exception("what was sampled ahead could not be discarded")


def _nothing() -> None:
    return None


def _refer(result: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(result)
    except TypeError:  # of a type without room for it
        return _nothing


class _Origin:
    """Adds to an exception of the body which item and stage it comes from."""

    def __init__(self, item: Any, stage: str) -> None:
        self.item, self.stage = item, stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            raise _retold(error, f"{self.item}, {self.stage}") from error


def _retold(error: Exception, origin: str) -> Exception:
    ends_loops = isinstance(error, (StopIteration, StopAsyncIteration))
    try:
        if isinstance(error, OSError) and error.strerror is not None:  # these lie in no __dict__
            text = f"{origin}: {error.strerror}"
            again: Exception = type(error)(error.errno, text, error.filename, None, error.filename2)
        else:
            again = type(error)(f"{origin}: {error}")
            if isinstance(error, OSError) and isinstance(again, OSError):
                again.errno = error.errno  # which errors of one text may have been given
        again.__dict__.update(error.__dict__)
    except Exception:  # a type that is not made from a text
        ends_loops = True
    if ends_loops:
        return RuntimeError(f"{origin}: {type(error).__name__}: {error}")
    return again


# Standing still --------------------------------------------------------------------------------
# A forked child has only the thread that forked. What another thread holds at that moment, such as
# a lock in C++, would stay held in the child for ever: so stages stand still while the process
# forks. They also do while torch moves tensors into shared memory, which they may be reading.

_FORK_PATIENCE = 5.0  # seconds to wait for a stage, so that no fork waits for ever
_MOVE_PATIENCE = 300.0

_here = threading.local()
_running: weakref.WeakValueDictionary[int, _Stages] = weakref.WeakValueDictionary()


def _enter(stages: int) -> None:
    _here.stages = stages


@contextlib.contextmanager
def stages_paused() -> Iterator[None]:
    """In the body, no stage of any iteration in this process is at work.

    Raises:
        RuntimeError: one does not come to its end.
    """
    gates = _gates()
    held = _hold(gates, _MOVE_PATIENCE)
    try:
        if len(held) < len(gates):
            raise RuntimeError(
                f"a batch is still being made after {_MOVE_PATIENCE:.0f} s, and tensors that it "
                "may read cannot be moved to shared memory: end the iteration before sharing"
            )
        yield
    finally:
        _release(held)


def _gates() -> list[threading.RLock]:
    running = [found for ref in _running.valuerefs() if (found := ref()) is not None]
    return [gate for stages in running for gate in stages.gates]


def _hold(gates: Sequence[threading.RLock], patience: float) -> list[threading.RLock]:
    return [gate for gate in gates if gate.acquire(timeout=patience)]


def _release(gates: Sequence[threading.RLock]) -> None:
    for gate in gates:
        gate.release()


def _before_fork() -> None:
    _here.paused = _hold(_gates(), _FORK_PATIENCE)


def _after_fork() -> None:
    _release(_here.paused)
    del _here.paused


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
