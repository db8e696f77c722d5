"""The closed set of exceptions that gnnsys raises for its users.

Each message names the file or argument, the value found, the value expected and the way out. Every
class also derives from the built-in that Python or torch would raise, so that existing handlers
keep working. This module imports nothing.
"""

__all__ = [
    "ArgumentError",
    "BuildError",
    "DTypeError",
    "DeviceError",
    "DivergedError",
    "FileFormatError",
    "GnnsysError",
    "LeakageError",
    "MissingFileError",
    "RankFailedError",
    "ReadOnlyError",
    "ResourceError",
    "RowIndexError",
    "StorageError",
    "TooLargeError",
    "UnsupportedError",
]


class GnnsysError(Exception):
    """Base of all exceptions of this package."""

    on_all_ranks: bool = False
    """Whether all ranks of a run raise it, of which the first tells of it."""


class ArgumentError(GnnsysError, ValueError):
    """An argument has a value or a shape that cannot be used."""


class DTypeError(GnnsysError, TypeError):
    """An argument has a type or an element type that cannot be used."""


class RowIndexError(GnnsysError, IndexError):
    """An id lies outside the rows of a store."""


class MissingFileError(GnnsysError, FileNotFoundError):
    """A file or folder that is needed does not exist."""


class FileFormatError(GnnsysError, ValueError):
    """A file exists but does not hold what its name or header promises."""


class StorageError(GnnsysError, OSError):
    """A file or folder cannot be written: no permission, no room, or something is in the way."""


class ResourceError(GnnsysError, OSError):
    """The system refuses a thread, an open file or a queue: one of its limits is reached."""


class ReadOnlyError(GnnsysError, RuntimeError):
    """Something tried to write to rows that are only read."""


class TooLargeError(GnnsysError, RuntimeError):
    """An operation would bring more rows into memory at once than its bound allows."""


class UnsupportedError(GnnsysError, NotImplementedError):
    """A combination of options that this version does not offer."""


class LeakageError(GnnsysError, ValueError):
    """A batch holds something that is newer than the seed it was sampled for."""


class DivergedError(GnnsysError, FloatingPointError):
    """Training has come to a loss or to weights that are NaN or infinite."""


class RankFailedError(GnnsysError, RuntimeError):
    """Another rank of a distributed run is gone or no longer answers."""

    def __init__(self, message: str, rank: int = -1) -> None:
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        return str(self.args[0])


class DeviceError(GnnsysError, RuntimeError):
    """CUDA, its driver or what reaches them is missing or refuses something."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class BuildError(GnnsysError, ImportError):
    """The compiled extension is missing or does not fit the Python files."""
