"""The closed sets of choices that options have, and kinds of texts by the names that help has for
them. Imports nothing: the command line is made of it."""

from typing import Annotated, Literal

__all__ = [
    "DATASET_NAMES",
    "LOWER_IS_BETTER",
    "METRICS",
    "MODELS",
    "NO_FOLDERS",
    "EvalReads",
    "File",
    "FloatType",
    "Folder",
    "GapPolicy",
    "Importance",
    "ImportanceChoice",
    "Metric",
    "OffloadPolicy",
    "Overflow",
    "Policy",
    "Precision",
    "RowOrder",
    "Scale",
    "Sharing",
    "SharingChoice",
    "Size",
    "Storage",
    "StoredType",
    "Topology",
]

DATASET_NAMES = ("cora", "citeseer", "pubmed", "actor", "tolokers", "minesweeper", "demo")
"""Datasets to train on that are no folders."""

NO_FOLDERS = ("auto", "ram")
"""Places of activations, and of embeddings, that are no folders."""

EvalReads = Literal["auto", "gather", "sequential"]
"""How a layer of exact inference reads its inputs: the rows of a block's neighbours, wherever they
lie; all rows in passes; auto: whichever reads fewer bytes from the disk."""

File = Annotated[str, "FILE"]
"""A path."""

Folder = Annotated[str, "FOLDER"]
"""A path."""

Size = Annotated[str, "SIZE"]
"""Bytes, such as 10GB; see ``gnnsys.system.sizes``."""

OffloadPolicy = Literal["mask", "recompute", "bf16", "host", "disk"]
"""How tensors that autograd keeps for backward may leave the memory of the device. ``mask``: bits
stand for those of which backward needs no more, as of a ReLU's; ``recompute``: elementwise
operators make them again; ``bf16``: they are rounded to bfloat16, the only choice that changes
gradients; ``host``: they wait in the memory of the host; ``disk``: in a file."""

Policy = Literal["hybrid", "lookahead", "hybrid-pvp", "lru", "lfu", "static", "sieve", "s3fifo"]
"""Who leaves the cache first.

``hybrid``: rows without a known next use, the least important first, then those whose next use
is farthest. ``lookahead``: the same with all equally important, which is Belady's rule inside the
window. ``hybrid-pvp``: rows whose next use is more than an eighth of the window away leave first,
because the victim buffer saves them, then the others as in ``hybrid``; without a victim buffer it
is ``hybrid``. ``static``: the least important first. ``lru``, ``lfu``, ``sieve``, ``s3fifo``: the
usual caches, which know nothing of coming batches.
"""

Storage = Literal["auto", "uring", "pread", "mmap"]
"""How a file is read: io_uring, a pool of threads, or the page cache; auto chooses."""

Topology = Literal["auto", "mmap", "mmap-random", "read"]
"""How samplers read neighbours: through the page cache, with or without read-ahead, or past it,
with the most used in memory; auto chooses."""

Sharing = Literal["auto", "shm", "exchange", "peer"]
"""How ranks read rows of a cache that they share: in memory that all of them map, where they are on
one machine; as messages of the rank that has them; or, of a cache on GPUs, by kernels in each
other's memory; auto chooses."""

SharingChoice = Literal[Sharing, "none"]
"""The same; none: each rank has a cache of its own."""

Importance = Literal["presample", "degree", "pagerank"]
"""How it is found out how often a node's row will be needed."""

ImportanceChoice = Literal["auto", "none", "degree", "pagerank", "presample"]
"""The importance that a cache goes by: one kind of it, what is stored with the dataset, or none."""

MODELS = ("sage", "gcn", "gat", "gin", "rgcn", "rgat", "hgt", "gcnii", "resgcn")
"""Models that ``gnnsys train`` has itself."""

Metric = Literal[
    "accuracy", "rocauc", "ap", "f1", "precision", "recall", "mcc", "loss", "mae", "rmse", "r2",
    "mrr", "hits@1", "hits@3", "hits@10", "recall@10", "ndcg@10", "auc",
]  # fmt: skip
"""What a model is judged by."""

METRICS: dict[str, tuple[Metric, ...]] = {
    "classes": ("accuracy", "rocauc", "ap", "f1", "precision", "recall", "mcc", "loss"),
    "labels": ("accuracy", "rocauc", "ap", "f1", "precision", "recall", "loss"),
    "values": ("rmse", "mae", "r2"),
    "links": ("mrr", "hits@1", "hits@3", "hits@10", "recall@10", "ndcg@10", "auc"),
}
"""Of one class a node, of several labels a node, of a number a node, and of links."""

LOWER_IS_BETTER = ("loss", "mae", "rmse")
"""Metrics of which that is so."""

Precision = Literal["fp32", "bf16"]
"""Arithmetic of training."""

FloatType = Literal["float32", "float16", "bfloat16"]
"""Element type that features are stored in."""

StoredType = Literal[FloatType, "int8", "int4"]
"""The same, or whole numbers with a scale."""

Scale = Literal["row", "column"]
"""What has a scale of its own where features are whole numbers with a scale."""

Overflow = Literal["refuse", "allow"]
"""What to do with values beyond the element type that they are stored in: refuse them, or store
them as infinite and count them."""

GapPolicy = Literal["refuse", "keep", "zero", "mean"]
"""What to do with NaN and infinite values: refuse them, keep them, or replace each by zero or by
the mean of its column's finite values."""

RowOrder = Literal["none", "degree", "community"]
"""How the nodes of a dataset folder are numbered, and so their rows lie: as in the source; by how
often they stand in lists of neighbours; or by community."""
