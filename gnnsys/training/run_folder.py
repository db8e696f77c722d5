"""The folder of a run: making it, and whether a checkpoint in it fits what is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gnnsys._version import __version__
from gnnsys.choices import NO_FOLDERS
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.file import CHANGES_LOSSES, check_resumed, config_to_toml
from gnnsys.config.run_files import CONFIG, LOCK
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, StorageError
from gnnsys.ranks.environment import rank_of_process, restarts_so_far
from gnnsys.system.files import (
    as_storage_error,
    check_folder_of,
    lock_file,
    lock_holder,
    replace_file,
)
from gnnsys.training.checkpoint import CHECKPOINT, Checkpoint

__all__ = [
    "NothingKept",
    "check_eval_store",
    "check_fits",
    "describe",
    "lock_run",
    "make_run_folder",
    "open_run",
    "removing_unused",
    "resumed",
    "told_to_rank",
]

_log = logging.getLogger(__name__)
_OF_A_RANK = {
    "config", "data", "dataset", "eval_store", "json", "memory", "root", "stats", "threads",
}  # fmt: skip
"""Options that need not be the same on all ranks; the dataset itself is compared."""
_LONG = 60.0
"""Seconds from which on a run that keeps nothing is told of."""
_LOOKED_AT = 2.0
"""Seconds of a run from which on its whole time is estimated."""


def resumed(config: TrainConfig) -> TrainConfig:
    """The options, checked if a run goes on. Ranks that were started again go on with what they
    left in ``--out``, if there is a checkpoint.

    Raises:
        ArgumentError: it is asked for other options than it had.
        MissingFileError: its dataset is not where it was.
    """
    left = Path(config.out) if config.out and not config.resume and restarts_so_far() else None
    if left and (left / CHECKPOINT).is_file():
        config = dataclasses.replace(config, out=None, resume=config.out)
    if config.resume:
        check_resumed(config)
    return config


def open_run(config: TrainConfig) -> Path | None:
    """The folder of the run, with its ``config.toml``."""
    if config.timeline is not None:
        check_folder_of(Path(config.timeline), f"--timeline {config.timeline}")
    check_eval_store(config.eval_store)
    if config.resume:
        return Path(config.resume)
    return None if config.out is None else make_run_folder(config.out, config)


def make_run_folder(out: str, config: TrainConfig | ClusterConfig) -> Path:
    """A folder with ``config.toml`` for a new run.

    Raises:
        ArgumentError: it holds files already.
        StorageError: it cannot be written.
    """
    run = Path(out)
    if run.is_dir() and any(run.iterdir()) and not _began_before(run, config):
        raise ArgumentError(
            f"--out {run}: holds files already; give another folder, or go on with --resume {run}"
        )
    with as_storage_error(run):
        run.mkdir(parents=True, exist_ok=True)
    try:
        replace_file(run / CONFIG, config_to_toml(config).encode())
    except StorageError:
        if not any(run.iterdir()):
            run.rmdir()
        raise
    return run


def _began_before(run: Path, config: TrainConfig | ClusterConfig) -> bool:
    """Whether ranks that were started again find what they left, before a first checkpoint."""
    known = run / CONFIG
    return (
        bool(restarts_so_far())
        and known.is_file()
        and (known.read_text() == config_to_toml(config))
    )


def check_eval_store(place: str) -> None:
    """Raises StorageError where ``--eval-store`` names a folder that cannot be written."""
    path = Path(place)
    if place in NO_FOLDERS or (path.is_dir() and os.access(path, os.W_OK)):
        return
    found = "no such folder" if not path.exists() else "not permitted"
    if path.exists() and not path.is_dir():
        found = "no folder"
    raise StorageError(f"--eval-store {place}: cannot be written ({found}); name another folder")


class NothingKept:
    """Says, as soon as it can be known, that a long run without a folder leaves nothing behind."""

    def __init__(self, config: TrainConfig) -> None:
        self._dataset = config.dataset
        self._told = bool(config.out or config.resume) or rank_of_process() > 0
        self._began = time.perf_counter()

    def look(self, steps: int, total: int) -> None:
        """Told after a step, the number ``steps`` of ``total``."""
        spent = time.perf_counter() - self._began
        if self._told or spent < _LOOKED_AT:
            return
        seconds = spent / steps * total
        if seconds > _LONG:
            self._told = True
            _log.warning(
                "%s: about %d min, and nothing will be kept: neither weights nor scores nor a "
                "way to go on; --out FOLDER keeps them", self._dataset, max(1, round(seconds / 60))
            )  # fmt: skip


@contextlib.contextmanager
def removing_unused(run: Path, *more: str) -> Iterator[None]:
    """Removes a run's folder after an error before there was more in it than its options.

    Args:
        more: names of files and folders that are worth nothing by themselves, too.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            found = [*run.iterdir()]
            if {path.name for path in found} <= {CONFIG, *more}:
                for path in found:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                run.rmdir()
        raise


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keeps other processes out of the folder of a run.

    Raises:
        ArgumentError: one is writing there.
        StorageError: nothing can be written.
    """
    path = run / LOCK
    with as_storage_error(path):
        lock = lock_file(path)
    if lock is None:
        raise ArgumentError(
            f"{run}: {lock_holder(path)} is writing this run; wait until it has ended, or end it"
        )
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def check_fits(checkpoint: Checkpoint, folder: Path, digest: str, config: TrainConfig) -> list[str]:
    """What of a run that goes on changes its losses, in words.

    Args:
        checkpoint: of the run in ``folder``.
        digest: of the dataset at hand.
        config: asked for, filled in.

    Raises:
        ArgumentError: the checkpoint is of another dataset, model or optimizer.
    """
    path = folder / CHECKPOINT
    if checkpoint.dataset != digest:
        raise ArgumentError(
            f"{path}: of another dataset: {checkpoint.dataset}, expected {digest}; give the "
            "dataset it was trained on, or start another run with --out"
        )
    had, asked = checkpoint.config, describe(config)
    optimizers = [name for name in ("optimizer", "embedding_optimizer") if name in had]
    for name in ("model", "layers", "hidden", *optimizers):
        if had[name] != asked[name]:
            kind = "optimizer" if name in optimizers else "model"
            raise ArgumentError(
                f"{path}: of another {kind}: {name} is {had[name]}, config.toml says "
                f"{asked[name]}; mend config.toml, or start another run with --out"
            )
    if checkpoint.tables and config.embeddings == "ram":
        raise ArgumentError(
            f"{path}: its embeddings lie in files, config.toml says ram; mend config.toml, or "
            "start another run with --out"
        )
    changed = [name for name in CHANGES_LOSSES if name in had]
    if not config.full_batch:  # of a step's gradient
        changed.append("ranks")
        had, asked = ({**each, "ranks": each.get("ranks") or 1} for each in (had, asked))
    return [f"{name} {had[name]} -> {asked[name]}" for name in changed if had[name] != asked[name]]


def describe(config: TrainConfig | ClusterConfig) -> dict[str, Any]:
    """The options as JSON and a checkpoint hold them."""
    values = dataclasses.asdict(config)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def told_to_rank(config: TrainConfig) -> dict[str, Any]:
    """What a rank was started with that must be the same on all, for ``check_alike``."""
    options = {
        f"--{name.replace('_', '-')}": value
        for name, value in describe(config).items()
        if name not in _OF_A_RANK
    }
    return {"gnnsys": __version__, "torch": torch.__version__, **options}
