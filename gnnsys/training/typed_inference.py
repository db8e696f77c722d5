"""Exact inference over node types, layer by layer: every node once a layer.

The rows of each type, and what layers make of them, lie in stores, in memory or in files, so that
neither features nor a layer's activations need to fit in memory. The same blocks are computed
wherever rows lie, so results do not depend on that.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch_geometric.data import HeteroData
from torch_geometric.typing import NodeType

from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError
from gnnsys.feature_store import FeatureStore
from gnnsys.loaders import NeighborSampler
from gnnsys.memory import Store
from gnnsys.system.files import as_storage_error, check_folder_of
from gnnsys.system.names import naming_keywords
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.divided_layers import as_rows, create_store
from gnnsys.training.layer_blocks import as_unified, cut_blocks, device_of, read_rows, row_bytes
from gnnsys.training.layer_checks import in_evaluation, unwrap
from gnnsys.training.typed_convs import ATTENDING
from gnnsys.training.typed_layers import Step, TypedLayers, trace_model
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["hetero_inference"]

_BLOCK_BYTES = 64 << 20
_ATTRIBUTE = "x"
_OF_ATTENTION = 4
"""Times the bytes of its inputs that attention has at a time: keys, queries and values of each
edge."""


@naming_keywords()
def hetero_inference(
    model: torch.nn.Module,
    data: Any,
    *,
    x: Mapping[NodeType, Tensor] | None = None,
    out: str | os.PathLike[str] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Any:
    """The outputs of a model of a heterogeneous graph for all nodes, exactly, layer by layer.

    These are ``model(x_dict, edge_index_dict)`` up to rounding. ``torch.fx`` follows the model, so
    that it may be written in any way whose graph layers are PyG's: a stack of ``HeteroConv``, of
    ``HGTConv``, the result of ``to_hetero``, with skip connections, encoders of features and heads
    of one's own. What its outputs do not need is not computed.

    Args:
        model: called as ``model(x_dict, edge_index_dict)``; returns rows of one node type, or a
            dict of such. Put into evaluation mode for the call. Its device is where it computes.
        data: PyG ``HeteroData`` with edge_index of each edge type, a heterogeneous ``Dataset``, or
            the ``(FeatureStore, GraphStore)`` of ``Dataset.stores``; x may be unified.
        x: rows of node types in the place of their features, or of types that have none, as the
            weights of a trained embedding: (nodes, …), in memory or unified.
        out: a folder for the results, one file ``TYPE.npy`` for each node type, made if it is not
            there; what layers hand on to others then lies in files beside them, too, which are
            removed. None keeps all in memory.
        block_bytes: of inputs and messages that are in memory at a time, roughly; a single node's
            neighbours are never divided.
        threads: that gather; 0 for all cores. They change no bit of the results.
        progress: is told how far the work is, in nodes.

    Returns:
        What the model returns: (nodes, …) rows, or a dict of them. Ordinary tensors, or unified
        ones over files of ``out``.

    Raises:
        ArgumentError: data, options or rows that cannot be used, or a model that fails on rows and
            edges of these types.
        UnsupportedError: a model that cannot be followed, or with a part that blocks of nodes may
            not compute as the whole graph does.
        StorageError: ``out`` cannot be written.

    >>> from torch_geometric.nn import SAGEConv, to_hetero
    >>> from torch_geometric.nn.models import GraphSAGE
    >>> data = HeteroData(user={"x": torch.eye(2)}, item={"x": torch.ones(3, 4)})
    >>> data["user", "buys", "item"].edge_index = torch.tensor([[0, 1, 1], [0, 0, 2]])
    >>> data["item", "of", "user"].edge_index = torch.tensor([[0, 0, 2], [0, 1, 1]])
    >>> net = to_hetero(GraphSAGE((-1, -1), 8, num_layers=2, out_channels=3), data.metadata())
    >>> found = hetero_inference(net.eval(), data)
    >>> torch.allclose(found["user"], net(data.x_dict, data.edge_index_dict)["user"], atol=1e-6)
    True
    """
    if block_bytes < 1:
        raise ArgumentError(f"block_bytes: {block_bytes}, expected bytes above 0")
    features, graph = _take_apart(data, threads)
    sampler = NeighborSampler(graph, [-1], threads=threads)
    rows = _choose_rows(features, x or {}, sampler.num_nodes, threads)
    with in_evaluation(model), torch.no_grad():
        device = device_of(model)
        traced, steps, samples = trace_model(
            unwrap(model), rows, sampler.node_types, sampler.edge_types, device
        )
        run = _Run(
            TypedLayers(traced, sampler, device), samples, rows, block_bytes, threads, progress
        )
        if out is None:
            outputs = run.compute(steps)
        else:
            paths = {key: Path(out) / _file_name(key) for key in traced.outputs}
            with _scratch_in(Path(out)) as folder:
                outputs = run.compute(steps, folder, paths)
    return outputs if traced.returns_dict else next(iter(outputs.values()))


def _take_apart(data: Any, threads: int) -> tuple[dict[NodeType, Tensor], Any]:
    """Features by node type, and what the sampler takes."""
    if isinstance(data, Dataset) and data.heterogeneous:
        data = data.stores(edge_features=False, threads=threads, device="cpu")
    if isinstance(data, tuple) and data and isinstance(data[0], FeatureStore):
        attributes = data[0].get_all_tensor_attrs()
        features: dict[NodeType, Tensor] = {
            each.group_name: data[0].table(each.group_name, _ATTRIBUTE)
            for each in attributes
            if each.attr_name == _ATTRIBUTE
        }
        typed = all(isinstance(each.edge_type, tuple) for each in data[1].get_all_edge_attrs())
    elif isinstance(data, HeteroData):
        features, typed = dict(data.collect(_ATTRIBUTE, True)), True
    else:
        features, typed = {}, False
    if not typed:
        raise ArgumentError(
            f"data: a {type(data).__name__} without node types; expected HeteroData, or a "
            "heterogeneous Dataset or its stores: use gnnsys.inference for a graph of one type"
        )
    return features, data


def _choose_rows(
    features: Mapping[NodeType, Any],
    given: Mapping[NodeType, Any],
    counts: Mapping[NodeType, int],
    threads: int,
) -> dict[NodeType, UnifiedTensor]:
    """The rows of each node type that has some."""
    for kind in given:
        if kind not in counts:
            raise ArgumentError(
                f"x: {kind!r} is no node type of data; expected some of {[*counts]}"
            )
    chosen = {}
    for kind, count in counts.items():
        rows = given.get(kind, features.get(kind))
        if rows is None:
            continue
        if not isinstance(rows, Tensor):
            raise ArgumentError(
                f"x of {kind!r}: a {type(rows).__name__}, expected a tensor of rows"
            )
        if len(rows) != count:
            raise ArgumentError(f"x of {kind!r}: {len(rows)} rows != {count} nodes of that type")
        chosen[kind] = as_unified(rows.detach(), threads)
    return chosen


def _file_name(key: str) -> str:
    if not key or key != Path(key).name:
        raise ArgumentError(
            f"out: {key!r} is no name for a file of results; leave out= away, or name it otherwise"
        )
    return f"{key}.npy"


@contextmanager
def _scratch_in(out: Path) -> Iterator[Path]:
    """A folder in ``out`` for what is not done yet, which goes; so does ``out`` after an error,
    where it was made here."""
    check_folder_of(out)
    new = not out.exists()
    with as_storage_error(out):
        out.mkdir(exist_ok=True)
        scratch = ScratchFolder(".layers-", out)
    done = False
    try:
        yield scratch.path
        done = True
    finally:
        scratch.close()
        if new and not done:
            with suppress(OSError):
                out.rmdir()


class _Run:
    """Computes the steps of a model over all nodes.

    Args:
        layers: compute them.
        samples: a few rows like those of each value that is stored.
        rows: of the node types that have some.
        block_bytes, threads, progress: of ``hetero_inference``.
    """

    def __init__(
        self,
        layers: TypedLayers,
        samples: Mapping[Node, Tensor],
        rows: Mapping[NodeType, UnifiedTensor],
        block_bytes: int,
        threads: int,
        progress: Progress,
    ) -> None:
        self._layers, self._samples = layers, samples
        self._room, self._threads, self._progress = block_bytes // 2, threads, progress
        self._rows = {value: rows[kind] for value, kind in layers.traced.inputs.items()}
        self._stores: dict[Node, tuple[Store, Path | None]] = {}

    def compute(
        self,
        steps: Sequence[Step],
        folder: Path | None = None,
        paths: Mapping[str, Path] | None = None,
    ) -> dict[str, Tensor]:
        """The model's outputs, in memory or in files.

        Args:
            steps: all of the model's.
            folder: for files of what is stored; None for memory.
            paths: of the files of outputs, where there is a folder.
        """
        counts = self._layers.sampler.num_nodes
        totals: dict[int, int] = defaultdict(int)
        for step in steps:
            totals[step.depth] += counts[step.kind]
        done: dict[int, int] = defaultdict(int)
        for step in steps:
            self._forget(step.depth)
            told = partial(self._progress, f"layer {step.depth} of {steps[-1].depth}")
            for nodes in self._compute_step(step, counts[step.kind], folder):
                done[step.depth] += nodes
                told(done[step.depth], totals[step.depth])
        outputs = {}
        for key, value in self._layers.traced.outputs.items():
            store, path = self._stores[value]
            if path is not None and paths is not None:
                with as_storage_error(paths[key]):
                    path = path.replace(paths[key])
            outputs[key] = as_rows(store, path, self._threads)
        return outputs

    def _compute_step(self, step: Step, count: int, folder: Path | None) -> Iterator[int]:
        """Yields how many nodes a block had."""
        for value in step.stored:
            like = self._samples[value]
            path = None if folder is None else folder / f"{value.name}.npy"
            store = create_store(path, (count, *like.shape[1:]), like.dtype, self._threads)
            self._stores[value] = store, path
        for first, last in cut_blocks(self._costs(step, count), self._room):
            found = self._layers.compute(step, first, last, self._read)
            for value in step.stored:
                store, _ = self._stores[value]
                store.write(torch.arange(first, last), found[value].cpu().contiguous())
            yield last - first
        for value in step.stored:
            self._rows[value] = as_unified(
                as_rows(*self._stores[value], self._threads), self._threads
            )

    def _costs(self, step: Step, count: int) -> Tensor:
        """(count + 1,) bytes of rows that the nodes and their neighbours have, summed up."""
        traced = self._layers.traced
        nbytes: dict[NodeType, int] = defaultdict(int)
        for value in (*step.gathered, *step.own):
            nbytes[traced.kinds[value]] += row_bytes(self._rows[value])
        costs = torch.arange(count + 1) * max(1, nbytes[step.kind])
        for kind in step.relations:
            costs += self._layers.sampler.graphs[kind].indptr * nbytes[kind[0]]
        calls = (traced.convolutions.get(value) for value in step.values)
        attends = any(call is not None and isinstance(call.conv, ATTENDING) for call in calls)
        return costs * _OF_ATTENTION if attends else costs

    def _read(self, value: Node, ids: Tensor, in_order: int) -> Tensor:
        return read_rows(self._rows[value], ids, in_order)

    def _forget(self, depth: int) -> None:
        """Lets go what no step from ``depth`` on takes."""
        for value in [*self._rows]:
            if self._layers.traced.last_use(value) < depth:
                del self._rows[value]
                _, path = self._stores.pop(value, (None, None))
                if path is not None:
                    path.unlink()
