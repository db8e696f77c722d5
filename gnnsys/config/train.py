"""Options of the commands: one dataclass makes the command line and the Python call.

Imports tyro (for its markers) and nothing that is large: ``gnnsys --help`` reads this module.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from gnnsys.choices import (
    MODELS,
    NO_FOLDERS,
    EvalReads,
    File,
    Folder,
    ImportanceChoice,
    Metric,
    Policy,
    Precision,
    SharingChoice,
    Size,
    Storage,
    Topology,
)
from gnnsys.config.checks import (
    FANOUTS,
    FIRST_FANOUTS,
    check_bytes,
    check_least,
    check_numbers,
    check_seed,
    parse_fanouts,
)
from gnnsys.config.links import check_links
from gnnsys.config.offload import OffloadOptions, check_offload, offload_folder
from gnnsys.config.optimisation import check_optimisation
from gnnsys.config.packing import check_packing
from gnnsys.config.parallel import check_parallel, split_of
from gnnsys.config.times import check_times
from gnnsys.config.user_model import check_model, is_user_model
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions, TopologyOptions, Window

__all__ = ["TrainConfig"]


@dataclass(kw_only=True, slots=True)
class TrainConfig(OffloadOptions):
    """Train a GNN for node classification or regression, on sampled mini-batches or on the full
    graph; or for the prediction of links.

    Examples:
        gnnsys train demo
        gnnsys train cora --root data --full-batch --model gcn
        gnnsys train demo --ranks 2
        gnnsys train cora --root data --full-batch --model gcnii --layers 32 --parallel pipeline \
            --ranks 4 --chunks 16
        gnnsys train my-graph --out run1 --epochs 50 --patience 10
        gnnsys train flights-graph --task delayed --model rgcn --temporal last
        gnnsys train my-graph --model my_models:make --lr-schedule cosine --warmup-epochs 2
        gnnsys train shop --task link --target user,buys,item --dropout 0 --weight-decay 0
        gnnsys train --resume run1
        gnnsys train my-graph --config run1/config.toml --out run2 --lr 0.003
    """

    sections: ClassVar[dict[str, str]] = {
        "dataset": "",
        "root": "data",
        "model": "model",
        "fanouts": "sampling",
        "temporal": "time",
        "optimizer": "optimisation",
        "decoder": "links",
        "precision": "optimisation",
        "parallel": "parallel",
        "metric": "evaluation",
        "checkpoint_epochs": "checkpoint",
        "seed": "seed and processors",
        "memory": "memory and cache",
        "offload": "memory and cache",
        "stats": "output",
    }

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """A dataset folder; or cora, citeseer, pubmed, actor, tolokers, minesweeper; or demo: a
    generated community graph whose features lie in a temporary file."""

    out: Folder | None = None
    """Folder for the run: configuration, metrics, checkpoint and weights. Made; must be empty."""

    resume: Annotated[str, "RUN"] | None = None
    """Folder of a run to go on with, with its options; --epochs, --patience, --threads, --root, the
    --checkpoint- options and all of memory and cache, and output, may be given anew. So may
    --parallel and all about ranks, stages and ways."""

    data: Annotated[str, "DATASET"] | None = None
    """With --resume: the place of the run's dataset, if that has moved."""

    config: File | None = None
    """A TOML file of options; those given here count before it, and --no-FLAG unsets a flag. --out
    writes one."""

    root: Folder = "data"
    """Folder of the datasets, laid out as PyG's loaders do (ROOT/Cora/raw, ROOT/Actor/raw,
    ROOT/HeterophilousGraph/tolokers/raw or ROOT/tolokers/raw). Nothing is written there."""

    split: int = 0
    """Which of the dataset's splits to use; actor, tolokers and minesweeper have 10."""

    task: Annotated[str, "node|link|NAME"] = "node"
    """What is trained for. node: the classes, or numbers, of nodes; link: links of the edge type
    --target; else the name of one of the folder's tasks, see docs/relational.md."""

    target: Annotated[str, "TYPE|SRC,REL,DST"] | None = None
    """Node type to classify, of a heterogeneous dataset folder; with --task link the edge type
    whose links are to be predicted. Default: the one that the folder names, or that has links held
    out."""

    model: Annotated[str, MODELS, f"{{{','.join(MODELS)}}}|MODULE:FACTORY"] = "sage"
    """Kind of graph convolution. Heterogeneous folders take rgcn, rgat, hgt, sage and gat; the
    first three are for them alone. gcnii and resgcn are deep: a linear encoder, --layers graph
    layers of the width --hidden, a linear decoder; for --full-batch. So are gcn and sage with
    --parallel. Or a model of your own: PACKAGE.MODULE:FACTORY, see docs/models.md."""

    hidden: int | None = None
    """Width of the hidden layers. Default: 16 for full-batch gcn, else 64."""

    layers: int = 2
    """Number of graph convolutions."""

    fanouts: Annotated[tuple[int, ...] | None, FANOUTS] = None
    """Neighbours to sample per node for each layer, nearest the seeds first, between spaces or
    commas; -1 takes all. Default: 15 10 5 5 ..., one for each of --layers."""

    sampling: Literal["uniform", "labor"] = "uniform"
    """How mini-batches draw neighbours. labor: LABOR-0, where a node's draw is shared by all that
    could sample it, so that a batch holds fewer nodes. Changes the distribution of batches."""

    sampler: Literal["auto", "cpu", "gpu"] = "auto"
    """Who draws neighbours; the batches are the same. gpu: kernels of --device cuda or simt,
    uniformly and at most 2048 of a node. auto: cpu, but gpu with --device simt where they can."""

    sums: Literal["plain", "scaled"] = "plain"
    """How a gin sums sampled neighbours. plain: those that were drawn; scaled: times degree /
    drawn, an unbiased estimate of the sum over all, which exact evaluation takes."""

    dependent_batches: int = 1
    """So many batches in a row share the draws of neighbours and therefore many nodes. Above 1,
    changes the distribution of batches."""

    reuse_samples: int = 1
    """So many epochs in a row have the same mini-batches, the draws of neighbours and the order of
    seeds, so that --pack packs once for them. Above 1, changes the statistics of training."""

    precision: Precision = "fp32"
    """Arithmetic of training. bf16: torch.autocast to bfloat16; weights, the loss and evaluation
    stay float32. Faster where the processor multiplies bfloat16."""

    static_shapes: bool = False
    """Pad all mini-batches to the same numbers of nodes and edges, so that --compile compiles the
    model once, not again for new shapes. Losses are the same, but for dropout's draws."""

    compile: bool = False
    """Compile the model for steps on mini-batches by torch.compile, which needs a C++ compiler on
    the CPU."""

    full_batch: bool = False
    """Train on the full graph in every step instead of on sampled mini-batches."""

    batch_size: int = 1024
    """Seed nodes, or links, per mini-batch, of each rank."""

    seed_block: int = 1
    """Training nodes with neighbouring numbers that are shuffled as one. Where these lie together
    (gnnsys convert --order community), the seeds of a batch share neighbours and pages of the disk.
    It changes what batches are made of: their seeds resemble each other, and accuracy may suffer.
    1: each by itself."""

    epochs: int | None = None
    """Passes over the training nodes, or links. Default: 5 for demo, else 200."""

    lr: float = 0.01
    """Learning rate; see --lr-schedule."""

    weight_decay: float = 5e-4
    """L2 penalty; of adamw, the share of --lr by which weights shrink."""

    dropout: float = 0.5
    """Probability with which inputs of each layer are dropped in training."""

    nan_loss: Literal["stop", "go-on"] = "stop"
    """When a loss or a weight becomes NaN or infinite. stop: the run ends with an error, and its
    last checkpoint stays; go-on: trains on after a warning."""

    parallel: Literal["pipeline", "graph", "hybrid"] | None = None
    """Spread the full graph's training over S * W ranks, see docs/pipeline.md. pipeline: each rank
    holds a run of layers; graph: a part of the vertices, exact; hybrid: both. Under torchrun a rank
    is a process; --ranks starts them; else all ranks take turns in this process."""

    ranks: int | None = None
    """Start so many processes on this machine: S * W with --parallel. Else each trains on every
    N-th mini-batch, the N of a step at once, and the gradient is the mean over all their seeds; see
    docs/ranks.md. The batches are those of one process."""

    cooperative: bool = False
    """The ranks draw and compute one mini-batch of --batch-size seeds for each together: every row
    is read, and every hidden vector computed, by one rank, which sends them to those that need
    them. The batches are those of one process whose --batch-size is so many times as large. For
    mini-batches; one rank trains as without."""

    max_restarts: int = 0
    """With --ranks: after a rank that died, start all again, at most so often; they go on from the
    last checkpoint in --out, with the losses of a run that was never broken off. Bad input and
    Ctrl-C end a run. torchrun has this option, too."""

    stages: int | None = None
    """Runs of layers, S. Default: as many as there are ranks, or half of them for hybrid."""

    ways: int | None = None
    """Ranks that share a stage, W. Default: as many as there are ranks for graph, 2 for hybrid."""

    chunks: int | None = None
    """Parts of the vertices, K, a multiple of the ways. Default: 4 for each rank; one for each way
    of graph."""

    snapshot_period: int = 23
    """Epochs between two snapshots of the rows that chunks read of later ones, R."""

    boundary_gradient_scale: float = 2.0
    """Factor of the gradients to rows of earlier chunks; 1: as autograd has them."""

    history: Literal["exact", "zeros"] = "exact"
    """The first snapshot: of the initial weights, or zeros."""

    order: Literal["shuffled", "fixed"] = "shuffled"
    """Of the chunks, in each epoch."""

    shuffle_factor: int = 1
    """Parts that METIS makes for each chunk, shuffled and merged."""

    timeline: File | None = None
    """File for a picture of what each rank did in the last epoch: .png or .html; or
    .json for its events, which chrome://tracing and Perfetto open."""

    metric: Literal["auto", Metric] = "auto"
    """Metric to report, and to choose the best epoch, an early stop and a plateau by; of loss, mae
    and rmse the lowest is best, else the highest. auto: what the dataset says; rocauc for tolokers
    and minesweeper, else accuracy, rmse of a regression, or mrr of links. See docs/models.md."""

    eval: Literal["auto", "layerwise", "neighborhoods", "sampled"] = "auto"
    """How mini-batch training is evaluated. layerwise: exactly, every node once a layer;
    neighborhoods: exactly, in each layer only the nodes that the scored ones depend on; sampled: on
    neighbourhoods sampled as in training, not exactly; auto: the cheaper of both exact ones, but
    sampled on heterogeneous folders, which take no neighborhoods, with a model of your own, and
    where seeds have times; of links layerwise, but sampled where they have times. By auto and
    sampled, test nodes that would take long are scored once, at the end."""

    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""

    eval_store: Annotated[str, "auto|ram|FOLDER"] = "auto"
    """Where exact evaluation keeps activations: ram, a folder, or auto: in memory where they
    take at most a quarter of what is left, else in a temporary folder."""

    eval_reads: EvalReads = "auto"
    """How exact evaluation of all nodes reads rows. gather: those of neighbours, wherever they lie;
    sequential: all rows in passes, as many nodes at a time as have sums in memory, not for
    gat; auto: for each layer whichever reads fewer bytes from the disk. Both give the same up to
    rounding."""

    patience: int = 0
    """Stop after this many evaluations without a better validation score; 0: never."""

    checkpoint_epochs: int = 1
    """Epochs between two checkpoints."""

    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints, also inside an epoch."""

    seed: int = 0
    """Of weights, dropout, the order of seeds and sampling."""

    threads: int = 0
    """Threads that sample and gather; 0 for all cores. Changes speed, never a batch."""

    device: Literal["auto", "cpu", "cuda", "simt"] = "auto"
    """Where the model trains. auto: cuda when there is one, whose kernels read features in memory
    where they are; simt: the CPU, where the same kernels are executed thread by thread: slow, to
    test them."""

    memory: Size | None = None
    """Bytes (10GB) of memory for the run, libraries and mapped files included, see gnnsys plan; a
    run that cannot fit is refused. Of ranks on mini-batches: for all on this machine. Default: what
    the control group or the machine leaves. Like all options of memory and cache, it changes speed,
    never a batch or a loss."""

    embeddings: Annotated[str, "auto|ram|FOLDER"] = "auto"
    """Where the embeddings of node types without features lie: ram; a folder for tables that need
    not fit in memory, see docs/embeddings.md; or auto: in memory where they take at most three
    quarters of what all else leaves, else in --out, or a temporary folder without it."""

    cache: Annotated[str, "SIZE|N|SHARE|auto|none"] = "auto"
    """Memory for rows of a dataset folder's features: bytes (8GB), rows (100000), a share of the
    rows (10%) or none; with --device cuda, of the GPU. auto: none where they fit in the memory that
    all else leaves (the operating system keeps them), else what is left, of the host. Ranks on
    mini-batches have one cache together, of this size."""

    share_cache: SharingChoice = "auto"
    """How ranks read each other's rows of the cache. shm: in memory that they all map, on one
    machine; exchange: the rank that has a row sends it, also to other machines; peer: kernels of
    --device cuda or simt read it in the memory of the other's GPU; auto: peer there, if --cache is
    a size, shm where it can be, else exchange; none: each has its own cache in host memory, of its
    part of --cache, not with --cooperative, where each rank asks for its own rows alone."""

    policy: Policy = "hybrid"
    """Which rows the cache keeps. hybrid: those that the next batches need, then the
    most important; hybrid-pvp: for use with --victim-buffer; lookahead: whatever their importance;
    the others look back and are there to compare with."""

    window: Window = "auto"
    """Batches that are sampled ahead for the cache to plan with. auto: up to 64. Fewer where
    the ids of so many take more memory than the loader gives them (see docs/feature-cache.md)."""

    victim_buffer: Size = "0"
    """Bytes (1GB) for rows that left the cache and will be needed soon; 0: none."""

    storage: Storage = "auto"
    """How rows are read. uring: io_uring past the page cache; pread: threads that do the same;
    mmap: through the page cache. auto: mmap where the file fits in a quarter of the memory
    left, else uring, or pread where the kernel does not offer it."""

    topology: Topology = "auto"
    """How the neighbours of a dataset folder are read when batches are drawn. mmap: through the
    page cache; mmap-random: likewise, but no page brings others with it; read: the most used stay
    in memory, the others are read past the page cache, all of a hop at once, as --storage says.
    auto: mmap where they fit in the memory that is left beside all else, else read."""

    topology_memory: Size | None = None
    """Bytes (2GB) of neighbours that --topology read keeps in memory, of each rank; 0: none.
    Default: what is left. Given, auto stands for read."""

    score: ImportanceChoice = "auto"
    """Importance of rows, by which the cache is filled before the first batch and decides where no
    batch in the window does. degree: how often a node is a neighbour; pagerank: reverse PageRank;
    presample: how often a short run of sampling needs a row. auto: what gnnsys score stored with
    the dataset, else degree."""

    pack: bool = False
    """Before an epoch, draw its batches, plan the cache over all of them, and write the rows that
    will be missed to a file, in the order of the batches, which then read it from front to back.
    Takes disk space; for one process and features in a file behind a cache."""

    pack_space: Size | None = None
    """Bytes (50GB) of the disk that --pack may take; batches beyond it read the table. Default:
    half of what is free."""

    pack_folder: Folder | None = None
    """Where --pack writes. Default: the run's folder, else that of temporary files. What it wrote
    is removed when the run is done."""

    trace: File | None = None
    """File to which the ids of all batches are written, for gnnsys plan."""

    stats: bool = False
    """Show how features are served, live and in a table at the end: rows and bytes by tier, reads,
    time waited."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_model(self)
        if is_user_model(self.model) and self.eval == "auto" and not self.full_batch:
            self.eval = "sampled"
        check_least(
            self, 1, "layers", "batch_size", "seed_block", "eval_every", "dependent_batches",
            "checkpoint_epochs", "hidden", "epochs",
        )  # fmt: skip
        check_least(self, 0, "threads", "split", "patience")
        check_seed(self.seed)
        if not self.checkpoint_minutes > 0:
            raise ArgumentError(f"--checkpoint-minutes {self.checkpoint_minutes}: expected above 0")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"--dropout {self.dropout}: expected a probability in [0, 1)")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise ArgumentError(
                f"--lr {self.lr} --weight-decay {self.weight_decay}: expected lr > 0 and "
                "weight decay >= 0"
            )
        check_optimisation(self)
        check_links(self)
        check_times(self)
        if self.fanouts is not None:
            self.fanouts = parse_fanouts(self.fanouts)
            self._check_fanouts(self.fanouts)
        check_bytes("memory", self.memory)
        self._check_features()
        if self.full_batch and (self.sampling != "uniform" or self.dependent_batches > 1):
            raise ArgumentError(
                f"--full-batch: samples nothing, but --sampling {self.sampling} and "
                f"--dependent-batches {self.dependent_batches} say how to; give one or the other"
            )
        if self.full_batch and self.seed_block > 1:
            raise ArgumentError(
                f"--seed-block {self.seed_block}: is for mini-batches; leave it or --full-batch out"
            )
        for name in ("static-shapes", "compile", "cooperative"):
            if getattr(self, name.replace("-", "_")) and self.full_batch:
                raise ArgumentError(f"--{name}: is for mini-batches; leave it or --full-batch out")
        if self.sums == "scaled" and (
            self.model != "gin" or self.full_batch or self.sampling != "uniform"
        ):
            raise ArgumentError(
                "--sums scaled: is for --model gin on uniformly sampled neighbours, without "
                "--full-batch or another --sampling"
            )
        self._check_eval_reads()
        if self.sampler == "gpu" and (self.device == "cpu" or self.full_batch):
            raise ArgumentError("--sampler gpu: is for mini-batches on --device cuda or simt")
        check_parallel(self)
        check_packing(self)
        check_offload(self)
        if self.data is not None:
            if self.resume is None:
                raise ArgumentError("--data: goes with --resume; else the dataset comes first")
            self.dataset = self.data = os.path.abspath(self.data)

    def _check_features(self) -> None:
        features, topology = FeatureOptions.of(self), TopologyOptions.of(self)
        if self.full_batch:
            features.check_without_file("--full-batch reads them into memory once")
            topology.check_without_file("--full-batch reads them into memory once")
        if self.sampler == "gpu" and topology != TopologyOptions():
            raise ArgumentError(
                f"--sampler gpu: maps the neighbours, but --topology {self.topology} was given; "
                "leave one of them out"
            )

    def _check_eval_reads(self) -> None:
        if self.eval_reads != "sequential":
            return
        if self.full_batch or self.parallel or self.eval in ("neighborhoods", "sampled"):
            raise ArgumentError(
                "--eval-reads sequential: is for mini-batches and --eval layerwise, which computes "
                "all nodes; leave it, or the other option, out"
            )
        if self.model == "gat":
            raise ArgumentError(
                "--eval-reads sequential: a gat weighs each neighbour by both ends, so it needs "
                "their rows together; give gather or auto, or --model sage, gcn or gin"
            )

    def _check_fanouts(self, fanouts: tuple[int, ...]) -> None:
        if len(fanouts) != self.layers:
            raise ArgumentError(
                f"--fanouts {' '.join(map(str, fanouts))}: {len(fanouts)} fanouts != "
                f"{self.layers} layers; give one per layer or --layers {len(fanouts)}"
            )

    def filled_in(self) -> TrainConfig:
        """The same options with every default that depends on others filled in, folders absolute.

        >>> TrainConfig(dataset="cora", layers=4).filled_in().fanouts
        (15, 10, 5, 5)
        """
        more = (FIRST_FANOUTS[-1],) * (self.layers - len(FIRST_FANOUTS))
        small = self.full_batch and self.model == "gcn" and self.parallel is None
        stages, ways, chunks = split_of(self) if self.parallel else (None, None, None)
        epochs = self.epochs or (5 if self.dataset == "demo" else 200)
        return dataclasses.replace(
            self,
            dataset=os.path.abspath(self.dataset) if os.path.isdir(self.dataset) else self.dataset,
            root=os.path.abspath(self.root),
            eval_store=_absolute(self.eval_store),
            embeddings=_absolute(self.embeddings),
            offload=offload_folder(self.offload) or self.offload,
            pack_folder=self.pack_folder and os.path.abspath(self.pack_folder),
            trace=self.trace and os.path.abspath(self.trace),
            timeline=self.timeline and os.path.abspath(self.timeline),
            stages=stages,
            ways=ways,
            chunks=chunks,
            hidden=self.hidden or (16 if small else 64),
            epochs=epochs,
            fanouts=self.fanouts or (FIRST_FANOUTS + more)[: self.layers],
        )


def _absolute(place: str) -> str:
    return place if place in NO_FOLDERS else os.path.abspath(place)
