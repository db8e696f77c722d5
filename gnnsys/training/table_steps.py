"""Training on mini-batches of models whose embeddings may lie in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gnnsys.config.resolve import Run
from gnnsys.nn.stored_weight import StoredWeight
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.divergence import all_finite
from gnnsys.training.embedding_tables import EmbeddingTables
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.link_models import LinkModel
from gnnsys.training.mini_batch import MiniBatch

__all__ = ["TableMiniBatch"]


class TableMiniBatch(MiniBatch):
    """``MiniBatch`` whose embeddings in files are read ahead, judged and saved with all else; of a
    model that has none it is an ordinary one."""

    def __init__(self, run: Run, dataset: NodeDataset, model: HeteroModel | LinkModel) -> None:
        self._tables = EmbeddingTables(model, run.config.threads)
        super().__init__(run, dataset, model)

    def _announced(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Rows of a batch's embeddings are read from the disk while the one before is computed."""
        if not self._tables.stores:
            yield from batches
            return
        current = None
        for batch in batches:
            self._tables.prefetch(batch)
            if current is not None:
                yield current
            current = batch
        if current is not None:
            yield current

    def train(self, batch: Any) -> tuple[float, int]:
        """See ``Steps.train``."""
        found = super().train(batch)
        self._tables.look_at_gradients()
        return found

    def is_finite(self) -> bool:
        """See ``Steps.is_finite``."""
        groups = self.optimizer.param_groups
        weights = (each for group in groups for each in group["params"])
        in_memory = (each for each in weights if not isinstance(each, StoredWeight))
        return self._tables.finite and all_finite(in_memory)

    def keep_best(self, epoch: int) -> dict[str, Tensor]:
        """See ``Steps.keep_best``; rows in files are copied where somebody will read the copy."""
        if self.test_at_end or self._config.out or self._config.resume:
            self._tables.keep_best(epoch)
        return super().keep_best(epoch)

    @contextmanager
    def with_weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """See ``Steps.with_weights``; rows in files are those that were kept last."""
        with self._tables.judging(), super().with_weights(weights):
            yield

    def committing(self, checkpoint: Path) -> AbstractContextManager[dict[str, Any]]:
        """See ``Steps.committing``."""
        return self._tables.committing(checkpoint)

    def restore(self, tables: Mapping[str, Any], best_epoch: int, checkpoint: Path) -> None:
        """See ``Steps.restore``."""
        self._tables.restore(tables, best_epoch, checkpoint)

    def facts(self) -> dict[str, Any]:
        """See ``Steps.facts``; with the rows of embeddings in files that were read, by tier."""
        if not self._tables.stores:
            return super().facts()
        return {**super().facts(), "embeddings": self._tables.counters().as_dict()}
