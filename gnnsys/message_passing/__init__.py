"""Sums over the neighbours of nodes, whose messages are never written out edge by edge.

Owns ``Neighbors`` (the edges of a graph, grouped), the operators ``gnnsys::sum_neighbors``,
``gnnsys::dot_neighbors``, ``gnnsys::sum_normalized``, ``gnnsys::edge_softmax`` and
``gnnsys::additive_logits`` over them, edges with self loops, and ``fuse``, which makes layers of
PyG use them. Imports errors, ``compat``, ``system``, torch and PyG,
never a loader or a model of the command line.
Invariants: an edge list is an ordinary tensor, and what is known of it never outlives it nor a
change of it; sums are made in the order of the edges, whatever the number of threads and whether by
native code or by kernels; a layer that is not recognised is left alone.
"""

from gnnsys.message_passing.fused_layers import fuse
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.message_passing.sums import sum_neighbors

__all__ = ["Neighbors", "edge_softmax", "fuse", "neighbors_of", "sum_neighbors"]
