"""Softmax over the edges of each target, the attention of graph networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError

__all__ = ["edge_softmax"]

# E edges, H heads. Of the two ends of an edge (0: its source, 1: its target) `to` is the target
# here. S rows of the other end's nodes, T of the targets.


def edge_softmax(
    edge_index: Tensor,
    *,
    num_targets: int,
    logits: Tensor | None = None,
    source: Tensor | None = None,
    target: Tensor | None = None,
    negative_slope: float | None = None,
    to: int = 1,
) -> Tensor:
    """For each target the softmax of its edges' logits.

    ``z[e] = logits[e] + source[s] + target[t]`` for an edge e from s to t, of those given.

    >>> edge_index = torch.tensor([[0, 1, 2], [0, 0, 1]])
    >>> edge_softmax(edge_index, num_targets=2, logits=torch.zeros(3, 1)).tolist()
    [[0.5], [0.5], [1.0]]
    """
    ends = edge_index[1 - to], edge_index[to]
    terms = [logits] if logits is not None else []
    terms += [
        x.index_select(0, nodes)
        for x, nodes in zip((source, target), ends, strict=True)
        if x is not None
    ]
    if not terms:
        raise ArgumentError("edge_softmax: neither logits nor source nor target are given")
    z = sum(terms[1:], terms[0])
    if negative_slope is not None:
        z = F.leaky_relu(z, negative_slope)
    index = ends[1].unsqueeze(-1).expand_as(z)
    most = z.new_full((num_targets, z.size(1)), -torch.inf)
    most = most.scatter_reduce(0, index, z.detach(), "amax")
    exponential = (z - most.index_select(0, ends[1])).exp()
    total = z.new_zeros(num_targets, z.size(1)).index_add(0, ends[1], exponential)
    return exponential / total.index_select(0, ends[1])
