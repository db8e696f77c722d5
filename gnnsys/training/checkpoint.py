"""What a training run leaves in its folder, so that it can go on, and its weights be used.

``checkpoint.pt`` holds all that the next batch depends on, ``model.safetensors`` the weights of the
best epoch. Both are replaced whole, so that a kill at any time leaves the old or the new ones, and
have checksums, which are verified when they are read.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.system.files import check_file, replacing
from gnnsys.system.records import json_text

__all__ = [
    "Checkpoint",
    "RunState",
    "fit_weights",
    "load_checkpoint",
    "load_shards",
    "load_weights",
    "remove_snapshots",
    "save_checkpoint",
    "save_shards",
    "snapshot_names",
]

VERSION = 1
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
_CHECKSUMS = "crc32"
_OF_THE_MODEL = ("model", "hidden", "layers")


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

    metrics_bytes: int = 0
    """Length of ``metrics.jsonl``."""


@dataclass(kw_only=True, slots=True)
class Checkpoint:
    """All that the next batch depends on."""

    config: dict[str, Any]
    dataset: str
    """Digest of the dataset."""

    state: RunState
    model: dict[str, torch.Tensor]
    best_model: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]
    torch_rng: torch.Tensor
    cuda_rng: list[torch.Tensor]

    snapshot: list[str] | None = None
    """Names of the files beside, one of each rank, of the rows of an earlier epoch that a pipeline
    reads."""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint and the best weights so far.

    Raises:
        StorageError: the folder cannot be written.
    """
    parts = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    parts["state"] = asdict(checkpoint.state)
    weights = checkpoint.best_model or checkpoint.model
    # What the model is, and nothing of the run: equal weights make equal files.
    config = checkpoint.config
    about = {key: str(config[key]) for key in _OF_THE_MODEL if key in config}
    with replacing(run / WEIGHTS) as file:
        _write_safetensors(file, weights, about)
    with replacing(run / CHECKPOINT) as file:
        try:
            torch.save({"version": VERSION, **parts}, file)
        except RuntimeError as error:  # of its archive, which a refused write leaves unfinished
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def snapshot_names(epoch: int, ranks: int) -> list[str]:
    """Of the files of a snapshot, one for each rank."""
    return [f"snapshot-{epoch}-{rank}-of-{ranks}.safetensors" for rank in range(ranks)]


def save_shards(run: Path, names: list[str], shards: dict[int, dict[str, torch.Tensor]]) -> None:
    """Writes what some ranks have of a snapshot.

    Args:
        names: of the files of all ranks, in the run's folder.
        shards: tensors by their name, by the number of the rank.

    Raises:
        StorageError: the folder cannot be written.
    """
    for rank, shard in shards.items():
        with replacing(run / names[rank]) as file:
            _write_safetensors(file, shard, {})


class _Tensors(Mapping[str, torch.Tensor]):
    """The tensors of a file, each read, and compared with its checksum, when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _as_file_error(path), safe_open(path, "pt") as file:
            self._names = list(file.keys())
            self._checksums = json.loads((file.metadata() or {}).get(_CHECKSUMS, "{}"))

    def __getitem__(self, name: str) -> torch.Tensor:
        with _as_file_error(self._path), safe_open(self._path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if self._checksums.get(name) not in (None, _checksum(tensor)):
            raise FileFormatError(
                f"{self._path}: {name} is damaged: its checksum is another; take a copy of the file"
            )
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_shards(run: Path, names: list[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """What ``save_shards`` wrote, file by file; tensors are read when they are asked for.

    Raises:
        MissingFileError, FileFormatError: a file is not there, or damaged.
    """
    return (_Tensors(run / name) for name in names)


def remove_snapshots(run: Path, keep: list[str] | None) -> None:
    """Removes those that the checkpoint names no more, and what a kill left of others."""
    for path in run.glob("snapshot-*"):
        if path.name not in (keep or ()):
            path.unlink(missing_ok=True)


def load_checkpoint(run: Path) -> Checkpoint:
    """Reads ``checkpoint.pt``.

    Raises:
        MissingFileError, FileFormatError: it is not there, damaged, or of a newer version.
    """
    path = run / CHECKPOINT
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is another")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file; the run was ended before its first checkpoint, start it again "
            "with --out"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FileFormatError(f"{path}: not a whole checkpoint ({error})") from error
    version = content.pop("version", None) if isinstance(content, dict) else None
    if version != VERSION:
        raise FileFormatError(
            f"{path}: version {version}, this gnnsys reads {VERSION}; use the one that wrote it"
        )
    if isinstance(content.get("snapshot"), str):  # as it was before each rank had its file
        content["snapshot"] = [content["snapshot"]]
    try:
        return Checkpoint(**{**content, "state": RunState(**content["state"])})
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{path}: parts are missing ({error})") from error


def load_weights(run: Path, model: torch.nn.Module) -> None:
    """Loads ``model.safetensors`` of a run.

    Raises:
        MissingFileError, FileFormatError: it is not there, or damaged.
        ArgumentError: weights of another model.
    """
    path = run / WEIGHTS
    fit_weights(model, dict(_Tensors(path)), path)


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _write_safetensors(
    file: BinaryIO, tensors: dict[str, torch.Tensor], about: dict[str, str]
) -> None:
    """Writes one tensor after another. safetensors' own ``save`` makes bytes of all of them first;
    its ``save_file`` makes a file that others may not read, and tells of no OSError."""
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {**about, _CHECKSUMS: json_text(checksums)}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json_text(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(_bytes_of(tensor))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _checksum(tensor: torch.Tensor) -> str:
    return f"{zlib.crc32(_bytes_of(tensor)):08x}"


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    """Turns what safetensors raises for a file into an error of ours."""
    check_file(path)
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file; gnnsys train --out makes it, in a folder that all ranks see"
        ) from error
    except Exception as error:  # safetensors raises a kind of its own, which is no public name
        raise FileFormatError(f"{path}: not a whole safetensors file ({error})") from error


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def fit_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Loads weights into a model, or says in one error which do not fit."""
    wanted = {name: _kind_of(tensor) for name, tensor in model.state_dict().items()}
    found = {name: _kind_of(tensor) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArgumentError(
                f"{path}: of another model: {name} is {found.get(name, 'missing')}, expected "
                f"{wanted.get(name, 'no such tensor')}"
            )
    model.load_state_dict(weights)
