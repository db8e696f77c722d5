"""What a ``NeighborSampler`` may be asked, and in which combinations; the sampler's own errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling
from torch_geometric.sampler.base import SubgraphType

from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders.user_graph import as_times

if TYPE_CHECKING:
    from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["check_counts", "check_input_type", "check_links", "check_options", "choice"]

_CHOICES = {
    "subgraph_type": tuple(kind.value for kind in SubgraphType),
    "temporal_strategy": ("uniform", "last"),
    "sample_direction": ("forward", "backward"),
    "method": ("uniform", "labor"),
}


def choice(name: str, value: Any) -> Any:
    """The value as a string; raises ArgumentError for one that the argument ``name`` lacks."""
    value = getattr(value, "value", value)
    if value not in _CHOICES[name]:
        raise ArgumentError(f"{name}: {value!r}, expected one of {', '.join(_CHOICES[name])}")
    return value


def check_counts(threads: int, dependent_batches: int) -> None:
    """Raises ArgumentError for a number that counts nothing."""
    if threads < 0:
        raise ArgumentError(f"threads: {threads} < 0; give 0 for all cores or a number")
    if dependent_batches < 1:
        raise ArgumentError(f"dependent_batches: {dependent_batches}, expected at least 1")


def check_options(sampler: NeighborSampler) -> None:
    """Raises ArgumentError or UnsupportedError for options that exclude each other."""
    is_weighted = sampler.edge_weight is not None
    if is_weighted and sampler.is_temporal:
        raise UnsupportedError("weight_attr: not offered together with time_attr")
    if sampler.subgraph_type == SubgraphType.induced and sampler.disjoint:
        raise ArgumentError(
            "subgraph_type: 'induced' excludes disjoint and time_attr, whose trees share no "
            "edges; use 'directional' or 'bidirectional'"
        )
    if sampler.method == "labor":
        excluded = {
            "replace": sampler.replace,
            "weight_attr": is_weighted,
            "temporal_strategy='last'": sampler.temporal_strategy == "last",
        }
        for name, asked in excluded.items():
            if asked:
                raise ArgumentError(f"method: 'labor' excludes {name}")


def check_input_type(sampler: NeighborSampler, input_type: Any) -> None:
    """Raises ArgumentError where seeds have a type and the graph has none, or the reverse."""
    if (input_type is not None) != sampler.is_hetero:
        has = "types" if sampler.is_hetero else "no types"
        raise ArgumentError(f"input_type: {input_type!r}, but the sampler's graph has {has}")


def check_links(
    sampler: NeighborSampler, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None
) -> None:
    """Raises ArgumentError for links, times and labels that do not fit together."""
    if len(inputs.row) == 0:
        raise ArgumentError("links: none, expected at least one in a batch")
    if inputs.time is not None:
        as_times("times of the links", inputs.time, len(inputs.row))
        if not sampler.disjoint:
            raise ArgumentError(
                "links have times (edge_label_time), but the graph has none: give time_attr"
            )
    elif neg_sampling is not None and sampler.node_time is not None:
        raise ArgumentError(
            "negatives must not be newer than their links, which have no times: give "
            "edge_label_time"
        )
    if neg_sampling is not None and neg_sampling.is_triplet() and inputs.label is not None:
        raise ArgumentError("label: links of triplets have no labels (edge_label)")
