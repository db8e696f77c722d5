"""The embedding of nodes in two dimensions, by cluster and by class."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from gnnsys.clustering.checkpoint import SeedResult
from gnnsys.clustering.graph import ClusterGraph
from gnnsys.clustering.metrics import match_classes
from gnnsys.pages.drawing import png
from gnnsys.pages.style import paper_looks

__all__ = ["draw_embedding"]

_MOST = 4000  # nodes that are drawn; t-SNE takes a minute for some thousands


def draw_embedding(graph: ClusterGraph, result: SeedResult) -> bytes:
    """Nodes, or 4000 of them, by t-SNE (van der Maaten and Hinton, JMLR 2008), as a PNG file."""
    assert result.selected is not None
    nodes, epoch = len(result.embeddings), result.selected.number
    draw = np.random.default_rng(0)
    chosen = np.sort(draw.permutation(nodes)[:_MOST])
    rows = result.embeddings[chosen]
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    spots = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    panels = [("clusters", result.assignments[chosen])]
    if graph.labels is not None:
        panels.append(("classes", graph.labels[chosen]))
    colors = cluster_colors(graph.labels, result.assignments)
    with paper_looks():
        figure = Figure(figsize=(6.4 * len(panels), 5.6), layout="constrained")
        for place, (name, groups) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            _draw(axes, spots, groups, name, colors if name == "clusters" else {})
        shown = f"{len(chosen):,} of {nodes:,} nodes" if len(chosen) < nodes else f"{nodes:,} nodes"
        figure.suptitle(f"{graph.name}: {shown}, epoch {epoch} of seed {result.seed}")
        return png(figure, dpi=144)


def cluster_colors(labels: NDArray[Any] | None, clusters: NDArray[Any]) -> dict[int, int]:
    """The number of each cluster's colour: that of the class it is paired with (``match_classes``),
    and for clusters without one, those that no class has.

    >>> cluster_colors(np.array([1, 1, 0, -1]), np.array([5, 5, 6, 7]))
    {5: 1, 6: 0, 7: 2}
    """
    if labels is None or not (labels >= 0).any():
        return {}
    known = labels >= 0
    colors = match_classes(labels[known], clusters[known])
    free = itertools.count(int(labels.max()) + 1)
    for cluster in np.unique(clusters).tolist():
        if cluster not in colors:
            colors[cluster] = next(free)
    return dict(sorted(colors.items()))


def _draw(
    axes: Axes, spots: NDArray[Any], groups: NDArray[Any], name: str, colors: dict[int, int]
) -> None:
    axes.set_title(name)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    axes.spines[:].set_visible(False)
    for group in np.unique(groups):
        x, y = spots[groups == group].T
        label = "unknown" if group < 0 else str(group)
        axes.scatter(
            x, y, s=5, linewidths=0, color=_color(colors.get(int(group), group)), label=label
        )
    if len(np.unique(groups)) <= 20:
        axes.legend(loc="best", markerscale=3, fontsize="small", frameon=False)


def _color(group: int) -> Any:
    # Ten strong colours first, then the ten pale ones.
    return "0.8" if group < 0 else mpl.colormaps["tab20"](2 * group % 20 + group // 10 % 2)
