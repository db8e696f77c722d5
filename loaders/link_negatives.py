"""What a user may ask of negative links beyond PyG's ``NegativeSampling``."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.sampler import NegativeSampling

from gnnsys.errors import ArgumentError
from gnnsys.loaders.checks import check_ids_below
from gnnsys.loaders.user_graph import check_ids_dtype
from gnnsys.system.whole import check_whole

__all__ = ["LinkNegatives", "degree_weights"]


class LinkNegatives(NegativeSampling):
    """How negative links are drawn: PyG's ``NegativeSampling`` with links that are none, and with
    hard ones.

    May be given as ``neg_sampling`` to ``LinkNeighborLoader`` and ``NeighborSampler``. Other
    samplers take it for the ``NegativeSampling`` that it is, and leave out what it has more.

    Args:
        mode: "binary" draws both ends of each negative link, "triplet" targets for each source.
        amount: negatives for each link; a whole number for triplets.
        src_weight: (sources,) weights that sources are drawn by; None for uniform draws.
        dst_weight: (targets,) those of targets, such as ``degree_weights``.
        known: (2, n) links, sources above targets, that no negative is. In a graph with times those
            that are newer than a negative's link count, too.
        hard: (sources, k) ids of targets that score high for each source, such as ``top_links``
            finds; -1 for none. For triplets. May be set to another table between epochs.
        num_hard: how many of a source's negatives, its first ones, come from its row of ``hard``,
            uniformly; None for all. What is known, newer than the link or its own target is left
            out; where nothing is left, the negative is drawn as the others are.

    Raises:
        ArgumentError, DTypeError: values, shapes or types that do not fit.

    >>> known = torch.tensor([[0, 0, 1], [1, 2, 2]])
    >>> weight = degree_weights(known[1], num_nodes=4)
    >>> LinkNegatives("triplet", 5, dst_weight=weight, known=known).amount
    5
    """

    def __init__(
        self,
        mode: Literal["binary", "triplet"] = "triplet",
        amount: int | float = 1,
        src_weight: Tensor | None = None,
        dst_weight: Tensor | None = None,
        *,
        known: Tensor | None = None,
        hard: Tensor | None = None,
        num_hard: int | None = None,
    ) -> None:
        try:
            super().__init__(mode, amount, src_weight, dst_weight)
        except ValueError as error:
            raise ArgumentError(f"neg_sampling: {error}") from error
        self.known = None if known is None else _as_links(known)
        if hard is not None and self.is_binary():
            raise ArgumentError(
                "hard: given with mode 'binary', whose sources are drawn, too; use 'triplet'"
            )
        if hard is None and num_hard is not None:
            raise ArgumentError(f"num_hard: {num_hard} without a table of them; give hard")
        if num_hard is not None:
            check_whole("num_hard", num_hard, least=0)
            if num_hard > amount:
                raise ArgumentError(f"num_hard: {num_hard}, expected 0 to the amount({amount})")
        self.hard = hard
        self.num_hard = num_hard

    @property
    def hard(self) -> Tensor | None:
        """(sources, k) int64 or int32 ids of targets, -1 for none."""
        return self._hard

    @hard.setter
    def hard(self, hard: Tensor | None) -> None:
        if hard is not None:
            hard = torch.as_tensor(hard)
            if hard.dim() != 2:
                raise ArgumentError(f"hard: shape {tuple(hard.shape)}, expected (sources, k)")
            hard = check_ids_dtype("hard", hard, "ids of targets").cpu()
        self._hard = hard


def degree_weights(ids: Tensor, num_nodes: int, power: float = 0.75) -> Tensor:
    """How often each node occurs, raised to a power: weights of negatives.

    0.75 is that of word2vec (Mikolov et al.: "Distributed Representations of Words and Phrases and
    their Compositionality", NeurIPS 2013, section 2.2). With the power 1 over the targets of all
    links they are in proportion to the chance that a target is in a batch, as
    ``in_batch_loss`` needs it.

    Args:
        ids: (n,) node ids, such as the targets of all links.
        num_nodes: of their type.
        power: 0 weighs all nodes alike that occur.

    Returns:
        (num_nodes,) float64; 0 for a node that does not occur.

    Raises:
        ArgumentError, DTypeError: ids outside the nodes, or not integers; a number of nodes or a
            power that cannot be used.

    >>> degree_weights(torch.tensor([2, 0, 2, 2, 2]), num_nodes=4, power=0.5).tolist()
    [1.0, 0.0, 2.0, 0.0]
    """
    if ids.dim() != 1:
        raise ArgumentError(f"ids: shape {tuple(ids.shape)}, expected (n,)")
    check_whole("num_nodes", num_nodes, least=0)
    ids = check_ids_below("ids", ids, num_nodes)
    counts = torch.bincount(ids, minlength=num_nodes).double()
    weights = torch.where(counts > 0, counts**power, 0.0)
    if not (math.isfinite(power) and weights.sum().isfinite()):
        raise ArgumentError(
            f"power: {power}, expected a finite number, by which {len(ids)} occurrences of a "
            "node remain finite"
        )
    return weights


def _as_links(known: Any) -> Tensor:
    links = torch.as_tensor(known)
    if links.dim() != 2 or links.shape[0] != 2:
        raise ArgumentError(
            f"known: shape {tuple(links.shape)}, expected (2, links), sources above targets"
        )
    return check_ids_dtype("known", links, "node ids").to("cpu", torch.int64)
