"""Epochs packed before they run: which files there are of one, and when they are made.

Owns ``EpochPacker``, ``planner_bytes`` and ``remove_packed``. Invariants: a packed folder has its
name only once it is whole; what was packed for other batches or another cache is not used. Whatever
happens here changes speed, never a batch.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gnnsys.cache.arena import rows_of
from gnnsys.cache.making import staging_bytes
from gnnsys.cache.packed.plans import RecordedPlans, record_plans
from gnnsys.cache.packed.rows import pack_rows
from gnnsys.cache.store import CachedStore
from gnnsys.dataset.format import Table
from gnnsys.errors import FileFormatError, StorageError, TooLargeError
from gnnsys.features.options import FeatureOptions, parse_cache
from gnnsys.features.replay import epoch_ids
from gnnsys.features.setup import OF_A_ROW, OF_A_SLOT
from gnnsys.loaders import NeighborSampler
from gnnsys.memory.file import FileStore
from gnnsys.system.budget import AHEAD, PLANS_AHEAD, STAGING, process_budget
from gnnsys.system.files import as_storage_error, lock_file, lock_holder, replace_file, sync
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.system.sizes import size_text

__all__ = ["EpochPacker", "planner_bytes", "remove_packed"]

_log = logging.getLogger(__name__)
_FORMAT = 2
_FOLDER, _NEW, _LOCK = "gnnsys-packed", "gnnsys-packed.new", "gnnsys-packed.lock"
_MANIFEST, _ROWS = "pack.json", "rows.bin"
_PREFIX = "gnnsys-packed-"
"""How temporary folders begin."""
_SHARE = 0.5
"""Of the free disk, which packed files take unless told otherwise."""
_LEAST_AHEAD = 64 << 20
"""Bytes for what the planner looks ahead, where memory is short."""

_locked: set[Path] = set()
"""Folders that this process packs in."""


class EpochPacker:
    """Packs the rows that an epoch will read, in the order it reads them, and has the cache follow.

    Args:
        store: the cache before the table, which lies in a file.
        sampler: of training.
        seeds: (n,) training nodes.
        batch_size: seeds of a batch.
        seed: of the order of seeds.
        seed_block: seeds that stay together in it.
        identity: what batches depend on besides, for JSON.
        folder: for the packed files, where a run that goes on finds them; None for a temporary one.
        space: bytes of the disk that they may take; None for half of what is free.
        threads: that move rows; 0 for all cores.

    Raises:
        StorageError: nothing can be written there, or another run packs there.
    """

    def __init__(
        self,
        store: CachedStore,
        sampler: NeighborSampler,
        seeds: Tensor,
        *,
        batch_size: int,
        seed: int,
        seed_block: int = 1,
        identity: dict[str, Any],
        folder: Path | None = None,
        space: int | None = None,
        threads: int = 0,
    ) -> None:
        assert isinstance(store.source, FileStore)
        self._store, self._table = store, store.source
        self._sampler, self._seeds = sampler, seeds
        self._batch_size, self._seed, self._threads = batch_size, seed, threads
        self._seed_block = seed_block
        self._space = space
        self._batches = -(-len(seeds) // batch_size)
        self._identity = identity | {
            "format": _FORMAT,
            "seed": seed,
            "seed_block": seed_block,
            "batch_size": batch_size,
            "seeds": len(seeds),
            "cache": store.capacity,
            "policy": store.policy,
            "rows": store.shape[0],
            "row_bytes": store.row_bytes,
        }
        with as_storage_error(folder or Path(_PREFIX)):
            self._scratch = ScratchFolder(_PREFIX) if folder is None else None
        self._folder = self._scratch.path if self._scratch else folder or Path()
        weakref.finalize(self, self._take_lock().close)
        _locked.add(self._folder)
        weakref.finalize(self, _locked.discard, self._folder)
        self._epoch = -1  # of the packed files that are open
        self._plans: RecordedPlans | None = None
        self._rows: FileStore | None = None
        self._packed = 0
        self._told_bound = False

    def _take_lock(self) -> BinaryIO:
        if not self._folder.is_dir():
            raise StorageError(f"--pack-folder {self._folder}: no such folder; make it first")
        place = self._folder / _LOCK
        with as_storage_error(place):
            lock = lock_file(place)
        if lock is None:
            raise StorageError(
                f"{self._folder}: {lock_holder(place)} packs there; wait for its end, or give "
                "another --pack-folder"
            )
        return lock

    def begin(self, epoch: int, first: int, progress: Progress | None = None) -> None:
        """To be called before the batches of an epoch are asked for: packs it if it is not packed.

        Where that fails, for want of room or of a disk that works, the cause is told and rows are
        read from the table.

        Args:
            epoch: whose samples are drawn.
            first: the batch that comes first.
            progress: is told how far packing is; what it raises ends packing.
        """
        if self._batches == 0:
            return
        if self._plans is None or epoch != self._epoch:
            try:
                self._let_go()
                self._open_or_pack(epoch, progress or (lambda what, done, total: None))
            except BaseException as error:
                self._store.unfollow()  # before the rows it reads are closed
                self._let_go()
                if not isinstance(error, OSError | TooLargeError | FileFormatError):
                    raise
                with suppress(OSError):
                    _remove_in(self._folder)
                self._batches = 0  # not tried again: it would fail again
                _log.warning("--pack: rows are read from the table, unpacked: %s", str(error))
                return
        assert self._plans is not None
        self._store.follow(self._plans, self._rows, self._packed, first)

    # Packing --------------------------------------------------------------------------------------

    def _open_or_pack(self, epoch: int, progress: Progress) -> None:
        wanted = self._identity | {"epoch": epoch}
        place = self._folder / _FOLDER
        if not self._is_there(place, wanted):
            with as_storage_error(place):
                _remove_in(self._folder)
            self._pack(epoch, wanted, progress)
        manifest = json.loads((place / _MANIFEST).read_bytes())
        self._plans, self._packed = RecordedPlans(place), manifest["packed"]
        self._epoch = epoch
        rows = int(self._plans.first_reads[self._packed])
        if rows:
            storage: Any = self._table.storage
            self._rows = FileStore(
                place / _ROWS, encoding=torch.uint8, shape=(rows, self._store.row_bytes),
                threads=self._threads, storage=storage,
            )  # fmt: skip

    def _is_there(self, place: Path, wanted: dict[str, Any]) -> bool:
        """Whether this epoch is packed already; why another one is not used is told."""
        if not place.exists():
            return False
        try:
            found = json.loads((place / _MANIFEST).read_bytes())
            differs = [key for key in wanted if found.get(key) != wanted[key]]
            if differs in ([], ["epoch"]):
                plans = RecordedPlans(place)
                size = int(plans.first_reads[found["packed"]]) * self._store.row_bytes
                if size and (place / _ROWS).stat().st_size != size:
                    raise FileFormatError(f"{place / _ROWS}: not {size} bytes long")
                fits = self._space is None or plans.nbytes + size <= self._space
                return not differs and fits
            why = ", ".join(f"{key} {found.get(key)} != {wanted[key]}" for key in differs)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"damaged: {error}"
        _log.warning("%s: packed for another run (%s); it is packed anew", place, why)
        return False

    def _pack(self, epoch: int, manifest: dict[str, Any], progress: Progress) -> None:
        new, began = self._folder / _NEW, time.perf_counter()
        try:
            with as_storage_error(new):
                new.mkdir()
                free = shutil.disk_usage(new).free
            space = int(_SHARE * free) if self._space is None else self._space
            self._record(new, epoch, progress)
            plans = RecordedPlans(new)
            packed = self._fitting(plans, space)

            def passed(done: int, total: int) -> None:
                progress("packing: MiB of the table", done >> 20, total >> 20)

            memory = process_budget().planned(STAGING) or staging_bytes(process_budget().left())
            if packed:
                pack_rows(
                    self._table, plans, packed, new / _ROWS, memory=memory,
                    threads=self._threads, progress=passed,
                )  # fmt: skip
            replace_file(new / _MANIFEST, json.dumps(manifest | {"packed": packed}).encode())
            with as_storage_error(new):
                for path in new.iterdir():
                    sync(path)
                os.replace(new, self._folder / _FOLDER)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        size = int(plans.first_reads[packed]) * self._store.row_bytes
        _log.info(
            "--pack: epoch %d: %d of %d batches packed, %s, in %.1f s",
            epoch + 1, packed, len(plans), size_text(size), time.perf_counter() - began,
        )  # fmt: skip

    def _record(self, folder: Path, epoch: int, progress: Progress) -> None:
        batches, budget = self._batches, process_budget()

        def planned(done: int) -> None:
            progress("packing: batches planned", done, batches)

        record_plans(
            folder,
            self._store.make_planner(batches),
            epoch_ids(
                self._sampler,
                self._seeds,
                epoch,
                batch_size=self._batch_size,
                seed=self._seed,
                seed_block=self._seed_block,
            ),
            ahead_bytes=max(budget.planned(AHEAD) + budget.planned(PLANS_AHEAD), _LEAST_AHEAD),
            progress=planned,
        )

    def _fitting(self, plans: RecordedPlans, space: int) -> int:
        """Batches whose rows fit, from the first on."""
        ends = plans.nbytes + plans.first_reads * self._store.row_bytes
        if ends[0] > space:
            raise StorageError(
                f"plans take {size_text(plans.nbytes)} > --pack-space {size_text(space)}; give more"
            )
        packed = int(np.searchsorted(ends, space, "right")) - 1
        if packed < len(plans) and not self._told_bound:
            self._told_bound = True
            _log.warning(
                "--pack: %d of %d batches fit in %s; the others' rows are read from the table; "
                "--pack-space, or a --pack-folder with more room, packs more (%s)",
                packed, len(plans), size_text(space), size_text(int(ends[-1])),
            )  # fmt: skip
        return packed

    def _let_go(self) -> None:
        self._plans, self._packed = None, 0
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def planner_bytes(options: FeatureOptions, table: Table) -> int:
    """Of the planner that plans an epoch while the cache keeps its own, at most.

    Args:
        options: of the features.
        table: that has them.
    """
    cache, rows, row_bytes = parse_cache(options.cache), table.shape[0], table.encoding.row_stride
    if cache is None:
        return 0
    if cache == "auto":
        slots = min(rows, process_budget().left() // row_bytes)
    else:
        slots = rows_of(cache, rows, row_bytes, "cache")
    return OF_A_ROW * rows + OF_A_SLOT * slots


def remove_packed(folder: Path) -> None:
    """Removes what was packed in a folder, unless another process packs there."""
    place = folder / _LOCK
    if not place.exists():
        return
    with ExitStack() as held:
        if folder not in _locked:
            lock = lock_file(place)
            if lock is None:
                return
            held.callback(lock.close)
        _remove_in(folder)
        place.unlink(missing_ok=True)


def _remove_in(folder: Path) -> None:
    for name in (_FOLDER, _NEW):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder / name)
