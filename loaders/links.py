"""Sampling around links: which are legal, their negative nodes, and the trees of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from gnnsys import rng
from gnnsys.errors import ArgumentError
from gnnsys.loaders.user_graph import as_times

if TYPE_CHECKING:
    from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["KeyedNegatives", "WeightSums", "check_links", "trees_by_link"]


class WeightSums:
    """Running sums of the weights of negative nodes, made once for each tensor of weights."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Tensor, int, NDArray[np.float64]]] = {}

    def of(self, endpoint: str, weight: Tensor) -> NDArray[np.float64]:
        """(nodes,) running sums.

        Raises:
            ArgumentError: weights that are negative or not finite, or all zero.
        """
        made = self._made.get(endpoint)
        if made is None or made[0] is not weight or made[1] != weight._version:
            made = (weight, weight._version, _running_sums(f"{endpoint}_weight", weight))
            self._made[endpoint] = made  # threads that meet here store equal entries
        return made[2]


class KeyedNegatives(NegativeSampling):
    """The negative sampling of one batch: a pure function of (seed, epoch, group).

    Stands in for the user's ``NegativeSampling`` within PyG's ``edge_sample``, which decides how
    many nodes are drawn and which are rejected for their time. A node is drawn uniformly, or with
    a probability proportional to its weight by inverting the weights' running sum.

    Args:
        asked: what the user asked for.
        seed, epoch, group: of the batch.
        sums: the sampler's running sums.
    """

    def __init__(
        self, asked: NegativeSampling, seed: int, epoch: int, group: int, sums: WeightSums
    ) -> None:
        super().__init__(asked.mode, asked.amount, asked.src_weight, asked.dst_weight)
        self._batch = seed, epoch, group
        self._sums = sums
        self._calls = 0

    def sample(self, num_samples: int, endpoint: Any, num_nodes: int | None = None) -> Tensor:
        """(num_samples,) int64 node ids; each call in a batch draws anew."""
        key = rng.negatives_key(*self._batch, self._calls)
        self._calls += 1
        weight = self.src_weight if endpoint == "src" else self.dst_weight
        if weight is None:
            if not num_nodes:
                raise ArgumentError("neg_sampling: there are no nodes to draw negatives from")
            return torch.from_numpy(rng.integers(key, num_samples, num_nodes))
        if num_nodes is not None and weight.shape != (num_nodes,):
            raise ArgumentError(
                f"neg_sampling: {endpoint}_weight has the shape {tuple(weight.shape)}, expected "
                f"one weight for each of the {num_nodes} nodes"
            )
        sums = self._sums.of(endpoint, weight)
        # A number below the total falls among the weights: the first sum above it is its node's.
        # Among denormal numbers it may round up to the total, which is the last node's.
        drawn = rng.uniforms(key, num_samples) * sums[-1]
        nodes = np.searchsorted(sums, drawn, side="right")
        return torch.from_numpy(np.minimum(nodes, np.searchsorted(sums, sums[-1])))


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


def _running_sums(name: str, weight: Tensor) -> NDArray[np.float64]:
    values = weight.detach().to("cpu", torch.float64).numpy()
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise ArgumentError(
            f"neg_sampling: {name} of node {wrong[0]} is {values[wrong[0]]}; weights are finite "
            "and not negative"
        )
    sums = np.cumsum(values)
    if len(sums) == 0 or sums[-1] == 0 or not np.isfinite(sums[-1]):
        raise ArgumentError(f"neg_sampling: {name} sums to {sums[-1:].sum()}, expected above 0")
    return sums
