"""What stands behind ``gnnsys``: a command and its options, help, or a completion script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro

from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.command_line import MARKERS, described, parse, shown
from gnnsys.config.convert import ConvertConfig
from gnnsys.config.doctor import DoctorConfig
from gnnsys.config.generate import CommunityConfig, GenerateConfig, RmatConfig
from gnnsys.config.info import InfoConfig
from gnnsys.config.plan import PlanConfig
from gnnsys.config.predict import PredictConfig
from gnnsys.config.report import ReportConfig
from gnnsys.config.score import ScoreConfig
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.system.names import nearest

__all__ = ["CONFIGS", "read_arguments"]


class _Root:
    """Train graph neural networks on features that stay where they fit.

    Examples:
        gnnsys train demo
        gnnsys convert edges.csv my-graph --nodes nodes.csv --random-split 0.6 0.2 0.2
        gnnsys train my-graph --out run1
        gnnsys train --resume run1
        gnnsys predict run1
        gnnsys report run1
        gnnsys COMMAND --help

    An error is one line. --version shows the version; docs/command-line.md says how a shell
    completes commands and options.
    """


@dataclass(kw_only=True)
class _OfAll:
    """Options that every command has."""

    quiet: bool = False
    """Show results and errors only."""

    debug: bool = False
    """Show where an error comes from."""


CONFIGS: dict[str, type] = {
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
"""The options of each command, whose code is the module of its name beside this one."""

_GRAPHS = {"rmat": RmatConfig, "community": CommunityConfig}
_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def read_arguments(arguments: list[str]) -> Any:
    """The options of the command that is asked for, one of ``CONFIGS``.

    Raises:
        ArgumentError: a command or an option that there is not, or a value that does not fit.
        SystemExit: help or a completion script was printed.
    """
    if not arguments or arguments[0] in ("-h", "--help", *_COMPLETION):
        _show(_Root, _union(CONFIGS), "gnnsys", arguments or ["--help"])
    name, *rest = arguments
    kind = _chosen(name, CONFIGS, "gnnsys", "command")
    own = [argument for argument in rest if argument not in ("--quiet", "--debug")]
    asks = any(argument in ("-h", "--help") for argument in own)
    if kind is not GenerateConfig:
        default = _default_of(kind, own) if kind in (TrainConfig, ClusterConfig) else None
        if asks:
            _show(kind, shown(kind, default, _OfAll), f"gnnsys {name}", ["--help"])
        return parse(kind, f"gnnsys {name}", own, default)
    if not own or own[0] in ("-h", "--help"):
        _show(kind, _union(_GRAPHS), "gnnsys generate", ["--help"])
    graph = _chosen(own[0], _GRAPHS, "gnnsys generate", "kind of graph")
    if asks:
        _show(graph, shown(graph, None, _OfAll), f"gnnsys generate {own[0]}", ["--help"])
    return GenerateConfig(graph=parse(graph, f"gnnsys generate {own[0]}", own[1:]))


def _chosen(name: str, kinds: Mapping[str, type], command: str, what: str) -> type:
    if name not in kinds:
        hint = nearest(name, kinds) or f"; expected one of {', '.join(kinds)}"
        raise ArgumentError(f"{name}: {command} has no such {what}{hint}")
    return kinds[name]


def _union(kinds: Mapping[str, type]) -> Any:
    """Commands as tyro takes them, each described in one line."""
    members = []
    for name, kind in kinds.items():
        about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        made = (
            Annotated[_union(_GRAPHS), tyro.conf.arg(name="")]
            if kind is GenerateConfig
            else shown(kind, None, _OfAll)
        )
        members.append(Annotated[made, tyro.conf.subcommand(name, description=about)])
    return Union[tuple(members)]  # noqa: UP007  (made at run time)


def _show(about: type, kind: Any, command: str, arguments: list[str]) -> None:
    """Prints help or a completion script, and exits."""
    tyro.cli(kind, prog=command, description=described(about), args=arguments, config=MARKERS)


def _default_of(kind: Any, arguments: list[str]) -> Any:
    """The options that ``--resume``, or ``--config`` of ``train``, stand for, if one is given."""
    run = _value_of("--resume", arguments)
    file = _value_of("--config", arguments) if kind is TrainConfig else None
    if run is None and file is None:
        return None
    if run is not None and file is not None:
        raise ArgumentError("--resume and --config exclude each other: a run has its options")
    from gnnsys.config.file import read_config, resumed_options

    return resumed_options(run, kind) if run is not None else read_config(file or "")


def _value_of(option: str, arguments: list[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None
