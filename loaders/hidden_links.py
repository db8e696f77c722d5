"""Taking the links of a batch out of the edges along which its messages run.

A model that sees a link among the edges learns to read the answer off them. ``HiddenLinks`` takes
the edges between the two ends of a batch's links out of what was sampled; nodes stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.sampler import EdgeSamplerInput, HeteroSamplerOutput
from torch_geometric.typing import EdgeType

from gnnsys.errors import ArgumentError
from gnnsys.loaders.reverse_types import types_back

__all__ = ["HiddenLinks", "hidden_types"]


def hidden_types(
    kind: EdgeType | None,
    kinds: Sequence[EdgeType | None],
    reverse_types: Sequence[EdgeType] | None,
) -> list[tuple[EdgeType | None, bool]]:
    """The edge types that links of a type are hidden in, and whether they run the other way there.

    Args:
        kind: of the links; None without types.
        kinds: of the graph.
        reverse_types: those that hold the reverses of the links; None for ``rev_rel`` of ``rel``,
            or else the only type that leads back.

    Raises:
        ArgumentError: it cannot be told which types are the reverses, or one does not lead back.
    """
    if kind is None:
        if reverse_types is not None:
            raise ArgumentError("reverse_types: given, but the graph has no types; leave it out")
        return [(None, False), (None, True)]
    own = [(kind, False)] if kind in kinds else []
    if own and kind[0] == kind[-1]:
        own.append((kind, True))
    if reverse_types is None:
        return own + [(each, True) for each in _inferred(kind, kinds)]
    for each in reverse_types:
        if each not in kinds or (each[0], each[-1]) != (kind[-1], kind[0]):
            raise ArgumentError(
                f"reverse_types: {each} is no edge type from {kind[-1]!r} to {kind[0]!r}; the "
                f"graph has {list(kinds)}"
            )
    return own + [(each, True) for each in reverse_types if each != kind]


def _inferred(kind: EdgeType, kinds: Sequence[EdgeType | None]) -> list[EdgeType]:
    found = types_back(kind, kinds)
    others = [each for each in found if each != kind]
    if others and len(found) > 1:
        raise ArgumentError(
            f"reverse_types: None, but which edge type has the reverses of {kind} cannot be told: "
            f"{', '.join(map(str, found))} lead from {kind[-1]!r} to {kind[0]!r}; name those that "
            "do, or give [] if none does"
        )
    return others


class HiddenLinks:
    """The links of a batch, which are to be no edges of it.

    Args:
        inputs: the links, positive ones.
        kinds: of the graph.
        num_nodes: the greatest number of nodes that a type has.
        reverse_types: see ``hidden_types``.
    """

    def __init__(
        self,
        inputs: EdgeSamplerInput,
        kinds: Sequence[EdgeType | None],
        num_nodes: int,
        reverse_types: Sequence[EdgeType] | None,
    ) -> None:
        self._types = hidden_types(inputs.input_type, kinds, reverse_types)
        self._width = num_nodes
        self._links = self._key(inputs.row.to(torch.int64), inputs.col.to(torch.int64)).unique()

    def take_from(self, out: HeteroSamplerOutput) -> None:
        """Takes every edge between the ends of a link out of a sampler's output, in place."""
        keep: dict[EdgeType | None, Tensor] = {}
        for kind, flipped in self._types:
            source, target = (None, None) if kind is None else (kind[0], kind[-1])
            ends = out.node[source][out.row[kind]], out.node[target][out.col[kind]]
            key = self._key(*(ends[::-1] if flipped else ends))
            seen = ~torch.isin(key, self._links)
            keep[kind] = keep[kind] & seen if kind in keep else seen
        for kind, kept in keep.items():
            # Beside orig_row, of which reverses were added already, these are its numbers.
            if out.num_sampled_edges is not None and out.orig_row is None:
                hops = kept.split(list(map(int, out.num_sampled_edges[kind])))
                out.num_sampled_edges[kind] = [int(hop.sum()) for hop in hops]
            for part in (out.row, out.col, out.edge):
                if part[kind] is not None:  # as numbers of added reverses are
                    part[kind] = part[kind][kept]

    def _key(self, source: Tensor, target: Tensor) -> Tensor:
        return source * self._width + target
