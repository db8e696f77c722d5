"""The demo: a generated community graph whose features lie in a file.

Labels are the communities. A node's features say little about its own label and much once they are
averaged over its neighbours, so a GNN learns what an MLP cannot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["DemoGraph", "write_demo"]

_WITHIN = 0.65
_SIGNAL = 0.06


@dataclass(frozen=True, slots=True)
class DemoGraph:
    """What ``write_demo`` made beside the feature file."""

    edge_index: Tensor
    """(2, edges) int64."""

    labels: Tensor
    """(nodes,) int64 in [0, num_classes)."""

    num_classes: int
    train: Tensor
    val: Tensor
    test: Tensor


def write_demo(
    path: str | os.PathLike[str],
    *,
    num_nodes: int = 20_000,
    num_classes: int = 10,
    degree: int = 16,
    dim: int = 128,
    seed: int = 0,
) -> DemoGraph:
    """Generates the graph and writes its features to ``path``.

    Every node draws ``degree`` in-neighbours, 13 of 20 from its own community on average (a planted
    partition: Condon and Karp, "Algorithms for graph partitioning on the planted partition model",
    2001). Features are standard normal noise plus 0.06 times the community's random centre.

    Args:
        path: of the .npy file, (num_nodes, dim) float32.
        num_nodes: of the graph.
        num_classes: communities.
        degree: in-neighbours of each node.
        dim: features of each node.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_nodes)
    target = np.repeat(np.arange(num_nodes), degree)
    source = np.where(
        rng.random(len(target)) < _WITHIN,
        _draw_members(rng, labels, num_classes, labels[target]),
        rng.integers(0, num_nodes, len(target)),
    )
    centres = rng.standard_normal((num_classes, dim), dtype=np.float32)
    noise = rng.standard_normal((num_nodes, dim), dtype=np.float32)
    np.save(path, noise + np.float32(_SIGNAL) * centres[labels])
    order = torch.from_numpy(rng.permutation(num_nodes))
    train, val = num_nodes // 2, num_nodes // 4
    return DemoGraph(
        edge_index=torch.from_numpy(np.stack([source, target])),
        labels=torch.from_numpy(labels),
        num_classes=num_classes,
        train=order[:train],
        val=order[train : train + val],
        test=order[train + val :],
    )


def _draw_members(
    rng: np.random.Generator,
    labels: np.ndarray,
    num_classes: int,
    wanted: np.ndarray,
) -> np.ndarray:
    """A random node of each wanted community."""
    by_label = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=num_classes)
    first = np.cumsum(sizes) - sizes
    return by_label[first[wanted] + (rng.random(len(wanted)) * sizes[wanted]).astype(np.int64)]
