"""Full-graph training by ``GNNPipe``: deep models, on one rank or several."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gnnsys.config.resolve import Run
from gnnsys.config.run_files import TIMELINE
from gnnsys.config.train import TrainConfig
from gnnsys.errors import UnsupportedError
from gnnsys.pipeline import DeepModel, GNNPipe
from gnnsys.pipeline.schedule import bubble, num_slots
from gnnsys.ranks.environment import rank_of_process
from gnnsys.system.files import replace_file
from gnnsys.training.cooperative_steps import CooperativeSteps
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.hetero_steps import HeteroMiniBatch
from gnnsys.training.link_models import LinkModel
from gnnsys.training.link_steps import LinkMiniBatch
from gnnsys.training.mini_batch import MiniBatch
from gnnsys.training.models import Model
from gnnsys.training.offloading import make_offload
from gnnsys.training.optimisation import make_optimizer
from gnnsys.training.rank_steps import RankSteps
from gnnsys.training.steps import FullBatch, Steps, WholeGraph
from gnnsys.training.trace_events import title_of, trace_file

__all__ = ["PipelineSteps", "make_steps"]


def make_steps(
    run: Run,
    dataset: NodeDataset,
    model: Model,
    evaluation: Evaluation | None,
) -> Steps:
    """What trains and evaluates a model as a run asks for."""
    steps = _make_steps(run, dataset, model, evaluation)
    steps.offload = make_offload(run.config)
    return steps


def _make_steps(
    run: Run,
    dataset: NodeDataset,
    model: Model,
    evaluation: Evaluation | None,
) -> Steps:
    if isinstance(model, DeepModel):
        return PipelineSteps(run, dataset, model)
    if isinstance(model, LinkModel):
        return LinkMiniBatch(run, dataset, model)
    if isinstance(model, HeteroModel):
        return HeteroMiniBatch(run, dataset, model)
    if run.config.full_batch:
        return FullBatch(run, dataset, model)
    of_ranks = CooperativeSteps if run.config.cooperative else RankSteps
    return (of_ranks if run.ranks > 1 else MiniBatch)(run, dataset, model, evaluation)


class PipelineSteps(WholeGraph):
    """Every step takes the whole graph through the pipeline, in chunks."""

    def __init__(self, run: Run, dataset: NodeDataset, model: DeepModel) -> None:
        config = run.config
        if dataset.node_task.regression:
            raise UnsupportedError(
                f"{dataset.name}: has a number for each node, which layers of a pipeline are not "
                "trained for; leave --parallel out, and give --model sage, gcn, gat or gin"
            )
        self._pipe = GNNPipe(
            list(model.layers),
            dataset.to_data(),
            stages=run.stages,
            ways=run.ways,
            chunks=run.chunks,
            snapshot_period=config.snapshot_period,
            boundary_gradient_scale=config.boundary_gradient_scale,
            shuffle=config.order == "shuffled",
            shuffle_factor=config.shuffle_factor,
            seed=config.seed,
            history=config.history,
            device=run.device,
        )
        self.optimizer = make_optimizer(config, self._pipe.parameters())
        self._dataset = dataset
        self._period = config.snapshot_period
        self.served = dataset.features.counters
        self.divides_state = self._pipe.is_distributed

    def train(self, batch: Any) -> tuple[float, int]:
        self._logits = None
        seeds = self._dataset.task.num_seeds("train")
        return self._pipe.train_epoch(self.optimizer), seeds

    def _compute_all(self) -> Tensor:
        return self._pipe.evaluate()

    def weights(self) -> dict[str, Tensor]:
        return self._pipe.held_state_dict()

    def optimizer_state(self) -> dict[str, Any]:
        """By the names of the parameters, whatever the stages and ways."""
        return self._pipe.held_optimizer_state_dict(self.optimizer)

    def snapshot_epoch(self) -> int | None:
        if not self._pipe.reads_snapshots:
            return None
        return self._pipe.epoch // self._period * self._period

    def snapshot(self) -> dict[int, dict[str, Tensor]]:
        return self._pipe.history_shards()

    def load(
        self,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        snapshot: Iterable[Mapping[str, Tensor]] | None,
        epoch: int,
    ) -> None:
        """Without a snapshot, it is computed by the weights."""
        self._pipe.load_state_dict(model)
        self._pipe.load_optimizer_state_dict(self.optimizer, optimizer)
        self._pipe.epoch = epoch
        if snapshot is not None:
            self._pipe.load_history_shards(snapshot)
        elif self._pipe.reads_snapshots:
            self._pipe.refresh_history()

    def facts(self) -> dict[str, Any]:
        if not self._pipe.reads_snapshots:
            return {}
        return {"staleness": self._pipe.staleness()}

    def any_rank(self, wish: bool) -> bool:
        return any(self._pipe.gather(wish))

    def summary(self) -> dict[str, Any]:
        """How the run was divided, and what it sent, waited for and needed, for JSON."""
        pipe = self._pipe
        slots = pipe.chunks // pipe.ways
        peaks = pipe.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return {
            "stages": pipe.stages,
            "ways": pipe.ways,
            "chunks": pipe.chunks,
            "slots": num_slots(slots, pipe.stages),
            "bubble": bubble(slots, pipe.stages),
            "sent": pipe.ledger(),
            "ranks": pipe.ledgers(),
            "peak_rss": peaks,
            "staleness": pipe.staleness() if pipe.reads_snapshots else None,
        }

    def draw_timeline(self, config: TrainConfig, run: Path | None) -> None:
        """Writes what all ranks did in the last epoch, into the run's folder and as asked for."""
        if config.timeline is None and run is None:
            return
        events = self._pipe.events()
        if rank_of_process() > 0 or not events:
            return
        paths = [run / TIMELINE] if run else []
        if config.timeline is not None:
            paths.append(Path(config.timeline))
        for path in paths:
            if path.suffix == ".json":
                replace_file(path, trace_file(events, title_of(config)))
                continue
            from gnnsys.training.timeline import write_run_timeline

            write_run_timeline(path, config, events)
