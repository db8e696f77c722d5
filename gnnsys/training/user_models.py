"""Models of the user's own: ``--model PACKAGE.MODULE:FACTORY``.

Owns what they are called with, and what they are checked for before training begins. Whatever goes
wrong in the user's code is one error that says where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn.module_dict import ModuleDict

from gnnsys.config.resolve import Run
from gnnsys.dataset.format import EdgeType
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.hetero_models import HeteroModel, MakeEmbedding
from gnnsys.training.link_task import LinkTask
from gnnsys.training.optimisation import sparse_weights
from gnnsys.training.step_parts import make_sampler
from gnnsys.training.user_factory import broken, call_factory

__all__ = ["UserHeteroModel", "make_user_embedder", "make_user_hetero_model", "make_user_model"]

_SEEDS = 32
"""Of the batch that a model is tried on."""


class _UserTypes(HeteroModel):
    """A model of the user's own for a graph with types.

    A type without features has an embedding for each node, which is trained with the model.

    Args:
        gnn: called as ``gnn(x_dict, edge_index_dict)``; gives (nodes, out_channels) of the only one
            of ``kinds``, or a dict by type with all of them.
        embeddings: of each node type without features.
        kinds: node types whose rows are wanted.
    """

    def __init__(self, gnn: nn.Module, embeddings: ModuleDict, kinds: Sequence[str]) -> None:
        super().__init__()
        self.inputs, self.gnn, self.kinds = embeddings, gnn, [*kinds]

    def _rows(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """(nodes, out_channels) by type; no layers are trimmed."""
        rows = dict(x)
        if n_id is not None:
            rows |= {kind: each(n_id[kind]) for kind, each in self.inputs.items()}
        out = self.gnn(rows, dict(edge_index))
        if not isinstance(out, Mapping):
            return {self.kinds[0]: out}
        return {kind: out[kind] for kind in self.kinds}


class UserHeteroModel(_UserTypes):
    """``_UserTypes`` that gives the logits of one node type."""

    def forward(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        *sizes: Any,
    ) -> Tensor:
        """Logits (nodes, classes); see ``HeteroModel``."""
        return self._rows(x, edge_index, n_id)[self.kinds[0]]

    def results(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """See ``HeteroModel.results``; which layer is the last is not known."""
        return {"logits": self(x, edge_index)}


class UserEmbedder(_UserTypes):
    """``_UserTypes`` that gives embeddings of the node types that links join."""

    def forward(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        *sizes: Any,
    ) -> dict[str, Tensor]:
        """(nodes, hidden) of each node type; see ``HeteroModel``."""
        return self._rows(x, edge_index, n_id)

    def results(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """See ``HeteroModel.results``."""
        return self(x, edge_index)


def make_user_model(run: Run, dataset: NodeDataset) -> nn.Module:
    """Calls the factory of ``--model`` and tries its model on one batch.

    The factory is called, by name, with those of ``in_channels``, ``out_channels``,
    ``hidden_channels`` (``--hidden``), ``num_layers`` (``--layers``) and ``dropout`` that it has a
    parameter for, with all if it has ``**kwargs``; the models of ``torch_geometric.nn`` are such
    factories. The model is called with x (nodes, in_channels) float32 and edge_index (2, edges)
    int64, and gives (nodes, out_channels) floats.

    Raises:
        ArgumentError: no such factory, an error in it or in the model, outputs of another shape,
            or a model that exact evaluation cannot take apart.
        UnsupportedError: several ranks, and parameters without a gradient, or buffers.
    """
    columns = dataset.features.shape[1]
    known = {"in_channels": columns, "out_channels": dataset.task.outputs}
    net = call_factory(run.config, known, _used(dataset))
    sampler = make_sampler(run.config, dataset.graph, device="cpu")
    batch = sampler.sample(_some_nodes(len(dataset.features)), 0)
    x = _draw_rows(len(batch.node), columns).to(dataset.features.dtype)
    edge_index = torch.stack([batch.row, batch.col])
    call = f"the model, called with x {tuple(x.shape)}, edge_index {tuple(edge_index.shape)},"
    place = run.config.model
    out = _check_rows(
        place, call, _try(place, call, net, x, edge_index), (len(x), dataset.task.outputs)
    )
    _check_parameters(place, net, out)
    if run.ranks > 1:
        _check_alike(place, net, out)
    _check_layers(run, dataset, net)
    return net


def make_user_hetero_model(
    run: Run, dataset: NodeDataset, embedding: MakeEmbedding
) -> UserHeteroModel:
    """``make_user_model`` for a graph with types.

    ``in_channels`` is a dict by node type: the features of a node, or ``--hidden`` for types
    without features, whose rows are embeddings that are trained with the model. Further parameters
    are ``metadata``, PyG's ``(node_types, edge_types)``, and ``target``, the type that is trained.
    The model is called with x_dict and edge_index_dict of all types, as models made by
    ``torch_geometric.nn.to_hetero`` are.

    Args:
        run: what to do.
        dataset: heterogeneous.
        embedding: gives those of a type without features, ``--hidden`` wide.

    Raises:
        ArgumentError: as ``make_user_model``, or a dict without the target.
    """
    made = _make_typed(run, dataset, [dataset.target], dataset.target, embedding)
    net = UserHeteroModel(*made, [dataset.target])
    _check_types(run, dataset, net)
    return net


def make_user_embedder(
    run: Run, dataset: NodeDataset, task: LinkTask, embedding: MakeEmbedding
) -> UserEmbedder:
    """``make_user_hetero_model`` for links: ``target`` is their edge type, and the model gives a
    dict with (nodes, out_channels) of the node types of both ends, unless these are one."""
    made = _make_typed(run, dataset, task.ends, task.edge_type, embedding)
    net = UserEmbedder(*made, task.ends)
    _check_types(run, dataset, net)
    return net


def _make_typed(
    run: Run,
    dataset: NodeDataset,
    kinds: Sequence[str],
    target: str | EdgeType,
    embedding: MakeEmbedding,
) -> tuple[nn.Module, ModuleDict]:
    """The model of the factory, which was tried, and embeddings.

    Args:
        run: what to do.
        dataset: heterogeneous.
        kinds: node types whose rows are wanted.
        target: as the factory is told it.
        embedding: gives those of a type without features.
    """
    config, place, widths = run.config, run.config.model, _widths(run, dataset)
    embeddings = ModuleDict(
        {
            kind: embedding(kind, count)
            for kind, count in dataset.num_nodes.items()
            if kind not in dataset.tables
        }
    )
    known = {
        "in_channels": widths,
        "out_channels": dataset.task.outputs,
        "metadata": ([*dataset.num_nodes], [*dataset.graphs]),
        "target": target,
    }
    gnn = call_factory(config, known, _used(dataset))
    sampler = make_sampler(config, dataset.source, device="cpu")
    batch = sampler.sample({kind: _some_nodes(dataset.num_nodes[kind]) for kind in kinds}, 0)
    x = {kind: _draw_rows(len(ids), widths[kind]) for kind, ids in batch.node.items()}
    edges = {kind: torch.stack([ids, batch.col[kind]]) for kind, ids in batch.row.items()}
    shapes = ", ".join(f"{kind} {tuple(rows.shape)}" for kind, rows in x.items())
    call = f"the model, called with an x_dict of {shapes} and an edge_index_dict,"
    out = _by_type(place, call, _try(place, call, gnn, x, edges), kinds)
    columns = dataset.task.outputs
    rows = [
        _check_rows(place, call, each, (len(x[kind]), columns), f" for {kind}")
        for kind, each in out.items()
    ]
    _check_parameters(place, gnn, *rows)
    return gnn, embeddings


def _used(dataset: NodeDataset) -> list[str]:
    """Options that have a part whatever the factory takes: the width of embeddings."""
    embeds = isinstance(dataset.task, LinkTask) or len(dataset.tables) < len(dataset.num_nodes)
    return ["hidden"] if embeds else []


def _widths(run: Run, dataset: NodeDataset) -> dict[str, int]:
    """Columns of each node type's rows."""
    hidden, tables = run.config.hidden or 0, dataset.tables
    return {kind: tables[kind].shape[1] if kind in tables else hidden for kind in dataset.num_nodes}


def _by_type(place: str, call: str, out: Any, kinds: Sequence[str]) -> dict[str, Any]:
    if not isinstance(out, Mapping) and len(kinds) == 1:
        return {kinds[0]: out}
    if isinstance(out, Mapping) and all(kind in out for kind in kinds):
        return {kind: out[kind] for kind in kinds}
    found = _described(out)
    if isinstance(out, Mapping):
        found = f"a dict of {', '.join(map(str, out)) or 'no types'}"
    raise ArgumentError(
        f"--model {place}: {call} gave {found}, expected a dict by node type that has "
        f"{' and '.join(kinds)}{', or its rows' if len(kinds) == 1 else ''}"
    )


def _some_nodes(count: int) -> Tensor:
    """(n,) ids from all over so many nodes."""
    return torch.arange(0, count, max(1, count // _SEEDS))[:_SEEDS]


def _draw_rows(rows: int, columns: int) -> Tensor:
    """At random: features are not read."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _try(place: str, call: str, net: nn.Module, *inputs: Any) -> Any:
    """What a model gives; no statistics of batches are changed."""
    net.eval()
    try:
        return net(*inputs)
    except Exception as error:
        raise broken(place, call, error) from error
    finally:
        net.train()


def _check_rows(place: str, call: str, out: Any, wanted: tuple[int, int], of: str = "") -> Tensor:
    if isinstance(out, Tensor) and out.shape == wanted and out.is_floating_point():
        return out
    raise ArgumentError(
        f"--model {place}: {call} gave {_described(out)}{of}, expected floats {wanted}: a row for "
        "each node, a column for each of out_channels"
    )


def _described(out: Any) -> str:
    if not isinstance(out, Tensor):
        return type(out).__name__
    return f"{str(out.dtype).removeprefix('torch.')} {tuple(out.shape)}"


def _check_parameters(place: str, net: nn.Module, *out: Tensor) -> None:
    """Whether there is something to train, and all of it is there."""
    parameters = dict(net.named_parameters())
    if not parameters or not any(each.requires_grad for each in out):
        lacks = "has no parameters" if not parameters else "gives outputs without a gradient"
        raise ArgumentError(f"--model {place}: the model {lacks}; there is nothing to train")
    lazy = [name for name, each in parameters.items() if is_lazy(each)]
    if lazy:
        raise ArgumentError(
            f"--model {place}: {lazy[0]} has no shape after a call: its layer had no part; leave "
            "that out, or say its channels in the place of -1"
        )


def _check_alike(place: str, net: nn.Module, out: Tensor) -> None:
    """What several ranks need to have the same model after each step."""
    parameters = {name: each for name, each in net.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(out.sum(), [*parameters.values()], allow_unused=True)
    unused = [name for name, each in zip(parameters, gradients, strict=True) if each is None]
    buffers = [name for name, _ in net.named_buffers()]
    rows = {id(each) for each in sparse_weights(net)}
    sparse = [name for name, each in parameters.items() if id(each) in rows]
    for names, what in (
        (unused, "has no part in the outputs"),
        (buffers, "is a buffer"),
        (sparse, "gets sparse gradients"),
    ):
        if names:
            raise UnsupportedError(
                f"--model {place}: {names[0]} {what}, which several ranks do not keep equal; leave "
                "it out, or train in one process"
            )


def _check_layers(run: Run, dataset: NodeDataset, net: nn.Module) -> None:
    """Whether an exact evaluation that is asked for can take the model apart."""
    from gnnsys.training.layer_checks import find_gnn, flow_of  # which import this module
    from gnnsys.training.model_layers import model_layers

    config = run.config
    if config.eval not in ("layerwise", "neighborhoods"):
        return
    try:
        model_layers(net, dataset.graph)
        flow = flow_of(find_gnn(net))
    except UnsupportedError as error:
        raise _inexact(config.model, str(error)) from error
    if flow != "source_to_target":
        raise _inexact(config.model, f"has messages of flow {flow}")
    if net.num_layers != config.layers:
        raise ArgumentError(
            f"--model {config.model}: has {net.num_layers} graph convolutions, but --layers is "
            f"{config.layers}; make them the same"
        )


def _check_types(run: Run, dataset: NodeDataset, net: _UserTypes) -> None:
    """Whether an exact evaluation that is asked for can follow the model."""
    from gnnsys.training.layer_checks import in_evaluation  # which imports this module
    from gnnsys.training.typed_layers import trace_model

    if run.config.eval != "layerwise":
        return
    x = {kind: _draw_rows(1, columns) for kind, columns in _widths(run, dataset).items()}
    try:
        with in_evaluation(net), torch.no_grad():
            trace_model(net, x, [*dataset.num_nodes], [*dataset.graphs], torch.device("cpu"))
    except UnsupportedError as error:
        told = str(error).replace(type(net).__name__, type(net.gnn).__name__)
        raise _inexact(run.config.model, told) from error


def _inexact(place: str, problem: str) -> ArgumentError:
    told = problem.removeprefix("model: ").partition(";")[0]
    return ArgumentError(
        f"--model {place}: {told}, but layers are computed exactly one after the other; give "
        "gnnsys train --eval sampled, or gnnsys predict --sampled"
    )
