"""Exact logits or embeddings of all nodes, of a run on a heterogeneous dataset folder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import EdgeType
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.hetero_models import HeteroClassifier, HeteroEncoder
from gnnsys.training.link_models import HeteroEmbedder
from gnnsys.training.memory import activation_folder
from gnnsys.training.typed_inference import hetero_inference

__all__ = ["exact_logits", "exact_rows", "typed_embeddings"]


class _Named(nn.Module):
    """A classifier whose results have names of their own, whatever the target type's is: those of
    files.

    Args:
        model: the classifier.
        gives_rows: whether what its last layer reads is a result, too.
    """

    def __init__(self, model: HeteroClassifier, gives_rows: bool) -> None:
        super().__init__()
        self.model, self.gives_rows = model, gives_rows

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, classes) logits of the target type, and (nodes, hidden) rows."""
        rows = self.model.last_rows(x, edge_index)
        found = {"logits": self.model.head(rows)}
        return {**found, "rows": rows} if self.gives_rows else found


class _Numbered(nn.Module):
    """The same of embeddings, whatever the names of the node types are."""

    def __init__(self, model: HeteroEmbedder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, hidden) of each node type that the model embeds, by number."""
        found = self.model(x, edge_index)
        return {f"type{number}": rows for number, rows in enumerate(found.values())}


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
    found = _infer(config, dataset, model, _Named(model, False), folder, progress)
    return found["logits"], folder


def exact_rows(
    config: TrainConfig, dataset: NodeDataset, model: HeteroClassifier, progress: Progress
) -> tuple[Tensor, Tensor, ScratchFolder | None]:
    """(nodes, hidden) what the last layer reads, the logits, and the folder of their files; see
    ``exact_logits``."""
    folder = _make_folder(config, dataset)
    found = _infer(config, dataset, model, _Named(model, True), folder, progress)
    return found["rows"], found["logits"], folder


def typed_embeddings(
    config: TrainConfig, dataset: NodeDataset, model: HeteroEmbedder, progress: Progress
) -> tuple[dict[str, Tensor], ScratchFolder | None]:
    """(nodes, hidden) of each node type that the model embeds, and the folder of their files; see
    ``exact_logits``."""
    folder = _make_folder(config, dataset)
    kinds = [*model.heads.keys()]
    found = _infer(config, dataset, model, _Numbered(model), folder, progress)
    return {kind: found[f"type{number}"] for number, kind in enumerate(kinds)}, folder


def _infer(
    config: TrainConfig,
    dataset: NodeDataset,
    model: HeteroEncoder,
    named: nn.Module,
    folder: ScratchFolder | None,
    progress: Progress,
) -> dict[str, Tensor]:
    """What ``named`` gives, which has the model in it."""
    found: dict[str, Tensor] = hetero_inference(
        named,
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
