"""Full-graph training of deep GNNs with their layers spread over ranks (GNNPipe).

``GNNPipe`` (``engine``) cuts the vertices into chunks (``partition``), gives each way its part of
the graph (``way_graph``), each stage its layers (``layers``, ``models``), and lets every rank carry
out a list of actions that is fixed beforehand (``schedule``, ``rank``). A ``stage`` runs its layers
over a chunk and keeps the rows that neighbours read (``history``). Tensors move by a ``transport``,
which counts them; ``costs`` says beforehand what it will count, ``timeline`` when.

The package may import torch, torch_geometric, pymetis, ``errors``, ``rng`` and the compiled core,
never a loader, a cache or the unified tensor. Invariants: a run depends on the layers, the graph,
K, W, R, gamma and the seed alone, not on S, threads or processes; every byte is counted where its
send is issued, and nowhere else.

Public names are handed on lazily (PEP 562): the command line reads ``costs`` and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "DeepModel": "deep_model",
    "GNNPipe": "engine",
    "GraphLayer": "layers",
    "KeyedDropout": "dropout",
    "Partition": "partition",
    "Share": "layers",
    "deep_layers": "models",
    "partition_graph": "partition",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
