"""Embeddings of node types without features: in memory, or in files beside a run.

Owns where they lie, what makes them, and the rows of the best epoch. In files each is an
``EmbeddingStore``, which a checkpoint goes with; the rows of the best epoch are copied to a file of
their own, ``TYPE.best-EPOCH.npy``, which stays until neither a checkpoint nor the run needs it.
Invariant: losses do not depend on where the rows lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from gnnsys.cache.embedding.directory import RowDirectory
from gnnsys.cache.embedding.store import EmbeddingStore
from gnnsys.cache.embedding.table import TABLE
from gnnsys.choices import NO_FOLDERS
from gnnsys.config.resolve import Run
from gnnsys.config.run_files import EMBEDDINGS as FOLDER
from gnnsys.config.train import TrainConfig
from gnnsys.counters import Counters
from gnnsys.dataset.format import node_folder
from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.nn import Embedding
from gnnsys.nn.checkpoint import committing, restore_tables
from gnnsys.nn.embedding import STATE_OF
from gnnsys.system.budget import EMBEDDINGS, EMBEDDINGS_IN_MEMORY, process_budget
from gnnsys.system.files import as_storage_error, npy_header, replacing
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.checkpoint import CHECKPOINT, best_rows_epoch
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.hetero_models import HeteroModel, MakeEmbedding, embeddings_in_memory
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = [
    "BestRows",
    "EmbeddingTables",
    "divide_cache",
    "given_place",
    "make_embeddings",
    "record_bytes",
]

_BLOCK_BYTES = 8 << 20  # of rows that are copied at a time


def given_place(config: TrainConfig) -> str:
    """A folder or ram; or auto, where memory decides: of a run that goes on it has decided.

    Raises:
        MissingFileError, FileFormatError: the weights of such a run are not there, or damaged.
    """
    if config.embeddings != "auto" or config.resume is None:
        return config.embeddings
    run = Path(config.resume)
    return "ram" if best_rows_epoch(run) is None else str(run / FOLDER)


def record_bytes(config: TrainConfig) -> int:
    """Of a row in a file, with what its optimizer keeps for it.

    >>> record_bytes(TrainConfig(hidden=16, embedding_optimizer="adagrad"))
    128
    """
    return 4 * (config.hidden or 0) * (1 + len(STATE_OF[config.embedding_optimizer]))


def divide_cache(nbytes: int, rows: Mapping[str, int], of_a_row: int) -> dict[str, int]:
    """Rows of each table that a cache of all holds: tables get the same bytes, small ones no more
    than they have.

    Args:
        nbytes: in all.
        rows: of each table.
        of_a_row: bytes that one takes.

    >>> divide_cache(100, {"a": 50, "b": 2, "c": 50}, of_a_row=2)
    {'b': 2, 'a': 24, 'c': 24}
    """
    found = {}
    for place, (name, count) in enumerate(sorted(rows.items(), key=lambda item: item[1])):
        found[name] = max(1, min(count, nbytes // (len(rows) - place) // of_a_row))
        nbytes -= found[name] * of_a_row
    return found


def make_embeddings(run: Run, dataset: NodeDataset) -> MakeEmbedding:
    """What makes the embeddings that a run trains: in memory, or in files that are closed with the
    dataset.

    Raises:
        ArgumentError: the folder holds files already; what is returned, for a table of another
            shape.
        MissingFileError: what is returned, where a run goes on and its table is not there.
        StorageError: the folder cannot be written.
    """
    config = run.config
    width, place = config.hidden or 0, given_place(config)
    planned = process_budget().planned(EMBEDDINGS)
    if place == "ram" or (place == "auto" and not planned):
        make_one = embeddings_in_memory(width)
        return partial(_hold, make_one) if run.device.type == "cpu" else make_one
    folder = _make_folder(config, place, dataset)
    bare = {kind: count for kind, count in dataset.num_nodes.items() if kind not in dataset.tables}
    of_slots = planned - RowDirectory.bytes_of(sum(bare.values()), 0)
    of_a_row = record_bytes(config) + RowDirectory.bytes_of(0, 1)
    caches = divide_cache(of_slots, bare, of_a_row)

    def make(kind: str, count: int) -> nn.Module:
        if count == 0:
            return nn.Embedding(0, width)
        table = _table_folder(folder, kind)
        if config.resume and not (table / TABLE).is_file():
            raise MissingFileError(
                f"{table}: no such table, where the embeddings of {kind!r} were; bring it back"
            )
        made = Embedding(
            count,
            width,
            folder=table,
            optimizer=config.embedding_optimizer,
            cache=caches[kind],
            threads=config.threads,
        )
        if config.out:
            dataset.beside.append(partial(_remove_unkept, table, Path(config.out)))
        dataset.beside.append(made.store.close)
        return made

    return make


def _hold(make: MakeEmbedding, kind: str, count: int) -> nn.Module:
    made = make(kind, count)
    nbytes = sum(weight.nbytes for weight in made.parameters())
    process_budget().hold(EMBEDDINGS_IN_MEMORY, nbytes, made)
    return made


def _make_folder(config: TrainConfig, place: str, dataset: NodeDataset) -> Path:
    folder = Path(place) if place not in NO_FOLDERS else Path(config.out or gettempdir())
    if config.resume:
        return folder
    with as_storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not config.out:
            scratch = ScratchFolder("gnnsys-embeddings-", folder)
            dataset.beside.append(scratch.close)
            return scratch.path
    if place not in NO_FOLDERS:
        if any(folder.iterdir()):
            raise ArgumentError(
                f"--embeddings {folder}: holds files already; give another folder, go on with the "
                "run that they are of by --resume, or remove what a run that was ended before its "
                "first checkpoint left there"
            )
        return folder
    folder = folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of ranks that were started again
    folder.mkdir()
    return folder


def _remove_unkept(table: Path, run: Path) -> None:
    """Removes a table of a run that has ended before its first checkpoint."""
    if not (run / CHECKPOINT).exists():
        shutil.rmtree(table, ignore_errors=True)
        _remove_best(table)


def _table_folder(folder: Path, kind: str) -> Path:
    return folder / Path(node_folder(True, kind)).name


def _best_path(table: Path, epoch: int) -> Path:
    return table.with_name(f"{table.name}.best-{epoch}.npy")


def _remove_best(table: Path, but: Collection[int] = ()) -> None:
    """Removes rows of epochs that were the best, but some, and what a kill left of them."""
    kept = {_best_path(table, epoch) for epoch in but}
    for path in table.parent.glob(f"{escape(table.name)}.best-*"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _has_rows(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError):  # damaged
        return False


class _FileRows(nn.Module):
    """An embedding that is not trained: (nodes, width) rows in a file."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        self.rows: UnifiedTensor = unified(path, threads=threads, device="cpu")

    def forward(self, ids: Tensor) -> Tensor:
        """(n, width) rows of (n,) ids, on their device."""
        return self.rows[ids.to("cpu")].to(ids.device)


@dataclass(frozen=True, slots=True)
class BestRows:
    """The embeddings of a run's best epoch, which lie in files."""

    folder: Path
    epoch: int
    width: int
    threads: int

    @classmethod
    def of(cls, run: Path, config: TrainConfig) -> BestRows | None:
        """Those of the weights in a run's folder; None where the weights have them in memory.

        Raises:
            MissingFileError, FileFormatError: the weights are not there, or damaged.
            ArgumentError: no epoch has been the best yet.
        """
        epoch = best_rows_epoch(run)
        if epoch is None:
            return None
        if epoch == 0:
            raise ArgumentError(
                f"{run}: was ended before a first evaluation, so that no embeddings are the best; "
                f"go on with gnnsys train --resume {run}"
            )
        place = run / FOLDER if config.embeddings in NO_FOLDERS else Path(config.embeddings)
        return cls(place, epoch, config.hidden or 0, config.threads)

    def make(self, kind: str, count: int) -> nn.Module:
        """The module of a node type, as ``MakeEmbedding``; raises as ``gnnsys.unified``, and
        ArgumentError for another number of nodes."""
        if count == 0:
            return nn.Embedding(0, self.width)
        path = _best_path(_table_folder(self.folder, kind), self.epoch)
        found = _FileRows(path, self.threads)
        if len(found.rows) != count:
            raise ArgumentError(
                f"{path}: embeddings of {len(found.rows)} nodes, but the dataset has {count} of "
                f"type {kind!r}; give the dataset that the run was trained on"
            )
        return found


class EmbeddingTables:
    """The tables of a model: of all its embeddings, or none where they are in memory.

    Args:
        model: whose ``gnnsys.nn.Embedding`` they are.
        threads: that read the rows of the best epoch.
    """

    def __init__(self, model: nn.Module, threads: int) -> None:
        self._model, self._threads = model, threads
        found = model.named_modules()
        self._modules = {name: each for name, each in found if isinstance(each, Embedding)}
        self._typed = [each for each in model.modules() if isinstance(each, HeteroModel)]
        self._best_epoch = 0
        self._committed: set[int] = set()  # best epochs that the checkpoint may name
        self.finite = True
        """Whether all gradients that were looked at were finite, and so all rows are."""

    @property
    def stores(self) -> dict[str, EmbeddingStore]:
        """Of the tables, by the names of their modules."""
        return {name: module.store for name, module in self._modules.items()}

    def prefetch(self, batch: HeteroData) -> None:
        """Begins to read the rows of the nodes ``n_id`` of a coming batch."""
        for model in self._typed:
            for kind, layer in model.inputs.items():
                if isinstance(layer, Embedding):
                    layer.prefetch(batch[kind].n_id)

    def look_at_gradients(self) -> None:
        """After a step, which makes rows NaN or infinite by such gradients alone."""
        for module in self._modules.values():
            gradient = module.weight.grad
            if gradient is not None:
                self.finite &= bool(torch.isfinite(torch.sparse.sum(gradient.detach())))

    def keep_best(self, epoch: int) -> None:
        """Copies the rows as they are, as those of the best epoch; those before go, but for what a
        checkpoint names.

        Raises:
            StorageError: the disk is full.
        """
        for store in self.stores.values():
            step = max(1, _BLOCK_BYTES // store.row_bytes)
            with replacing(_best_path(store.folder, epoch)) as file:
                file.write(npy_header(tuple(store.shape), np.dtype(np.float32)))
                for first in range(0, store.shape[0], step):
                    rows = store.read_range(first, min(first + step, store.shape[0]))
                    file.write(rows.numpy().data)
        self._best_epoch = epoch
        self._remove_others()

    def _remove_others(self) -> None:
        for store in self.stores.values():
            _remove_best(store.folder, but={*self._committed, self._best_epoch})

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The model takes the rows of the best epoch meanwhile."""
        for name, module in self._modules.items():
            path = _best_path(module.store.folder, self._best_epoch)
            self._put(name, _FileRows(path, self._threads))
        try:
            yield
        finally:
            for name, module in self._modules.items():
                self._put(name, module)

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        self._model.get_submodule(parent).register_module(last, module)

    @contextmanager
    def committing(self, path: Path) -> Iterator[dict[str, Any]]:
        """Saves the tables together with a checkpoint, or neither; see ``nn.checkpoint``. Rows of
        epochs that were the best before go then."""
        self._committed.add(self._best_epoch)  # an error may come before it is in place, or after
        with committing(self.stores, path) as tables:
            yield tables
        self._committed = {self._best_epoch}
        self._remove_others()

    def restore(self, saved: Mapping[str, Any], best_epoch: int, path: Path) -> None:
        """Goes back to the tables of a checkpoint.

        Args:
            saved: what ``committing`` yielded.
            best_epoch: of the checkpoint; 0 for none.
            path: of the checkpoint, for errors.

        Raises:
            ArgumentError: it is of other tables, or not the last of these.
            MissingFileError: rows of the best epoch are not there.
        """
        if best_epoch:
            self._check_best(best_epoch, path)
        restore_tables(saved, self.stores, path)
        self._best_epoch, self._committed = best_epoch, {best_epoch}

    def _check_best(self, epoch: int, path: Path) -> None:
        for store in self.stores.values():
            rows, shape = _best_path(store.folder, epoch), tuple(store.shape)
            if not _has_rows(rows, shape):
                raise MissingFileError(
                    f"{path}: epoch {epoch} was the best, but {rows} does not hold its rows "
                    f"{shape}; bring the file back, or start another run with --out"
                )

    def counters(self) -> Counters:
        """Of the rows that were gathered, of all tables."""
        return Counters.total([store.counters for store in self.stores.values()])
