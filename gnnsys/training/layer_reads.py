"""How the layers of an exact evaluation read their inputs, planned before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnnsys.choices import EvalReads
from gnnsys.config.train import TrainConfig
from gnnsys.pages import numbers
from gnnsys.training.inference_reads import Reads, choose_reads

__all__ = ["LayerReads", "asked_reads", "plan_reads"]

_SUMS = 4
"""A part of the memory left that sums may take."""


@dataclass(frozen=True, slots=True)
class LayerReads:
    """Of a run's layers where all nodes are computed; those of neighbourhoods are gathered."""

    modes: tuple[EvalReads, ...]
    """Of each layer; auto where the layer's inputs were not known."""

    memory: int | None = None
    """Bytes for sums and rows read in sequence; None where that was not planned."""

    layers: tuple[Reads, ...] = ()
    """What was known of them."""

    def settled(self) -> LayerReads:
        """For ranks, which must not choose each for itself: rows are gathered where it is open."""
        modes = tuple("gather" if mode == "auto" else mode for mode in self.modes)
        return dataclasses.replace(self, modes=modes)

    def describe(self) -> str:
        """Which inputs are read in sequence and why, in a part of a sentence; "" for none."""
        told = {
            number: reads
            for number, reads in enumerate(self.layers, 1)
            if reads.way == "sequential"
        }
        if not told:
            return ""
        which = ", ".join(
            f"layer {number} in {reads.passes} pass{'es' * (reads.passes > 1)}"
            for number, reads in told.items()
        )
        read = numbers.traffic(sum(reads.sequential for reads in told.values()))
        instead = numbers.traffic(sum(reads.gathered for reads in told.values()))
        return f"inputs are read in sequence, of {which}: {read}, gathered {instead}"

    def facts(self) -> list[dict[str, Any]]:
        """For JSON, of each layer that was planned."""
        return [dataclasses.asdict(reads) for reads in self.layers]


def asked_reads(config: TrainConfig) -> LayerReads:
    """``--eval-reads`` for each layer, of a run of which nothing was planned."""
    return LayerReads((config.eval_reads,) * config.layers)


def plan_reads(
    config: TrainConfig,
    *,
    nodes: int,
    edges: int,
    widths: Sequence[int],
    feature_bytes: int,
    left: int,
    in_files: bool,
) -> LayerReads:
    """See ``--eval-reads``.

    Args:
        config: filled in.
        nodes: of the graph; ``edges`` likewise.
        widths: of the features, of hidden layers' outputs, and of the last layer's.
        feature_bytes: of a stored row.
        left: bytes of memory.
        in_files: whether the outputs of layers lie in files.
    """
    layers = []
    for number in range(config.layers):
        row_bytes = feature_bytes if number == 0 else 4 * widths[number]
        layers.append(
            choose_reads(
                config.eval_reads,
                nodes=nodes,
                edges=edges,
                row_bytes=row_bytes,
                delivered_bytes=4 * widths[number],
                message_bytes=_message_bytes(config.model, widths[number], widths[number + 1]),
                memory=left // _SUMS,
                kept=left,
                resident=number > 0 and not in_files,
            )
        )
    memory = max(each.memory for each in layers)
    return LayerReads(tuple(each.way for each in layers), memory, tuple(layers))


def _message_bytes(model: str, inputs: int, outputs: int) -> int | None:
    """Of what a layer sums, see ``split_layers``."""
    if model == "gat":
        return None
    return 4 * (inputs if model == "gin" else min(inputs, outputs))
