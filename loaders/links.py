"""Sampling around links: which are legal, and the trees of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from gnnsys.errors import ArgumentError
from gnnsys.loaders.user_graph import as_times

if TYPE_CHECKING:
    from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["as_negative_sampling", "check_links", "flatten_links", "trees_by_link"]


def as_negative_sampling(asked: Any, argument: str = "neg_sampling") -> NegativeSampling | None:
    """What a user may give for negatives, as PyG's class.

    Raises:
        ArgumentError: an unknown mode, or an amount that is none.
    """
    try:
        return NegativeSampling.cast(asked)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{argument}: {error}; give 'binary', 'triplet' or a NegativeSampling"
        ) from error


def flatten_links(inputs: EdgeSamplerInput) -> EdgeSamplerInput:
    """Links of one dimension: a loader that is called with positions of more gives them as many."""
    if inputs.row.dim() == 1:
        return inputs
    return EdgeSamplerInput(
        None if inputs.input_id is None else inputs.input_id.flatten(),
        inputs.row.flatten(),
        inputs.col.flatten(),
        None if inputs.label is None else inputs.label.flatten(0, inputs.row.dim() - 1),
        None if inputs.time is None else inputs.time.flatten(),
        inputs.input_type,
    )


def check_links(
    sampler: NeighborSampler, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None
) -> None:
    """Raises ArgumentError for links, times and labels that do not fit together."""
    if len(inputs.row) == 0:
        raise ArgumentError("links: none, expected at least one in a batch")
    if len(inputs.row) != len(inputs.col):
        raise ArgumentError(
            f"links: {len(inputs.row)} sources (row) and {len(inputs.col)} targets (col), expected "
            "as many"
        )
    if inputs.label is not None and len(inputs.label) != len(inputs.row):
        raise ArgumentError(
            f"label: {len(inputs.label)} labels for {len(inputs.row)} links, expected one for each"
        )
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
        raise ArgumentError(
            "label: links of triplets have no labels: 'edge_label' needs to be undefined for "
            "'triplet'-based negative sampling"
        )


def trees_by_link(
    sample: Callable[..., Any], num_links: int, neg_sampling: NegativeSampling | None
) -> Callable[..., Any]:
    """``sample`` with trees numbered so that those of a link's two ends are equal.

    Trees are numbered over all sources and then all targets, and PyG takes these numbers modulo the
    number of links. Where there are half as many negatives, say, that gives the ends of a link
    different numbers; counted from the first target on, targets get those of their sources.
    """
    num_sources = num_links
    if neg_sampling is not None and neg_sampling.is_binary():
        num_sources += math.ceil(num_links * neg_sampling.amount)

    def sample_numbered(*args: Any) -> Any:
        out = sample(*args)
        for batch in out.batch.values() if isinstance(out.batch, dict) else [out.batch]:
            batch[batch >= num_sources] -= num_sources
        return out

    return sample_numbered
