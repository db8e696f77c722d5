"""The layers of one stage over the chunks of one way: forward and backward, chunk by chunk.

Autograd's graph is cut where rows are written for neighbours to read and at the input of every
graph layer. What crosses a cut is handed on by hand, so that gradients wait for those that other
chunks and other ways still add. Work that must wait for other ways is a generator of receipts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gnnsys.pipeline.dropout import DropoutContext
from gnnsys.pipeline.entry import Entry, Exit, run_backward
from gnnsys.pipeline.history import LayerRows, PassingRows, Reads, RowHistory, reads_in_order
from gnnsys.pipeline.layers import GraphLayer, Share, Shared
from gnnsys.pipeline.way_graph import WayGraph
from gnnsys.ranks.transport import Transport, Work

__all__ = ["Stage"]


@dataclass(slots=True)
class _Segment:
    """A graph layer and the pointwise ones after it, over one chunk, as autograd recorded it."""

    entry: Entry | None
    """Of its input; None if that is the features."""

    written: Tensor | None = None
    """Stands for the rows that neighbours read. None before the first graph layer."""

    made: dict[str, tuple[Exit, Entry]] = field(default_factory=dict)
    """Shared tensors that were made, and where later layers take them."""

    output: Exit | None = None


@dataclass(slots=True)
class _Pass:
    """A chunk between its forward and its backward."""

    shared: dict[str, Entry]
    """Of the tensors that came from the stage before."""

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
        self._runs = _runs(layers)
        made = RowHistory if len(graph.blocks) > 1 else PassingRows
        self.histories: list[LayerRows] = [
            made(graph.num_own, graph.num_halo, width, like) for width in widths
        ]
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
        """Of each graph layer, (own rows, width), on the CPU; none where a way has one chunk."""
        kept = [each for each in self.histories if isinstance(each, RowHistory)]
        return [each.snapshot[: self.graph.num_own].cpu() for each in kept]

    def rows_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some vertices are local rows.

        Args:
            nodes: (N,) by the caller's numbers.

        Returns:
            (M,) local rows, and (M,) the positions in ``nodes`` that they have.
        """
        vertices, rows = torch.cat([self.graph.vertices, self.graph.halo]).cpu().sort()
        at = torch.searchsorted(vertices, nodes).clamp_(max=len(vertices) - 1)
        found = torch.nonzero(vertices[at] == nodes).view(-1)
        return rows[at[found]], found

    def load_snapshot(self, number: int, rows: Tensor, values: Tensor) -> None:
        """Takes rows of the snapshot of a graph layer that keeps one.

        Args:
            number: of the layer, among those of the stage.
            rows: (M,) local rows, and ``values`` (M, width).
        """
        snapshot = self._snapshot_of(number)
        snapshot[rows.to(snapshot.device)] = values.to(snapshot.device)

    def _snapshot_of(self, number: int) -> Tensor:
        history = self.histories[number]
        assert isinstance(history, RowHistory)
        return history.snapshot

    # Training -------------------------------------------------------------------------------------

    def begin_epoch(self, order: list[int]) -> None:
        """Decides what each chunk reads of this epoch when the slots come in ``order``."""
        self._reads = reads_in_order(self.graph, order)
        for history in self.histories:
            history.begin_epoch()

    def forward(self, chunk: int, inputs: Tensor, shared: Shared) -> Work[tuple[Tensor, Shared]]:
        """Runs a chunk; returns its output and the shared tensors as they then are.

        Args:
            inputs: (n, in) rows of the chunk; their gradient is computed if they require one.
            shared: tensors that came from the stage before.
        """
        self._context.vertices = self.graph.vertices[self.graph.blocks[chunk].rows]
        run = self._passes[chunk] = _Pass({name: Entry() for name in shared})
        shared = {name: entry.take(shared[name]) for name, entry in run.shared.items()}
        number = 0
        for layers in self._runs:
            history = None
            if isinstance(layers[0], GraphLayer):
                history, number = self.histories[number], number + 1
            segment = _Segment(Entry() if run.segments or inputs.requires_grad else None)
            inputs = yield from self._forward_segment(
                segment, chunk, layers, history, inputs, shared
            )
            run.segments.append(segment)
        return inputs, {name: tensor.detach() for name, tensor in shared.items()}

    def _forward_segment(
        self,
        segment: _Segment,
        chunk: int,
        layers: list[nn.Module],
        history: LayerRows | None,
        x: Tensor,
        shared: Shared,
    ) -> Work[Tensor]:
        if segment.entry is not None:
            x = segment.entry.take(x.detach())
        first, rest = layers[0], layers[1:]
        if history is not None and isinstance(first, GraphLayer):
            block = self.graph.blocks[chunk]
            rows = first.before(x, shared)
            segment.written = history.write(block.rows, rows)
            yield from self._exchange_rows(chunk, history.current)
            sources = history.read(self._reads[chunk], self._gamma)
            targets = history.own(block.rows, rows)
            out = first.aggregate(sources, targets, block.edges[first.kind], shared)
            x = first.after(out, x, shared)
        else:
            rest = layers
        for layer in rest:
            x = layer(x)
            if isinstance(layer, Share):
                entry = Entry()
                segment.made[layer.name] = Exit(x), entry
                shared[layer.name] = entry.take(x.detach())
        segment.output = Exit(x)
        return x.detach()

    def end_forward(self, refresh: bool) -> None:
        """To be called between the last forward and the first backward of an epoch."""
        for history in self.histories:
            history.end_forward(refresh)

    def backward(self, chunk: int, gradient: Tensor, shared: Shared) -> Work[tuple[Tensor, Shared]]:
        """Runs a chunk backwards, and adds to the gradients of the parameters.

        Args:
            gradient: (n, out) of the chunk's output.
            shared: gradients of the shared tensors that were handed on.

        Returns:
            The gradients of the inputs and of the shared tensors that came in.
        """
        run = self._passes.pop(chunk)
        made = {name: entry for s in run.segments for name, (_, entry) in s.made.items()}
        for name, part in shared.items():
            (made.get(name) or run.shared[name]).add(part)
        number = len(self.histories)
        while run.segments:
            segment = run.segments.pop()
            assert segment.output is not None
            made_here = [(leaving, entry.gradient) for leaving, entry in segment.made.values()]
            run_backward([(segment.output, gradient), *made_here])
            if segment.written is not None:
                number -= 1
                if segment.written.requires_grad:
                    yield from self._exchange_gradients(chunk, self.histories[number].current)
                    segment.written.backward()
            if segment.entry is not None:
                gradient = segment.entry.gradient
        return gradient, {name: entry.gradient for name, entry in run.shared.items()}

    # Other ways -----------------------------------------------------------------------------------

    def _exchange_rows(self, chunk: int, rows: Tensor, kind: str = "graph") -> Work[None]:
        """Sends a chunk's rows to the ways that read them; waits for theirs."""
        for way, own in self.graph.outgoing[chunk].items():
            self._transport.send(rows.index_select(0, own), self.peers[way], kind)
        waits = [
            self._transport.receive(rows[place], self.peers[way], kind)
            for way, place in self.graph.incoming[chunk].items()
        ]
        yield from waits

    def _exchange_gradients(self, chunk: int, gradients: Tensor) -> Work[None]:
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
    ) -> Work[list[Tensor]]:
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
                rows = self._snapshot_of(number) if keep else self.histories[number].new_rows()
                number += 1
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
    ) -> Work[list[Tensor]]:
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
