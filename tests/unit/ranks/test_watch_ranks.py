"""Who watches the ranks when a process group is followed by another."""

from __future__ import annotations

import threading

import torch.distributed as dist

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
