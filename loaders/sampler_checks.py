"""What a ``NeighborSampler`` may be asked, and in which combinations; the sampler's own errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch_geometric.sampler.base import SubgraphType

from gnnsys.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["check_beside_sampler", "check_input_type", "check_options", "choice"]

_CHOICES = {
    "subgraph_type": tuple(kind.value for kind in SubgraphType),
    "temporal_strategy": ("uniform", "last"),
    "sample_direction": ("forward", "backward"),
    "sampling": ("uniform", "labor"),
    "device": ("cpu", "cuda", "simt"),
}

_TIME_LIMITS = ("time_window", "last_n")


def choice(name: str, value: Any) -> Any:
    """The value as a string; raises ArgumentError for one that the argument ``name`` lacks."""
    value = getattr(value, "value", value)
    if value not in _CHOICES[name]:
        raise ArgumentError(f"{name}: {value!r}, expected one of {', '.join(_CHOICES[name])}")
    return value


def check_options(sampler: NeighborSampler) -> None:
    """Raises ArgumentError or UnsupportedError for options that exclude each other."""
    is_weighted = sampler.edge_weight is not None
    if is_weighted and sampler.is_temporal:
        raise UnsupportedError("weight_attr: not offered together with time_attr")
    if sampler.subgraph_type == SubgraphType.induced and sampler.disjoint:
        raise ArgumentError(
            "subgraph_type: 'disjoint' sampling not supported for neighbor sampling with "
            "`subgraph_type='induced'`: 'induced' excludes disjoint and time_attr, whose trees "
            "share no edges; use 'directional' or 'bidirectional'"
        )
    if sampler.device != "cpu" and sampler.subgraph_type != SubgraphType.directional:
        raise UnsupportedError(
            f"device: {sampler.device!r} samples directional subgraphs alone; use 'cpu'"
        )
    for name in _TIME_LIMITS:
        is_given = getattr(sampler, name) is not None
        if is_given and sampler.subgraph_type == SubgraphType.bidirectional:
            raise UnsupportedError(
                f"{name}: not offered with subgraph_type='bidirectional', whose added reverses it "
                "would not hold for; use 'directional'"
            )
    _check_hidden_types(sampler.reverse_types, sampler.hide_links)
    if sampler.sampling == "labor":
        excluded = {
            "replace": sampler.replace,
            "weight_attr": is_weighted,
            "temporal_strategy='last'": sampler.temporal_strategy == "last",
        }
        for name, asked in excluded.items():
            if asked:
                raise ArgumentError(f"sampling: 'labor' excludes {name}")


def check_beside_sampler(given: Mapping[str, Any]) -> None:
    """Raises ArgumentError for options of a loader that its own sampler would not know of."""
    for name in _TIME_LIMITS:
        if given[name] is not None:
            raise ArgumentError(
                f"{name}: {given[name]!r}, but batches are drawn as neighbor_sampler says; give it "
                "to the sampler"
            )
    sampler, hides = given["neighbor_sampler"], given.get("hide_links", False)
    if hides and not getattr(sampler, "hide_links", False):
        raise ArgumentError(
            "hide_links: given beside a neighbor_sampler that hides none; give it to the sampler"
        )
    wanted = given.get("reverse_types")
    _check_hidden_types(wanted, hides)
    if wanted is not None:
        has = sampler.reverse_types
        if has is None or set(map(tuple, has)) != set(map(tuple, wanted)):
            raise ArgumentError(
                f"reverse_types: {wanted!r}, but batches are drawn as neighbor_sampler says, which "
                f"has {has!r}; give it to the sampler alone"
            )


def _check_hidden_types(reverse_types: Any, hides: bool) -> None:
    if reverse_types is not None and not hides:
        raise ArgumentError(
            f"reverse_types: {reverse_types!r} without hide_links, which alone reads it; add "
            "hide_links=True, or leave it out"
        )


def check_input_type(sampler: NeighborSampler, input_type: Any) -> None:
    """Raises ArgumentError where seeds have a type and the graph has none, or the reverse."""
    if (input_type is not None) != sampler.is_hetero:
        has = "types" if sampler.is_hetero else "no types"
        raise ArgumentError(f"input_type: {input_type!r}, but the sampler's graph has {has}")
