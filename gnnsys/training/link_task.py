"""Links of one edge type, or of a relational database's task, that are to be predicted.

Owns ``LinkTask``: which links are trained on, and which are held out. Links to validate and test on
are no edges of the graph (``gnnsys.dataset.links``); those to train on are, and batches hide them
from their messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gnnsys.choices import METRICS
from gnnsys.config.links import parse_edge_type
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.links import Links, held_links, read_links, read_task_links
from gnnsys.dataset.times import timed_types
from gnnsys.errors import ArgumentError
from gnnsys.training.task import PARTS, Part, Task

__all__ = ["LinkTask", "is_link_task", "link_task", "links_have_times", "stacked"]

_REPORTED = ("mrr", "hits@1", "hits@3", "hits@10")
"""By the ranks that all but some metrics need."""


@dataclass(kw_only=True, slots=True)
class LinkTask(Task):
    """Links from nodes of type ``target`` to others."""

    edge_type: EdgeType
    """Of the links; one without edges where they are of a task."""

    is_edge: bool
    """Whether links to train on are edges of the graph, which batches are to hide."""

    reverse_types: tuple[EdgeType, ...] | None = None
    """Edge types that hold their reverses, which batches hide, too; None for those that
    ``NeighborSampler`` takes by their names."""

    width: int
    """Of the embeddings."""

    timed: bool
    """Whether links have times, so that messages of a link are to be no newer."""

    sizes: dict[Part, int]
    """Links of each part."""

    open_links: Callable[[Part], Links] = field(repr=False)
    """Gives those of a part."""

    _links: dict[Part, Links] = field(default_factory=dict, init=False, repr=False)

    def links(self, part: Part) -> Links:
        """Those of a part, opened when they are first asked for.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        if part not in self._links:
            self._links[part] = self.open_links(part)
        return self._links[part]

    def check(self, name: str, of: str) -> None:
        """See ``Task.check``."""
        for part in ("train", "val"):
            if self.sizes[part]:
                continue
            way_out = (
                f"gnnsys convert --hold-out {self.named} takes some to validate and test on out of "
                "the others"
                if self.is_edge
                else "add some to the task, and convert the database again"
            )
            raise ArgumentError(f"{name}: no {part} links of {self.named}; {way_out}")

    def check_metric(self, metric: str, name: str) -> None:
        """See ``Task.check_metric``."""
        if metric not in METRICS["links"]:
            raise ArgumentError(
                f"--metric {metric}: links of {name} are to be predicted; expected one of "
                f"{', '.join(METRICS['links'])}"
            )

    def reported(self, metric: str) -> list[str]:
        """See ``Task.reported``."""
        return [*dict.fromkeys((*_REPORTED, metric))]

    def num_seeds(self, part: Part) -> int:
        """See ``Task.num_seeds``."""
        return self.sizes[part]

    @property
    def ends(self) -> list[str]:
        """Node types that links begin and end in, each once."""
        return [*dict.fromkeys((self.edge_type[0], self.edge_type[2]))]

    @property
    def named(self) -> str:
        """See ``Task.named``."""
        return ",".join(self.edge_type)

    @property
    def outputs(self) -> int:
        """See ``Task.outputs``."""
        return self.width

    def facts(self) -> dict[str, Any]:
        """See ``Task.facts``."""
        return {"links": dict(self.sizes)}


def stacked(links: Links) -> Tensor:
    """(2, n) int64 sources above targets."""
    return torch.stack([links.source.long(), links.target.long()])


def is_link_task(dataset: Dataset, task: str) -> bool:
    """Whether ``--task`` asks for links: by that name, or by one of the folder's tasks of links."""
    tasks = dataset.manifest.source.get("tasks", {})
    return task == "link" or bool(tasks.get(task, {}).get("target_type"))


def links_have_times(dataset: Dataset, task: str, target: str | None) -> bool:
    """Whether messages of links can be kept from being newer than these; as of ``link_task``."""
    if task == "link":
        return dataset.has("edge_time", _link_type(dataset, target))
    node_type = str(dataset.manifest.source["tasks"][task]["node_type"])
    return dataset.has(f"train.{task}.time", node_type) and bool(timed_types(dataset))


def _link_type(dataset: Dataset, target: str | None) -> EdgeType:
    """The edge type whose links are to be predicted.

    Args:
        dataset: that is open.
        target: ``--target``; None for the only one that links are held out of.

    Raises:
        ArgumentError: no such edge type, or nothing, or too much, is held out.
    """
    known = [*dataset.edge_types]
    if target is not None:
        kind = parse_edge_type(target)
        if kind not in known:
            raise ArgumentError(
                f"--target {target}: {dataset.path} has no such edge type; expected one of "
                f"{' '.join(map(','.join, known))}"
            )
        return kind
    found = [kind for kind in known if held_links(dataset, kind)]
    if len(found) > 1:
        raise ArgumentError(
            f"--task link: {dataset.path} has links held out of {' '.join(map(','.join, found))}; "
            "choose one by --target"
        )
    if not found:
        raise ArgumentError(
            f"--task link: {dataset.path} has no links held out; gnnsys convert {dataset.path} DST "
            "--hold-out SRC,REL,DST makes a folder that has"
        )
    return found[0]


def link_task(dataset: Dataset, task: str, target: str | None, width: int, timed: bool) -> LinkTask:
    """What is to be learnt of a folder's links.

    Args:
        dataset: that is open.
        task: "link", or the name of a task of links.
        target: edge type, as ``--target`` names it; None for the only one that links are held out
            of.
        width: of the embeddings.
        timed: whether times are regarded where links have some.

    Raises:
        ArgumentError: no such edge type, or none that links are held out of; a ``target`` beside a
            task's name.
    """
    if task != "link":
        return _named_task(dataset, task, target, width, timed)
    kind = _link_type(dataset, target)
    held = held_links(dataset, kind)
    sizes: dict[Part, int] = {"train": dataset.num_edges(kind), "val": 0, "test": 0}
    for part in ("val", "test"):
        if part in held:
            sizes[part] = len(read_links(dataset, kind, part))
    return LinkTask(
        target=kind[0],
        metric="mrr",
        edge_type=kind,
        is_edge=True,
        reverse_types=_reverse_types(dataset, kind),
        timed=timed and links_have_times(dataset, task, target),
        width=width,
        sizes=sizes,
        open_links=lambda part: (
            _train_links(dataset, kind) if part == "train" else read_links(dataset, kind, part)
        ),
    )


def _reverse_types(dataset: Dataset, kind: EdgeType) -> tuple[EdgeType, ...] | None:
    """As they were known when links were held out."""
    if not dataset.heterogeneous:
        return None
    for about in dataset.manifest.source.get("held_out", []):
        if tuple(about["edge_type"]) == kind:
            found = [each["edge_type"] for each in about["reverses"]]
            return tuple((source, relation, target) for source, relation, target in found)
    return None


def _train_links(dataset: Dataset, edge_type: EdgeType) -> Links:
    """The edges of a type as links, in memory, ascending by target."""
    source, target = dataset.edge_index(edge_type)
    time = None
    if dataset.has("edge_time", edge_type):
        time = torch.from_numpy(dataset.edge_table("edge_time", edge_type).copy())
    return Links(source=source, target=target, time=time)


def _named_task(
    dataset: Dataset, task: str, target: str | None, width: int, timed: bool
) -> LinkTask:
    if target is not None:
        raise ArgumentError(
            f"--target {target}: --task {task} says what its links join; leave it out"
        )
    about = dataset.manifest.source["tasks"][task]
    known = [part for part in PARTS if dataset.has(f"{part}.{task}.targets", about["node_type"])]
    parts = {part: read_task_links(dataset, task, part) for part in known}
    return LinkTask(
        target=about["node_type"],
        metric="mrr",
        edge_type=(about["node_type"], task, about["target_type"]),
        is_edge=False,
        timed=timed and links_have_times(dataset, task, target),
        width=width,
        sizes={part: len(parts[part]) if part in parts else 0 for part in PARTS},
        open_links=parts.__getitem__,
    )
