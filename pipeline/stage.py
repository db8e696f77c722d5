"""The layers of one stage over the chunks of one way: forward and backward, chunk by chunk.

Autograd's graph is cut where rows are written for neighbours to read and at the input of every
graph layer. What crosses a cut is handed on by hand, so that gradients wait for those that other
chunks and other ways still add. Work that must wait for other ways is a generator of receipts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gnnsys.pipeline.dropout import DropoutContext
from gnnsys.pipeline.history import Reads, RowHistory, reads_in_order
from gnnsys.pipeline.layers import GraphLayer, Share, Shared
from gnnsys.pipeline.transport import Receipt, Transport
from gnnsys.pipeline.way_graph import WayGraph

__all__ = ["Stage"]


@dataclass(slots=True)
class _Segment:
    """A graph layer and the pointwise ones after it, over one chunk, as autograd recorded it."""

    inputs: Tensor
    """(n, in): a leaf, or features."""

    written: Tensor | None = None
    """Stands for the rows that neighbours read. None before the first graph layer."""

    made: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Shared tensors that were made: within the graph, and as the leaf that later layers use."""

    output: Tensor | None = None


@dataclass(slots=True)
class _Pass:
    """A chunk between its forward and its backward."""

    shared: Shared
    """Leaves that came from the stage before."""

    segments: list[_Segment] = field(default_factory=list)


class Stage:
    """Runs the layers of a stage.

    Args:
        layers: of the stage, pointwise ones and graph layers.
        widths: of the rows that each graph layer reads.
        graph: of the way.
        context: of the layers' dropout.
        peers: rank of each way of the stage.
        like: a tensor of the dtype and device of the features.
        gamma: factor of the gradients of rows of earlier slots.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        widths: list[int],
        graph: WayGraph,
        context: DropoutContext,
        transport: Transport,
        peers: list[int],
        like: Tensor,
        gamma: float,
    ) -> None:
        self.layers, self.graph, self.peers = layers, graph, peers
        self.histories = [RowHistory(graph.num_own, graph.num_halo, w, like) for w in widths]
        self._context, self._transport, self._gamma = context, transport, gamma
        self._reads: list[Reads] = []
        self._passes: dict[int, _Pass] = {}

    def set_mode(self, training: bool, epoch: int) -> None:
        """Tells the layers what is to come; dropout depends on the epoch."""
        self._context.epoch = epoch
        for layer in self.layers:
            layer.train(training)

    def staleness(self) -> list[tuple[float, float]]:
        """Of each graph layer, the squared norms of what its rows changed by since the snapshot,
        and of the rows, in the last epoch."""
        return [(float(each.change), float(each.size)) for each in self.histories]

    def snapshots(self) -> list[Tensor]:
        """Of each graph layer, (own rows, width), on the CPU."""
        return [each.snapshot[: self.graph.num_own].cpu() for each in self.histories]

    def load_snapshots(self, whole: list[Tensor]) -> None:
        """Takes (V, width) of each graph layer, by the caller's numbers of vertices."""
        vertices = torch.cat([self.graph.vertices, self.graph.halo])
        for history, rows in zip(self.histories, whole, strict=True):
            history.snapshot.copy_(rows[vertices.cpu()])

    # Training -------------------------------------------------------------------------------------

    def begin_epoch(self, order: list[int]) -> None:
        """Decides what each chunk reads of this epoch when the slots come in ``order``."""
        self._reads = reads_in_order(self.graph, order)
        for history in self.histories:
            history.begin_epoch()

    def forward(self, chunk: int, inputs: Tensor, shared: Shared) -> Iterator[Receipt]:
        """Runs a chunk; returns its output and the shared tensors as they then are.

        Args:
            inputs: (n, in) rows of the chunk; without a gradient in the first stage.
            shared: leaves.
        """
        self._context.vertices = self.graph.vertices[self.graph.blocks[chunk].rows]
        run = self._passes[chunk] = _Pass(dict(shared))
        shared = dict(shared)
        number = 0
        for layers in _runs(self.layers):
            history = None
            if isinstance(layers[0], GraphLayer):
                history, number = self.histories[number], number + 1
            segment = yield from self._forward_segment(chunk, layers, history, inputs, shared)
            run.segments.append(segment)
            inputs = segment.output.detach().requires_grad_()
        return inputs, shared

    def _forward_segment(
        self,
        chunk: int,
        layers: list[nn.Module],
        history: RowHistory | None,
        x: Tensor,
        shared: Shared,
    ) -> Iterator[Receipt]:
        segment = _Segment(x)
        if history is not None:
            layer = layers[0]
            block = self.graph.blocks[chunk]
            rows = layer.before(x, shared)
            segment.written = history.write(block.rows, rows)
            yield from self._exchange_rows(chunk, history.current)
            sources = history.read(self._reads[chunk], self._gamma)
            targets = history.own(block.rows, rows)
            out = layer.aggregate(sources, targets, block.edges[layer.kind], shared)
            x = layer.after(out, x, shared)
        for layer in layers[1 if history else 0 :]:
            x = layer(x)
            if isinstance(layer, Share):
                shared[layer.name] = x.detach().requires_grad_()
                segment.made[layer.name] = (x, shared[layer.name])
        segment.output = x
        return segment

    def end_forward(self, refresh: bool) -> None:
        """To be called between the last forward and the first backward of an epoch."""
        for history in self.histories:
            history.end_forward(refresh)

    def backward(self, chunk: int, gradient: Tensor, shared: Shared) -> Iterator[Receipt]:
        """Runs a chunk backwards, and adds to the gradients of the parameters.

        Args:
            gradient: (n, out) of the chunk's output.
            shared: gradients of the shared tensors that were handed on.

        Returns:
            The gradients of the inputs and of the shared tensors that came in.
        """
        run = self._passes.pop(chunk)
        leaves = {name: leaf for s in run.segments for name, (_, leaf) in s.made.items()}
        for name, leaf in {**run.shared, **leaves}.items():
            _add_gradient(leaf, shared.get(name))
        number = len(self.histories)
        while run.segments:
            segment = run.segments.pop()
            made = [(x, leaf.grad) for x, leaf in segment.made.values() if leaf.grad is not None]
            _backward([(segment.output, gradient), *made])
            if segment.written is not None:
                number -= 1
                if segment.written.requires_grad:
                    yield from self._exchange_gradients(chunk, self.histories[number].current)
                    segment.written.backward()
            gradient = _gradient_of(segment.inputs)
        return gradient, {name: _gradient_of(leaf) for name, leaf in run.shared.items()}

    # Other ways -----------------------------------------------------------------------------------

    def _exchange_rows(self, chunk: int, rows: Tensor, kind: str = "graph") -> Iterator[Receipt]:
        """Sends a chunk's rows to the ways that read them; waits for theirs."""
        for way, own in self.graph.outgoing[chunk].items():
            self._transport.send(rows.index_select(0, own), self.peers[way], kind)
        waits = [
            self._transport.receive(rows[place], self.peers[way], kind)
            for way, place in self.graph.incoming[chunk].items()
        ]
        yield from waits

    def _exchange_gradients(self, chunk: int, gradients: Tensor) -> Iterator[Receipt]:
        """Sends other ways the gradients of their rows of the slot; adds those of the own rows."""
        for way, place in self.graph.incoming[chunk].items():
            self._transport.send(gradients[place], self.peers[way], "graph")
        received = []
        for way, own in self.graph.outgoing[chunk].items():
            part = gradients.new_empty(len(own), gradients.shape[1])
            received.append((own, part, self._transport.receive(part, self.peers[way], "graph")))
        for own, part, receipt in received:
            yield receipt
            gradients.index_add_(0, own, part)

    # The exact forward ----------------------------------------------------------------------------

    @torch.no_grad()
    def run_exactly(
        self, inputs: list[Tensor], shared: list[Shared], keep: bool, kind: str
    ) -> Iterator[Receipt]:
        """Runs all chunks through a layer before the next, so that every row read is current.

        Args:
            inputs: (n, in) of each chunk.
            shared: of each chunk; changed.
            keep: whether the rows that are read become the snapshots.
            kind: as which the bytes count.

        Returns:
            The output of each chunk.
        """
        number = 0
        for layer in self.layers:
            if isinstance(layer, GraphLayer):
                history, number = self.histories[number], number + 1
                rows = history.snapshot if keep else torch.empty_like(history.snapshot)
                inputs = yield from self._layer_exactly(layer, rows, inputs, shared, kind)
                continue
            for chunk, x in enumerate(inputs):
                self._context.vertices = self.graph.vertices[self.graph.blocks[chunk].rows]
                inputs[chunk] = layer(x)
                if isinstance(layer, Share):
                    shared[chunk][layer.name] = inputs[chunk]
        return inputs

    def _layer_exactly(
        self,
        layer: GraphLayer,
        rows: Tensor,  # (local rows, width)
        inputs: list[Tensor],
        shared: list[Shared],
        kind: str,
    ) -> Iterator[Receipt]:
        blocks = self.graph.blocks
        for chunk, block in enumerate(blocks):
            self._context.vertices = self.graph.vertices[block.rows]
            rows[block.rows] = layer.before(inputs[chunk], shared[chunk])
        for chunk in range(len(blocks)):
            yield from self._exchange_rows(chunk, rows, kind)
        outputs = []
        for chunk, block in enumerate(blocks):
            self._context.vertices = self.graph.vertices[block.rows]
            sources = rows.index_select(0, block.sources)
            targets, edges = rows[block.rows], block.edges[layer.kind]
            out = layer.aggregate(sources, targets, edges, shared[chunk])
            outputs.append(layer.after(out, inputs[chunk], shared[chunk]))
        return outputs


def _runs(layers: list[nn.Module]) -> list[list[nn.Module]]:
    """Layers cut before each graph layer."""
    runs: list[list[nn.Module]] = []
    for layer in layers:
        if not runs or isinstance(layer, GraphLayer):
            runs.append([])
        runs[-1].append(layer)
    return runs


def _backward(roots: list[tuple[Tensor, Tensor]]) -> None:
    """Autograd from several tensors at once, those left out that depend on nothing."""
    known = [(root, gradient) for root, gradient in roots if root.requires_grad]
    if known:
        torch.autograd.backward([root for root, _ in known], [gradient for _, gradient in known])


def _add_gradient(leaf: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
