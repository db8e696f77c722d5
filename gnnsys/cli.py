"""The ``gnnsys`` command. Imports a command's code only when that command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from gnnsys.config import DoctorConfig, TrainConfig
from gnnsys.errors import GnnsysError

__all__ = ["main"]

_DESCRIPTION = """Train graph neural networks on features that stay where they fit.

Examples:
    gnnsys train demo
    gnnsys train cora --root data --full-batch --model gcn --json
    gnnsys doctor
    gnnsys train --help
"""

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train", description=TrainConfig.__doc__)]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor", description=DoctorConfig.__doc__)]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: that of the process) and returns its exit code.

    0: done; 1: the install is broken (doctor); 2: bad input, told in one message; 130: interrupted;
    141: the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        from gnnsys._version import __version__

        print(f"gnnsys {__version__}")
        return 0
    try:
        config = tyro.cli(
            Command,
            prog="gnnsys",
            description=_DESCRIPTION,
            args=arguments or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        return _run(config)
    except GnnsysError as error:
        print(f"gnnsys: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("gnnsys: interrupted", file=sys.stderr)
        return 130


def _run(config: TrainConfig | DoctorConfig) -> int:
    if isinstance(config, DoctorConfig):
        from gnnsys.doctor import main as doctor

        return doctor(config.path, config.json)
    from gnnsys.train import run_command

    return run_command(config)
