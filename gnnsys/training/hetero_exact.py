"""Exact logits or embeddings of all nodes, of a run on a heterogeneous dataset folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import EdgeType
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.hetero_models import HeteroClassifier, HeteroModel
from gnnsys.training.memory import activation_folder
from gnnsys.training.typed_inference import hetero_inference

__all__ = ["exact_logits", "exact_rows", "typed_embeddings"]


class _Numbered(nn.Module):
    """A model whose results are numbered, whatever the names of node types are: files are named
    after them.

    Args:
        model: the model.
        names: of the results that are wanted.
    """

    def __init__(self, model: HeteroModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, …) rows of each result, by number."""
        found = self.model.results(x, edge_index)
        return {str(number): found[name] for number, name in enumerate(self.names)}


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
    found, folder = _infer(config, dataset, model, ["logits"], progress)
    return found["logits"], folder


def exact_rows(
    config: TrainConfig, dataset: NodeDataset, model: HeteroModel, progress: Progress
) -> tuple[Tensor | None, Tensor, ScratchFolder | None]:
    """(nodes, hidden) what the last layer reads, where that is known, the logits, and the folder of
    their files; see ``exact_logits``."""
    names = ["logits", "rows"] if isinstance(model, HeteroClassifier) else ["logits"]
    found, folder = _infer(config, dataset, model, names, progress)
    return found.get("rows"), found["logits"], folder


def typed_embeddings(
    config: TrainConfig,
    dataset: NodeDataset,
    model: HeteroModel,
    kinds: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Tensor], ScratchFolder | None]:
    """(nodes, hidden) of each of some node types, and the folder of their files; see
    ``exact_logits``."""
    return _infer(config, dataset, model, kinds, progress)


def _infer(
    config: TrainConfig,
    dataset: NodeDataset,
    model: HeteroModel,
    names: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Tensor], ScratchFolder | None]:
    """Results of a model, and the folder of their files."""
    nodes = sum(dataset.num_nodes.values())
    folder = activation_folder(config, dataset.task.outputs, [nodes] * (config.layers + 1))
    found = hetero_inference(
        _Numbered(model, names),
        dataset.source,
        x=model.embeddings(),
        out=folder.path if folder else None,
        threads=config.threads,
        progress=progress,
    )
    return {name: found[str(number)] for number, name in enumerate(names)}, folder
