"""Links that are held out of a graph, to judge by what is learnt of its edges.

``gnnsys convert --hold-out`` takes the links to validate on and to test on out of an edge type, so
that no message passes along them; the edges that remain are those to train on. They lie beside the
tables of the edge type: ``PART.source``, ``PART.target`` and, where edges have times,
``PART.time``; ``held_out`` in ``source`` of ``graph.json`` says how they were drawn. The links of a
task of a relational database, see ``gnnsys.dataset.seeds``, are read into the same ``Links``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnnsys.dataset.format import LINK_PARTS, EdgeType, link_table
from gnnsys.dataset.seeds import read_seeds
from gnnsys.dataset.tables import check_nodes
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.memory.alloc import view_array

if TYPE_CHECKING:
    from gnnsys.dataset.folder import Dataset

__all__ = ["Links", "held_links", "read_links", "read_task_links"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Links from nodes of one type to nodes of another, in the folder's numbers.

    >>> len(Links(source=torch.tensor([3, 5]), target=torch.tensor([0, 1])))
    2
    """

    source: Tensor
    """(n,) int64 ids"""

    target: Tensor
    """(n,) int64 ids"""

    time: Tensor | None = None
    """(n,) when each link came to be; of a task's, when it is predicted."""

    def __len__(self) -> int:
        return len(self.source)


def held_links(dataset: Dataset, edge_type: EdgeType) -> tuple[str, ...]:
    """The parts, of "val" and "test", whose links are held out of an edge type.

    Raises:
        ArgumentError: there is no such edge type.
    """
    return tuple(part for part in LINK_PARTS if dataset.has(link_table(part, "source"), edge_type))


def read_links(dataset: Dataset, edge_type: EdgeType, part: str) -> Links:
    """The links of a part that are held out of an edge type, mapped.

    Args:
        dataset: that ``gnnsys convert --hold-out`` made.
        edge_type: theirs.
        part: "val" or "test".

    Raises:
        ArgumentError: there is no such edge type, or nothing is held out of it for that part.
        FileFormatError: ids outside the nodes, or tables that do not fit each other.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import gnnsys
    >>> from gnnsys.convert.hold_out import convert_held_out
    >>> from gnnsys.convert.spec import ConvertOptions, HoldOut
    >>> from gnnsys.dataset.format import EDGE_TYPE
    >>> from gnnsys.generate import generate_community
    >>> place = Path(tempfile.mkdtemp())
    >>> whole = generate_community(place / "whole", nodes=50, classes=2, degree=4)
    >>> held = convert_held_out(
    ...     place / "held", ConvertOptions(), HoldOut(shares=(0.1, 0.2)), name="held",
    ...     files=[whole / "graph.json"], prepare=lambda path: whole,
    ... )
    >>> dataset = gnnsys.open_dataset(held)
    >>> held_links(dataset, EDGE_TYPE), len(read_links(dataset, EDGE_TYPE, "test")) >= 40
    (('val', 'test'), True)
    """
    held = held_links(dataset, edge_type)
    if part not in held:
        known = " and ".join(held) or "nothing"
        raise ArgumentError(
            f"{dataset.path}: {known} held out of {','.join(edge_type)}, but not {part!r}; "
            "gnnsys convert --hold-out makes a folder that has links to validate and to test on"
        )
    ends = []
    for what, node_type in (("source", edge_type[0]), ("target", edge_type[2])):
        ids = dataset.edge_table(link_table(part, what), edge_type)
        check_nodes(ids, dataset.num_nodes(node_type), f"{dataset.path}: {link_table(part, what)}")
        ends.append(view_array(ids))
    time = link_table(part, "time")
    links = Links(
        source=ends[0],
        target=ends[1],
        time=view_array(dataset.edge_table(time, edge_type))
        if dataset.has(time, edge_type)
        else None,
    )
    lengths = [len(each) for each in (links.source, links.target, links.time) if each is not None]
    if len(set(lengths)) > 1:
        raise FileFormatError(
            f"{dataset.path}: {part}.source, .target and .time of {','.join(edge_type)} have "
            f"{lengths} rows, expected equally many; convert the source again"
        )
    return links


def read_task_links(dataset: Dataset, task: str, part: str) -> Links:
    """The links of a part of a relational database's task, one for each target, in memory.

    Args:
        dataset: that ``gnnsys convert`` made of a RelBench folder.
        task: its name; it is one of links.
        part: "train", "val" or "test".

    Raises:
        ArgumentError: there is no such task or part, or it is none of links that are known.
    """
    seeds = read_seeds(dataset, task, part)
    if seeds.targets is None:
        raise ArgumentError(
            f"task {task!r}: {part} has no links; expected a task of links whose answers are there"
        )
    counts = torch.tensor([len(each) for each in seeds.targets], dtype=torch.int64)
    none = torch.empty(0, dtype=torch.int64)
    return Links(
        source=seeds.nodes.repeat_interleave(counts),
        target=torch.cat([none, *seeds.targets]),
        time=None if seeds.time is None else seeds.time.repeat_interleave(counts),
    )
