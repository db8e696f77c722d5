"""The ``gnnsys`` command. Imports a command's code only when that command runs."""

from __future__ import annotations

import errno
import inspect
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.convert import ConvertConfig
from gnnsys.config.doctor import DoctorConfig
from gnnsys.config.generate import GenerateConfig
from gnnsys.config.info import InfoConfig
from gnnsys.config.plan import PlanConfig
from gnnsys.config.predict import PredictConfig
from gnnsys.config.report import ReportConfig
from gnnsys.config.score import ScoreConfig
from gnnsys.config.train import TrainConfig
from gnnsys.errors import (
    ArgumentError,
    DivergedError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    UnsupportedError,
)

__all__ = ["main"]

_DESCRIPTION = """Train graph neural networks on features that stay where they fit.

Examples:
    gnnsys train demo
    gnnsys convert edges.csv my-graph --nodes nodes.csv --random-split 0.6 0.2 0.2
    gnnsys train my-graph --out run1
    gnnsys train --resume run1
    gnnsys predict run1
    gnnsys report run1
    gnnsys COMMAND --help

An error is one line; --debug, with any command, shows where it came from.
"""
# What Python, torch and gloo say, each a RuntimeError.
_NO_THREAD = re.compile("can't start new thread|Resource temporarily unavailable")
_NO_MEMORY = re.compile("can't allocate memory|Storage size calculation overflowed")
_OF_ALL_RANKS = (ArgumentError, DivergedError, MissingFileError, FileFormatError, UnsupportedError)


# Each command's code is the module of its name beside this one.
_CONFIGS = {
    "train": TrainConfig,
    "convert": ConvertConfig,
    "generate": GenerateConfig,
    "info": InfoConfig,
    "predict": PredictConfig,
    "report": ReportConfig,
    "score": ScoreConfig,
    "plan": PlanConfig,
    "cluster": ClusterConfig,
    "doctor": DoctorConfig,
}


def _commands(chosen: str) -> Any:
    """All commands as tyro takes them; the one in hand is described whole, others in one line."""
    members = []
    for name, config in _CONFIGS.items():
        text = inspect.cleandoc(config.__doc__ or "")
        about = text if name == chosen else text.partition("\n")[0]
        members.append(Annotated[config, tyro.conf.subcommand(name, description=about)])
    return Union[tuple(members)]  # noqa: UP007  (made at run time)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: that of the process) and returns its exit code.

    0: done; 1: the install is broken (doctor), or gnnsys has a fault; 2: bad input, or a system
    that refuses something, told in one message; 130: interrupted; 141: the reader of the output
    went away. With ``--debug`` what ends a command is raised, not told.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have letters that its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
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
        if debug:
            raise
        code, told = _told(error)
        if isinstance(error, OSError) and not isinstance(error, GnnsysError) and not error.filename:
            _discard_output()  # if it was that, what is left of it would fail once more
        # Bad input is found by all ranks of a machine alike; the first tells of it.
        rank = os.environ.get("LOCAL_RANK", "0")
        if not isinstance(error, _OF_ALL_RANKS) or not rank.isdecimal() or int(rank) == 0:
            _print_error(f"gnnsys: error: {told}")
        return code


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
        return 2, str(error)
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
    if arguments in (["--version"], ["-V"]):
        from gnnsys._version import __version__

        print(f"gnnsys {__version__}")
        return 0
    default: Any = _train_default(arguments) or tyro.MISSING_NONPROP
    config = tyro.cli(
        _commands(arguments[0] if arguments else ""),
        prog="gnnsys",
        description=_DESCRIPTION,
        args=arguments or ["--help"],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        default=default,
    )
    return _run(config, arguments)


def _train_default(arguments: list[str]) -> TrainConfig | None:
    """The options that ``--resume`` or ``--config`` of ``train`` stand for, if one is given."""
    if arguments[:1] != ["train"]:
        return None
    run, file = (_value_of(option, arguments) for option in ("--resume", "--config"))
    if run is None and file is None:
        return None
    if run is not None and file is not None:
        raise ArgumentError("--resume and --config exclude each other: a run has its options")
    from gnnsys.config.file import read_config, resumed_config

    return resumed_config(run) if run is not None else read_config(file or "")


def _value_of(option: str, arguments: list[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def _run(config: Any, arguments: list[str]) -> int:
    if isinstance(config, TrainConfig) and config.ranks is not None and "RANK" not in os.environ:
        from gnnsys.ranks.launch import run_ranks

        return run_ranks(arguments, config.ranks)
    name = next(name for name, kind in _CONFIGS.items() if isinstance(config, kind))
    code: int = import_module(f"gnnsys.commands.{name}").run_command(config)
    return code
