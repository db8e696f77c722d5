"""Embeddings of all nodes that links may join, by the weights as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.loaders import NeighborLoader, NeighborSampler
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.exact_inference import run_layers
from gnnsys.training.hetero_exact import typed_embeddings
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.layer_reads import asked_reads
from gnnsys.training.link_models import LinkModel
from gnnsys.training.link_task import LinkTask
from gnnsys.training.memory import activation_folder
from gnnsys.training.model_layers import model_layers

__all__ = ["exact_embeddings", "sampled_embeddings"]


@torch.no_grad()
def exact_embeddings(
    config: TrainConfig,
    dataset: NodeDataset,
    model: LinkModel,
    device: torch.device,
    progress: Progress = lambda what, done, total: None,
) -> tuple[dict[str, Tensor], ScratchFolder | None]:
    """Layer by layer, with all neighbours.

    Args:
        config: filled in; ``--eval-store`` says where layers lie, ``--eval-reads`` how they are
            read.
        dataset: of links.
        model: put into evaluation mode.
        device: where layers are computed.
        progress: is told how far the work is, in nodes.

    Returns:
        (nodes, hidden) of each node type that links begin or end in, ordinary, or unified over
        files of the folder, which lets go of them when it is closed.

    Raises:
        UnsupportedError: a model that blocks of nodes may not compute as the whole graph does.
        StorageError: no files can be written.
    """
    model.eval()
    if isinstance(model.encoder, HeteroModel):
        assert isinstance(dataset.task, LinkTask)
        return typed_embeddings(config, dataset, model.encoder, dataset.task.ends, progress)
    layers = model_layers(model.encoder, dataset.graph)
    rows = [dataset.graph.num_nodes] * len(layers)
    folder = activation_folder(config, dataset.task.outputs, rows)
    found = run_layers(
        layers,
        dataset.features,
        dataset.graph,
        device=device,
        out=folder.path / "out.npy" if folder else None,
        threads=config.threads,
        reads=asked_reads(config),
        progress=progress,
    )
    return {NODE_TYPE: deque(found, maxlen=1).pop()}, folder  # two are there at a time


@torch.no_grad()
def sampled_embeddings(
    config: TrainConfig,
    dataset: NodeDataset,
    kind: str,
    sampler: NeighborSampler,
    forward: Callable[[Any], Tensor],
    time: int | None = None,
    progress: Progress = lambda what, done, total: None,
    announced: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:
    """On neighbourhoods sampled as in training.

    Args:
        config: filled in.
        dataset: of links.
        kind: node type.
        sampler: of the neighbourhoods.
        forward: gives the embeddings of a batch's seeds.
        time: of the seeds, where the sampler goes by times.
        progress: is told how far the work is, in nodes.
        announced: gives the same batches, and may read ahead what else they need.

    Returns:
        (nodes, hidden) of the node type, in memory.
    """
    nodes = torch.arange(dataset.num_nodes[kind])
    loader = NeighborLoader(
        dataset.source,
        sampler.num_neighbors,
        input_nodes=(kind, nodes) if dataset.heterogeneous else nodes,
        input_time=None if time is None else torch.full_like(nodes, time),
        time_attr=None if time is None else sampler.time_attr,
        neighbor_sampler=sampler,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.threads,
        filter_per_worker=True,
    )
    out = torch.empty(len(nodes), dataset.task.outputs)
    done = 0
    for batch in announced(loader):
        rows = forward(batch).cpu()
        out[done : done + len(rows)] = rows
        done += len(rows)
        progress("sampled batches: nodes", done, len(nodes))
    return out
