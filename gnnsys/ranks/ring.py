"""The sum of a tensor over ranks, by sends around a ring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnnsys.ranks.transport import Transport, Work

__all__ = ["ring_all_reduce"]


def ring_all_reduce(
    transport: Transport, flat: Tensor, ranks: Sequence[int], kind: str = "weight"
) -> Work[None]:
    """Adds up a tensor over ranks, in place.

    Reduce-scatter, then all-gather (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms
    for clusters of workstations", JPDC 2009): the tensor is cut into as many parts as there are
    ranks, about equal and perhaps empty, and each goes around once to be summed and once to be
    handed out. All ranks together send ``2 (n - 1)`` times the tensor, and end with the same bits.

    Args:
        flat: (P,) contiguous; of the same length on all ranks.
        ranks: in the order of the ring; the transport's own among them.
        kind: as which its bytes count.
    """
    count, place = len(ranks), ranks.index(transport.rank)
    after, before = ranks[(place + 1) % count], ranks[place - 1]
    bounds = [len(flat) * i // count for i in range(count + 1)]
    parts = [flat[bounds[i] : bounds[i + 1]] for i in range(count)]
    for step in range(2 * (count - 1)):
        gone, come = parts[(place - step) % count], parts[(place - step - 1) % count]
        transport.send(gone, after, kind)
        into = torch.empty_like(come)
        yield transport.receive(into, before, kind)
        transport.flush()  # what is sent may be overwritten in the next round but one
        if step < count - 1:
            come += into
        else:
            come.copy_(into)
