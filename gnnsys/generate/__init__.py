"""Generates graphs of any size as dataset folders, for benchmarks and for trying things out.

Owns two kinds: R-MAT, with the skewed degrees of a social network and nothing to learn, and a graph
of communities that a GNN learns and an MLP does not. Invariants: every edge, row and label is a
pure function of the seed and its number, so the folder is the same, byte for byte, whatever the
threads, the memory and the kills in between; memory grows with neither edges nor features.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys.generate.community import generate_community
    from gnnsys.generate.rmat import generate_rmat

__all__ = ["generate_community", "generate_rmat"]

__getattr__, __dir__ = hand_on(
    __name__,
    {
        "generate_community": "gnnsys.generate.community",
        "generate_rmat": "gnnsys.generate.rmat",
    },
)
