"""Options of ``gnnsys generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import Size
from gnnsys.generate.graphs import CommunityGraph, RmatGraph

__all__ = ["CommunityConfig", "GenerateConfig", "RmatConfig"]


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The folder, and what making it takes."""

    out: Annotated[str, tyro.conf.Positional]
    """Folder to make."""

    memory: Size = "2GB"
    """For arrays of edges."""

    threads: int = 0
    """0 for all cores."""


@dataclass(frozen=True, kw_only=True)
class RmatConfig(RmatGraph, _Folder):
    """An R-MAT graph with random features and labels, for benchmarks.

    Examples:
        gnnsys generate rmat g20 --scale 20
    """

    scale: int = 16
    """The graph has 2^scale nodes."""

    classes: int = 10
    """Random labels; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class CommunityConfig(CommunityGraph, _Folder):
    """A graph of communities whose labels a GNN can learn and an MLP cannot.

    Examples:
        gnnsys generate community g --nodes 1000000 --classes 20
    """


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """Generate a graph as a dataset folder.

    Examples:
        gnnsys generate community g --nodes 1000000
        gnnsys generate rmat g20 --scale 20
    """

    graph: (
        Annotated[RmatConfig, tyro.conf.subcommand("rmat")]
        | Annotated[CommunityConfig, tyro.conf.subcommand("community")]
    )
    """Kind of graph."""
