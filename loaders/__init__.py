"""Graph topology, samplers and mini-batch loaders.

Owns the CSC topology, the neighbour sampler and the loaders. Imports ``rng``, ``errors`` and the
unified tensor's stores, never models or the command line. Invariant: a batch depends on the graph,
the seeds and (seed, epoch, batch number) alone, not on threads, workers or where features lie.
"""

from gnnsys.loaders.cooperative import CooperativeSampler
from gnnsys.loaders.link_negatives import LinkNegatives, degree_weights
from gnnsys.loaders.link_neighbor_loader import LinkNeighborLoader
from gnnsys.loaders.neighbor_loader import NeighborLoader
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.loaders.topology import CSC

__all__ = [
    "CSC",
    "CooperativeSampler",
    "LinkNegatives",
    "LinkNeighborLoader",
    "NeighborLoader",
    "NeighborSampler",
    "degree_weights",
]
