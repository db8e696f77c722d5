"""Options of ``gnnsys cluster``.

Imports tyro (for its markers) and nothing that is large: ``gnnsys --help`` reads this module.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import tyro

from gnnsys.choices import File, Folder
from gnnsys.config.checks import check_least, check_numbers, check_seed
from gnnsys.errors import ArgumentError

__all__ = ["ClusterConfig"]

_SETTINGS: dict[str, dict[str, Any]] = {
    "usps": {"alpha": 2.0, "beta": 2.0, "order": 4, "tau": 0.5, "normalize": "l1"},
    "acm": {"alpha": 0.5, "beta": 0.5, "order": 1, "tau": 0.5, "normalize": "l2"},
    "dblp": {"alpha": 2.0, "beta": 2.0, "order": 1, "tau": 1.0, "normalize": "l2"},
    "citeseer": {"alpha": 2.0, "beta": 2.5, "order": 3, "tau": 0.5, "normalize": "none"},
}
"""As published for PamC (Kulatilleke, Portmann, Chandra, 2023), but for ``normalize``."""
_OTHERS = {"alpha": 1.0, "beta": 1.0, "order": 1, "tau": 0.5, "normalize": "none"}


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Find clusters of nodes by the meta-node contrastive loss (PamC), without labels.

    An encoder is trained to reconstruct features, k-means of what it gives starts the clusters, and
    then alpha * contrastive loss + beta * clustering loss is trained. Labels, where there are some,
    only tell how good the result is.

    Examples:
        gnnsys cluster acm --root data
        gnnsys cluster usps --root data --seeds 10 --out run --plot usps.png
        gnnsys cluster my-graph --k 40 --encoder sage --batch-size 4096 --out run
        gnnsys cluster --resume run
        gnnsys report run
        gnnsys cluster --assign new-features.npy --run run --out clusters.npy
    """

    sections: ClassVar[dict[str, str]] = {
        "root": "data",
        "out": "result",
        "encoder": "encoder",
        "k": "loss",
        "epochs": "optimisation",
        "checkpoint_minutes": "checkpoint",
        "threads": "processors",
        "json": "output",
    }

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """A dataset folder; a folder with NAME_feat.npz, NAME_label.txt and NAME_graph.txt; or a name:
    acm, dblp, usps, cora, citeseer, pubmed, actor, tolokers, minesweeper."""

    root: Folder = "data"
    """Folder of named datasets: ROOT/DeepClustering/acm or ROOT/acm, and as PyG's loaders lay them
    out. Nothing is written there."""

    out: Annotated[str, "FOLDER|FILE"] | None = None
    """Folder for the run: configuration, metrics, checkpoint; of the first seed assignments.npy,
    embeddings.npy and the weights; result.json of all seeds. Made; must be empty. With --assign,
    the file to write."""

    resume: Annotated[str, "RUN"] | None = None
    """Folder of a run to go on with, with its options; --seeds, --plot, --root, --threads and
    --checkpoint-minutes may be given anew."""

    data: Annotated[str, "DATASET"] | None = None
    """With --resume: the place of the run's dataset, if that has moved."""

    assign: File | None = None
    """A file of rows of new nodes' features (.npy, .npz, .csv, .parquet, .pt): clusters them with
    the encoder of --run, without their graph, and trains nothing."""

    run: Folder | None = None
    """Folder that an earlier --out made, for --assign."""

    plot: File | None = None
    """File for a picture of the first seed's embedding in two dimensions, by cluster: .png."""

    encoder: Literal["mlp", "sage", "gcn"] = "mlp"
    """What embeds nodes. mlp: their features alone, so that new nodes need no graph; sage and gcn:
    two graph convolutions."""

    hidden: tuple[int, ...] = (500, 500, 2000)
    """Widths of the hidden layers; sage and gcn have one, the first."""

    dim: int = 10
    """Width of the embedding."""

    normalize: Literal["none", "l1", "l2"] | None = None
    """Norm that rows of features are divided by, of mlp: l2 where the length of a row, such as that
    of a text, should not count. Default: l2 for acm and dblp, l1 for usps, else none."""

    k: int | None = None
    """Clusters. Default: as many as there are classes."""

    mode: Literal["paper", "weighted", "moment1", "moment2", "node", "exact"] = "paper"
    """The negative part of the pamc loss: gnnsys.losses.pamc_loss. exact takes time that is
    quadratic in the nodes."""

    loss: Literal["pamc", "scgc", "grace", "cca-ssg"] = "pamc"
    """The contrastive loss; others than pamc to compare with. scgc: mode exact, by N x N matrices;
    grace (InfoNCE) and cca-ssg: two views with columns and edges left out."""

    augment: float = 0.3
    """Share of columns and edges that a view leaves out, of grace and cca-ssg."""

    tau: float | None = None
    """Multiplies cosines. Default: as published for acm, dblp, usps and citeseer, else 0.5."""

    alpha: float | None = None
    """Weight of the contrastive loss. Default: as published, else 1."""

    beta: float | None = None
    """Weight of the clustering loss. Default: as published, else 1."""

    order: int | None = None
    """Steps between nodes that are positive pairs, R. Default: as published, else 1."""

    max_pairs: int = 100_000_000
    """Positive pairs at most; more are refused with their number."""

    epochs: int = 200
    """Of training, after the start."""

    pretrain_epochs: int = 30
    """Of reconstruction; 0: none. With sage and gcn on the full graph, one is a single step."""

    warm_epochs: int = 50
    """Of the contrastive loss alone, after reconstruction, with clusters that k-means finds anew
    every 10 epochs."""

    warm_clusters: int | None = None
    """Those clusters. Default: --k."""

    starts: int = 1
    """Encoders that are trained so far, from other weights; the one whose clusters have the
    greatest modularity goes on. No labels are looked at."""

    lr: float = 1e-3
    """Learning rate of Adam."""

    batch_size: int | None = None
    """Nodes of a batch, with neighbours sampled around them, for graphs beyond memory. Default: the
    full graph in every step."""

    fanout: int = 10
    """Neighbours sampled per node and step, with --batch-size."""

    seeds: int = 1
    """Runs, of which mean and deviation are told."""

    seed: int = 0
    """The first of them."""

    select: Literal["loss", "modularity", "last", "labels"] = "loss"
    """Epoch whose clusters are written. loss: that of the least training loss; modularity: that
    whose clusters have most edges within, against chance; labels: the most accurate one, which
    peeks at the labels, as some published results do."""

    checkpoint_minutes: float = 1.0
    """Least time between two checkpoints inside a seed, with --out. One is written after each seed,
    too, and where a signal ends the run."""

    threads: int = 0
    """Threads that sample and gather; 0 for all cores."""

    device: Literal["auto", "cpu", "cuda", "simt"] = "auto"
    """Where the encoder is trained. auto: cuda when there is one; simt: the CPU, where the kernels
    of a GPU sum over neighbours and pairs, executed thread by thread: slow, to test them."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""

    def __post_init__(self) -> None:
        check_numbers(self)
        counts = "dim k warm_clusters order max_pairs epochs starts batch_size fanout seeds"
        check_least(self, 1, *counts.split())
        check_least(self, 0, "pretrain_epochs", "warm_epochs", "threads")
        check_seed(self.seed, (1 << 32) - self.seeds)  # sklearn's are below 2^32
        if not 0 <= self.augment < 1:
            raise ArgumentError(f"--augment {self.augment}: expected 0 up to 1")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ArgumentError(f"--{name} {value}: expected 0 or more")
        if self.alpha == 0 and self.beta == 0:
            raise ArgumentError("--alpha 0 --beta 0: expected a loss to train")
        if self.tau is not None and not self.tau > 0:
            raise ArgumentError(f"--tau {self.tau}: expected above 0")
        if not self.checkpoint_minutes > 0:
            raise ArgumentError(f"--checkpoint-minutes {self.checkpoint_minutes}: expected above 0")
        if not self.lr > 0:
            raise ArgumentError(f"--lr {self.lr}: expected above 0")
        if not self.hidden or min(self.hidden) < 1:
            raise ArgumentError(f"--hidden {self.hidden}: expected widths of at least 1")
        if self.encoder != "mlp" and self.normalize not in (None, "none"):
            raise ArgumentError(f"--normalize {self.normalize}: goes with --encoder mlp")
        if self.plot is not None and not self.plot.endswith(".png"):
            raise ArgumentError(f"--plot {self.plot}: expected a name in .png")
        if self.data is not None:
            if self.resume is None:
                raise ArgumentError("--data: goes with --resume; else the dataset comes first")
            self.dataset = self.data = os.path.abspath(self.data)
        if self.assign is not None:
            self._check_assign()
        elif not self.dataset:
            raise ArgumentError("a dataset to cluster is missing; see gnnsys cluster --help")
        elif self.run is not None:
            raise ArgumentError("--run: goes with --assign")

    def _check_assign(self) -> None:
        if self.dataset or self.run is None or self.out is None:
            raise ArgumentError(
                f"--assign {self.assign}: goes with --run RUN and --out FILE, and without a dataset"
            )

    def filled_in(self) -> ClusterConfig:
        """The same options with every default that depends on the dataset filled in, paths
        absolute.

        >>> ClusterConfig(dataset="usps", tau=1.0).filled_in().order
        4
        """
        settings = _SETTINGS.get(os.path.basename(os.path.normpath(self.dataset)), _OTHERS)
        if self.encoder != "mlp":
            settings = {**settings, "normalize": "none"}
        missing = {name: value for name, value in settings.items() if getattr(self, name) is None}
        return dataclasses.replace(
            self,
            dataset=os.path.abspath(self.dataset) if os.path.isdir(self.dataset) else self.dataset,
            root=os.path.abspath(self.root),
            plot=self.plot and os.path.abspath(self.plot),
            **missing,
        )
