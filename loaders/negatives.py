"""Which nodes stand in for the ends of links in negative ones.

Draws are a pure function of (seed, epoch, group): each request in a batch has a stream of its own
(``rng.negatives_key``). Without times, node i is number i of ``rng.integers``, or with weights
inverts number i of ``rng.uniforms``. Where nodes have times, only those that are not newer than
their link are drawn. Sorted by time they are the first ones, so that number i of ``rng.uniforms``
chooses among them, uniformly or by inverting their running sum of weights.

Negatives that are known links are drawn again, from further streams, and those that still are after
``_ROUNDS`` from the pairs that are no known links, written out: both are the same distribution.
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
from gnnsys.loaders.checks import check_ids_below
from gnnsys.loaders.link_negatives import LinkNegatives

__all__ = ["KeyedNegatives", "NegativeNodes"]

_ROUNDS = 32
"""Of drawing again what is a known link. Among pairs of which 9 in 10 are known, 1 in 30 draws is
left after them."""

# Requests of a batch, each with a stream: of an end, of round r, number 2 r and 2 r + 1.
_WRITTEN_OUT = 2 * _ROUNDS
_HARD = _WRITTEN_OUT + 1


@dataclass(frozen=True, slots=True)
class _Ages:
    """The nodes of a type from the oldest on."""

    node: NDArray[np.int64]
    time: NDArray[np.int64]
    """Of ``node``, ascending."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Links that no negative is, each once, ascending by source and then target."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    keys: NDArray[np.int64]
    num_targets: int

    def has(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs are known."""
        wanted = row * self.num_targets + col
        place = np.searchsorted(self.keys, wanted)
        found = place < len(self.keys)
        found[found] = self.keys[place[found]] == wanted[found]
        return found

    def targets_of(self, source: int) -> NDArray[np.int64]:
        """The known targets of a source."""
        begin, end = np.searchsorted(self.row, [source, source + 1])
        return self.col[begin:end]


class NegativeNodes:
    """What the negatives of a sampler are drawn from, made when it is first asked for.

    Threads that meet here store equal entries.

    Args:
        node_time: (nodes,) times of the node types, or None.
        num_nodes: of the node types.
    """

    def __init__(
        self,
        node_time: Mapping[NodeType | None, Tensor | None],
        num_nodes: Mapping[NodeType | None, int],
    ) -> None:
        self._node_time = node_time
        self.num_nodes = num_nodes
        self._ages: dict[NodeType | None, _Ages] = {}
        self._sums: dict[Any, tuple[Tensor, int, NDArray[np.float64]]] = {}
        self._known: dict[Any, tuple[Tensor, int, _Known]] = {}

    def times(self, kind: NodeType | None) -> NDArray[np.int64] | None:
        """(nodes,) times of a type."""
        time = self._node_time[kind]
        return None if time is None else time.numpy()

    def known(self, source: NodeType | None, target: NodeType | None, links: Tensor) -> _Known:
        """Links between two types, sorted.

        Raises:
            ArgumentError: a link outside the nodes.
        """
        place = source, target
        made = self._known.get(place)
        if made is None or made[0] is not links or made[1] != version_of(links):
            counts = self.num_nodes[source], self.num_nodes[target]
            for end, ids, count in zip(("sources", "targets"), links, counts, strict=True):
                check_ids_below(f"known, {end}", ids, count)
            keys = (links[0] * counts[1] + links[1]).unique().numpy()
            known = _Known(keys // counts[1], keys % counts[1], keys, counts[1])
            made = self._known[place] = links, version_of(links), known
        return made[2]

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
    many nodes are drawn and what they belong to: negative i to link ``i % links``, but in triplets
    that are not disjoint to link ``i // amount``.

    Args:
        asked: what the user asked for, which may be a ``LinkNegatives``.
        inputs: the links.
        nodes: the sampler's.
        disjoint: whether each link has trees of its own.
        seed, epoch, group: of the batch.

    Raises:
        ArgumentError: known links outside the nodes.
    """

    def __init__(
        self,
        asked: NegativeSampling,
        inputs: EdgeSamplerInput,
        nodes: NegativeNodes,
        *,
        disjoint: bool,
        seed: int,
        epoch: int,
        group: int,
    ) -> None:
        super().__init__(asked.mode, asked.amount, asked.src_weight, asked.dst_weight)
        self._inputs = inputs
        self._nodes = nodes
        self._disjoint = disjoint
        self._batch = seed, epoch, group
        kind = inputs.input_type
        source, target = (None, None) if kind is None else (kind[0], kind[-1])
        self._kinds = {"src": source, "dst": target}
        self._known: _Known | None = None
        self._hard: Tensor | None = None
        if isinstance(asked, LinkNegatives):
            if asked.known is not None:
                self._known = nodes.known(source, target, asked.known)
            self._hard = asked.hard
            self._num_hard = asked.amount if asked.num_hard is None else asked.num_hard
        self._targets: NDArray[np.int64] | None = None

    def sample(self, num_samples: int, endpoint: Any, num_nodes: int | None = None) -> Tensor:
        """(num_samples,) int64 node ids; of binary negatives the sources first.

        Raises:
            ArgumentError: no nodes, weights or hard negatives that do not fit, a link older than
                all nodes, or one of whose possible negatives all are known links, or itself.
        """
        if self._targets is not None:
            return torch.from_numpy(self._targets)
        number = np.arange(num_samples)
        if self.is_triplet() and not self._disjoint:
            link, number = np.divmod(number, self.amount)
        else:
            number, link = np.divmod(number, len(self._inputs.row))
        self._check_others(link)
        given = self._inputs.row.numpy().astype(np.int64)[link]
        sources = self._draw("src", link) if self.is_binary() else given
        targets = self._draw("dst", link)
        if self._known is not None:
            self._draw_unknown(self._known, link, sources, targets)
        if self._hard is not None:
            some = np.flatnonzero(number < self._num_hard)
            targets[some] = self._draw_hard(self._hard, link[some], sources[some], targets[some])
        if self.is_triplet():
            return torch.from_numpy(targets)
        self._targets = targets
        return torch.from_numpy(sources)

    def _key(self, request: int) -> int:
        return rng.negatives_key(*self._batch, request)

    def _draw(self, endpoint: str, link: NDArray[np.int64], again: int = 0) -> NDArray[np.int64]:
        """Nodes of an end for negatives of some links."""
        key = self._key(2 * again + (endpoint == "dst" and self.is_binary()))
        order, sums, totals = self._drawable(endpoint, link)
        if order is None and sums is None:
            return rng.integers(key, len(link), int(totals[0]))
        uniforms = rng.uniforms(key, len(link))
        if sums is None:
            place = (uniforms * totals).astype(np.int64)
        else:
            place = _invert(sums, uniforms, totals)
        return place if order is None else order[place]

    def _check_others(self, link: NDArray[np.int64]) -> None:
        """Raises ArgumentError unless another link than itself can be drawn for each."""
        ends = {"src": self._inputs.row, "dst": self._inputs.col}
        alone = np.ones(len(link), np.bool_)
        for endpoint in ("src", "dst") if self.is_binary() else ("dst",):
            order, sums, totals = self._drawable(endpoint, link)
            first = 0 if sums is None else np.searchsorted(sums, 0.0, side="right")
            last = totals - 1 if sums is None else np.searchsorted(sums, totals)
            node = first if order is None else order[first]
            alone &= (first == last) & (node == ends[endpoint].numpy()[link])
        if alone.any():
            raise ArgumentError(
                f"neg_sampling: there is one {_named(self._kinds['dst'])} that can be drawn for "
                f"{self._told(int(link[alone.argmax()]))}, so that each negative would be its own "
                "link; leave such links or neg_sampling out"
            )

    def _drawable(
        self, endpoint: str, link: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None, NDArray[Any]]:
        """What an end's nodes are drawn from: their order, None for that of ids; running sums of
        their weights, None without; and for each link, or for all in one, the sum up to which
        nodes, the first in the order, are drawn, or their number."""
        kind = self._kinds[endpoint]
        num_nodes = self._nodes.num_nodes[kind]
        weight = self._weight(endpoint)
        if not num_nodes:
            raise ArgumentError("neg_sampling: there are no nodes to draw negatives from")
        if weight is not None and weight.shape != (num_nodes,):
            raise ArgumentError(
                f"neg_sampling: {endpoint}_weight has the shape {tuple(weight.shape)}, which needs "
                f"to match the number of nodes {num_nodes}; give one weight for each of the "
                f"{num_nodes} nodes"
            )
        ages = None if self._inputs.time is None else self._nodes.ages(kind)
        sums = None
        if weight is not None:
            sums = self._nodes.sums(endpoint, kind, weight, by_age=ages is not None)
        if ages is None:
            return None, sums, np.array([num_nodes]) if sums is None else sums[-1:]
        old_enough = np.searchsorted(ages.time, self._inputs.time.numpy(), side="right")[link]
        if sums is None:
            self._check_totals(old_enough, link, kind, "")
            return ages.node, None, old_enough
        totals = np.concatenate([[0.0], sums])[old_enough]
        self._check_totals(totals, link, kind, f" with a {endpoint}_weight above 0")
        return ages.node, sums, totals

    def _weight(self, endpoint: str) -> Tensor | None:
        return self.src_weight if endpoint == "src" else self.dst_weight

    def _check_totals(
        self, totals: NDArray[Any], link: NDArray[np.int64], kind: NodeType | None, also: str
    ) -> None:
        """Raises ArgumentError unless there is something to draw for each link."""
        wrong = np.flatnonzero(totals == 0)
        if len(wrong):
            raise ArgumentError(
                f"neg_sampling: no {_named(kind)}{also} is as old as "
                f"{self._told(int(link[wrong[0]]))}; leave such links out"
            )

    def _told(self, link: int) -> str:
        inputs = self._inputs
        when = "" if inputs.time is None else f" at the time {int(inputs.time[link])}"
        return f"the link from {int(inputs.row[link])} to {int(inputs.col[link])}{when}"

    # Known links and hard negatives --------------------------------------------------------------

    def _draw_unknown(
        self,
        known: _Known,
        link: NDArray[np.int64],
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> None:
        """Puts others in the place of pairs that are known links."""
        left = np.arange(len(link))
        for again in range(1, _ROUNDS + 1):
            left = left[known.has(sources[left], targets[left])]
            if len(left) == 0:
                return
            if again == _ROUNDS:
                break
            if self.is_binary():
                sources[left] = self._draw("src", link[left], again)
            targets[left] = self._draw("dst", link[left], again)
        uniforms = rng.uniforms(self._key(_WRITTEN_OUT), 2 * len(left)).reshape(-1, 2)
        for place, (first, second) in zip(left.tolist(), uniforms, strict=True):
            if self.is_binary():
                sources[place] = self._source_of_free(known, int(link[place]), first)
            free = self._possible("dst", int(link[place]))
            possible = np.count_nonzero(free)
            free[known.targets_of(int(sources[place]))] = 0
            if not free.any():
                raise ArgumentError(
                    f"neg_sampling: for {self._told(int(link[place]))} every target that can be "
                    f"drawn ({possible} of {known.num_targets}) is a known link of the source "
                    f"{sources[place]}; leave such links out, or draw without known"
                )
            targets[place] = _choose(free, second)

    def _source_of_free(self, known: _Known, link: int, uniform: float) -> int:
        """A source by its weight and that of its targets that are no known links of it."""
        weight = self._possible("dst", link)
        count = len(self._possible("src", link))
        known_weight = np.bincount(known.row, weight[known.col], count)
        known_targets = np.bincount(known.row, weight[known.col] > 0, count)
        # Counted, too, since differences of sums of weights are rounded.
        free = np.count_nonzero(weight) > known_targets
        least = np.finfo(np.float64).tiny
        share = self._possible("src", link) * free * np.maximum(weight.sum() - known_weight, least)
        if not share.any():
            raise ArgumentError(
                f"neg_sampling: every pair that can be drawn for {self._told(link)} is a known "
                "link; leave such links out, or draw without known"
            )
        return _choose(share, uniform)

    def _possible(self, endpoint: str, link: int) -> NDArray[np.float64]:
        """(nodes,) the weights by which an end of a link's negatives is drawn."""
        kind, weight = self._kinds[endpoint], self._weight(endpoint)
        possible = np.ones(self._nodes.num_nodes[kind])
        if weight is not None:
            possible *= weight.detach().to("cpu", torch.float64).numpy()
        times = self._nodes.times(kind)
        if self._inputs.time is not None and times is not None:
            possible[times > int(self._inputs.time[link])] = 0
        return possible

    def _draw_hard(
        self,
        table: Tensor,
        link: NDArray[np.int64],
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Hard negatives, or the targets where the row of a source has none that can be used."""
        source, target = self._kinds["src"], self._kinds["dst"]
        if len(table) != self._nodes.num_nodes[source]:
            raise ArgumentError(
                f"hard: {len(table)} rows, expected one for each of the "
                f"{self._nodes.num_nodes[source]} sources"
            )
        rows = table[torch.from_numpy(sources)].numpy().astype(np.int64)
        outside = rows[(rows < -1) | (rows >= self._nodes.num_nodes[target])]
        if len(outside):
            raise ArgumentError(
                f"hard: {outside[0]} is outside the targets [0, {self._nodes.num_nodes[target]}), "
                "and not -1"
            )
        usable = (rows >= 0) & (rows != self._inputs.col.numpy()[link, None])
        times = self._nodes.times(target)
        if self._inputs.time is not None and times is not None:
            usable &= times[rows] <= self._inputs.time.numpy()[link, None]
        if self._known is not None:
            where = np.repeat(sources, rows.shape[1])
            usable &= ~self._known.has(where, rows.ravel()).reshape(rows.shape)
        uniforms = rng.uniforms(self._key(_HARD), len(link))
        wanted = (uniforms * usable.sum(1)).astype(np.int64)  # which of those that can be used
        rows = np.concatenate([rows, targets[:, None]], 1)
        usable = np.concatenate([usable, ~usable.any(1, keepdims=True)], 1)
        chosen = (usable.cumsum(1) > wanted[:, None]).argmax(1)
        return rows[np.arange(len(rows)), chosen]


def _named(kind: NodeType | None) -> str:
    return "node" if kind is None else f"{kind!r} node"


def _choose(weights: NDArray[np.float64], uniform: float) -> int:
    sums = np.cumsum(weights)
    return int(_invert(sums, np.array([uniform]), sums[-1:])[0])


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
