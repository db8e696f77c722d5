"""What a model is trained for.

Owns ``Task``: seeds in three parts, train, val and test, the truth about them, and what a run is
judged by. The loop, checkpoints and reports know no more than it; how seeds become batches and
outputs are scored is that of ``gnnsys.training.steps``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import ArgumentError
from gnnsys.training.metrics import are_known, check_metric, kind_of, reported_metrics

__all__ = ["PARTS", "NodeTask", "Part", "Task"]

Part = Literal["train", "val", "test"]
"""Which seeds."""

PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(kw_only=True, slots=True)
class Task(ABC):
    """Seeds of a graph and what is to be learnt of them."""

    target: str = NODE_TYPE
    """Node type of the seeds."""

    metric: str
    """What the dataset is judged by: one of ``gnnsys.choices.METRICS``."""

    @property
    def named(self) -> str:
        """As ``--target`` names it."""
        return self.target

    def chosen(self, metric: str) -> str:
        """What ``--metric`` comes to: its own for auto."""
        return self.metric if metric == "auto" else metric

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Columns of what a model gives for a node."""

    @abstractmethod
    def num_seeds(self, part: Part) -> int:
        """How many there are."""

    @abstractmethod
    def check(self, name: str, of: str) -> None:
        """Whether there is something to train with and to judge by.

        Args:
            name: of the dataset.
            of: says the type of the seeds, where there are several.

        Raises:
            ArgumentError: a part without seeds, or with one of which the truth is not known.
        """

    @abstractmethod
    def check_metric(self, metric: str, name: str) -> None:
        """Raises ArgumentError for a metric that does not fit the truth of dataset ``name``."""

    @abstractmethod
    def reported(self, metric: str) -> list[str]:
        """The metrics that a run tells, which is judged by ``metric``."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What there is to tell of it, for JSON."""


@dataclass(kw_only=True, slots=True)
class NodeTask(Task):
    """Nodes of one type that are to be classified, or given a number."""

    labels: Tensor
    """(nodes,) int64 classes, -1 where unknown; or (nodes, labels) float32 of 0, 1 and NaN; or
    (nodes,) float32 numbers, NaN where unknown."""

    num_classes: int
    """Or labels of a node; 1 of a regression."""

    train: Tensor
    """(n,) int64 ids of the training nodes; ``val`` and ``test`` likewise."""

    val: Tensor

    num_test: int
    """Test nodes."""

    open_test: Callable[[], Tensor] = field(repr=False)
    """Gives ``test``: training does not read it, and of a large graph it is most of the nodes."""

    name: str = "node"
    """Of the folder's task, as ``--task`` has it."""

    seed_nodes: Tensor | None = None
    """(seeds,) int64 node of each seed, where these are rows of a table of their own: ``labels``
    are those of the rows then, and ``train``, ``val`` and ``test`` numbers of rows. The same node
    may stand in several. None: each node is a seed."""

    seed_time: Tensor | None = None
    """(seeds,) int64 times at which is predicted; None: all neighbours are known."""

    test_is_hidden: bool = False
    """Whether no label of a test seed is known, so that there is no test score."""

    _test: Tensor | None = field(default=None, init=False, repr=False)

    def check(self, name: str, of: str) -> None:
        """See ``Task.check``; of several labels some may be unknown."""
        for part in ("train", "val"):
            ids = getattr(self, part)
            if len(ids) == 0:
                raise ArgumentError(
                    f"{name}: no {part} nodes{of}; name them when the dataset is converted, "
                    "or draw them with gnnsys convert --random-split"
                )
            if self.seed_nodes is not None:  # of whose labels those in use were looked at
                continue
            if not self.multi_label and not are_known(self.labels[ids]).all():
                wrong = int(ids[torch.argmin(are_known(self.labels[ids]).int())])
                raise ArgumentError(
                    f"{name}: the {part} node {wrong}{of} has no label; leave it out of {part}"
                )

    @property
    def test(self) -> Tensor:
        """(n,) int64 ids of the test nodes, opened when they are first asked for.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        if self._test is None:
            self._test = self.open_test()
        return self._test

    def nodes(self, part: Part) -> Tensor:
        """(n,) int64 ids of a part: of nodes, or rows of ``seed_nodes``."""
        ids: Tensor = getattr(self, part)
        return ids

    def node_ids(self, seeds: Tensor) -> Tensor:
        """(n,) int64 nodes of seeds, which are ids as ``nodes`` has them."""
        return seeds if self.seed_nodes is None else self.seed_nodes[seeds]

    def times(self, seeds: Tensor) -> Tensor | None:
        """(n,) int64 times of such seeds; None without times."""
        return None if self.seed_time is None else self.seed_time[seeds]

    def labels_in(self, batch: Any) -> Tensor:
        """Those of a batch's seeds, which are the first of their type, in the part of it that has
        them; more rows may follow."""
        if self.seed_nodes is None:
            labels: Tensor = batch.y
            return labels
        return self.labels[batch.input_id.cpu()]

    def has_truth(self, part: Part) -> bool:
        """Whether there is something to score a part by."""
        return not (part == "test" and self.test_is_hidden)

    @property
    def multi_label(self) -> bool:
        """Whether a node has several labels, each there or not."""
        return self.labels.dim() == 2

    @property
    def regression(self) -> bool:
        """Whether a node has a number, not classes."""
        return kind_of(self.labels) == "values"

    @property
    def outputs(self) -> int:
        """See ``Task.outputs``."""
        return self.num_classes

    def num_seeds(self, part: Part) -> int:
        """See ``Task.num_seeds``."""
        return self.num_test if part == "test" else len(self.nodes(part))

    def check_metric(self, metric: str, name: str) -> None:
        """See ``Task.check_metric``."""
        check_metric(metric, self.labels, self.num_classes, name)

    def reported(self, metric: str) -> list[str]:
        """See ``Task.reported``."""
        return reported_metrics(metric, self.labels)

    def facts(self) -> dict[str, Any]:
        """See ``Task.facts``."""
        about = {} if self.regression else {"classes": self.num_classes}
        return about if self.seed_nodes is None else {"task": self.name, **about}
