"""Exact logits of all nodes of the target type, of a run on a heterogeneous dataset folder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import EdgeType
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.memory import activation_folder
from gnnsys.training.typed_inference import hetero_inference

__all__ = ["exact_logits", "exact_rows"]


class _Named(nn.Module):
    """A model whose results have names of their own, whatever the target type's is: those of files.

    Args:
        model: the model.
        gives_rows: whether what its last layer reads is a result, too, where that is known.
    """

    def __init__(self, model: HeteroModel, gives_rows: bool) -> None:
        super().__init__()
        self.model, self.gives_rows = model, gives_rows

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, classes) logits of the target type, and (nodes, hidden) rows."""
        found = self.model.results(x, edge_index)
        return found if self.gives_rows else {"logits": found["logits"]}


def exact_logits(
    config: TrainConfig, dataset: NodeDataset, model: HeteroModel, progress: Progress
) -> tuple[Tensor, ScratchFolder | None]:
    """(nodes, classes) logits of the target type, and the folder of their file, if they have one.

    Args:
        config: filled in; ``--eval-store`` says where layers lie.
        dataset: heterogeneous.
        model: put into evaluation mode for the call.
        progress: is told how far the work is, in nodes.
    """
    folder = _make_folder(config, dataset)
    found = _infer(config, dataset, model, folder, progress, gives_rows=False)
    return found["logits"], folder


def exact_rows(
    config: TrainConfig, dataset: NodeDataset, model: HeteroModel, progress: Progress
) -> tuple[Tensor | None, Tensor, ScratchFolder | None]:
    """(nodes, hidden) what the last layer reads, where that is known, the logits, and the folder of
    their files; see ``exact_logits``."""
    folder = _make_folder(config, dataset)
    found = _infer(config, dataset, model, folder, progress, gives_rows=True)
    return found.get("rows"), found["logits"], folder


def _infer(
    config: TrainConfig,
    dataset: NodeDataset,
    model: HeteroModel,
    folder: ScratchFolder | None,
    progress: Progress,
    *,
    gives_rows: bool,
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = hetero_inference(
        _Named(model, gives_rows),
        dataset.source,
        x=model.embeddings(),
        out=folder.path if folder else None,
        threads=config.threads,
        progress=progress,
    )
    return found


def _make_folder(config: TrainConfig, dataset: NodeDataset) -> ScratchFolder | None:
    nodes = sum(dataset.num_nodes.values())
    return activation_folder(config, dataset.task.outputs, [nodes] * (config.layers + 1))
