"""How the features of a dataset folder are read, decided once when the dataset is opened.

Owns ``setup_features``: options of ``gnnsys train`` in, options of ``gnnsys.unified`` out. Whatever
is decided here changes speed, never a row. What a user did not ask for is told with its numbers.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.arena import check_row_of_each, rows_of, share_bytes
from gnnsys.cache.making import LEAST_STAGING, staging_bytes
from gnnsys.choices import Storage
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import NODE_TYPE, Table
from gnnsys.errors import ArgumentError
from gnnsys.features.importance import importance_for_cache, needs_importance
from gnnsys.features.options import FeatureOptions, parse_cache
from gnnsys.features.replay import target_of
from gnnsys.system.budget import (
    AHEAD,
    BATCHES,
    BLOCKS,
    CACHE_ROWS,
    PLANNER,
    PLANS_AHEAD,
    RANKING,
    STAGING,
    STEPS,
    process_budget,
)
from gnnsys.system.files import check_folder_of
from gnnsys.system.sizes import parse_bytes

__all__ = [
    "OF_A_ROW",
    "OF_A_SLOT",
    "cache_bytes",
    "choose_cache",
    "feature_tables",
    "plan_features",
    "reserve_ranking",
    "setup_features",
]

_log = logging.getLogger(__name__)
_SHARE = 0.9
"""``--cache auto`` takes so much of the memory that is left; the rest is for what has no name."""
OF_A_ROW, OF_A_SLOT = 4, 18
"""Bytes that the planner has for each row of the table, and for each one in the cache."""
_OF_DEGREE, _OF_IMPORTANCE, _OF_TYPES = 8, 16, 24
"""Bytes a node while importance by degree, another one, or that of several types is computed and
ranked."""
_RANKED = 64 << 20
"""Bytes of a block of edges or nodes meanwhile."""
_AFTER_RANKING = (BATCHES, STEPS, AHEAD, PLANS_AHEAD, BLOCKS, CACHE_ROWS, PLANNER, STAGING)
_STORED = "importance, mapped"
_MAPPED = "features, mapped"
_BESIDE_ROWS = ("importance", _STORED, RANKING, PLANNER, STAGING, AHEAD, PLANS_AHEAD)
"""What nobody needs without a cache."""
_TOO_SMALL = (
    "give more memory, a smaller --cache or --topology-memory, --eval-store FOLDER, or --storage "
    "auto where it is mmap"
)
_LONG = 1.0
"""Seconds from which computing an importance is worth a word."""


def setup_features(
    dataset: Dataset,
    options: FeatureOptions,
    ranks: int = 1,
    *,
    target: str | None = None,
    task: str = "node",
    seeds: Tensor | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Options of ``gnnsys.unified`` for the features of a dataset folder.

    Those of several node types have one cache together, whose memory goes to the rows of the
    greatest importance for their bytes (``gnnsys.CacheArena``).

    Args:
        dataset: homogeneous with a table "features", or heterogeneous.
        options: as the user gave them.
        ranks: that call this together, and share the cache unless the options say otherwise.
        target: node type that is trained on; None for that of the folder's task.
        task: as ``gnnsys train`` names it.
        seeds: (n,) int64 nodes of that type which are trained on; None for those of the folder.
        sampling: of training, for ``--score presample``: ``fanouts``, ``batch_size`` and ``seed``;
            and ``threads`` that compute an importance, 0 for all cores.

    Returns:
        ``storage``, and ``cache`` with what belongs to it where there is one.

    Raises:
        ArgumentError: options that cannot be used, or ``--score presample`` without training nodes.
        StorageError: no file can be written at ``--trace``.
    """
    cache, storage = plan_features(dataset, options, ranks)
    process_budget().check(_TOO_SMALL)
    if cache is None or not feature_tables(dataset):
        return {"storage": storage}
    if dataset.heterogeneous and isinstance(cache, int):
        raise ArgumentError(
            f"--cache {cache}: rows of which type? {dataset.path} has several; give bytes such as "
            "8GB, or a share of all rows such as 10%"
        )
    if options.trace:
        check_folder_of(Path(options.trace), f"--trace {options.trace}")
    kind = target_of(dataset, target)
    sampling["seeds"] = dataset.split("train", kind) if seeds is None else seeds
    importance = _importance(dataset, options, ranks, kind, task, **sampling)
    if dataset.heterogeneous:
        return {"storage": storage, **_setup_types(dataset, options, cache, importance)}
    return {"storage": storage, **_setup_rows(dataset, options, cache, importance, ranks)}


def _importance(
    dataset: Dataset, options: FeatureOptions, ranks: int, target: str, task: str, **sampling: Any
) -> dict[str, NDArray[np.uint16]] | None:
    """(nodes,) of each node type with features; None for none."""
    began = time.perf_counter()
    kind, importance = importance_for_cache(
        dataset, options.score, ranks, target=target, **sampling
    )
    if needs_importance(dataset, options):
        for each in (importance or {}).values() if ranks == 1 else ():
            process_budget().hold("importance", each.nbytes, each)
        seconds = time.perf_counter() - began
        level = logging.WARNING if seconds >= _LONG else logging.INFO
        of = ""
        if dataset.heterogeneous and kind == "presample":
            of = f" --target {target}" if task == "node" else f" --task {task}"
        _log.log(
            level, "--score %s: computed in %.1f s; gnnsys score %s --score %s%s stores it for the "
            "next runs", options.score, seconds, dataset.path, kind, of
        )  # fmt: skip
    return importance


def _setup_rows(
    dataset: Dataset,
    options: FeatureOptions,
    cache: int | float | str,
    importance: dict[str, NDArray[np.uint16]] | None,
    ranks: int,
) -> dict[str, Any]:
    """Options of ``gnnsys.unified`` for the features of a homogeneous graph behind a cache."""
    is_shared = ranks > 1 and options.share_cache != "none"
    rows, row_bytes, _ = _size_of(dataset)
    size = rows, row_bytes
    own = 1 if is_shared else ranks
    in_host = ranks > 1 and options.share_cache not in ("auto", "peer")
    return {
        "cache": cache if own == 1 else rows_of(cache, *size, "cache") // own,
        # What "auto" found was found in the host's memory.
        "cache_on": "host" if options.cache == "auto" or in_host else "auto",
        "shared": options.share_cache if is_shared else False,
        "scores": None if importance is None else importance[NODE_TYPE],
        "prefill": importance is not None,
        **_of_any_cache(options),
        "victim_buffer": rows_of(options.victim_buffer, *size, "victim_buffer") // own,
    }


def _setup_types(
    dataset: Dataset,
    options: FeatureOptions,
    cache: float | str,
    importance: dict[str, NDArray[np.uint16]] | None,
) -> dict[str, Any]:
    """Options of ``gnnsys.unified`` for the features of several node types before one cache."""
    sizes = [(each.shape[0], each.encoding.row_stride) for each in feature_tables(dataset).values()]
    nbytes = parse_bytes(cache, "--cache") if isinstance(cache, str) else share_bytes(cache, sizes)
    check_row_of_each(nbytes, sizes, f"--cache {options.cache}")
    return {
        "cache": str(nbytes),
        "cache_on": "host" if options.cache == "auto" else "auto",
        "scores": importance,
        "prefill": importance is not None,
        "policy": options.policy,
        "window": options.window,
    }


def feature_tables(dataset: Dataset) -> dict[str, Table]:
    """The table "features" of each node type that has one."""
    nodes = dataset.manifest.nodes.items()
    return {kind: each.tables["features"] for kind, each in nodes if "features" in each.tables}


def cache_bytes(dataset: Dataset, options: FeatureOptions) -> int:
    """Of rows that ``--cache`` asks memory for; all of them for auto."""
    cache, (rows, row_bytes, nbytes) = parse_cache(options.cache), _size_of(dataset)
    if cache is None or cache == "auto" or not rows:
        return 0 if cache is None else nbytes
    return rows_of(cache, rows, row_bytes, "cache") * row_bytes


def _size_of(dataset: Dataset) -> tuple[int, int, int]:
    """Rows of features of all node types, bytes of one, on average, and bytes of all."""
    tables = feature_tables(dataset).values()
    rows, nbytes = sum(t.shape[0] for t in tables), sum(t.data_bytes for t in tables)
    return rows, -(-nbytes // max(1, rows)), nbytes


def setup_device_cache(options: FeatureOptions, edge_index: Tensor, nodes: int) -> dict[str, Any]:
    """Options of ``gnnsys.unified`` for a GPU's cache before features in memory.

    Args:
        options: with a size of the cache; how files are read does not count.
        edge_index: (2, E), sources above targets.
        nodes: of the graph.

    Raises:
        ArgumentError: an importance that is computed for dataset folders alone.
    """
    if options.score not in ("auto", "degree"):
        raise ArgumentError(
            f"--score {options.score}: is for dataset folders; features in memory take degree"
        )
    return {
        "cache": parse_cache(options.cache),
        "scores": torch.bincount(edge_index[0], minlength=nodes),
        **_of_any_cache(options),
    }


def _of_any_cache(options: FeatureOptions) -> dict[str, Any]:
    """What ``gnnsys.unified`` takes as it was given."""
    return {name: getattr(options, name) for name in ("policy", "window", "victim_buffer", "trace")}


def plan_features(
    dataset: Dataset, options: FeatureOptions, ranks: int = 1
) -> tuple[int | float | str | None, Storage]:
    """The size of the cache and the way to the disk; both are reserved in the process's budget.

    Args:
        dataset: homogeneous with a table "features", or heterogeneous.
        options: as the user gave them.
        ranks: that divide the cache, each of which plans its part of the memory.
    """
    budget = process_budget()
    budget.reserve(_MAPPED, 0, mapped=True)
    budget.reserve(CACHE_ROWS, 0)
    rows, row_bytes, nbytes = _size_of(dataset)
    cache, storage = parse_cache(options.cache), options.storage
    of_batches = budget.planned(STAGING)  # the most that batches ahead read
    budget.reserve(STAGING, 0)
    before = budget.left()
    owners = ranks if options.share_cache != "none" else 1  # of which each plans for its rows
    if cache is not None:
        _reserve_importance(dataset, options, owners)
        budget.reserve(PLANNER, OF_A_ROW * rows // owners)
        staged = staging_bytes(budget.left(), budget.ranks)
        budget.reserve(STAGING, min(staged, of_batches or staged))
    if cache == "auto":
        spare = int(budget.left() * row_bytes / (row_bytes + OF_A_SLOT))
        beside = sum(map(budget.planned, _BESIDE_ROWS))
        cache, storage = choose_cache(
            options, nbytes, ranks * spare, ranks * before, ranks * beside
        )
    if cache is None:
        for name in _BESIDE_ROWS:
            budget.reserve(name, 0)
    else:
        capacity = rows_of(cache, rows, row_bytes, "cache")
        cells = rows_of(options.victim_buffer, rows, row_bytes, "victim_buffer")
        planned = OF_A_ROW * rows // owners + OF_A_SLOT * capacity // ranks
        budget.reserve(PLANNER, planned)
        budget.reserve(CACHE_ROWS, (capacity + cells) * row_bytes // ranks)
        reserve_ranking(dataset, options)
    if storage == "mmap" or (storage == "auto" and 4 * nbytes <= budget.left()):
        storage = "mmap"
        budget.reserve(_MAPPED, nbytes, mapped=True)
    elif cache is None:
        budget.reserve(STAGING, LEAST_STAGING)
    return cache, storage


def reserve_ranking(dataset: Dataset, options: FeatureOptions) -> None:
    """Reserves what computing and ranking an importance takes beyond what comes later, in the same
    memory, so far as that is planned."""
    budget, needed = process_budget(), 0
    if needs_importance(dataset, options):
        of_one = _OF_DEGREE if options.score in ("auto", "degree") else _OF_IMPORTANCE
        each = _OF_TYPES if dataset.heterogeneous else of_one
        nodes = sum(map(dataset.num_nodes, dataset.node_types))
        needed = (_RANKED + each * nodes) // budget.ranks  # by one of them
    budget.reserve(RANKING, max(0, needed - sum(map(budget.planned, _AFTER_RANKING))))


def _reserve_importance(dataset: Dataset, options: FeatureOptions, owners: int) -> None:
    """Of all rows, once on a machine; beside it each owner has that of its rows."""
    if options.score == "none":
        return
    budget, whole = process_budget(), 2 * _size_of(dataset)[0]
    own = whole // owners if owners > 1 else 0
    if needs_importance(dataset, options):
        own += whole // budget.ranks
    else:
        budget.reserve(_STORED, whole, mapped=True)
    budget.reserve("importance", own)


def choose_cache(
    options: FeatureOptions, size: int, spare: int, left: int | None = None, beside: int = 0
) -> tuple[str | None, Storage]:
    """The cache and the storage that ``--cache auto`` stands for.

    Args:
        options: whose ``cache`` is auto.
        size: of the features, in bytes.
        spare: bytes that are left beside a cache's own needs.
        left: bytes that are left without one; None for as many.
        beside: bytes that a cache takes beside its rows.

    >>> choose_cache(FeatureOptions(), 1 << 30, 4 << 30)
    (None, 'mmap')
    >>> choose_cache(FeatureOptions(), 2 << 30, 1000)
    ('900', 'auto')
    """
    given = options.given()
    most, whole = int(spare * _SHARE), int((spare if left is None else left) * _SHARE)
    if size > whole and 2 * most < beside and not given:
        _log.warning(
            "--cache auto: none, the %d bytes that are left for rows are less than half of what a "
            "cache takes beside them, %d; --cache gives its size", most, beside
        )  # fmt: skip
        return None, options.storage
    if size > (most if given else whole):
        _log.warning(
            "--cache auto: %d bytes, %d %% of the %d that are left, for features of %d bytes; "
            "--cache chooses another size", most, 100 * _SHARE, spare, size
        )  # fmt: skip
        return str(most), options.storage
    if given:
        _log.info(
            "--cache auto: all %d bytes of the features, since %s is given and they fit in %d %% "
            "of the %d that are left", size, " ".join(given), 100 * _SHARE, spare
        )  # fmt: skip
        return str(size), options.storage
    # The page cache keeps all of it: reads that pass it by would go to the disk again.
    storage: Storage = "mmap" if options.storage == "auto" else options.storage
    _log.info(
        "--cache auto: none, the features' %d bytes fit in %d %% of the %d that are left; they are "
        "read by --storage %s", size, 100 * _SHARE, spare, storage
    )  # fmt: skip
    return None, storage
