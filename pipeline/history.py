"""The rows that one aggregation reads: current ones, their snapshot, and their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gnnsys.pipeline.way_graph import WayGraph

__all__ = ["LayerRows", "PassingRows", "Reads", "RowHistory", "reads_in_order"]

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


class LayerRows(ABC):
    """The rows that one aggregation reads, and after the forward of an epoch their gradients.

    Args:
        num_own: rows of the way.
        num_halo: rows of other ways that its chunks read.
        width: columns.
        like: a tensor of the dtype and the device.
    """

    def __init__(self, num_own: int, num_halo: int, width: int, like: Tensor) -> None:
        self._shape = num_own + num_halo, width
        self._like = like
        self._token = like.new_zeros(())
        self.change = self.size = self._token
        """Squared norms of the rows written in this epoch less their snapshot, and of the rows."""

    def new_rows(self) -> Tensor:
        """(R, C), of no values yet."""
        return self._like.new_empty(self._shape)

    def write(self, rows: slice, values: Tensor) -> Tensor:
        """Makes rows of the way current.

        Args:
            rows: of the way, and ``values`` (N, C).

        Returns:
            A number, 0, that stands for them: autograd's way to ``values``, which are not kept.
            Its backward hands on the gradients that the rows then have.
        """
        self.put(rows, values.detach())
        self._token = self._token.detach().requires_grad_(values.requires_grad)
        return _Write.apply(values, self, rows)

    def own(self, rows: slice, values: Tensor) -> Tensor:
        """(N, C): ``values``, for the chunk's own use. In backward, gradients are added as in
        ``read``."""
        return _Own.apply(self._token, values.detach(), self, rows)

    def read(self, reads: Reads, gamma: float) -> Tensor:
        """(M, C): the rows that a chunk aggregates, current or of the snapshot.

        Gradients of current rows are added to ``current`` in backward, which must come after
        ``end_forward``: times gamma for those of earlier slots. They are not kept by autograd. Rows
        that were written without a gradient get none.
        """
        return _Read.apply(self._token, self, reads, gamma)

    @property
    @abstractmethod
    def current(self) -> Tensor:
        """(R, C): rows of this epoch where their slot was done; gradients after ``end_forward``."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Forgets what was there of the last epoch, but for a snapshot."""

    @abstractmethod
    def put(self, rows: slice, values: Tensor) -> None:
        """``write``, without autograd."""

    @abstractmethod
    def gather(self, reads: Reads) -> Tensor:
        """(M, C): ``read``, without autograd."""

    @abstractmethod
    def end_forward(self, refresh: bool) -> None:
        """Keeps the current rows as the snapshot, or not; makes room for the gradients."""

    @abstractmethod
    def add_gradients(self, reads: Reads, gradients: Tensor, gamma: float) -> None:
        """Adds gradients of what was read to those of the rows."""

    @abstractmethod
    def take_gradients(self, rows: slice) -> Tensor:
        """(N, C): those of rows of the way, which are not asked for again in this epoch."""


class RowHistory(LayerRows):
    """Two buffers for the rows, their snapshot and their gradients: once the forward of an epoch is
    over, either the current rows or the snapshot are never read again, and the gradients take their
    place."""

    def __init__(self, num_own: int, num_halo: int, width: int, like: Tensor) -> None:
        super().__init__(num_own, num_halo, width, like)
        self._pair = like.new_zeros(2, *self._shape)  # (2, R, C)
        self._now = 0

    @property
    def current(self) -> Tensor:
        return self._pair[self._now]

    @property
    def snapshot(self) -> Tensor:
        """(R, C): rows of an earlier epoch."""
        return self._pair[1 - self._now]

    def begin_epoch(self) -> None:
        self.change = self.size = self._like.new_zeros(())

    def put(self, rows: slice, values: Tensor) -> None:
        self.current[rows] = values
        self.change = self.change + (values - self.snapshot[rows]).square_().sum()
        self.size = self.size + values.square().sum()

    def gather(self, reads: Reads) -> Tensor:
        length, width = self._shape
        bases = torch.where(reads.snapshot, 1 - self._now, self._now) * length
        return self._pair.view(-1, width).index_select(0, reads.sources + bases)

    def end_forward(self, refresh: bool) -> None:
        if refresh:
            self._now = 1 - self._now
        self.current.zero_()

    def add_gradients(self, reads: Reads, gradients: Tensor, gamma: float) -> None:
        target, own = self.current, reads.num_own
        first = int(reads.sources[0]) if own else 0
        target[first : first + own] += gradients[:own]
        for places, factor in ((reads.same, 1.0), (reads.earlier, gamma)):
            if len(places):
                chosen = gradients.index_select(0, places)
                if factor != 1:
                    chosen.mul_(factor)  # faster than index_add_'s alpha
                target.index_add_(0, reads.sources.index_select(0, places), chosen)

    def take_gradients(self, rows: slice) -> Tensor:
        return self.current[rows]


class PassingRows(LayerRows):
    """Of a way with a single chunk, which reads all local rows, and none of a snapshot: rows are
    there until they are read, gradients from the first that comes until they are handed on."""

    _rows: Tensor | None = None

    @property
    def current(self) -> Tensor:
        if self._rows is None:
            self._rows = self.new_rows().zero_()
        return self._rows

    def begin_epoch(self) -> None:
        self._rows = None

    def put(self, rows: slice, values: Tensor) -> None:
        if values.shape == self._shape:  # no halo: no copy is needed
            self._rows = values.to(self._like).contiguous()
            return
        self._rows = self.new_rows()
        self._rows[rows] = values

    def gather(self, reads: Reads) -> Tensor:
        rows, self._rows = self.current, None
        return rows

    def end_forward(self, refresh: bool) -> None:
        pass

    def add_gradients(self, reads: Reads, gradients: Tensor, gamma: float) -> None:
        self.current.add_(gradients)

    def take_gradients(self, rows: slice) -> Tensor:
        gradients, self._rows = self.current, None
        return gradients[rows]


class _Write(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, history: LayerRows, rows: slice) -> Tensor:
        ctx.history, ctx.rows = history, rows
        return values.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.history.take_gradients(ctx.rows), None, None


class _Own(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, values: Tensor, history: LayerRows, rows: slice) -> Tensor:
        ctx.history, ctx.rows = history, rows
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        ctx.history.current[ctx.rows] += gradients
        return None, None, None, None


class _Read(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, history: LayerRows, reads: Reads, gamma: float) -> Tensor:
        ctx.history, ctx.reads, ctx.gamma = history, reads, gamma
        return history.gather(reads)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        ctx.history.add_gradients(ctx.reads, gradients, ctx.gamma)
        return None, None, None, None
