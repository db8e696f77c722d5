"""Full-graph training of deep GNNs with their layers spread over ranks (GNNPipe).

``GNNPipe`` (``engine``) cuts the vertices into chunks (``partition``), gives each way its part of
the graph (``way_graph``), each stage its layers (``layers``, ``models``), and lets every rank carry
out a list of actions that is fixed beforehand (``schedule``, ``rank``). A ``stage`` runs its layers
over a chunk and keeps the rows that neighbours read (``history``). Tensors move by a transport of
``ranks``, which counts them; ``costs`` says beforehand what it will count, ``timeline`` when.

The package may import torch, torch_geometric, pymetis, ``ranks``, ``errors``, ``rng`` and the
compiled core, never a loader, a cache or the unified tensor. Invariants: a run depends on the
layers, the graph, K, W, R, gamma and the seed alone, not on S, threads or processes; every byte is
counted where its send is issued, and nowhere else.

Public names are handed on lazily (PEP 562): the command line reads ``costs`` and imports no torch.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys.pipeline.deep_model import DeepModel
    from gnnsys.pipeline.dropout import KeyedDropout
    from gnnsys.pipeline.engine import GNNPipe
    from gnnsys.pipeline.layers import GraphLayer, Share
    from gnnsys.pipeline.models import deep_layers
    from gnnsys.pipeline.partition import Partition, partition_graph

__all__ = [
    "DeepModel",
    "GNNPipe",
    "GraphLayer",
    "KeyedDropout",
    "Partition",
    "Share",
    "deep_layers",
    "partition_graph",
]

_HOME = {
    "DeepModel": "gnnsys.pipeline.deep_model",
    "GNNPipe": "gnnsys.pipeline.engine",
    "GraphLayer": "gnnsys.pipeline.layers",
    "KeyedDropout": "gnnsys.pipeline.dropout",
    "Partition": "gnnsys.pipeline.partition",
    "Share": "gnnsys.pipeline.layers",
    "deep_layers": "gnnsys.pipeline.models",
    "partition_graph": "gnnsys.pipeline.partition",
}

__getattr__, __dir__ = hand_on(__name__, _HOME)
