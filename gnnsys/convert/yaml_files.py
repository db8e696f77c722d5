"""YAML files of other formats' folders: what they say, or one error."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError

__all__ = ["read_yaml", "require_yaml"]


def require_yaml(what: str) -> Any:
    """PyYAML, or one error that says how to install it."""
    try:
        return import_module("yaml")
    except ImportError as error:
        raise UnsupportedError(
            f"{what}: needs PyYAML, which is not installed; pip install 'gnnsys[convert]'"
        ) from error


def read_yaml(path: Path, kind: str) -> tuple[str, Any]:
    """The text of a file at the top of a folder, and what it says.

    Args:
        path: of the file.
        kind: of the folder, for messages.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is not YAML.
    """
    yaml = require_yaml(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        return text, yaml.safe_load(text)
    except FileNotFoundError:
        raise MissingFileError(
            f"{path}: no such file; a {kind} folder holds {path.name} at its top"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{path}: not YAML ({reason})") from error
