"""Messages between ranks at any time, told to whoever handles them: ``Mailbox``.

A transport's messages are awaited one by one, in an order that both sides know. Here nobody waits:
what another rank sends is handled as it comes. Invariants: messages of one rank to another are
handled in their order; who sends waits for nobody; closing ends all threads, whatever other ranks
do.
"""

from __future__ import annotations

import os
import queue
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from errno import EMFILE, ENFILE, ETIMEDOUT
from functools import partial
from typing import Any, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from gnnsys.errors import ArgumentError, RankFailedError, ResourceError
from gnnsys.ranks.meeting import Meeting
from gnnsys.ranks.rendezvous import interface_to
from gnnsys.system.background import start_thread

__all__ = ["Handler", "Mailbox", "SocketMailbox"]

_HEADER = struct.Struct("<Bqqqq")  # kind, three numbers, bytes of the payload
_HELLO = struct.Struct("<32sq")  # the word that rank 0 drew, and who calls
_PATIENCE = 25.0  # seconds for ranks that have met to call, and then to be called
_LOOK = 0.5  # seconds between two looks at who is alive


class Handler(Protocol):
    """Who takes the messages of a mailbox; called from several threads."""

    def handle(self, source: int, kind: int, numbers: Sequence[int], payload: bytearray) -> None:
        """A message of rank ``source``, which may be this one."""

    def lose(self, rank: int) -> None:
        """A rank has closed its side, or has ended."""


class Mailbox(Protocol):
    """What a rank sends with, and where its messages arrive."""

    rank: int
    world: int

    @property
    def bytes_sent(self) -> int:
        """To other ranks so far."""

    def open(self, handler: Handler) -> None:
        """Begins to hand over messages; what came before is kept."""

    def send(
        self, to: int, kind: int, numbers: tuple[int, int, int], payload: NDArray[Any]
    ) -> None:
        """Sends a message; one to this rank is handled at once. Ranks that have gone get nothing.

        Args:
            kind: from 0 to 254.
            numbers: of 64 bits.
            payload: dense, not changed any more; its bytes are sent.
        """

    def close(self, patience: float = 2.0) -> None:
        """Hands over nothing any more, once what was sent is on its way."""


class SocketMailbox:
    """Messages over connections of the ranks' own: TCP, of which one is between any two ranks.

    All ranks make it together. Ranks of one machine meet on its loopback network; others by the
    interface that gloo uses, too. A connection that does not begin with the word that rank 0 drew
    is not let in.

    Raises:
        RankFailedError: a rank does not come.
        ArgumentError: there is no address at that interface.
        ResourceError: the system refuses a socket or a thread.
    """

    def __init__(self, meeting: Meeting) -> None:
        self.rank, self.world = meeting.rank, meeting.world
        self.one_machine = len(set(meeting.machines)) == 1
        """Whether all ranks see each other's memory."""
        with ExitStack() as opened:
            try:
                server = opened.enter_context(
                    socket.create_server((_address(self.one_machine), 0), backlog=self.world + 128)
                )
                told = meeting.tell((*server.getsockname()[:2], secrets.token_hex(16)))
                word = told[0][2].encode()
                self._peers = _call(told[: self.rank], meeting, word, opened)
                self._peers |= _answer(server, meeting, word, opened)
                for connection in self._peers.values():
                    connection.settimeout(None)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                way_out = "; raise ulimit -n" if error.errno in (EMFILE, ENFILE) else ""
                raise ResourceError(
                    error.errno, f"no connection between ranks: {error.strerror}{way_out}"
                ) from error
            server.close()
            opened.pop_all()
        self._senders: dict[int, _Sender] = {}
        self._threads: list[threading.Thread] = []
        self._handler: Handler | None = None

    @property
    def bytes_sent(self) -> int:
        """See ``Mailbox.bytes_sent``."""
        return sum(sender.bytes_sent for sender in self._senders.values())

    def open(self, handler: Handler) -> None:
        """See ``Mailbox.open``; where it raises, what was begun is there to be closed."""
        self._handler = handler
        for peer, connection in self._peers.items():
            sender = _Sender(connection)
            self._threads.append(start_thread(sender.run, f"gnnsys-send-{peer}"))
            self._senders[peer] = sender
        for peer in self._peers:  # when whoever is told something can answer
            self._threads.append(start_thread(partial(self._listen, peer), f"gnnsys-hear-{peer}"))

    def send(
        self, to: int, kind: int, numbers: tuple[int, int, int], payload: NDArray[Any]
    ) -> None:
        """See ``Mailbox.send``."""
        data = payload.reshape(-1).view(np.uint8).data
        if to == self.rank:
            assert self._handler is not None
            self._handler.handle(to, kind, numbers, bytearray(data))
        else:
            self._senders[to].put(_HEADER.pack(kind, *numbers, len(data)), data)

    def close(self, patience: float = 2.0) -> None:
        """See ``Mailbox.close``.

        Args:
            patience: seconds for what is on its way.
        """
        for sender in self._senders.values():
            sender.end()
        until = time.monotonic() + patience
        for sender in self._senders.values():
            sender.ended.wait(max(0.0, until - time.monotonic()))
        for connection in self._peers.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for connection in self._peers.values():
            connection.close()

    def _listen(self, peer: int) -> None:
        connection, handler = self._peers[peer], self._handler
        assert handler is not None
        header = bytearray(_HEADER.size)
        try:
            while _receive(connection, header):
                kind, *numbers, size = _HEADER.unpack(header)
                payload = bytearray(size)
                if not _receive(connection, payload):
                    break
                handler.handle(peer, kind, numbers, payload)
        finally:
            handler.lose(peer)


class _Sender:
    """What is on its way to one rank, which may be slow or stopped: who sends does not wait."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[tuple[bytes, memoryview] | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.bytes_sent = 0

    def put(self, header: bytes, payload: memoryview) -> None:
        self._queue.put((header, payload))

    def end(self) -> None:
        self._queue.put(None)

    def run(self) -> None:
        try:
            while (message := self._queue.get()) is not None:
                for part in message:
                    self.bytes_sent += len(part)
                    self._connection.sendall(part)
        except OSError:
            pass  # it has gone, of which who listens to it tells
        finally:
            self.ended.set()


def _receive(connection: socket.socket, into: bytearray) -> bool:
    """Fills ``into``; returns whether the connection gave so much."""
    rest = memoryview(into)
    while len(rest):
        try:
            got = connection.recv_into(rest)
        except OSError:
            return False
        if got == 0:
            return False
        rest = rest[got:]
    return True


def _call(
    addresses: Sequence[tuple[str, int, str]], meeting: Meeting, word: bytes, opened: ExitStack
) -> dict[int, socket.socket]:
    """A connection to each of these ranks, which are those before this one."""
    peers = {}
    for other, (host, port, _) in enumerate(addresses):
        try:
            connection = socket.create_connection((host, port), _PATIENCE)
            peers[other] = opened.enter_context(connection)
            connection.sendall(_HELLO.pack(word, meeting.rank))
        except OSError as error:
            time.sleep(_LOOK)
            meeting.check()  # that rank may have told why
            raise OSError(
                error.errno or ETIMEDOUT,
                f"{error.strerror or error} (rank {other} at {host}:{port})",
            ) from error
    return peers


def _answer(
    server: socket.socket, meeting: Meeting, word: bytes, opened: ExitStack
) -> dict[int, socket.socket]:
    """A connection from each rank after this one. Others may call, too, and say what they like, or
    nothing: nobody waits for what they say."""
    peers: dict[int, socket.socket] = {}
    said: dict[socket.socket, bytes] = {}  # by who has not said enough
    until = time.monotonic() + _PATIENCE
    server.setblocking(False)
    try:
        with selectors.PollSelector() as calls:
            calls.register(server, selectors.EVENT_READ)
            while len(peers) < meeting.world - meeting.rank - 1:
                come = calls.select(_LOOK)
                if not come:
                    meeting.check()
                if time.monotonic() > until:
                    later = range(meeting.rank + 1, meeting.world)
                    missing = next(rank for rank in later if rank not in peers)
                    raise RankFailedError(
                        f"rank {missing} does not connect to rank {meeting.rank}", missing
                    )
                for key, _ in come:
                    caller: Any = key.fileobj
                    if caller is server:
                        with suppress(BlockingIOError, ConnectionError):  # it has hung up again
                            caller, _ = server.accept()
                            caller.setblocking(False)
                            said[caller] = b""
                            calls.register(caller, selectors.EVENT_READ)
                        continue
                    more = _heard(caller, _HELLO.size - len(said[caller]))
                    said[caller] += more
                    if more and len(said[caller]) < _HELLO.size:
                        continue
                    calls.unregister(caller)
                    opened.callback(caller.close)
                    hello = said.pop(caller)
                    if more and hello.startswith(word):
                        peers[_HELLO.unpack(hello)[1]] = caller
                    else:
                        caller.close()
    finally:
        for stranger in said:
            stranger.close()
    return peers


def _heard(caller: socket.socket, most: int) -> bytes:
    """What somebody says; nothing of who has hung up."""
    try:
        return caller.recv(most)
    except OSError:
        return b""


def _address(one_machine: bool) -> str:
    """Of this machine, as other ranks reach it."""
    if one_machine:
        return "127.0.0.1"
    asked = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    name = asked or interface_to(os.environ.get("MASTER_ADDR", "127.0.0.1")) or "lo"
    there = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for each in there.get(name, []):
            if each.family == family:
                return each.address
    raise ArgumentError(
        f"GLOO_SOCKET_IFNAME={asked}: no network interface {name} with an address; unset it, or "
        f"name one of {', '.join(there)}"
    )
