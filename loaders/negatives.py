"""Which nodes stand in for the ends of links in negative ones.

Draws are a pure function of (seed, epoch, group): each request in a batch has a stream of its own
(``rng.negatives_key``). Without times, node i is number i of ``rng.integers``, or with weights
inverts number i of ``rng.uniforms``. Where nodes have times, only those that are not newer than
their link are drawn. Sorted by time they are the first ones, so that number i of ``rng.uniforms``
chooses among them, uniformly or by inverting their running sum of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling
from torch_geometric.typing import NodeType

from gnnsys import rng
from gnnsys.compat import version_of
from gnnsys.errors import ArgumentError

__all__ = ["KeyedNegatives", "NegativeNodes"]


@dataclass(frozen=True, slots=True)
class _Ages:
    """The nodes of a type from the oldest on."""

    node: NDArray[np.int64]
    time: NDArray[np.int64]
    """Of ``node``, ascending."""


class NegativeNodes:
    """What the negatives of a sampler are drawn from, made when it is first asked for.

    Threads that meet here store equal entries.

    Args:
        node_time: (nodes,) times of the node types, or None.
    """

    def __init__(self, node_time: Mapping[NodeType | None, Tensor | None]) -> None:
        self._node_time = node_time
        self._ages: dict[NodeType | None, _Ages] = {}
        self._sums: dict[Any, tuple[Tensor, int, NDArray[np.float64]]] = {}

    def ages(self, kind: NodeType | None) -> _Ages | None:
        """The nodes of a type by time; None where they have no times."""
        time = self._node_time[kind]
        if time is not None and kind not in self._ages:
            times, nodes = time.sort(stable=True)
            self._ages[kind] = _Ages(nodes.numpy(), times.numpy())
        return self._ages.get(kind)

    def sums(
        self, endpoint: str, kind: NodeType | None, weight: Tensor, by_age: bool
    ) -> NDArray[np.float64]:
        """(nodes,) running sums of the weights, in the order of ids or from the oldest node on.

        Raises:
            ArgumentError: weights that are negative or not finite, or all zero.
        """
        place = endpoint, kind, by_age
        made = self._sums.get(place)
        if made is None or made[0] is not weight or made[1] != version_of(weight):
            order = self._ages[kind].node if by_age else slice(None)
            sums = _running_sums(f"{endpoint}_weight", weight, order)
            made = self._sums[place] = weight, version_of(weight), sums
        return made[2]


class KeyedNegatives(NegativeSampling):
    """The negative sampling of one batch.

    Stands in for the user's ``NegativeSampling`` within PyG's ``edge_sample``, which decides how
    many nodes are drawn; negative i belongs to link ``i % links``.

    Args:
        asked: what the user asked for.
        inputs: the links.
        nodes: the sampler's.
        seed, epoch, group: of the batch.
    """

    def __init__(
        self,
        asked: NegativeSampling,
        inputs: EdgeSamplerInput,
        nodes: NegativeNodes,
        *,
        seed: int,
        epoch: int,
        group: int,
    ) -> None:
        super().__init__(asked.mode, asked.amount, asked.src_weight, asked.dst_weight)
        self._inputs = inputs
        self._nodes = nodes
        self._batch = seed, epoch, group
        self._calls = 0

    def sample(self, num_samples: int, endpoint: Any, num_nodes: int | None = None) -> Tensor:
        """(num_samples,) int64 node ids; each call in a batch draws anew.

        Raises:
            ArgumentError: no nodes, weights that do not fit, or a link older than all nodes.
        """
        key = rng.negatives_key(*self._batch, self._calls)
        self._calls += 1
        weight = self.src_weight if endpoint == "src" else self.dst_weight
        if not num_nodes:
            raise ArgumentError("neg_sampling: there are no nodes to draw negatives from")
        if weight is not None and weight.shape != (num_nodes,):
            raise ArgumentError(
                f"neg_sampling: {endpoint}_weight has the shape {tuple(weight.shape)}, which needs "
                f"to match the number of nodes {num_nodes}; give one weight for each of the "
                f"{num_nodes} nodes"
            )
        kind = self._inputs.input_type
        kind = None if kind is None else kind[0 if endpoint == "src" else -1]
        ages = None if self._inputs.time is None else self._nodes.ages(kind)
        if ages is not None:
            drawn = self._sample_by_age(key, num_samples, endpoint, kind, ages, weight)
        elif weight is None:
            drawn = rng.integers(key, num_samples, num_nodes)
        else:
            sums = self._nodes.sums(endpoint, kind, weight, by_age=False)
            drawn = _invert(sums, rng.uniforms(key, num_samples), sums[-1:])
        return torch.from_numpy(drawn)

    def _sample_by_age(
        self,
        key: int,
        num_samples: int,
        endpoint: str,
        kind: NodeType | None,
        ages: _Ages,
        weight: Tensor | None,
    ) -> NDArray[np.int64]:
        link = np.arange(num_samples) % len(self._inputs.row)
        old_enough = np.searchsorted(ages.time, self._inputs.time.numpy(), side="right")[link]
        uniforms = rng.uniforms(key, num_samples)
        if weight is None:
            self._check_totals(old_enough, link, kind, "")
            place = (uniforms * old_enough).astype(np.int64)
        else:
            sums = self._nodes.sums(endpoint, kind, weight, by_age=True)
            totals = np.concatenate([[0.0], sums])[old_enough]
            self._check_totals(totals, link, kind, f" and has a {endpoint}_weight above 0")
            place = _invert(sums, uniforms, totals)
        return ages.node[place]

    def _check_totals(
        self, totals: NDArray[Any], link: NDArray[np.int64], kind: NodeType | None, also: str
    ) -> None:
        """Raises ArgumentError unless there is something to draw for each link."""
        wrong = np.flatnonzero(totals == 0)
        if len(wrong):
            inputs, first = self._inputs, int(link[wrong[0]])
            what = "node" if kind is None else f"{kind!r} node"
            raise ArgumentError(
                f"neg_sampling: the link from {int(inputs.row[first])} to "
                f"{int(inputs.col[first])} has the time {int(inputs.time[first])}, and no {what} "
                f"is as old{also}; leave such links out"
            )


def _invert(
    sums: NDArray[np.float64], uniforms: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The first places whose running sum exceeds a uniform number times the total, (n,).

    A place of weight 0 has the sum of the one before it. Among denormal numbers the product may
    round up to the total, which is the last place's that has a weight.
    """
    places = np.searchsorted(sums, uniforms * totals, side="right")
    return np.minimum(places, np.searchsorted(sums, totals))


def _running_sums(name: str, weight: Tensor, order: Any) -> NDArray[np.float64]:
    values = weight.detach().to("cpu", torch.float64).numpy()
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise ArgumentError(
            f"neg_sampling: {name} of node {wrong[0]} is {values[wrong[0]]}; weights are finite "
            "and not negative"
        )
    sums = np.cumsum(values[order])
    if len(sums) == 0 or sums[-1] == 0 or not np.isfinite(sums[-1]):
        raise ArgumentError(f"neg_sampling: {name} sums to {sums[-1:].sum()}, expected above 0")
    return sums
