"""What ranks keep of a pipeline beside the checkpoint, each in files of its own.

Each rank writes what it holds of the weights, of the optimizer's state and of the rows of an
earlier epoch, so that none ever has those of all. Files that the checkpoint names are never
written: it names others once those are whole, and the ones that it no longer names go then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gnnsys.ranks.environment import rank_of_process
from gnnsys.ranks.group import on_all_ranks
from gnnsys.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    load_shards,
    load_state,
    save_shards,
    snapshot_names,
    state_names,
    state_shard,
)
from gnnsys.training.steps import Steps

__all__ = ["RankFiles", "own_part"]


class RankFiles:
    """The files of one run.

    Args:
        folder: of the run, which all ranks see.
        ranks: that hold parts; 1 where there is no pipeline.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder, self._ranks = folder, ranks
        self._snapshot: tuple[int, list[str]] | None = None  # its epoch and its files
        self._state: list[str] | None = None  # files of the last checkpoint

    def save(self, steps: Steps, best: dict[str, Tensor] | None) -> dict[str, Any]:
        """Writes this process's part; called by all ranks together.

        Args:
            steps: whose state it is.
            best: this process's part of the best weights so far.

        Returns:
            Fields of the ``Checkpoint`` that rank 0 writes. What lies in files is read when it is
            asked for.

        Raises:
            StorageError: the folder cannot be written, by some rank.
        """
        model, optimizer = steps.weights(), steps.optimizer_state()
        snapshot = self._save_snapshot(steps)
        if not steps.divides_state:
            parts = {"model": model, "best_model": best, "optimizer": optimizer}
            return {**parts, "snapshot": snapshot}
        names, rank = state_names(self._ranks, self._state), rank_of_process()
        shard = state_shard(model, best, optimizer)
        on_all_ranks(lambda: save_shards(self._folder, names, {rank: shard}))
        self._state = names
        parts = load_state(self._folder, names) if rank == 0 else {}
        return {**parts, "state_files": names, "snapshot": snapshot}

    def _save_snapshot(self, steps: Steps) -> list[str] | None:
        """The rows that a pipeline reads of an earlier epoch, if they are new."""
        epoch = steps.snapshot_epoch()
        if epoch is None:
            return None
        if self._snapshot is None or epoch != self._snapshot[0]:
            names, shards = snapshot_names(epoch, self._ranks), steps.snapshot()
            on_all_ranks(lambda: save_shards(self._folder, names, shards))
            self._snapshot = epoch, names
        return self._snapshot[1]

    def load(self, steps: Steps, checkpoint: Checkpoint, epoch: int) -> None:
        """Hands a checkpoint of any number of ranks to the steps, at an epoch from 0."""
        snapshot = None
        if checkpoint.snapshot is not None and steps.snapshot_epoch() is not None:
            snapshot = load_shards(self._folder, checkpoint.snapshot)
        best = checkpoint.state.best_epoch
        steps.restore(checkpoint.tables, best, self._folder / CHECKPOINT)
        steps.load(checkpoint.model, checkpoint.optimizer, snapshot, epoch)
        self._state = checkpoint.state_files
        if snapshot is not None and checkpoint.snapshot is not None:
            self._snapshot = steps.snapshot_epoch() or 0, checkpoint.snapshot


def own_part(steps: Steps, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """What this process holds of the weights of a whole model."""
    return None if weights is None else {name: weights[name] for name in steps.weights()}
