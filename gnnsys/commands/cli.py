"""The ``gnnsys`` command. Imports a command's code only when that command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from gnnsys.commands.arguments import CONFIGS, read_arguments
from gnnsys.config.train import TrainConfig
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    UnsupportedError,
)
from gnnsys.system.progress import silence

__all__ = ["main"]

_OF_ALL_RANKS = (ArgumentError, MissingFileError, FileFormatError, UnsupportedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: that of the process) and returns its exit code.

    0: done; 1: the install is broken (doctor), or gnnsys has a fault; 2: bad input, or a system
    that refuses something, told in one message; 130: interrupted; 141: the reader of the output
    went away. With ``--debug`` what ends a command is raised, not told; with ``--quiet`` only
    results and errors are.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, quiet = "--debug" in arguments, "--quiet" in arguments
    try:
        with silence() if quiet else nullcontext():
            return _main(arguments)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("gnnsys: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        code, told = _told(error)
        # Bad input is found by all ranks of a machine alike; the first tells of it.
        if isinstance(error, _OF_ALL_RANKS) and os.environ.get("LOCAL_RANK", "0") != "0":
            return code
        if debug:
            raise
        print(f"gnnsys: error: {told}", file=sys.stderr)
        return code


def _told(error: Exception) -> tuple[int, str]:
    """The exit status and the message of what ended a command."""
    if isinstance(error, GnnsysError):
        return 2, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return 2, f"{place}{error.strerror or error}; --debug shows where"
    if isinstance(error, MemoryError):
        return 2, f"out of memory ({error}); --memory bounds a run, and --debug shows where"
    text = " ".join(str(error).split())[:500]
    return 1, f"a fault of gnnsys, {type(error).__name__}: {text}; --debug shows where"


def _main(arguments: list[str]) -> int:
    if arguments[:1] in (["--version"], ["-V"]):
        from gnnsys._version import __version__

        print(f"gnnsys {__version__}")
        return 0
    config = read_arguments(arguments)
    if isinstance(config, TrainConfig) and config.ranks is not None and "RANK" not in os.environ:
        from gnnsys.ranks.launch import run_ranks

        return run_ranks(arguments, config.ranks)
    name = next(name for name, kind in CONFIGS.items() if isinstance(config, kind))
    code: int = import_module(f"gnnsys.commands.{name}").run_command(config)
    return code
