"""What PyG exports that takes edges, and arguments for all of it.

Arguments are found by the names of parameters, and by the name of the export where those say too
little. ``NEEDS`` names what cannot be called on a sampled batch, and what it would take.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from pyg_batches import CHANNELS, CLASSES, EDGE_DIM, RELATIONS
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric import transforms, utils
from torch_geometric.data import Data, HeteroData
from torch_geometric.explain.algorithm.captum import MaskLevelType
from torch_geometric.nn import aggr, conv, models, norm, pool

_Table = dict[str, Callable[[Any], dict[str, Any]]]

_MESH = "faces of a mesh"
_MOLECULE = "a molecule"
_PYG_LIB = "package pyg_lib"
_CUGRAPH = "package pylibcugraphops"

NEEDS: dict[ModuleType, dict[str, str]] = {
    conv: {
        "CuGraphGATConv": _CUGRAPH,
        "CuGraphRGCNConv": _CUGRAPH,
        "CuGraphSAGEConv": _CUGRAPH,
        "DynamicEdgeConv": _PYG_LIB,
        "FusedGATConv": "package dgNN",
        "GravNetConv": _PYG_LIB,
        "MeshCNNConv": "edges of a mesh, four next to each",
        "PANConv": "package torch_sparse",
        "SplineConv": _PYG_LIB,
        "XConv": _PYG_LIB,
    },
    aggr: {},
    norm: {},
    pool: {"graclus": _PYG_LIB},
    models: {
        "MetaPath2Vec": "package torch_sparse",
        "Node2Vec": _PYG_LIB,
        "RENet": "events of a temporal knowledge graph",
    },
    transforms: {
        "AddGPSE": "a trained GPSE",
        "AddRandomMetaPaths": _PYG_LIB,
        "FaceToEdge": _MESH,
        "GenerateMeshNormals": _MESH,
        "GridSampling": _PYG_LIB,
        "KNNGraph": _PYG_LIB,
        "RadiusGraph": _PYG_LIB,
        "RootedRWSubgraph": _PYG_LIB,
        "SamplePoints": _MESH,
        "ToSLIC": "an image",
    },
    utils: {
        "dropout_path": _PYG_LIB,
        "to_cugraph": "package cugraph",
        "to_dgl": "package dgl",
        "to_networkit": "package networkit",
        "to_rdmol": _MOLECULE,
        "to_smiles": _MOLECULE,
        "to_trimesh": _MESH,
    },
}

# An instance of MessagePassing itself changes how PyG makes those of its subclasses.
_BASES = {"Aggregation", "BaseTransform", "MessagePassing"}
_TYPED = {"AddMetaPaths", "HANConv", "HGTConv", "HeteroConv", "get_embeddings_hetero"}
_WITHOUT_GRADIENT = {"ASAPooling", "LPFormer", "to_scipy_sparse_matrix"}


def exported(group: ModuleType) -> list[str]:
    """Public names that take edges; all layers, aggregations and transforms."""
    names = [name for name in group.__all__ if name not in _BASES]
    if group in (conv, aggr, norm, transforms):
        return names
    return [name for name in names if _takes_edges(getattr(group, name))]


def to_run(*groups: ModuleType) -> list[tuple[ModuleType, str]]:
    """What is called on batches: all that is not named in ``NEEDS``."""
    return [
        (group, name) for group in groups for name in exported(group) if name not in NEEDS[group]
    ]


def may_have_what_it_needs(group: ModuleType, name: str) -> bool:
    """Whether an export in ``NEEDS`` needs a package that happens to be installed."""
    need = NEEDS[group][name]
    package = need.removeprefix("package ")
    return package != need and importlib.util.find_spec(package) is not None


def kinds_of_batches(name: str) -> tuple[str, ...]:
    """The kinds of batches, as ``pyg_batches.pairs`` names them, that an export takes."""
    return ("typed",) if name in _TYPED else ("nodes", "links")


def is_differentiable(group: ModuleType, name: str) -> bool:
    """Whether PyG takes gradients through it; all transforms are said to be without."""
    return group is not transforms and name not in _WITHOUT_GRADIENT


def _takes_edges(export: Any) -> bool:
    parameters = list(inspect.signature(getattr(export, "forward", export)).parameters.values())
    rest = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    if inspect.isclass(export):
        parameters += inspect.signature(export.__init__).parameters.values()
    keys = [parameter.name for parameter in parameters]
    return rest or "data" in keys or any("edge_index" in key for key in keys)


def make(group: ModuleType, name: str, batch: Any, **given: Any) -> Any:
    """An export for calls on a batch: a class is instantiated, with the same numbers each time."""
    export = getattr(group, name)
    if not inspect.isclass(export):
        return export
    torch.manual_seed(0)
    known = _CONSTANTS | _attributes(batch)
    del known["args"]
    keys = inspect.signature(export.__init__).parameters
    arguments = {key: known[key] for key in keys if key in known}
    return export(**arguments | _own(_MAKE, name, batch) | given)


def call(made: Any, batch: Any, **given: Any) -> Any:
    """Calls what ``make`` returned on the batch."""
    signature = inspect.signature(made.forward if isinstance(made, nn.Module) else made)
    name = getattr(made, "__name__", type(made).__name__)
    known = _CONSTANTS | _attributes(batch) | _own(_CALL, name, batch) | given
    arguments = {key: known[key] for key in signature.parameters if key in known}
    bound = inspect.BoundArguments(signature, arguments)  # type: ignore[arg-type]
    return made(*bound.args, **bound.kwargs)


def _own(table: _Table, name: str, batch: Any) -> dict[str, Any]:
    return table[name](batch) if name in table else {}


def _attributes(batch: Any) -> dict[str, Any]:
    """What batches are asked for by the parameters of layers and functions."""
    if isinstance(batch, HeteroData):
        edges = batch.edge_index_dict
        return {
            "data": batch,
            "metadata": batch.metadata(),
            "x_dict": batch.x_dict,
            "edge_index_dict": edges,
            "args_dict": (batch.x_dict, edges),
            "args": (batch.x_dict, edges),
        }
    nodes, found = batch.num_nodes, batch.to_dict()
    found.pop("batch_size", None)  # functions mean the number of graphs
    return found | {
        "data": batch,
        "num_nodes": nodes,
        "batch": torch.zeros(nodes, dtype=torch.int64),
        "cluster": torch.arange(nodes) // 2,
        "subset": torch.arange(0, nodes, 2),
        "x_0": batch.x.flip(0),
        "z": batch.x,
        "msg": batch.x.flip(0),
        "type_vec": batch.node_type,
        "pos_edge_index": batch.edge_index,
        "neg_edge_index": batch.edge_index.flip(1),
        "hyperedge_index": batch.edge_index,
        "num_sampled_nodes_per_hop": batch.num_sampled_nodes,
        "num_sampled_edges_per_hop": batch.num_sampled_edges,
        "args": (batch.x, batch.edge_index),
    }


class _MeanAndSpread(nn.Module):
    """An encoder of variational models."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = (gnn.GCNConv(CHANNELS, CHANNELS) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x, edge_index), self.spread(x, edge_index)


class _Ends(nn.Module):
    """An edge model of ``MetaLayer``."""

    def forward(self, source: Tensor, target: Tensor, edge_attr: Tensor, *_: Any) -> Tensor:
        return torch.cat([source * target, edge_attr], dim=-1)


def _linear(inputs: int, outputs: int = CHANNELS) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


def _model() -> nn.Module:
    torch.manual_seed(0)
    return gnn.GraphSAGE(CHANNELS, CHANNELS, num_layers=2)


def _changed(batch: Data, **attributes: Any) -> Data:
    batch = copy.copy(batch)
    for key, value in attributes.items():
        batch[key] = value
    return batch


def _typed_convs(batch: HeteroData) -> dict[Any, nn.Module]:
    kinds = (gnn.SAGEConv, gnn.GraphConv, gnn.GATConv)
    return {
        edge_type: kind((CHANNELS, CHANNELS), CHANNELS, add_self_loops=False)
        if kind is gnn.GATConv
        else kind((CHANNELS, CHANNELS), CHANNELS)
        for edge_type, kind in zip(batch.edge_types, kinds, strict=True)
    }


_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("in_channels", "out_channels", "channels", "hidden_channels"), CHANNELS),
    **dict.fromkeys(("K", "k", "heads", "num_heads", "kernel_size", "num_layers"), 2),
    **dict.fromkeys(("num_node_types", "num_types", "edge_type_emb_dim", "edge_attr_emb_dim"), 2),
    **dict.fromkeys(("edge_dim", "dim", "in_edge_channels"), EDGE_DIM),
    **dict.fromkeys(("num_relations", "num_edge_types"), RELATIONS),
    "alpha": 0.5,
    "filter_size": 2,
    "first_aggr": True,
    "aggregators": ["mean", "max"],
    "scalers": ["identity", "amplification"],
    "deg": torch.tensor([1, 5, 6, 2]),
    "num_hops": 2,
    "walk_length": 2,
}

_MAKE: _Table = {
    # convolutions
    "DirGNNConv": lambda _: {"conv": gnn.SAGEConv(CHANNELS, CHANNELS)},
    "EdgeConv": lambda _: {"nn": _linear(2 * CHANNELS)},
    "GINConv": lambda _: {"nn": _linear(CHANNELS)},
    "GINEConv": lambda _: {"nn": _linear(CHANNELS)},
    "GPSConv": lambda _: {"conv": gnn.SAGEConv(CHANNELS, CHANNELS)},
    "HeteroConv": lambda batch: {"convs": _typed_convs(batch)},
    "HypergraphConv": lambda _: {"heads": 1},
    "NNConv": lambda _: {"nn": _linear(EDGE_DIM, CHANNELS * CHANNELS)},
    "PPFConv": lambda _: {"local_nn": _linear(CHANNELS + 4)},
    "PointGNNConv": lambda _: {
        "mlp_h": _linear(CHANNELS, 3),
        "mlp_f": _linear(CHANNELS + 3),
        "mlp_g": _linear(CHANNELS),
    },
    "PointNetConv": lambda _: {"local_nn": _linear(CHANNELS + 3)},
    "RGATConv": lambda _: {"dim": 1},
    # aggregations
    **dict.fromkeys(("PowerMeanAggregation", "SoftmaxAggregation"), lambda _: {"learn": True}),
    "AttentionalAggregation": lambda _: {"gate_nn": _linear(CHANNELS, 1)},
    "DeepSetsAggregation": lambda _: {
        "local_nn": _linear(CHANNELS),
        "global_nn": _linear(CHANNELS),
    },
    "DegreeScalerAggregation": lambda _: {"aggr": "mean", "scaler": "amplification"},
    "EquilibriumAggregation": lambda _: {"num_layers": [CHANNELS]},
    "MLPAggregation": lambda _: {"max_num_elements": 8, "num_layers": 1},
    "MultiAggregation": lambda _: {"aggrs": ["sum", "std"]},
    "PatchTransformerAggregation": lambda _: {"patch_size": 2},
    "QuantileAggregation": lambda _: {"q": 0.5},
    "Set2Set": lambda _: {"processing_steps": 2},
    # norms
    "DiffGroupNorm": lambda _: {"groups": 2},
    # pooling and models
    "ARGA": lambda _: {
        "encoder": gnn.GCNConv(CHANNELS, CHANNELS),
        "discriminator": _linear(CHANNELS),
    },
    "ARGVA": lambda _: {"encoder": _MeanAndSpread(), "discriminator": _linear(CHANNELS)},
    "AttentiveFP": lambda _: {"num_timesteps": 2},
    "CorrectAndSmooth": lambda _: {
        "num_correction_layers": 2,
        "correction_alpha": 0.5,
        "num_smoothing_layers": 2,
        "smoothing_alpha": 0.5,
    },
    "DeepGCNLayer": lambda _: {"conv": gnn.GCNConv(CHANNELS, CHANNELS), "act": nn.ReLU()},
    "DeepGraphInfomax": lambda _: {
        "encoder": gnn.GCNConv(CHANNELS, CHANNELS),
        "summary": lambda z, *_: z.mean(dim=0),
        "corruption": lambda x, edge_index: (x.flip(0), edge_index),
    },
    "GAE": lambda _: {"encoder": gnn.GCNConv(CHANNELS, CHANNELS)},
    "GraphUNet": lambda _: {"depth": 2},
    "GroupAddRev": lambda _: {"conv": gnn.SAGEConv(CHANNELS // 2, CHANNELS // 2), "num_groups": 2},
    "LightGCN": lambda _: {"embedding_dim": CHANNELS},
    "LPFormer": lambda _: {"num_heads": 1},
    "MetaLayer": lambda _: {"edge_model": _Ends()},
    "PNA": lambda _: {
        key: _CONSTANTS[key] for key in ("aggregators", "scalers", "deg", "edge_dim")
    },
    "Polynormer": lambda _: {"local_layers": 1, "global_layers": 1},
    "VGAE": lambda _: {"encoder": _MeanAndSpread()},
    # transforms
    "AddMetaPaths": lambda batch: {"metapaths": [list(batch.edge_types[:2])]},
    "Compose": lambda _: {"transforms": [transforms.ToUndirected(), transforms.AddSelfLoops()]},
    "ComposeFilters": lambda _: {"filters": [lambda data: data.edge_index.size(1) > 1]},
    "FeaturePropagation": lambda batch: {"missing_mask": batch.x > 1},
    "FixedPoints": lambda _: {"num": 8},
    "LinearTransformation": lambda _: {"matrix": torch.arange(9.0).view(3, 3)},
    "NodePropertySplit": lambda _: {
        "property_name": "popularity",
        "ratios": [0.3, 0.1, 0.1, 0.2, 0.3],
    },
    "OneHotDegree": lambda batch: {"max_degree": batch.num_edges},
    "Pad": lambda _: {"max_num_nodes": 300, "max_num_edges": 400},
    "RandomFlip": lambda _: {"axis": 0},
    "RandomJitter": lambda _: {"translate": 0.1},
    "RandomLinkSplit": lambda _: {"key": "split_label"},
    "RandomRotate": lambda _: {"degrees": 30},
    "RandomScale": lambda _: {"scales": (0.5, 2)},
    "RandomShear": lambda _: {"shear": 0.2},
    "RemoveTrainingClasses": lambda _: {"classes": [0]},
    "ToDevice": lambda _: {"device": "cpu"},
    "ToSparseTensor": lambda _: {"layout": torch.sparse_csr},
}

_CALL: _Table = {
    # convolutions
    "AntiSymmetricConv": lambda _: {"args": ()},
    "DNAConv": lambda batch: {"x": torch.stack([batch.x, batch.x.flip(0)], dim=1)},
    "FAConv": lambda _: {"edge_weight": None},
    "WLConv": lambda batch: {"x": batch.y},
    **dict.fromkeys(
        aggr.__all__,
        lambda batch: {
            "x": batch.x[batch.edge_index[0]],
            "index": batch.edge_index[1],
            "dim_size": batch.num_nodes,
            "dim": -2,
        },
    ),
    # models
    **dict.fromkeys(("GAT", "PNA"), lambda _: {"edge_weight": None}),
    **dict.fromkeys(("EdgeCNN", "GCN", "GIN", "GraphSAGE"), lambda _: {"edge_attr": None}),
    "CorrectAndSmooth": lambda batch: {
        "y_soft": batch.x[:, :CLASSES].softmax(dim=-1),
        "args": (batch.y[batch.train_mask], batch.train_mask, batch.edge_index),
    },
    "GroupAddRev": lambda batch: {"args": (1 * batch.x, batch.edge_index)},  # frees its input
    "LPFormer": lambda batch: {
        "batch": batch.edge_index[:, :5],
        "ppr_matrix": utils.to_torch_coo_tensor(
            batch.edge_index, batch.edge_weight, batch.num_nodes
        ),
    },
    # transforms
    **dict.fromkeys(
        ("Delaunay", "Polar"), lambda batch: {"data": _changed(batch, pos=batch.pos[:, :2])}
    ),
    **dict.fromkeys(
        ("GDC", "LaplacianLambdaMax"),
        lambda batch: {"data": _changed(batch, edge_attr=batch.edge_weight)},
    ),
    # It knows the nodes up to the last that has an edge to it.
    "FeaturePropagation": lambda batch: {
        "data": _changed(batch, edge_index=batch.edge_index.flip(0))
    },
    "HalfHop": lambda batch: {"data": _changed(batch, edge_weight=None, edge_attr=None)},
    "PointPairFeatures": lambda batch: {"data": _changed(batch, norm=batch.normal)},
    # functions
    "bipartite_subgraph": lambda batch: {"subset": (torch.arange(batch.num_nodes) < 9,) * 2},
    "get_embeddings": lambda _: {"model": _model()},
    "get_embeddings_hetero": lambda batch: {
        "model": make(conv, "HeteroConv", batch),
        "supported_models": None,
    },
    "k_hop_subgraph": lambda _: {"node_idx": [0, 1]},
    "normalized_cut": lambda batch: {"edge_attr": batch.edge_weight},
    "to_captum_input": lambda _: {"mask_type": MaskLevelType.node_and_edge, "args": ()},
    "to_scipy_sparse_matrix": lambda batch: {"edge_attr": batch.edge_weight},
    "total_influence": lambda _: {"model": _model(), "max_hops": 2},
    "trim_to_layer": lambda _: {"layer": 1},
}
