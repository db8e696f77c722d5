"""What a training run leaves in its folder, so that it can go on, and its weights be used.

``checkpoint.pt`` holds all that the next batch depends on, ``model.safetensors`` the weights of the
best epoch. Both are replaced whole, so that a kill at any time leaves the old or the new ones, and
have checksums, which are verified when they are read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.system.files import check_file, replacing
from gnnsys.training.optimisation import check_optimizer
from gnnsys.training.tensor_file import TensorFile, write_safetensors

__all__ = [
    "CHECKPOINT",
    "Checkpoint",
    "RunState",
    "best_rows_epoch",
    "fit_state",
    "fit_weights",
    "load_checkpoint",
    "load_shards",
    "load_state",
    "load_weights",
    "read_parts",
    "save_checkpoint",
    "save_shards",
    "snapshot_names",
    "state_names",
    "state_shard",
    "write_parts",
]

VERSION = 1
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
_MODEL, _BEST, _OPTIMIZER = "model/", "best/", "optimizer/"  # in the files of ranks
_OF_THE_MODEL = ("model", "hidden", "layers")
_BEST_ROWS = "epoch of the embeddings"
_TOO_EARLY = (
    "start the run again with --out, or remove what a run that was ended before its first "
    "checkpoint left there"
)


@dataclass(kw_only=True, slots=True)
class RunState:
    """How far a run is, in numbers."""

    epoch: int = 1
    """In hand, from 1."""

    batch: int = 0
    """Batches of it that are done."""

    step: int = 0
    """Batches of all epochs."""

    loss_sum: float = 0.0
    """Of the epoch in hand, over its seeds."""

    epoch_began: float = 0.0
    """When the epoch in hand began, in ``seconds``."""

    load_seconds: float = 0.0
    """Waited for batches, in the sessions before."""

    load_began: float = 0.0
    """Of all that was waited for batches, what was before the epoch in hand."""

    seeds: int = 0
    """Of all epochs."""

    seconds: float = 0.0
    """Wall time of all that was done."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One record for each epoch."""

    best_epoch: int = 0
    best_val: dict[str, float] = field(default_factory=dict)
    best_test: dict[str, float] = field(default_factory=dict)

    stale: int = 0
    """Evaluations since the best."""

    served: dict[str, list[int]] = field(default_factory=dict)
    """Rows and bytes by tier, of the sessions before."""

    reads: dict[str, float] = field(default_factory=dict)
    """Counts of the cache and its reads, of the sessions before."""

    padded_sizes: Sequence[Any] | None = None
    """For each rank, nodes and edges of each hop that its batches are padded to, where they are."""

    learning_rate: dict[str, Any] = field(default_factory=dict)
    """What ``LearningRate.state`` gave."""

    metrics_bytes: int = 0
    """Length of ``metrics.jsonl``."""


@dataclass(kw_only=True, slots=True)
class Checkpoint:
    """All that the next batch depends on."""

    config: dict[str, Any]
    dataset: str
    """Digest of the dataset."""

    state: RunState
    model: Mapping[str, torch.Tensor] = field(default_factory=dict)
    best_model: Mapping[str, torch.Tensor] | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    torch_rng: torch.Tensor
    cuda_rng: list[torch.Tensor]

    snapshot: list[str] | None = None
    """Names of the files beside, one of each rank, of the rows of an earlier epoch that a pipeline
    reads."""

    state_files: list[str] | None = None
    """Names of those that hold ``model``, ``best_model`` and ``optimizer`` in place of this file,
    where several ranks have parts of them."""

    tables: dict[str, Any] = field(default_factory=dict)
    """Versions of the embeddings that lie in files; see ``embedding_tables``."""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint and the best weights so far; then removes files of ranks that it does
    not name.

    Raises:
        StorageError: the folder cannot be written.
    """
    parts = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    parts["state"] = asdict(checkpoint.state)
    if checkpoint.state_files is not None:
        parts |= {"model": {}, "best_model": None, "optimizer": {}}
    weights = checkpoint.best_model or checkpoint.model
    # What the model is, and nothing of the run: equal weights make equal files.
    config = checkpoint.config
    about = {key: str(config[key]) for key in _OF_THE_MODEL if key in config}
    if checkpoint.tables:
        about[_BEST_ROWS] = str(checkpoint.state.best_epoch)
    with replacing(run / WEIGHTS) as file:
        write_safetensors(file, weights, about)
    write_parts(run / CHECKPOINT, parts)
    named = {*(checkpoint.snapshot or ()), *(checkpoint.state_files or ())}
    for pattern in ("snapshot-*", "state-*"):  # of older checkpoints, and what a kill left
        for path in run.glob(pattern):
            if path.name not in named:
                path.unlink(missing_ok=True)


def write_parts(path: Path, parts: dict[str, Any]) -> None:
    """Gives a checkpoint new content, whole.

    Args:
        parts: tensors, numbers, texts, and lists and dicts of them.
    """
    with replacing(path) as file:
        try:
            torch.save({"version": VERSION, **parts}, file)
        except RuntimeError as error:  # of its archive, which a refused write leaves unfinished
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def snapshot_names(epoch: int, ranks: int) -> list[str]:
    """Of the files of a snapshot, one for each rank."""
    return [f"snapshot-{epoch}-{rank}-of-{ranks}.safetensors" for rank in range(ranks)]


def state_names(ranks: int, before: list[str] | None) -> list[str]:
    """Of the files of the state, one for each rank; others than those of the checkpoint before."""
    one, other = (
        [f"state-{which}-{rank}-of-{ranks}.safetensors" for rank in range(ranks)] for which in "ab"
    )
    return other if one == before else one


def state_shard(
    model: Mapping[str, torch.Tensor],
    best: Mapping[str, torch.Tensor] | None,
    optimizer: Mapping[str, Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """What a rank holds of the state, under the names that ``load_state`` expects in its file."""
    return {
        **{f"{_MODEL}{name}": value for name, value in model.items()},
        **{f"{_BEST}{name}": value for name, value in (best or {}).items()},
        **{
            f"{_OPTIMIZER}{name}/{key}": value
            for name, kept in optimizer.items()
            for key, value in kept.items()
        },
    }


def load_state(run: Path, names: list[str]) -> dict[str, Any]:
    """``model``, ``best_model`` and ``optimizer`` of a checkpoint, from the files of all ranks;
    tensors are read when they are asked for.

    Raises:
        MissingFileError, FileFormatError: a file is not there, or damaged.
    """
    files = [TensorFile(run / name) for name in names]
    moments = _Prefixed(files, _OPTIMIZER)
    parameters = dict.fromkeys(name.rpartition("/")[0] for name in moments)
    return {
        "model": _Prefixed(files, _MODEL),
        "best_model": _Prefixed(files, _BEST) or None,
        "optimizer": {name: _Prefixed(files, f"{_OPTIMIZER}{name}/") for name in parameters},
    }


class _Prefixed(Mapping[str, torch.Tensor]):
    """The tensors of some files whose names begin with a word, by what comes after it."""

    def __init__(self, files: Iterable[TensorFile], prefix: str) -> None:
        self._prefix = prefix
        self._files = {
            name.removeprefix(prefix): file
            for file in files
            for name in file
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name][self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def save_shards(
    run: Path, names: list[str], shards: Mapping[int, Mapping[str, torch.Tensor]]
) -> None:
    """Writes what some ranks have of a snapshot, or of the state.

    Args:
        names: of the files of all ranks, in the run's folder.
        shards: tensors by their name, by the number of the rank.

    Raises:
        StorageError: the folder cannot be written.
    """
    for rank, shard in shards.items():
        with replacing(run / names[rank]) as file:
            write_safetensors(file, shard, {})


def load_shards(run: Path, names: list[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """What ``save_shards`` wrote, file by file; tensors are read when they are asked for.

    Raises:
        MissingFileError, FileFormatError: a file is not there, or damaged.
    """
    return (TensorFile(run / name) for name in names)


def load_checkpoint(run: Path) -> Checkpoint:
    """Reads ``checkpoint.pt``.

    Raises:
        MissingFileError, FileFormatError: it is not there, damaged, or of a newer version.
    """
    path = run / CHECKPOINT
    content = read_parts(path)
    if isinstance(content.get("snapshot"), str):  # as it was before each rank had its file
        content["snapshot"] = [content["snapshot"]]
    if content.get("state_files") is not None:
        content |= load_state(run, content["state_files"])
    sizes = content.get("state", {}).get("padded_sizes")
    if isinstance(sizes, tuple):  # as it was before ranks padded their batches
        content["state"]["padded_sizes"] = [sizes]
    try:
        return Checkpoint(**{**content, "state": RunState(**content["state"])})
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{path}: parts are missing ({error})") from error


def read_parts(path: Path) -> dict[str, Any]:
    """What ``write_parts`` wrote, on the CPU.

    Raises:
        MissingFileError, FileFormatError: it is not there, damaged, or of a newer version.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is another")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file; {_TOO_EARLY}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FileFormatError(f"{path}: not a whole checkpoint ({error})") from error
    version = content.pop("version", None) if isinstance(content, dict) else None
    if version != VERSION:
        raise FileFormatError(
            f"{path}: version {version}, this gnnsys reads {VERSION}; use the one that wrote it"
        )
    return dict(content)


def best_rows_epoch(run: Path) -> int | None:
    """The epoch whose embeddings, in files, belong to ``model.safetensors``, 0 for none yet; None
    where all weights are in it.

    Raises:
        MissingFileError, FileFormatError: it is not there, or damaged.
    """
    path = run / WEIGHTS
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; {_TOO_EARLY}")
    epoch = TensorFile(path).about.get(_BEST_ROWS)
    return None if epoch is None else int(epoch)


def load_weights(run: Path, model: torch.nn.Module) -> None:
    """Loads ``model.safetensors`` of a run.

    Raises:
        MissingFileError, FileFormatError: it is not there, or damaged.
        ArgumentError: weights of another model.
    """
    path = run / WEIGHTS
    fit_weights(model, dict(TensorFile(path)), path)


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def fit_state(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint,
    path: Path,
) -> None:
    """Loads the weights of a checkpoint, or says in one error what of its state does not fit."""
    check_optimizer(optimizer, model.named_parameters(), checkpoint.optimizer, path)
    if checkpoint.best_model is not None:
        _check_weights(model, checkpoint.best_model, path)
    fit_weights(model, checkpoint.model, path)


@torch.no_grad()
def fit_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads weights into a model, or says in one error which do not fit."""
    _check_weights(model, weights, path)
    for name, tensor in model.state_dict().items():  # one after the other, as files give them
        tensor.copy_(weights[name])


def _check_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises ArgumentError for weights of another model, read from ``path``."""
    wanted = {name: _kind_of(tensor) for name, tensor in model.state_dict().items()}
    found = {name: _kind_of(tensor) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArgumentError(
                f"{path}: of another model: {name} is {found.get(name, 'missing')}, expected "
                f"{wanted.get(name, 'no such tensor')}"
            )
