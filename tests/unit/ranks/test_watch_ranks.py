"""Who watches the ranks, what counts as gone, and what ranks are told that meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from gnnsys.errors import RankFailedError
from gnnsys.ranks import liveness, meeting
from gnnsys.ranks.distributed import watch_ranks
from gnnsys.ranks.liveness import Liveness


def watch_a_new_group() -> Liveness:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        found = watch_ranks()
        assert watch_ranks() is found
        return found
    finally:
        dist.destroy_process_group()


def test_a_new_process_group_is_watched_anew() -> None:
    first, second = watch_a_new_group(), watch_a_new_group()
    second.stop()
    assert first is not second
    assert not [each for each in threading.enumerate() if each.name == "gnnsys-liveness"]


class StoppedStore:
    """A store whose host can be stopped, so that it never answers, and then goes on."""

    def __init__(self) -> None:
        self.store = dist.HashStore()
        self.answers = threading.Event()
        self.answers.set()

    def clone(self) -> StoppedStore:
        return self

    def __getattr__(self, name: str) -> Any:
        self.answers.wait()
        return getattr(self.store, name)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoppedStore]:
    store = StoppedStore()
    # PrefixStore takes stores of torch only.
    monkeypatch.setattr(liveness, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(meeting, "PrefixStore", lambda prefix, store: store)
    yield store
    store.answers.set()


def beat(store: StoppedStore, rank: int, number: int) -> None:
    store.set(f"beat/{rank}", f"beat {number} 0")


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_store_that_does_not_answer_stands_for_the_first_rank(stopped: StoppedStore) -> None:
    watched = Liveness(stopped, 1, 2, 0.02, 0.3)  # type: ignore[arg-type]
    beat(stopped, 0, 1)
    stopped.answers.clear()
    begun = time.monotonic()
    wait_until(lambda: watched.failed == 0)
    assert time.monotonic() - begun > 0.3
    stopped.answers.set()
    watched.stop()


def test_a_rank_that_was_stopped_itself_blames_nobody(
    stopped: StoppedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, slept = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + slept[0])
    watched = Liveness(stopped, 1, 3, 0.02, 0.5)  # type: ignore[arg-type]
    for rank in (0, 2):
        beat(stopped, rank, 1)
    time.sleep(0.1)
    slept[0] = 100.0  # as after SIGCONT
    time.sleep(0.1)
    assert watched.failed is None
    for rank in (0, 2):
        beat(stopped, rank, 2)
    time.sleep(0.1)
    assert watched.failed is None
    stopped.set("beat/2", "done")
    wait_until(lambda: watched.has_ended(2))
    wait_until(lambda: watched.failed == 0)  # is silent from here on
    watched.stop()


def test_who_does_not_come_to_a_meeting_is_named_soon(
    stopped: StoppedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Liveness(stopped, 1, 3, 0.02, 0.3)  # type: ignore[arg-type]
    monkeypatch.setattr(meeting, "watch_ranks", lambda: watched)
    monkeypatch.setattr(meeting, "default_store", lambda: stopped)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)

    monkeypatch.setattr(meeting, "_TELL_WITHIN", 0.1)
    undone: list[int] = []

    def meet(work: Callable[[meeting.Meeting], object]) -> None:
        with meeting.Meeting("meet", patience=60.0) as told:
            told.undo.callback(undone.append, 1)
            work(told)

    stopped.set("0/0", "7")
    stopped.set("beat/2", "done")  # its process has ended, without a word
    with pytest.raises(RankFailedError, match="rank 2 of 3 does not come to meet"):
        meet(lambda told: told.tell(8))
    assert stopped.get("failed").startswith(b"rank 2 of 3 does not come to meet")
    assert undone == [1]
    stopped.delete_key("failed")
    with pytest.raises(ZeroDivisionError):
        meet(lambda told: 1 // 0)
    assert stopped.get("failed") == b"rank 1: integer division or modulo by zero"
    with pytest.raises(RankFailedError, match="rank 1: integer division or modulo by zero"):
        meet(lambda told: told.check())
    stopped.delete_key("failed")
    meet(lambda told: told.check())
    assert undone == [1, 1, 1]
    with pytest.raises(RankFailedError, match="rank 0 of 3 does not come to meet"):
        meet(lambda told: (stopped.answers.clear(), told.tell(8)))
    stopped.answers.set()
    watched.stop()
