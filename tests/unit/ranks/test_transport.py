"""Messages between ranks of one process, and the ring's sum."""

from __future__ import annotations

import pytest
import torch

from gnnsys.errors import GnnsysError
from gnnsys.ranks.local_hub import LocalHub
from gnnsys.ranks.ring import ring_all_reduce
from gnnsys.ranks.transport import all_gather_objects


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("length", [0, 1, 5, 64, 101])
def test_the_ring_adds_up_and_sends_what_the_formula_says(world: int, length: int) -> None:
    hub = LocalHub(world)
    draw = torch.Generator().manual_seed(world)
    parts = [torch.randn(length, generator=draw, dtype=torch.float64) for _ in range(world)]
    wanted = torch.stack(parts).sum(0)
    ring = list(range(world))
    hub.drive([ring_all_reduce(t, parts[t.rank], ring) for t in hub.transports])
    for part in parts:
        torch.testing.assert_close(part, wanted, rtol=1e-13, atol=1e-13)
        assert torch.equal(part, parts[0])
    sent = sum(t.ledger.bytes["weight"] for t in hub.transports)
    assert sent == 2 * (world - 1) * length * 8


def test_messages_of_a_pair_keep_their_order_and_are_copies() -> None:
    hub = LocalHub(2)
    first, second = torch.zeros(3), torch.zeros(3)

    def sender(transport):
        message = torch.ones(3)
        transport.send(message, 1, "layer")
        message.fill_(2)
        transport.send(message, 1, "graph")
        yield from ()

    def receiver(transport):
        waits = [transport.receive(into, 0, "layer") for into in (first, second)]
        yield from waits
        return "done"

    assert hub.drive([sender(hub.transports[0]), receiver(hub.transports[1])]) == [None, "done"]
    assert first.tolist() == [1.0] * 3
    assert second.tolist() == [2.0] * 3
    assert hub.transports[0].ledger.as_dict()["bytes"] == {"layer": 12, "graph": 12}
    assert hub.transports[1].ledger.as_dict()["messages"] == {}


def test_empty_tensors_are_not_sent() -> None:
    hub = LocalHub(2)

    def work(transport):
        transport.send(torch.empty(0, 4), 1 - transport.rank, "layer")
        yield transport.receive(torch.empty(0, 4), 1 - transport.rank, "layer")

    hub.drive([work(transport) for transport in hub.transports])
    assert not hub.transports[0].ledger.bytes


def test_ranks_that_wait_for_each_other_are_told_of() -> None:
    hub = LocalHub(2)

    def work(transport):
        yield transport.receive(torch.empty(1), 1 - transport.rank, "layer")

    with pytest.raises(GnnsysError, match=r"ranks \[0, 1\] wait for what no rank will send"):
        hub.drive([work(transport) for transport in hub.transports])


def test_a_message_of_another_shape_is_refused() -> None:
    hub = LocalHub(2)

    def sender(transport):
        transport.send(torch.ones(2), 1, "layer")
        yield from ()

    def receiver(transport):
        yield transport.receive(torch.empty(3), 0, "layer")

    with pytest.raises(GnnsysError, match=r"received \(2,\) of torch.float32 where \(3,\)"):
        hub.drive([sender(hub.transports[0]), receiver(hub.transports[1])])


def test_objects_of_all_ranks_come_to_all() -> None:
    hub = LocalHub(3)
    work = [
        all_gather_objects(t, {"rank": t.rank, "x": "y" * t.rank}, "control")
        for t in hub.transports
    ]
    wanted = [{"rank": rank, "x": "y" * rank} for rank in range(3)]
    assert hub.drive(work) == [wanted] * 3
