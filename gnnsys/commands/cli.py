"""The ``gnnsys`` command. Imports a command's code only when that command runs."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module

from gnnsys.commands.arguments import CONFIGS, read_arguments
from gnnsys.config.train import TrainConfig
from gnnsys.errors import (
    ArgumentError,
    DivergedError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    UnsupportedError,
)
from gnnsys.system.progress import silence

__all__ = ["main"]

# What Python, torch and gloo say, each a RuntimeError.
_NO_THREAD = re.compile("can't start new thread|Resource temporarily unavailable")
_NO_MEMORY = re.compile("can't allocate memory|Storage size calculation overflowed")
_LONG_WORD = re.compile(r"[^\s/]{300,}")  # of a file; names of files are shorter
_OF_ALL_RANKS = (ArgumentError, DivergedError, MissingFileError, FileFormatError, UnsupportedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: that of the process) and returns its exit code.

    0: done; 1: the install is broken (doctor), or gnnsys has a fault; 2: bad input, or a system
    that refuses something, told in one message; 130: interrupted; 141: the reader of the output
    went away. With ``--debug`` what ends a command is raised, not told; with ``--quiet`` only
    results and errors are.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, quiet = "--debug" in arguments, "--quiet" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have letters that its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with silence() if quiet else nullcontext():
            code = _main(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # of which rich makes an exit
            raise
        return _without_reader()
    except BrokenPipeError:
        return _without_reader()
    except KeyboardInterrupt:
        _print_error("gnnsys: interrupted")
        return 130
    except Exception as error:
        code, told = _told(error)
        if isinstance(error, OSError) and not isinstance(error, GnnsysError) and not error.filename:
            _discard_output()  # if it was that, what is left of it would fail once more
        # Bad input is found by all ranks of a machine alike; the first tells of it.
        alike = isinstance(error, _OF_ALL_RANKS) or getattr(error, "on_all_ranks", False)
        if alike and not _is_first():
            return code
        if debug:
            raise
        _print_error(f"gnnsys: error: {told}")
        return code


def _is_first() -> bool:
    """Whether this process is the first of its machine's ranks, or none of them."""
    rank = os.environ.get("LOCAL_RANK", "0")
    return not rank.isdecimal() or int(rank) == 0


def _without_reader() -> int:
    """The exit status where the reader of the output, such as head, has enough."""
    _discard_output()
    return 141


def _discard_output() -> None:
    """What standard output has not written yet goes nowhere."""
    with suppress(OSError, AttributeError):  # no stream of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(text: str) -> None:
    with suppress(OSError):  # nothing is left to tell it to
        print(text, file=sys.stderr, flush=True)


def _told(error: Exception) -> tuple[int, str]:
    """The exit status and the message of what ended a command."""
    if isinstance(error, GnnsysError):
        return 2, _LONG_WORD.sub(lambda word: f"{word[0][:60]}…", str(error))
    if getattr(error, "errno", 0) == errno.EAGAIN or _NO_THREAD.search(str(error)):
        return 2, (
            "the system starts no more threads or processes; raise the limit that is reached: "
            "pids.max of the control group, ulimit -u, or ulimit -v; --debug shows where"
        )
    if isinstance(error, OSError):
        if error.strerror is None:
            return 2, f"{error}; --debug shows where"
        place = error.filename or "standard output, or a file"
        return 2, f"{place}: {error.strerror}; --debug shows where"
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return 2, f"out of memory ({error}); --memory bounds a run, and --debug shows where"
    text = " ".join(str(error).split())[:500]
    return 1, f"a fault of gnnsys, {type(error).__name__}: {text}; --debug shows where"


def _main(arguments: list[str]) -> int:
    if arguments[:1] in (["--version"], ["-V"]):
        from gnnsys._version import __version__

        print(f"gnnsys {__version__}")
        return 0
    if "RANK" in os.environ:
        # Of connections that break or cannot be made, which we tell of in better words.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    config = read_arguments(arguments)
    if isinstance(config, TrainConfig) and config.ranks is not None and "RANK" not in os.environ:
        from gnnsys.config.parallel import check_ranks
        from gnnsys.ranks.launch import run_ranks

        check_ranks(config)
        return run_ranks(arguments, config.ranks, max_restarts=config.max_restarts)
    name = next(name for name, kind in CONFIGS.items() if isinstance(config, kind))
    code: int = import_module(f"gnnsys.commands.{name}").run_command(config)
    return code
