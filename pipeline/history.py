"""The rows that one aggregation reads: current ones, their snapshot, and their gradients.

Two buffers do for all three: once the forward of an epoch is over, either the current rows or the
snapshot are never read again, and the gradients take their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gnnsys.pipeline.way_graph import WayGraph

__all__ = ["Reads", "RowHistory", "reads_in_order"]

# R local rows: those of the way, then its halo. N rows of a chunk, M of its sources. C columns.


@dataclass(frozen=True, slots=True)
class Reads:
    """What a chunk reads in an epoch, by the order of its slots."""

    sources: Tensor
    """(M,) local rows; the chunk's own are first."""

    snapshot: Tensor
    """(M,) bool: whether the row is of a later slot, so that it is read from the snapshot."""

    earlier: Tensor
    """(E,) positions in ``sources`` of rows of earlier slots."""

    same: Tensor
    """(P,) those of other ways' rows of the same slot."""

    num_own: int


def reads_in_order(graph: WayGraph, order: list[int]) -> list[Reads]:
    """What each chunk of a way reads when the slots come in ``order``.

    >>> from gnnsys.pipeline.partition import partition_graph
    >>> from gnnsys.pipeline.way_graph import make_way_graph
    >>> edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    >>> graph = make_way_graph(edges, 4, partition_graph(edges, 4, 2))
    >>> [int(reads.snapshot.sum()) for reads in reads_in_order(graph, [1, 0])]
    [0, 1]
    """
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(len(order))
    found = []
    for chunk, block in enumerate(graph.blocks):
        own = block.rows.stop - block.rows.start
        when = place.to(block.source_chunk.device)[block.source_chunk]
        others = torch.arange(len(when), device=when.device) >= own
        found.append(
            Reads(
                sources=block.sources,
                snapshot=when > place[chunk],
                earlier=torch.nonzero(when < place[chunk]).view(-1),
                same=torch.nonzero((when == place[chunk]) & others).view(-1),
                num_own=own,
            )
        )
    return found


class RowHistory:
    """Buffers of one aggregation over the rows of a way.

    Args:
        num_own: rows of the way.
        num_halo: rows of other ways that its chunks read.
        width: columns.
        like: a tensor of the dtype and the device.
    """

    def __init__(self, num_own: int, num_halo: int, width: int, like: Tensor) -> None:
        self.width = width
        self._num_own = num_own
        self._pair = like.new_zeros(2, num_own + num_halo, width)  # (2, R, C)
        self._now = 0
        self._token = like.new_zeros(()).requires_grad_()
        self.change = self.size = self._token.detach()
        """Squared norms of the rows written in this epoch less their snapshot, and of the rows."""

    @property
    def current(self) -> Tensor:
        """(R, C): rows of this epoch where their slot was done; gradients after ``end_forward``."""
        return self._pair[self._now]

    @property
    def snapshot(self) -> Tensor:
        """(R, C): rows of an earlier epoch."""
        return self._pair[1 - self._now]

    def begin_epoch(self) -> None:
        """Forgets how far the rows are from the snapshot."""
        self.change, self.size = self._token.detach(), self._token.detach()

    def write(self, rows: slice, values: Tensor) -> Tensor:
        """Makes rows of the way current.

        Args:
            rows: of the way, and ``values`` (N, C).

        Returns:
            A number, 0, that stands for them: autograd's way to ``values``, which are not kept.
            Its backward hands on the gradients that the rows then have.
        """
        with torch.no_grad():
            self.current[rows] = values
            self.change = self.change + (values - self.snapshot[rows]).square_().sum()
            self.size = self.size + values.square().sum()
        return _Write.apply(values, self, rows)

    def own(self, rows: slice, values: Tensor) -> Tensor:
        """(N, C): ``values``, for the chunk's own use. In backward, gradients are added as in
        ``read``."""
        return _Own.apply(self._token, values.detach(), self, rows)

    def read(self, reads: Reads, gamma: float) -> Tensor:
        """(M, C): the rows that a chunk aggregates, current or of the snapshot.

        Gradients of current rows are added to ``current`` in backward, which must come after
        ``end_forward``: times gamma for those of earlier slots. They are not kept by autograd.
        """
        return _Read.apply(self._token, self, reads, gamma)

    def end_forward(self, refresh: bool) -> None:
        """Keeps the current rows as the snapshot, or not; makes room for the gradients."""
        if refresh:
            self._now = 1 - self._now
        self.current.zero_()

    def gather(self, reads: Reads) -> Tensor:
        """(M, C), without autograd."""
        length = self._pair.shape[1]
        bases = torch.where(reads.snapshot, 1 - self._now, self._now) * length
        return self._pair.view(-1, self.width).index_select(0, reads.sources + bases)

    def add_gradients(self, reads: Reads, gradients: Tensor, gamma: float) -> None:
        """Adds gradients of what was read to those of the rows."""
        target, own = self.current, reads.num_own
        first = int(reads.sources[0]) if own else 0
        target[first : first + own] += gradients[:own]
        for places, factor in ((reads.same, 1.0), (reads.earlier, gamma)):
            if len(places):
                chosen = gradients.index_select(0, places)
                if factor != 1:
                    chosen.mul_(factor)  # faster than index_add_'s alpha
                target.index_add_(0, reads.sources.index_select(0, places), chosen)


class _Write(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, history: RowHistory, rows: slice) -> Tensor:
        ctx.history, ctx.rows = history, rows
        return values.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.history.current[ctx.rows], None, None


class _Own(Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor, values: Tensor, history: RowHistory, rows: slice
    ) -> Tensor:
        ctx.history, ctx.rows = history, rows
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        ctx.history.current[ctx.rows] += gradients
        return None, None, None, None


class _Read(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, history: RowHistory, reads: Reads, gamma: float) -> Tensor:
        ctx.history, ctx.reads, ctx.gamma = history, reads, gamma
        return history.gather(reads)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        ctx.history.add_gradients(ctx.reads, gradients, ctx.gamma)
        return None, None, None, None
