"""One rank of a pipeline: carries out its list of actions, and what all ranks do together.

Every method that communicates is a generator of receipts, so that one process can run one rank or
take turns between all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gnnsys.pipeline.layers import Shared
from gnnsys.pipeline.schedule import Event, Kind, epoch_actions
from gnnsys.pipeline.stage import Stage
from gnnsys.pipeline.stages import Boundary
from gnnsys.ranks.ring import ring_all_reduce
from gnnsys.ranks.transport import Receipt, Transport, Work

__all__ = ["PipelineRank"]


class PipelineRank:
    """The rank of a way of a stage.

    Args:
        stages: their number.
        features: (own rows, features) in the first stage, else None.
        before, after: what comes from the stage before and goes to the next; None at the ends.
        loss: of a chunk's number and logits, in the last stage, else None.
    """

    def __init__(
        self,
        stage: Stage,
        number: int,
        stages: int,
        transport: Transport,
        before: Boundary | None,
        after: Boundary | None,
        features: Tensor | None,
        loss: Callable[[int, Tensor], Tensor] | None,
        like: Tensor,
    ) -> None:
        self.stage, self.number, self.stages, self.transport = stage, number, stages, transport
        self._before, self._after = before, after
        self._features, self._loss, self._like = features, loss, like
        ways = len(stage.peers)
        self._previous, self._next = transport.rank - ways, transport.rank + ways
        self.events: list[Event] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the stage, in the order of its layers."""
        return [p for layer in self.stage.layers for p in layer.parameters()]

    # One epoch ------------------------------------------------------------------------------------

    def run_epoch(self, order: list[int], refresh: bool) -> Work[float]:
        """Forward, backward and the ways' sum of gradients; returns the loss of the rank's chunks.

        Args:
            order: of the slots.
            refresh: whether the rows of this epoch become the snapshot.
        """
        self.stage.begin_epoch(order)
        self.events = []
        incoming = _Ahead(self._post_forward, order if self._before else [])
        returning = _Ahead(self._post_backward, order[::-1] if self._after else [])
        passed: dict[int, tuple[Tensor, Shared]] = {}
        gradients: dict[int, tuple[Tensor, Shared]] = {}
        loss = 0.0
        ended = False
        for action in epoch_actions(self.number, self.stages, order):
            chunk, begun = action.chunk, time.perf_counter()
            if action.kind is Kind.RECEIVE_FORWARD:
                x, *shared = yield from incoming.take(chunk)
                passed[chunk] = x.requires_grad_(), self._named(self._before, shared)
            elif action.kind is Kind.FORWARD:
                inputs, named = passed.pop(chunk, (None, {}))
                rows = self._rows(chunk, inputs)
                passed[chunk] = yield from self.stage.forward(chunk, rows, named)
            elif action.kind is Kind.SEND_FORWARD:
                x, named = passed.pop(chunk)
                self._send(self._next, x, named, self._after)
            elif action.kind is Kind.RECEIVE_BACKWARD:
                gradient, *shared = yield from returning.take(chunk)
                gradients[chunk] = gradient, self._named(self._after, shared)
            elif action.kind is Kind.BACKWARD:
                if not ended:
                    self.stage.end_forward(refresh)
                    ended = True
                if self._loss is not None:
                    value, gradient = self._differentiate(chunk, passed.pop(chunk)[0])
                    loss += value
                    gradients[chunk] = gradient, {}
                gradients[chunk] = yield from self.stage.backward(chunk, *gradients.pop(chunk))
            elif action.kind is Kind.SEND_BACKWARD:
                gradient, named = gradients.pop(chunk)
                self._send(self._previous, gradient, named, self._before)
            elif action.kind is Kind.SYNC:
                gradients.clear()
                yield from self._sum_gradients()
                self.transport.flush()
            else:
                continue
            end = time.perf_counter()
            self.events.append(Event(self.transport.rank, action.kind.value, chunk, begun, end))
        return loss

    def _rows(self, chunk: int, received: Tensor | None) -> Tensor:
        if self._features is None:
            assert received is not None
            return received
        return self._features[self.stage.graph.blocks[chunk].rows]

    def _differentiate(self, chunk: int, logits: Tensor) -> tuple[float, Tensor]:
        """The loss of a chunk and its gradient by the logits."""
        assert self._loss is not None
        logits.requires_grad_()
        loss = self._loss(chunk, logits)
        if loss.requires_grad:  # a chunk without training nodes has none
            loss.backward()
        return loss.item(), torch.zeros_like(logits) if logits.grad is None else logits.grad

    def _sum_gradients(self) -> Work[None]:
        """Adds up the gradients of the parameters over the ways."""
        if len(self.stage.peers) == 1:
            return
        parameters = self.parameters
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if not parts:
            return
        flat = torch.cat([part.reshape(-1) for part in parts])
        yield from ring_all_reduce(self.transport, flat, self.stage.peers)
        sizes = [p.numel() for p in parameters]
        for parameter, part in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    # Between stages -------------------------------------------------------------------------------

    def _post_forward(self, chunk: int) -> tuple[list[Tensor], list[Receipt]]:
        return self._post(self._previous, self._before, chunk, "layer")

    def _post_backward(self, chunk: int) -> tuple[list[Tensor], list[Receipt]]:
        return self._post(self._next, self._after, chunk, "layer")

    def _post(
        self, source: int, boundary: Boundary | None, chunk: int, kind: str
    ) -> tuple[list[Tensor], list[Receipt]]:
        assert boundary is not None
        rows = self.stage.graph.blocks[chunk].rows
        parts = boundary.parts(rows.stop - rows.start, self._like)
        return parts, [self.transport.receive(part, source, kind) for part in parts]

    def _send(
        self,
        to: int,
        x: Tensor,
        named: Shared,
        boundary: Boundary | None,
        kind: str = "layer",
    ) -> None:
        assert boundary is not None
        for part in (x, *(named[name] for name in boundary.shared)):
            self.transport.send(part.detach().contiguous(), to, kind)
        self.transport.launch()  # the other stage may be waiting, and this one computes next

    @staticmethod
    def _named(boundary: Boundary | None, parts: list[Tensor]) -> Shared:
        assert boundary is not None
        return dict(zip(boundary.shared, parts, strict=True))

    # The exact forward ----------------------------------------------------------------------------

    def run_exactly(self, keep: bool, kind: str = "evaluation") -> Work[list[Tensor]]:
        """Computes all vertices by the weights as they are; returns the output of each chunk.

        Args:
            keep: whether the rows that are read become the snapshots.
            kind: as which the bytes count.
        """
        chunks = range(len(self.stage.graph.blocks))
        if self._before is None:
            inputs = [self._rows(chunk, None) for chunk in chunks]
            shared: list[Shared] = [{} for _ in chunks]
        else:
            inputs, shared = [], []
            for chunk in chunks:
                parts, receipts = self._post(self._previous, self._before, chunk, kind)
                yield from receipts
                inputs.append(parts[0])
                shared.append(self._named(self._before, parts[1:]))
        outputs = yield from self.stage.run_exactly(inputs, shared, keep, kind)
        if self._after is not None:
            for chunk in chunks:
                self._send(self._next, outputs[chunk], shared[chunk], self._after, kind)
        self.transport.flush()
        return outputs


class _Ahead:
    """Receives chunk after chunk, the next one while the present one is worked on."""

    def __init__(
        self, post: Callable[[int], tuple[list[Tensor], list[Receipt]]], order: list[int]
    ) -> None:
        self._post = post
        self._order = iter(order)
        self._posted: dict[int, tuple[list[Tensor], list[Receipt]]] = {}

    def take(self, chunk: int) -> Work[list[Tensor]]:
        """Waits for a chunk; returns its parts."""
        self._post_until(chunk)
        parts, receipts = self._posted.pop(chunk)
        yield from receipts
        self._post_next()
        return parts

    def _post_until(self, chunk: int) -> None:
        while chunk not in self._posted:
            self._post_next()

    def _post_next(self) -> None:
        chunk = next(self._order, None)
        if chunk is not None:
            self._posted[chunk] = self._post(chunk)
