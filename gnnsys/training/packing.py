"""Which samples each epoch of a run takes, and whether and where they are packed."""

from __future__ import annotations

import logging
from pathlib import Path

from gnnsys.cache.store import CachedStore
from gnnsys.config.checks import check_bytes
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.features.packing import EpochPacker, remove_packed
from gnnsys.loaders import NeighborSampler
from gnnsys.memory.file import FileStore
from gnnsys.system.budget import process_budget
from gnnsys.system.progress import Progress
from gnnsys.training.datasets import NodeDataset

__all__ = ["EpochSamples", "clear_packed"]

_log = logging.getLogger(__name__)


class EpochSamples:
    """The samples of a run's epochs, packed before they are taken where the run is to.

    Args:
        config: of the run.
        dataset: that it trains on.
        sampler: of its batches.

    Raises:
        ArgumentError: it is to pack, but the features lie in no file.
        StorageError: the folder for packed files cannot be used.
    """

    def __init__(self, config: TrainConfig, dataset: NodeDataset, sampler: NeighborSampler) -> None:
        self._reuse = config.reuse_samples
        self._packer = _make_packer(config, dataset, sampler)

    def begin(self, epoch: int, first: int, progress: Progress | None = None) -> int:
        """The epoch of the sampler that an epoch takes its batches from; see
        ``EpochPacker.begin``."""
        samples = epoch // self._reuse
        if self._packer is not None:
            self._packer.begin(samples, first, progress)
        return samples


def clear_packed(config: TrainConfig) -> None:
    """Removes what a run that is done has packed, or one that it went on with."""
    folder = _folder(config)
    if config.pack and folder is not None:
        remove_packed(folder)


def _make_packer(
    config: TrainConfig, dataset: NodeDataset, sampler: NeighborSampler
) -> EpochPacker | None:
    """None where the run packs nothing, which is told if it was asked to."""
    if not config.pack:
        return None
    store = dataset.features.store
    if isinstance(store, FileStore) and not _has_room(store):
        _log.warning("--pack: nothing is packed, for there is no cache; --cache gives its size")
        return None
    if isinstance(store, FileStore) or (
        isinstance(store, CachedStore) and store.capacity >= store.shape[0]
    ):
        _log.warning("--pack: nothing is packed, for memory has room for all features")
        return None
    if not isinstance(store, CachedStore) or not isinstance(store.source, FileStore):
        raise ArgumentError(
            f"--pack: for features in a file, but {dataset.name} has its in memory; leave it out, "
            "or name a dataset folder (gnnsys convert makes one)"
        )
    return EpochPacker(
        store,
        sampler,
        dataset.node_task.train,
        batch_size=config.batch_size,
        seed=config.seed,
        seed_block=config.seed_block,
        identity={
            "dataset": dataset.digest,
            "fanouts": list(config.fanouts or ()),
            "sampling": config.sampling,
            "dependent_batches": config.dependent_batches,
        },
        folder=_folder(config),
        space=check_bytes("pack-space", config.pack_space),
        threads=config.threads,
    )


def _has_room(store: FileStore) -> bool:
    """Whether the rows of a table that no cache is before fit in memory."""
    return store.shape[0] * store.row_bytes <= process_budget().left("features, mapped")


def _folder(config: TrainConfig) -> Path | None:
    place = config.pack_folder or config.resume or config.out
    return None if place is None else Path(place)
