"""Whether and how a run regards time: decided once, before memory is planned."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from torch_geometric.sampler import HeteroSamplerOutput, NodeSamplerInput, SamplerOutput

from gnnsys.config.links import check_without_links
from gnnsys.config.resolve import Run
from gnnsys.config.times import check_timed, check_timed_links, check_untimed
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import MANIFEST
from gnnsys.dataset.times import (
    TIMES,
    check_whole_times,
    timed_bytes,
    timed_types,
    with_times,
)
from gnnsys.features.options import TopologyOptions
from gnnsys.features.replay import source_to_sample
from gnnsys.system.budget import process_budget
from gnnsys.system.once import warn_once
from gnnsys.training.link_task import is_link_task, links_have_times
from gnnsys.training.seed_tasks import open_task, seeds_have_times
from gnnsys.training.step_parts import make_sampler, spread_seeds
from gnnsys.training.task import Task

__all__ = ["draw_timed", "facts_at_times", "goes_by_times", "reserve_times", "settle_times"]

_log = logging.getLogger(__name__)


def _folder_of(config: TrainConfig) -> Dataset | None:
    folder = Path(config.dataset)
    return open_dataset(folder) if (folder / MANIFEST).is_file() else None


def goes_by_times(config: TrainConfig) -> bool:
    """Whether the seeds of a run, nodes or links, have times, and what they see is no newer.

    Raises:
        ArgumentError: a target or a task that the folder does not have.
    """
    dataset = _folder_of(config)
    return dataset is not None and _have_times(dataset, config)


def _have_times(dataset: Dataset, config: TrainConfig) -> bool:
    if is_link_task(dataset, config.task):
        have_times = links_have_times(dataset, config.task, config.target)
        return have_times and not config.ignore_times
    return seeds_have_times(dataset, config)


def settle_times(run: Run) -> Run:
    """The same run, which knows whether its seeds have times; if so, it is evaluated on sampled
    neighbourhoods, for a node is another at another time.

    Raises:
        ArgumentError: options that do not go with times, or that are for them where there are none;
            times that are no whole numbers; a target or a task that the folder does not have.
    """
    config = run.config
    dataset = _folder_of(config)
    of_links = dataset is not None and is_link_task(dataset, config.task)
    if not of_links:
        check_without_links(config)
    if dataset is None or not _have_times(dataset, config):
        check_untimed(config)
        if dataset is not None and timed_types(dataset) and not config.ignore_times:
            warn_once(
                _log, "%s: its times are not used, for the seeds have none: nodes and edges of all "
                "times are sampled", dataset.path
            )  # fmt: skip
        return run
    check_whole_times(dataset)
    if of_links:
        check_timed_links(config)
        return dataclasses.replace(run, timed=True)
    check_timed(config)
    return dataclasses.replace(
        run,
        config=dataclasses.replace(config, eval="sampled"),
        topology=TopologyOptions(topology="mmap"),
        timed=True,
    )


def facts_at_times(task: Task, test_at_end: bool) -> dict[str, Any]:
    """How seeds with times are evaluated, for JSON."""
    seeds = task.num_seeds("val") + task.num_seeds("test")
    return {
        "way": "sampled",
        "nodes": seeds,
        "test_at_end": test_at_end,
        "why": f"sampled, {seeds:,} seeds scored, with neighbours no later than each",
    }


def reserve_times(dataset: Dataset) -> None:
    """Reserves in the process's budget what samplers hold of times."""
    process_budget().reserve(TIMES, timed_bytes(dataset))


def draw_timed(config: TrainConfig, dataset: Dataset) -> SamplerOutput | HeteroSamplerOutput:
    """A batch of seeds from all over those of training, at their times.

    Args:
        config: filled in.
        dataset: whose seeds have times.
    """
    task = open_task(dataset, config.target, config.task, timed=True)
    source, name = with_times(dataset, source_to_sample(dataset))
    seeds = spread_seeds(task.train, config.batch_size)
    inputs = NodeSamplerInput(
        input_id=None,
        node=task.node_ids(seeds),
        time=task.times(seeds),
        input_type=task.target if dataset.heterogeneous else None,
    )
    return make_sampler(config, source, time_attr=name).sample_from_nodes(inputs, group=0, epoch=0)
