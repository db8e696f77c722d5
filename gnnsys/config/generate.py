"""Options of ``gnnsys generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import FloatType

__all__ = ["CommunityConfig", "GenerateConfig", "RmatConfig"]


@dataclass(kw_only=True, slots=True)
class RmatConfig:
    """An R-MAT graph with random features and labels, for benchmarks.

    Examples:
        gnnsys generate rmat g20 --scale 20
    """

    out: Annotated[str, tyro.conf.Positional]
    """Folder to make."""

    scale: int = 16
    """The graph has 2^scale nodes."""

    edge_factor: int = 16
    """Edges a node."""

    a: float = 0.57
    """Probability of the quadrant of low sources and low targets; b, c of the next two."""

    b: float = 0.19

    c: float = 0.19

    features: int = 128
    """Random features of each node; 0 for none."""

    classes: int = 10
    """Random labels; 0 for none."""

    train: float = 0.6
    """Share of the nodes to train on."""

    val: float = 0.2
    """Share to validate on; the rest is for the test."""

    undirected: bool = False
    """Add the reverse of every edge."""

    dtype: FloatType = "float32"
    """Element type that features are stored in."""

    seed: int = 0
    """Of everything random."""

    memory: str = "2GB"
    """For arrays of edges."""

    threads: int = 0
    """0 for all cores."""


@dataclass(kw_only=True, slots=True)
class CommunityConfig:
    """A graph of communities whose labels a GNN can learn and an MLP cannot.

    Examples:
        gnnsys generate community g --nodes 1000000 --classes 20
    """

    out: Annotated[str, tyro.conf.Positional]
    """Folder to make."""

    nodes: int = 100_000
    """Of the graph."""

    classes: int = 10
    """Communities."""

    degree: int = 16
    """In-neighbours of each node."""

    features: int = 128
    """Of each node."""

    within: float = 0.65
    """Share of neighbours drawn from the node's own community."""

    signal: float = 0.06
    """How far features point to the community: the length of its centre against noise of 1."""

    train: float = 0.5
    """Share of the nodes to train on."""

    val: float = 0.25
    """Share to validate on; the rest is for the test."""

    dtype: FloatType = "float32"
    """Element type that features are stored in."""

    seed: int = 0
    """Of everything random."""

    memory: str = "2GB"
    """For arrays of edges."""

    threads: int = 0
    """0 for all cores."""


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
