"""How the features of a dataset folder are read, decided once when the dataset is opened.

Owns ``setup_features``: options of ``gnnsys train`` in, options of ``gnnsys.unified`` out. Whatever
is decided here changes speed, never a row. What a user did not ask for is told with its numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Storage
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import StorageError
from gnnsys.features.importance import importance, scores_of
from gnnsys.features.options import FeatureOptions, parse_cache
from gnnsys.memory import available_memory

__all__ = ["choose_cache", "setup_features"]

_log = logging.getLogger(__name__)
_SHARE = 2
"""``--cache auto`` takes one part in so many of the memory that can be spared."""
_RESERVE = 160 << 20
"""Bytes of memory that are not spared: batches, those sampled ahead and reads under way."""
_LONG = 1.0
"""Seconds from which computing a score is worth a word."""


def setup_features(
    dataset: Dataset,
    options: FeatureOptions,
    *,
    fanouts: Sequence[int] = (),
    batch_size: int = 1024,
    seed: int = 0,
    threads: int = 0,
) -> dict[str, Any]:
    """Options of ``gnnsys.unified`` for the features of a homogeneous dataset folder.

    Args:
        dataset: with a table "features".
        options: as the user gave them.
        fanouts: of training, for ``--score presample``; likewise ``batch_size``, in seeds, and
            ``seed``.
        threads: that gather, and that compute a score; 0 for all cores.

    Returns:
        ``storage``, and ``cache`` with what belongs to it where there is one.

    Raises:
        ArgumentError: options that cannot be used, or ``--score presample`` without training nodes.
        StorageError: no file can be written at ``--trace``.
    """
    cache: int | float | str | None = parse_cache(options.cache)
    storage = options.storage
    if cache == "auto":
        size = dataset.manifest.nodes[NODE_TYPE].tables["features"].data_bytes
        cache, storage = choose_cache(options, size, available_memory())
    if cache is None:
        return {"storage": storage}
    if options.trace:
        _check_folder(options.trace)
    scores = _scores(dataset, options, fanouts, batch_size, seed, threads)
    return {
        "storage": storage,
        "cache": cache,
        "policy": options.policy,
        "window": options.window,
        "victim_buffer": options.victim_buffer,
        "scores": scores,
        "prefill": scores is not None,
        "trace": options.trace,
    }


def choose_cache(options: FeatureOptions, size: int, available: int) -> tuple[str | None, Storage]:
    """The cache and the storage that ``--cache auto`` stands for.

    Args:
        options: whose ``cache`` is auto.
        size: of the features, in bytes.
        available: memory, in bytes.

    >>> choose_cache(FeatureOptions(), 1 << 30, 4 << 30)
    (None, 'mmap')
    >>> choose_cache(FeatureOptions(), 2 << 30, _RESERVE + 1000)
    ('500', 'auto')
    """
    half, given = max(0, available - _RESERVE) // _SHARE, options.given()
    if size > half:
        _log.warning(
            "--cache auto: %d bytes, half of the %d available less %d for batches, for features of "
            "%d bytes; --cache chooses another size", half, available, _RESERVE, size
        )  # fmt: skip
        return str(half), options.storage
    if given:
        _log.info(
            "--cache auto: all %d bytes of the features, since %s is given and they fit in half of "
            "the %d available less %d for batches", size, " ".join(given), available, _RESERVE
        )  # fmt: skip
        return str(size), options.storage
    # The page cache keeps all of it: reads that pass it by would go to the disk again.
    storage: Storage = "mmap" if options.storage == "auto" else options.storage
    _log.info(
        "--cache auto: none, the features' %d bytes fit in half of the %d available less %d for "
        "batches; they are read by --storage %s", size, available, _RESERVE, storage
    )  # fmt: skip
    return None, storage


def _scores(
    dataset: Dataset,
    options: FeatureOptions,
    fanouts: Sequence[int],
    batch_size: int,
    seed: int,
    threads: int,
) -> NDArray[np.uint16] | None:
    """(nodes,) the score asked for: from the folder where it is there, else computed now."""
    if options.score == "none":
        return None
    stored = dataset.static_score()
    if stored is not None and options.score in ("auto", stored[0]):
        return stored[1]
    kind = "degree" if options.score == "auto" else options.score
    began = time.perf_counter()
    graph = dataset.graph()
    values = importance(
        kind,
        graph,
        seeds=dataset.split("train"),
        fanouts=fanouts,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
    )
    scores = scores_of(kind, values, graph)
    seconds = time.perf_counter() - began
    level = logging.WARNING if seconds >= _LONG else logging.INFO
    _log.log(
        level, "--score %s: computed in %.1f s; gnnsys score %s --score %s stores it for the next "
        "runs", options.score, seconds, dataset.path, kind
    )  # fmt: skip
    return scores


def _check_folder(trace: str) -> None:
    folder = Path(trace).parent
    if not folder.is_dir():
        raise StorageError(f"--trace {trace}: {folder} is not a folder; name a file in one that is")
