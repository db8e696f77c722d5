"""Lookahead: order, back-pressure, exceptions and ends of work done in threads."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from gnnsys.loaders import lookahead
from gnnsys.loaders.lookahead import Lookahead

WINDOWS = [0, 1, 2, 5, 50]


class Log:
    """Work that notes what is done where, and does it as slowly or as badly as asked for."""

    def __init__(self, *, seconds: float = 0.0, fails: dict[tuple[str, int], Any] | None = None):
        self.seconds = seconds
        self.fails = fails or {}
        self.sampled: list[int] = []
        self.fetched: list[int] = []
        self.discarded: list[int] = []
        self.sampled_at_finish: list[int] = []
        self.threads: set[tuple[str, str]] = set()

    def _do(self, stage: str, item: int) -> None:
        self.threads.add((stage, threading.current_thread().name))
        time.sleep(self.seconds)
        if (stage, item) in self.fails:
            raise self.fails[stage, item]

    def sample(self, item: int) -> int:
        self._do("sample", item)
        self.sampled.append(item)
        return item

    def finish(self) -> None:
        self.sampled_at_finish.append(len(self.sampled))

    def fetch(self, sampled: int) -> int:
        self._do("fetch", sampled)
        self.fetched.append(sampled)
        return sampled * 10

    def discard(self, sampled: Sequence[int]) -> None:
        self.discarded += sampled


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("window", WINDOWS)
def test_results_come_in_order_and_each_item_once(window: int) -> None:
    work = Log()
    assert list(Lookahead(range(23), work, window=window)) == [10 * i for i in range(23)]
    assert work.sampled == work.fetched == list(range(23))
    assert work.sampled_at_finish in ([], [23])  # which the end of the iteration may overtake
    assert work.discarded == []


def test_work_is_told_of_the_last_item_before_it_is_taken() -> None:
    work = Log()
    ahead = Lookahead(range(5), work, window=3)
    while len(work.fetched) < 4:
        next(ahead)
    ahead._stages._sampling.submit(lambda: None).result()
    assert work.sampled_at_finish == [5]
    ahead.close()
    left = Log()
    Lookahead(range(5), left, window=3).close()
    assert left.sampled_at_finish == []


def test_a_window_that_changes_counts_from_the_next_step_on() -> None:
    work, size = Log(), [1]
    ahead = Lookahead(range(30), work, window=lambda: size[0])
    assert next(ahead) == 0
    assert len(work.sampled) <= 1 + 1
    for size[0], most in [(6, 8), (2, 8), (2, 8)]:
        next(ahead)
        time.sleep(0.01)
        assert len(work.sampled) <= most
    assert list(ahead) == [10 * i for i in range(4, 30)]
    assert work.sampled == work.fetched == list(range(30))


@pytest.mark.parametrize("window", WINDOWS)
def test_no_items_end_at_once(window: int) -> None:
    ahead = Lookahead([], Log(), window=window)
    assert list(ahead) == list(ahead) == []


def test_stages_run_in_threads_of_their_own_and_without_a_window_in_the_consumers() -> None:
    ahead, here = Log(), Log()
    list(Lookahead(range(9), ahead, window=3))
    list(Lookahead(range(9), here, window=0))
    assert {(stage, name.split("_")[0]) for stage, name in ahead.threads} == {
        ("sample", "gnnsys-sample"),
        ("fetch", "gnnsys-fetch"),
    }
    assert len(ahead.threads) == 2
    assert {name for _, name in here.threads} == {threading.current_thread().name}


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_slow_consumer_finds_window_items_sampled_and_one_fetched(window: int) -> None:
    work = Log()
    for taken, _ in enumerate(Lookahead(range(30), work, window=window), start=1):
        time.sleep(0.01)
        assert len(work.sampled) <= taken + window
        assert len(work.fetched) <= taken + 1
        if taken < 10:  # the window is used, too
            deadline = time.monotonic() + 5
            while len(work.sampled) < taken + window and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(work.sampled) == taken + window


def test_items_are_drawn_in_the_consumers_thread_one_for_each_taken() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for item in range(12):
            drawn.append(threading.get_ident())
            yield item

    ahead = Lookahead(items(), Log(), window=4)
    for taken in range(1, 7):
        next(ahead)
        assert len(drawn) == taken + 4
    assert set(drawn) == {threading.get_ident()}
    ahead.close()


class PairError(Exception):
    """Cannot be made from one text."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(left, right)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("stage", ["sample", "fetch"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("bad row"), ValueError),
        (KeyError("lost"), KeyError),
        (OSError(5, "broken disk"), OSError),
        (PairError(1, 2), RuntimeError),
        (StopIteration(3), RuntimeError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_is_raised_at_its_item_with_its_origin_and_ends_the_iteration(
    window: int, stage: str, error: Exception, kind: type[Exception]
) -> None:
    ahead = Lookahead(range(9), Log(fails={(stage, 4): error}), window=window)
    assert [next(ahead) for _ in range(4)] == [0, 10, 20, 30]
    with pytest.raises(kind, match=rf"4, {stage[:5]}.*ing") as caught:
        next(ahead)
    assert caught.value.__cause__ is error
    assert type(caught.value) is kind
    assert list(ahead) == []


@pytest.mark.parametrize("window", WINDOWS)
def test_an_exception_of_the_items_comes_after_what_was_before_it(window: int) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no more order")

    ahead = Lookahead(items(), Log(), window=window)
    assert [next(ahead) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(LookupError, match="no more order"):
        next(ahead)
    assert list(ahead) == []


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("how", ["close", "del", "break"])
def test_what_was_sampled_and_not_fetched_is_discarded_in_order_when_it_stops(
    window: int, how: str
) -> None:
    work = Log()
    ahead = Lookahead(range(99), work, window=window)
    for _ in range(5):
        next(ahead)
    if how == "close":
        ahead.close()
    elif how == "break":
        for _ in ahead:
            break
    del ahead
    assert work.fetched == list(range(len(work.fetched)))
    assert work.fetched + work.discarded == work.sampled
    assert len(work.sampled) <= 6 + window


def test_what_failed_to_be_fetched_is_discarded_with_what_follows() -> None:
    for window in WINDOWS:
        work = Log(fails={("fetch", 2): ValueError("no")})
        with pytest.raises(ValueError, match="no"):
            list(Lookahead(range(20), work, window=window))
        assert work.discarded == work.sampled[2:]


def test_a_cycle_around_the_iterator_does_not_keep_its_threads() -> None:
    class Holder:
        pass

    holder = Holder()
    holder.ahead = Lookahead(range(99), Log(), window=3)  # type: ignore[attr-defined]
    holder.itself = holder  # type: ignore[attr-defined]
    next(holder.ahead)  # type: ignore[attr-defined]
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None


def test_an_iterator_collected_in_a_thread_of_its_own_ends() -> None:
    """The last reference may be dropped by a stage, which cannot wait for itself."""
    box: list[Any] = []
    dropped = threading.Event()

    class Dropping(Log):
        def fetch(self, sampled: int) -> int:
            if sampled == 1:
                box.clear()
                dropped.set()
            return super().fetch(sampled)

    before = set(threading.enumerate())
    work = Dropping()
    box.append(Lookahead(range(99), work, window=3))
    box[0].__next__()
    assert dropped.wait(5)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert work.fetched + work.discarded == work.sampled


def test_a_timeout_raises_and_names_the_item() -> None:
    ahead = Lookahead(range(3), Log(seconds=0.4), window=1, timeout=0.05)
    with pytest.raises(RuntimeError, match=r"0: .*timeout=0\.05"):
        next(ahead)
    assert list(Lookahead(range(3), Log(), window=2, timeout=30)) == [0, 10, 20]


def test_several_iterations_at_once_do_not_disturb_each_other() -> None:
    many = [Lookahead(range(30), Log(), window=window) for window in WINDOWS]
    for expected in range(30):
        assert [next(ahead) for ahead in many] == [10 * expected] * len(many)
    assert [list(ahead) for ahead in many] == [[]] * len(many)


def consume(ahead: Iterator[Any], threads: int) -> list[list[Any]]:
    """What each of several threads got, or the exception that it ended with."""
    found: list[list[Any]] = [[] for _ in range(threads)]

    def run(mine: list[Any]) -> None:
        try:
            mine.extend(ahead)
        except Exception as error:
            mine.append(error)

    consumers = [threading.Thread(target=run, args=(mine,)) for mine in found]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join(timeout=30)
        assert not consumer.is_alive(), "a consumer hangs"
    return found


@pytest.mark.parametrize("window", WINDOWS)
def test_threads_that_share_an_iterator_get_each_result_once_and_in_order(window: int) -> None:
    work = Log(seconds=0.0002)
    found = consume(Lookahead(iter(range(300)), work, window=window), threads=4)
    assert all(mine == sorted(mine) for mine in found)
    assert sorted(chain(*found)) == [10 * item for item in range(300)]
    assert work.sampled == work.fetched == list(range(300))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("stage", ["sample", "fetch"])
def test_an_error_ends_an_iterator_that_threads_share_and_is_told_to_one(
    stage: str, window: int
) -> None:
    work = Log(seconds=0.0002, fails={(stage, 60): KeyError("broken")})
    found = list(chain(*consume(Lookahead(range(300), work, window=window), threads=4)))
    errors = [result for result in found if isinstance(result, Exception)]
    assert [type(error) for error in errors] == [KeyError]
    results = [result for result in found if not isinstance(result, Exception)]
    assert sorted(results) == [10 * item for item in range(60)]


@pytest.mark.parametrize("window", WINDOWS)
def test_one_thread_may_close_what_another_waits_for(window: int) -> None:
    for _ in range(20):
        ahead = Lookahead(range(10_000), Log(seconds=0.0005), window=window)
        closer = threading.Timer(0.01, ahead.close)
        closer.start()
        found = list(chain(*consume(ahead, threads=2)))
        closer.join()
        assert not any(isinstance(result, Exception) for result in found)
        assert sorted(found) == [10 * item for item in range(len(found))]


def run_in_fork(body: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            code = body()
        except BaseException:
            code = 99
        os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_iterates_by_itself_and_its_parent_goes_on() -> None:
    work = Log(seconds=0.002)
    ahead = Lookahead(range(40), work, window=4)
    found = [next(ahead) for _ in range(5)]

    def body() -> int:
        with pytest.raises(RuntimeError, match=r"iter\(loader\)"):
            next(ahead)
        ahead.close()
        assert work.discarded == []  # they are the parent's
        fresh = list(Lookahead(range(7), Log(), window=3))
        return 7 if fresh == [10 * i for i in range(7)] else 1

    for _ in range(5):
        assert run_in_fork(body) == 7
        found.append(next(ahead))
    assert found + list(ahead) == [10 * i for i in range(40)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_until_no_stage_is_at_work() -> None:
    """What a stage holds while the process forks would be held in the child for ever."""
    lock = threading.Lock()

    class Locking(Log):
        def sample(self, item: int) -> int:
            with lock:
                return super().sample(item)

        def fetch(self, sampled: int) -> int:
            with lock:
                return super().fetch(sampled)

    ahead = Lookahead(range(1000), Locking(seconds=0.001), window=4)

    def body() -> int:
        return 0 if lock.acquire(timeout=2) else 1

    for _ in range(20):
        next(ahead)
        assert run_in_fork(body) == 0
    ahead.close()


def test_the_interpreter_exits_while_an_iteration_is_under_way(tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys, time\n"
        # The module alone: its package imports torch, which takes seconds.
        f"spec = importlib.util.spec_from_file_location('lookahead', {lookahead.__file__!r})\n"
        "module = sys.modules['lookahead'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "class Work:\n"
        "    def sample(self, item): time.sleep(0.01); return item\n"
        "    def finish(self): pass\n"
        "    def fetch(self, sampled): time.sleep(0.01); return sampled\n"
        "    def discard(self, sampled): print('discarded', len(sampled) > 0)\n"
        "ahead = module.Lookahead(range(1000), Work(), window=4)\n"
        "print(next(ahead), next(ahead))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["0 1", "discarded True"]


def test_an_oserror_keeps_its_number_and_its_file() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.npy")
    ahead = Lookahead(range(3), Log(fails={("fetch", 0): error}), window=2)
    with pytest.raises(FileNotFoundError, match=r"0, fetch.*rows\.npy") as caught:
        next(ahead)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "rows.npy"
