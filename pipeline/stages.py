"""Which layers a stage holds, and what passes from one stage to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gnnsys.pipeline.layer_info import LayerInfo
from gnnsys.pipeline.schedule import group_layers, split_units

__all__ = ["Boundary", "boundary_before", "split_layers"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """What passes between two stages for each vertex."""

    width: int
    """Columns of x."""

    shared: dict[str, int] = field(default_factory=dict)
    """Columns of the shared tensors that later layers read."""

    @property
    def columns(self) -> int:
        """Of x and the shared tensors."""
        return self.width + sum(self.shared.values())

    def parts(self, rows: int, like: Tensor) -> list[Tensor]:
        """Room for a chunk: x first, then the shared tensors."""
        return [like.new_empty(rows, width) for width in (self.width, *self.shared.values())]


def split_layers(
    infos: Sequence[LayerInfo], num_nodes: int, num_edges: int, stages: int
) -> list[range]:
    """The layers of each stage: runs of about equal cost, by multiplications.

    Raises:
        ArgumentError: more stages than graph layers.
    """
    units = group_layers([info.is_graph for info in infos])
    costs = [
        float(sum(num_nodes * infos[i].parameters + num_edges * infos[i].aggregated for i in unit))
        for unit in units
    ]
    runs = split_units(costs, stages)
    return [range(units[run[0]].start, units[run[-1]].stop) for run in runs]


def boundary_before(infos: Sequence[LayerInfo], layer: int) -> Boundary:
    """What passes from the layers before this one to it and those after it."""
    made: dict[str, int] = {}
    for info in infos[:layer]:
        made |= dict.fromkeys(info.shared_out, info.out_width)
    read = {name for info in infos[layer:] for name in info.shared_in}
    shared = {name: width for name, width in sorted(made.items()) if name in read}
    return Boundary(infos[layer - 1].out_width, shared)
