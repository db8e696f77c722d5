"""Messages between ranks, over connections of their own."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gnnsys.errors import ArgumentError
from gnnsys.ranks import mailbox
from gnnsys.ranks.mailbox import SocketMailbox


class Meeting:
    """A meeting of threads."""

    def __init__(self, rank: int, world: int, told: dict[int, list[Any]], all_here: Any) -> None:
        self.rank, self.world, self._told, self._all_here = rank, world, told, all_here
        self._topic = 0

    def tell(self, value: Any) -> list[Any]:
        values = self._told.setdefault(self._topic, [None] * self.world)
        self._topic += 1
        values[self.rank] = value
        if isinstance(value, tuple) and self.rank == 0:  # an address: a stranger calls there first
            with socket.create_connection(value[:2]) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\nHost: a-rank-that-is-none.example\r\n\r\n")
        self._all_here.wait(20)
        return list(values)


class Inbox:
    def __init__(self) -> None:
        self.come: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def handle(self, source: int, kind: int, numbers: Sequence[int], payload: bytearray) -> None:
        self.come.put((source, kind, tuple(numbers), bytes(payload)))

    def lose(self, rank: int) -> None:
        self.come.put(rank)


@pytest.fixture
def pair() -> Any:
    told: dict[int, list[Any]] = {}
    all_here = threading.Barrier(2)
    made: dict[int, SocketMailbox] = {}

    def make(rank: int) -> None:
        made[rank] = SocketMailbox(Meeting(rank, 2, told, all_here))  # type: ignore[arg-type]

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    yield made
    for each in made.values():
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
