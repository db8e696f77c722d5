"""Tensors in files of safetensors, each with its checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.memory.encoding import bytes_of
from gnnsys.system.files import check_file
from gnnsys.system.records import json_text

__all__ = ["TensorFile", "write_safetensors"]

_CHECKSUMS = "crc32"

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], about: dict[str, str]
) -> None:
    """Writes one tensor after another. safetensors' own ``save`` makes bytes of all of them first;
    its ``save_file`` makes a file that others may not read, and tells of no OSError."""
    checksums: dict[str, str] = {}
    header: dict[str, Any] = {"__metadata__": {}}
    end = 0
    for name, tensor in tensors.items():
        checksums[name] = _checksum(tensor)
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header["__metadata__"] = {**about, _CHECKSUMS: json_text(checksums)}
    text = json_text(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(bytes_of(tensor.cpu()))


def _checksum(tensor: torch.Tensor) -> str:
    return f"{zlib.crc32(bytes_of(tensor.cpu())):08x}"


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    """Turns what safetensors raises for a file into an error of ours."""
    check_file(path)
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file; --out makes it, in a folder that all ranks see"
        ) from error
    except Exception as error:  # safetensors raises a kind of its own, which is no public name
        raise FileFormatError(f"{path}: not a whole safetensors file ({error})") from error


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of a file in the order in which they were written, each read, and compared with
    its checksum, when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _as_file_error(path), safe_open(path, "pt") as file:
            about = file.metadata() or {}
            self.about = {key: about[key] for key in about.keys() - {_CHECKSUMS}}
            """What ``write_safetensors`` was told of the tensors."""
            self._checksums = json.loads(about.get(_CHECKSUMS, "{}"))
            places = {name: place for place, name in enumerate(self._checksums)}
            self._names = sorted(file.keys(), key=lambda name: places.get(name, len(places)))

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
