"""How well clusters agree with classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from gnnsys.errors import ArgumentError

__all__ = ["LABEL_METRICS", "METRICS", "cluster_metrics", "match_classes", "modularity"]

LABEL_METRICS = ("acc", "nmi", "ari", "f1")
METRICS = ("modularity", *LABEL_METRICS)
"""What clusters are judged by; all but the first need labels."""


def cluster_metrics(labels: NDArray[Any], clusters: NDArray[Any]) -> dict[str, float]:
    """ACC, NMI, ARI and macro F1 of clusters against classes.

    ACC and F1 by the best pairing of clusters with classes (Kuhn, "The Hungarian method", 1955);
    nodes of a cluster without a class are wrong. NMI is normalised by the arithmetic mean.

    Args:
        labels: (N,) classes, -1 where unknown: such nodes are left out.
        clusters: (N,).

    Raises:
        ArgumentError: shapes that do not fit, or no label is known.

    >>> found = cluster_metrics(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 7]))
    >>> found["acc"], round(found["f1"], 4)
    (0.75, 0.7333)
    """
    if labels.shape != clusters.shape or labels.ndim != 1:
        raise ArgumentError(
            f"labels {labels.shape}, clusters {clusters.shape}: expected (N,) twice"
        )
    known = labels >= 0
    if not known.any():
        raise ArgumentError("labels: none is known")
    y, c = labels[known], clusters[known]
    classes = np.unique(y)
    class_of = match_classes(y, c)
    paired = np.array([class_of.get(cluster, -1) for cluster in c.tolist()])
    return {
        "acc": float((paired == y).mean()),
        "nmi": float(normalized_mutual_info_score(y, c)),
        "ari": float(adjusted_rand_score(y, c)),
        "f1": float(f1_score(y, paired, labels=classes, average="macro")),
    }


def match_classes(labels: NDArray[Any], clusters: NDArray[Any]) -> dict[int, int]:
    """The class that each cluster is paired with, so that most nodes are of both.

    Args:
        labels: (n,) classes, all known.
        clusters: (n,).

    Returns:
        By cluster; those that are left without a class are not there.

    >>> match_classes(np.array([4, 4, 9, 9, 9]), np.array([1, 1, 0, 0, 1]))
    {0: 9, 1: 4}
    """
    classes, y = np.unique(labels, return_inverse=True)
    names, c = np.unique(clusters, return_inverse=True)
    pairs = linear_sum_assignment(contingency_matrix(c, y), maximize=True)
    return {int(names[row]): int(classes[column]) for row, column in zip(*pairs, strict=True)}


def modularity(edge_index: NDArray[np.int64], clusters: NDArray[np.int64]) -> float:
    """The share of edges within clusters, less what it would be if edges only kept the degrees of
    their nodes (Newman, Girvan: "Finding and evaluating community structure in networks", 2004,
    eq. 5). Asks for no labels.

    Args:
        edge_index: (2, E), of a graph without directions, each edge once or each twice.
        clusters: (N,).

    Returns:
        Below 1; 0 for a single cluster, or without edges.

    >>> modularity(np.array([[0, 1, 2, 3], [1, 0, 3, 2]]), np.array([0, 0, 1, 1]))
    0.5
    """
    sources, targets = clusters[edge_index]
    if not len(sources):
        return 0.0
    width = int(clusters.max()) + 1
    ends = np.bincount(sources, minlength=width) + np.bincount(targets, minlength=width)
    return float((sources == targets).mean() - np.square(ends / (2 * len(sources))).sum())
