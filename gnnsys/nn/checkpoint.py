"""Checkpoints of models with embeddings in folders: tables and all else together, or neither."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gnnsys.cache.embedding.store import EmbeddingStore
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.nn.embedding import Embedding
from gnnsys.system.files import check_file, replacing

__all__ = ["committing", "load_checkpoint", "restore_tables", "save_checkpoint"]

_FORMAT = 1


def save_checkpoint(
    path: str | os.PathLike[str], model: torch.nn.Module, state: dict[str, Any]
) -> None:
    """Saves ``state`` in a file, and with it the tables of all ``Embedding`` of a model.

    A process that is killed at any time leaves the file as it was before or as it is now, and
    ``load_checkpoint`` brings back the tables that belong to it. Tables are not copied: they go
    with the checkpoint that was saved last, alone.

    Args:
        path: of the file, which is replaced.
        model: whose embeddings, found by ``model.modules()``.
        state: what ``torch.save`` takes and ``torch.load(weights_only=True)`` gives back: state
            dicts of model and optimisers, numbers, tensors.

    Raises:
        StorageError: the disk is full. The checkpoint is the one before, or, once it is in place,
            this one, whose tables the next write to each ends. Training can go on.
        ArgumentError: a version of a table is prepared: ``load_checkpoint`` comes first.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> users = Embedding(9, 2, folder=f"{folder}/users", optimizer="adagrad", cache=4)
    >>> from gnnsys.nn import Adagrad
    >>> optimizer = Adagrad(users.parameters())
    >>> state = {"optimizer": optimizer.state_dict(), "batch": 7}
    >>> save_checkpoint(f"{folder}/run.pt", users, state)
    >>> load_checkpoint(f"{folder}/run.pt", users)["batch"]
    7
    """
    path = Path(path)
    with committing(_stores(model), path) as tables, replacing(path) as file:
        torch.save({"format": _FORMAT, "tables": tables, "state": state}, file)


@contextmanager
def committing(stores: Mapping[str, EmbeddingStore], path: Path) -> Iterator[dict[str, Any]]:
    """Saves tables together with a file that says which version they are, or neither.

    Args:
        stores: of the tables, by name.
        path: of the file, which is replaced (``system.files.replacing``) inside the ``with``.

    Yields:
        What the file has to hold for ``restore_tables``.

    Raises:
        As ``save_checkpoint``.
    """
    tables: dict[str, Any] = {}
    before = path.stat() if path.exists() else None
    try:
        for name, store in stores.items():
            tables[name] = {**_kind(store), "version": store.prepare()}
        yield tables
    finally:  # whatever was raised, and where: the file in its place decides for all tables
        replaced = path.exists() and not (before and os.path.samestat(before, path.stat()))
        for name in tables:
            if replaced:
                stores[name].decide()
            else:
                stores[name].withdraw()
    for store in stores.values():
        store.commit()


def load_checkpoint(path: str | os.PathLike[str], model: torch.nn.Module) -> dict[str, Any]:
    """Brings back what ``save_checkpoint`` saved last: the tables of a model, and ``state``.

    All that was trained since is dropped.

    Args:
        path: of the file.
        model: with the same embeddings, in the folders that they were saved in.

    Returns:
        The ``state`` that was saved.

    Raises:
        MissingFileError, FileFormatError: the file is not there, or no checkpoint.
        ArgumentError: it is of other embeddings, or not the last one of their tables. No table is
            changed then.
    """
    path = Path(path)
    saved = _read(path)
    restore_tables(saved["tables"], _stores(model), path)
    state: dict[str, Any] = saved["state"]
    return state


def restore_tables(
    saved: Mapping[str, Any], stores: Mapping[str, EmbeddingStore], path: Path
) -> None:
    """Brings back the tables that ``committing`` saved.

    Args:
        saved: what it yielded.
        stores: of the tables, by the same names.
        path: of the file that ``saved`` is from, for errors.

    Raises:
        ArgumentError: as ``load_checkpoint``.
    """
    if saved.keys() != stores.keys():
        raise ArgumentError(
            f"{path}: of the embeddings {_listed(saved)}, but the model has "
            f"{_listed(stores)}; build the model that was saved"
        )
    for name, store in stores.items():
        noted = saved[name]
        for key, value in _kind(store).items():
            if noted[key] != value:
                raise ArgumentError(
                    f"{path}: {name or 'the embedding'} has {key} {noted[key]}, but the table in "
                    f"{store.folder} {value}; open the folder that the checkpoint was saved with"
                )
        store.check_version(noted["version"])
    for name, store in stores.items():
        store.restore(saved[name]["version"])


def _read(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        if saved["format"] != _FORMAT:
            raise FileFormatError(f"{path}: of another format; read it with a newer gnnsys")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except FileFormatError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, TypeError, RuntimeError,
            EOFError, OSError) as error:  # fmt: skip
        raise FileFormatError(
            f"{path}: not a checkpoint of gnnsys.nn.save_checkpoint ({error}); name another file"
        ) from error
    return saved


def _stores(model: torch.nn.Module) -> dict[str, EmbeddingStore]:
    return {
        name: module.store
        for name, module in model.named_modules()
        if isinstance(module, Embedding)
    }


def _kind(store: EmbeddingStore) -> dict[str, Any]:
    return {
        "shape": tuple(store.shape),
        "dtype": str(store.dtype),
        "state": store.state_names,
        "id": store.id,
    }


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
