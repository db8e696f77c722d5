"""Layers over graphs with several edge types, from which work is removed before anything runs.

Owns the programs of such layers (values on nodes, edges and pairs of a node and an edge type), the
passes over them, what a graph must know for them, and their layers: drop-ins for those of PyG.
Imports ``message_passing``, ``system``, ``compat``, ``errors``, torch and PyG. After Hector (Wu et
al., ASPLOS 2024). Invariants: every combination of passes and backends gives the same results up to
the rounding of sums; a graph's edges are grouped once, however many layers read them.
"""

from gnnsys.rel.execute import run
from gnnsys.rel.explain import explain
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.hgt_conv import HGTConv
from gnnsys.rel.passes import optimise
from gnnsys.rel.program import Builder, Counts, Domain, Program
from gnnsys.rel.rgat_conv import RGATConv
from gnnsys.rel.rgcn_conv import RGCNConv
from gnnsys.rel.segments import segment_matmul

__all__ = [
    "Builder",
    "Counts",
    "Domain",
    "HGTConv",
    "Program",
    "RGATConv",
    "RGCNConv",
    "RelationalGraph",
    "explain",
    "optimise",
    "run",
    "segment_matmul",
]
