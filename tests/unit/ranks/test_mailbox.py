"""Messages between ranks, over connections of their own."""

from __future__ import annotations

import errno
import gc
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from gnnsys.errors import ArgumentError, GnnsysError, RankFailedError, ResourceError
from gnnsys.ranks import mailbox
from gnnsys.ranks.mailbox import SocketMailbox


class Meeting:
    """A meeting of threads; strangers call each rank before the others do."""

    def __init__(
        self, rank: int, world: int, told: dict[int, list[Any]], all_here: threading.Barrier
    ) -> None:
        self.rank, self.world, self._told, self._all_here = rank, world, told, all_here
        self._topic, self.machines = 0, ["here"] * world
        self.strangers: list[socket.socket] = []

    def tell(self, value: Any) -> list[Any]:
        values = self._told.setdefault(self._topic, [None] * self.world)
        self._topic += 1
        values[self.rank] = value
        if isinstance(value, tuple):  # an address
            for says in STRANGERS:
                self.strangers.append(socket.create_connection(value[:2]))
                self.strangers[-1].sendall(says)
            self.strangers.pop(0).close()
        with suppress(threading.BrokenBarrierError):
            self._all_here.wait(20)
        self.check()
        return list(values)

    def check(self) -> None:
        if self._all_here.broken:
            raise RankFailedError("rank 1: cannot go on", 1)


class Inbox:
    def __init__(self) -> None:
        self.come: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def handle(self, source: int, kind: int, numbers: Sequence[int], payload: bytearray) -> None:
        self.come.put((source, kind, tuple(numbers), bytes(payload)))

    def lose(self, rank: int) -> None:
        self.come.put(rank)


STRANGERS = (
    b"",  # hangs up
    b"",  # is silent
    b"hello",  # and then silent
    b"GET / HTTP/1.1\r\nHost: a-rank-that-is-none.example\r\n\r\n",
    struct.pack("<32sq", b"0" * 32, 1),  # of an older run
)


def make_mailboxes(world: int, work: Callable[[int, Meeting], Any]) -> list[Any]:
    """What each of so many ranks makes, or the error that it raises."""
    told: dict[int, list[Any]] = {}
    all_here = threading.Barrier(world)
    made: list[Any] = [None] * world

    def make(rank: int) -> None:
        meeting = Meeting(rank, world, told, all_here)
        try:
            made[rank] = work(rank, meeting)
        except GnnsysError as error:
            made[rank] = error
            all_here.abort()
        finally:
            for stranger in meeting.strangers:
                stranger.close()

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return made


@pytest.fixture
def pair() -> Any:
    made = make_mailboxes(2, lambda rank, meeting: SocketMailbox(meeting))  # type: ignore[arg-type]
    yield made
    for each in made:
        each.close(0.0)


def test_messages_come_whole_and_in_order_and_strangers_are_not_let_in(pair: Any) -> None:
    inboxes = [Inbox(), Inbox()]
    payloads = [np.arange(n, dtype=np.int32) for n in (0, 3, 1 << 20)]  # more than a socket holds
    pair[0].open(inboxes[0])
    for number, payload in enumerate(payloads):
        pair[0].send(1, 7, (number, -1, 1 << 40), payload)  # nobody listens yet, and none waits
    pair[0].send(0, 8, (1, 2, 3), payloads[1])
    pair[1].open(inboxes[1])
    for number, payload in enumerate(payloads):
        assert inboxes[1].come.get(timeout=20) == (0, 7, (number, -1, 1 << 40), payload.tobytes())
    assert inboxes[0].come.get(timeout=20) == (0, 8, (1, 2, 3), payloads[1].tobytes())
    assert pair[0].bytes_sent == 3 * 33 + sum(payload.nbytes for payload in payloads)
    pair[1].close()
    assert inboxes[0].come.get(timeout=20) == 1
    pair[0].send(1, 7, (0, 0, 0), payloads[2])  # to one that has gone
    pair[0].close()


def test_an_interface_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nix0")
    with pytest.raises(
        ArgumentError,
        match=r"GLOO_SOCKET_IFNAME=nix0: no network interface nix0 .* name one of .*lo",
    ):
        mailbox._address(one_machine=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert mailbox._address(one_machine=False) == "127.0.0.1"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ranks_that_call_in_any_order_are_told_apart() -> None:
    def make(rank: int, meeting: Any) -> SocketMailbox:
        made = SocketMailbox(meeting)
        made.open(inboxes[rank])
        return made

    inboxes = [Inbox() for _ in range(5)]
    made = make_mailboxes(5, make)
    for rank, mailbox_of in enumerate(made):
        for to in range(5):
            mailbox_of.send(to, 1, (rank, 0, 0), np.empty(0, np.uint8))
    for inbox in inboxes:
        found = sorted(inbox.come.get(timeout=20) for _ in range(5))
        assert [(source, numbers[0]) for source, _, numbers, _ in found] == [
            (r, r) for r in range(5)
        ]
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("refused", "code"),
    [("create_server", errno.EMFILE), ("create_connection", errno.ECONNREFUSED)],
)
def test_a_rank_that_gets_no_socket_ends_all_and_leaves_none(
    monkeypatch: pytest.MonkeyPatch, refused: str, code: int
) -> None:
    right = getattr(socket, refused)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread().name == "rank 1":
            raise OSError(code, os.strerror(code))
        return right(*arguments, **options)

    def make(rank: int, meeting: Any) -> SocketMailbox:
        threading.current_thread().name = f"rank {rank}"
        return SocketMailbox(meeting)

    gc.collect()
    before = open_descriptors()
    monkeypatch.setattr(mailbox.socket, refused, refuse)
    monkeypatch.setattr(mailbox, "_LOOK", 0.05)
    ends = make_mailboxes(3, make)
    assert open_descriptors() == before
    assert isinstance(ends[1], ResourceError)
    assert f"no connection between ranks: {os.strerror(code)}" in str(ends[1])
    assert isinstance(ends[0], RankFailedError)
    assert isinstance(ends[2], RankFailedError)
