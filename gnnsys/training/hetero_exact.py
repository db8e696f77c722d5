"""Exact logits of all nodes of the target type, of a run on a heterogeneous dataset folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import EdgeType
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.hetero_models import HeteroClassifier
from gnnsys.training.memory import activation_folder
from gnnsys.training.task import NodeDataset
from gnnsys.training.typed_inference import hetero_inference

__all__ = ["exact_logits", "exact_rows"]


class _WithRows(nn.Module):
    """A classifier that gives what its last layer reads, too."""

    def __init__(self, model: HeteroClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, hidden) rows and (nodes, classes) logits of the target type."""
        rows = self.model.last_rows(x, edge_index)
        return {"rows": rows, "logits": self.model.head(rows)}


def exact_logits(
    config: TrainConfig, dataset: NodeDataset, model: HeteroClassifier, progress: Progress
) -> tuple[Tensor, ScratchFolder | None]:
    """(nodes, classes) logits of the target type, and the folder of their file, if they have one.

    Args:
        config: filled in; ``--eval-store`` says where layers lie.
        dataset: heterogeneous.
        model: put into evaluation mode for the call.
        progress: is told how far the work is, in nodes.
    """
    folder = _make_folder(config, dataset)
    logits: Tensor = _infer(config, dataset, model, model, folder, progress)
    return logits, folder


def exact_rows(
    config: TrainConfig, dataset: NodeDataset, model: HeteroClassifier, progress: Progress
) -> tuple[Tensor, Tensor, ScratchFolder | None]:
    """(nodes, hidden) what the last layer reads, the logits, and the folder of their files; see
    ``exact_logits``."""
    folder = _make_folder(config, dataset)
    found = _infer(config, dataset, model, _WithRows(model), folder, progress)
    return found["rows"], found["logits"], folder


def _infer(
    config: TrainConfig,
    dataset: NodeDataset,
    model: HeteroClassifier,
    called: nn.Module,
    folder: ScratchFolder | None,
    progress: Progress,
) -> Any:
    return hetero_inference(
        called,
        dataset.source,
        x=model.embeddings(),
        out=folder.path if folder else None,
        threads=config.threads,
        progress=progress,
    )


def _make_folder(config: TrainConfig, dataset: NodeDataset) -> ScratchFolder | None:
    nodes = sum(dataset.num_nodes.values())
    return activation_folder(config, dataset.num_classes, [nodes] * (config.layers + 1))
