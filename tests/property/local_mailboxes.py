"""Mailboxes of ranks that share a process: threads that hand messages on, as sockets would."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.ranks.mailbox import Handler


class LocalMailbox:
    """One rank's; messages to it come one after the other from a thread of its own."""

    def __init__(self, rank: int, mailboxes: list[LocalMailbox]) -> None:
        self.rank, self.world = rank, len(mailboxes)
        self._mailboxes = mailboxes
        self._come: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.bytes_sent = 0

    @classmethod
    def of(cls, world: int) -> list[LocalMailbox]:
        mailboxes: list[Any] = [None] * world
        mailboxes[:] = [cls(rank, mailboxes) for rank in range(world)]
        return mailboxes

    def open(self, handler: Handler) -> None:
        def run() -> None:
            while (message := self._come.get()) is not None:
                if len(message) == 1:
                    handler.lose(message[0])
                else:
                    handler.handle(*message)

        self._handler = handler
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def send(
        self, to: int, kind: int, numbers: tuple[int, int, int], payload: NDArray[Any]
    ) -> None:
        message = self.rank, kind, numbers, bytearray(payload.reshape(-1).view(np.uint8).data)
        if to == self.rank:
            self._handler.handle(*message)
        else:
            self._mailboxes[to]._come.put(message)
            self.bytes_sent += payload.nbytes

    def close(self, patience: float = 5.0) -> None:
        for other in self._mailboxes:
            if other is not self:
                other._come.put((self.rank,))
        self._come.put(None)
        if self._thread is not None:
            self._thread.join()
