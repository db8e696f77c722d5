"""How samplers read the neighbours of a dataset folder: planned with the memory, then opened.

Owns what ``--topology`` and ``--topology-memory`` do. Whatever is decided here changes speed, never
a batch. What a user did not ask for is told with its numbers.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.choices import Storage
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.setup import plan_features
from gnnsys.loaders import CSC
from gnnsys.loaders.neighbor_file import BLOCK_BYTES, NeighborFile
from gnnsys.system.budget import process_budget
from gnnsys.system.extension import core
from gnnsys.system.sizes import size_text

__all__ = [
    "NEIGHBOURS",
    "OFFSETS",
    "MappingWatch",
    "graph_to_sample",
    "open_topology",
    "plan_topology",
]

_log = logging.getLogger(__name__)
OFFSETS = "topology: offsets, mapped"
NEIGHBOURS = "topology: neighbours, mapped"
_KEPT = "topology: neighbours in memory"
_READING = "topology: reads under way"
_SHARE = 0.9
"""Of the memory that is left, so much is for neighbours; the rest is for what has no name."""
_STAGED = 32 << 20
"""Bytes of pages that a hop reads at a time."""


def plan_topology(
    dataset: Dataset, options: TopologyOptions, features: FeatureOptions, ranks: int = 1
) -> None:
    """Reserves what the neighbours take, last of all but features, in the process's budget.

    Args:
        dataset: homogeneous, with features.
        options: as the user gave them.
        features: of which a cache leaves room for neighbours; what has no size yet, half of it.
        ranks: that divide the cache.
    """
    budget = process_budget()
    budget.reserve(NEIGHBOURS, 0, mapped=True)
    for name in (_KEPT, _READING):
        budget.reserve(name, 0)
    nbytes = _bytes_of(dataset)
    if features.cache == "auto":
        left = budget.left()
        rows = dataset.manifest.nodes[NODE_TYPE].tables["features"].data_bytes
        spare = left - min(left // 2, rows // ranks)
    else:
        plan_features(dataset, features, ranks)
        spare = budget.left()
    given = options.kept_bytes()
    if options.topology == "auto":
        reads = given is not None or nbytes > spare * budget.ranks  # who map it share it
    else:
        reads = options.topology == "read"
    if not reads:
        budget.reserve(NEIGHBOURS, nbytes, mapped=True)
        return
    reading = _STAGED + nbytes // BLOCK_BYTES * 4
    most = int(_SHARE * max(0, spare - reading)) if given is None else given
    budget.reserve(_KEPT, min(nbytes, most))
    budget.reserve(_READING, reading)


def open_topology(
    dataset: Dataset,
    graph: CSC,
    options: TopologyOptions,
    *,
    storage: Storage = "auto",
    fanouts: Sequence[int] = (),
) -> None:
    """Has samplers read the neighbours of a graph as was planned, else as the options say.

    Args:
        dataset: that the graph is of, homogeneous.
        graph: as ``Dataset.graph`` made it.
        options: as the user gave them.
        storage: how pages are read past the page cache.
        fanouts: neighbours of a node for each hop; -1 takes all.

    Raises:
        StorageError, FileFormatError: neighbours cannot be read.
        UnsupportedError: an io_uring was asked for where there is none.
    """
    budget, file = process_budget(), graph.file
    assert file is not None
    planned = budget.planned(_READING) > 0
    if options.topology == "mmap-random":
        file.read_at_random()
    if not planned and options.topology != "read" and options.topology_memory is None:
        budget.hold(NEIGHBOURS, file.nbytes, file, mapped=True)
        return
    if planned:
        most = budget.planned(_KEPT)
    else:
        given = options.kept_bytes()
        most = file.nbytes if given is None else given
    file.read_past_cache(storage)
    kept = file.keep(_most_used(dataset, graph.indptr, file, most // BLOCK_BYTES, fanouts))
    budget.hold(_KEPT, kept, file)
    _log.log(
        logging.INFO if options.topology == "read" else logging.WARNING,
        "--topology %s: %s of the %s of neighbours stay in memory, the others are read past the "
        "page cache; --topology-memory chooses another size", options.topology, size_text(kept),
        size_text(file.nbytes),
    )  # fmt: skip


def _most_used(
    dataset: Dataset, indptr: Tensor, file: NeighborFile, count: int, fanouts: Sequence[int]
) -> NDArray[np.int64]:
    """Ascending numbers of the blocks of neighbours that a run draws from most."""
    assert file.native is not None
    blocks = file.native.blocks
    if count >= blocks:
        return np.arange(blocks)
    if count == 0:
        return np.empty(0, np.int64)
    stored = dataset.static_score()
    importance = None if stored is None else np.ascontiguousarray(stored[1])
    drawn = 1 << 32 if not fanouts or min(fanouts) < 0 else max(fanouts)
    weight = np.empty(blocks)
    core.weigh_blocks(indptr.numpy(), importance, drawn, file.per_block, weight)
    return np.sort(np.argpartition(-weight, count - 1)[:count])


def graph_to_sample(dataset: Dataset, storage: Storage = "auto") -> CSC:
    """The graph, to draw some batches of: a large one is read, which takes no memory."""
    graph = dataset.graph()
    assert graph.file is not None
    if 4 * graph.file.nbytes > process_budget().left():
        graph.file.read_past_cache(storage)
    return graph


def _bytes_of(dataset: Dataset) -> int:
    return dataset.manifest.edges[EDGE_TYPE].tables["indices"].data_bytes


class MappingWatch:
    """Tells of a mapped topology that does not stay in memory.

    Args:
        file: of the neighbours; None where they are in memory, or of several files.
    """

    _FIRST, _BATCHES = 8, 24
    _FAULTS = 64  # a batch

    def __init__(self, file: NeighborFile | None) -> None:
        self._file = file
        self._batches = self._faults = 0

    def look(self) -> str | None:
        """Called after each batch; a note where pages are read again and again, once."""
        file = self._file
        if file is None or file.native is not None:
            return None
        self._batches += 1
        if self._batches == self._FIRST:
            self._faults = _major_faults()
        if self._batches < self._BATCHES:
            return None
        self._file = None
        faults = (_major_faults() - self._faults) / (self._BATCHES - self._FIRST)
        left = process_budget().left(of=NEIGHBOURS)
        if faults < self._FAULTS or file.nbytes <= left:
            return None
        return (
            f"{faults:,.0f} pages a batch are read from the disk one by one: of the "
            f"{size_text(file.nbytes)} of neighbours that are mapped, {size_text(left)} can stay "
            "in memory; --topology read keeps the most used there and reads the others at once"
        )


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
