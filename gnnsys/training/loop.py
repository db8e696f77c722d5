"""The training loop: epochs, evaluation, early stop, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from gnnsys.config.file import config_to_toml
from gnnsys.config.resolve import Run, resolve
from gnnsys.config.run_files import CONFIG, EMBEDDINGS, RESULT
from gnnsys.config.train import TrainConfig
from gnnsys.counters import Counters
from gnnsys.errors import DivergedError
from gnnsys.features.statistics import DiskWatch, FeatureStats, add_counts
from gnnsys.features.topology import MappingWatch
from gnnsys.ranks.environment import rank_of_process
from gnnsys.ranks.group import Interruption, check_alike, join_ranks, on_all_ranks, on_first_rank
from gnnsys.system.budget import process_budget
from gnnsys.system.disk_probe import load as load_disk_profile
from gnnsys.system.files import replace_file
from gnnsys.system.gpu.placement import kernels_for
from gnnsys.system.interrupts import on_signals
from gnnsys.system.progress import Progress
from gnnsys.system.records import json_text
from gnnsys.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    RunState,
    fit_state,
    load_checkpoint,
    save_checkpoint,
)
from gnnsys.training.curves import epoch_curves, final_scores, hyperparameters
from gnnsys.training.datasets import NodeDataset, load_run_dataset
from gnnsys.training.divergence import DivergenceWatch
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.memory import memory_facts, plan_run
from gnnsys.training.metrics import is_better, warn_of_nan
from gnnsys.training.models import make_model
from gnnsys.training.optimisation import LearningRate
from gnnsys.training.packing import clear_packed
from gnnsys.training.pipeline_steps import PipelineSteps, make_steps
from gnnsys.training.rank_files import RankFiles, own_part
from gnnsys.training.result import EpochRecord, TrainResult, machine, versions
from gnnsys.training.run_folder import (
    NothingKept,
    check_fits,
    describe,
    lock_run,
    open_run,
    removing_unused,
    resumed,
    told_to_rank,
)
from gnnsys.training.run_log import RunLog
from gnnsys.training.seed_times import settle_times
from gnnsys.training.staleness import StalenessWatch
from gnnsys.training.steps import AskedToEndError

__all__ = ["EpochRecord", "TrainResult", "run_training"]

_log = logging.getLogger(__name__)
_STEP_SECONDS = 0.25  # between two records of steps, at least
_OnBatch = Callable[[int, int, int], None]


def run_training(
    config: TrainConfig,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_batch: _OnBatch = lambda epoch, done, total: None,
    on_stats: Callable[[FeatureStats], None] = lambda stats: None,
    on_evaluation: Progress = lambda what, done, total: None,
) -> TrainResult:
    """Trains as ``config`` says.

    The same config gives the same losses for a fixed torch, number of torch threads and
    instruction set, also when the run was broken off and resumed in between. torch's global random
    state is left as it was. SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after the batch in
    hand, with a checkpoint where there is ``config.out``; a second SIGINT or SIGTERM at once.

    Args:
        on_epoch, on_batch: told after each; of a batch, its epoch, number and how many there are.
        on_stats: told after each batch what reading features has cost so far.
        on_evaluation: told how far an evaluation, or packing, of mini-batch training is.

    Raises:
        GnnsysError: a dataset that is not there, options that do not fit it, a folder that cannot
            be written, a checkpoint of another model or dataset, a loss that becomes NaN.
    """
    run = join_ranks(config.device, lambda: resolve(resumed(config)))
    check_alike(told_to_rank(run.config))
    with process_budget().run(run.memory, run.local_ranks):
        return _run(run, on_epoch, on_batch, on_stats, on_evaluation)


def _run(
    run: Run,
    on_epoch: Callable[[EpochRecord], None],
    on_batch: _OnBatch,
    on_stats: Callable[[FeatureStats], None],
    on_evaluation: Progress,
) -> TrainResult:
    run = on_all_ranks(lambda: settle_times(run))
    config = run.config
    evaluation = on_all_ranks(lambda: plan_run(run))
    with ExitStack() as held:

        def open_folder() -> Path | None:
            folder = open_run(config)
            if folder is not None:
                held.enter_context(removing_unused(folder, EMBEDDINGS))
                held.enter_context(lock_run(folder))
            return folder

        folder = on_first_rank(open_folder)
        dataset = on_all_ranks(lambda: held.enter_context(closing(load_run_dataset(run))))
        check_alike({"dataset": dataset.digest})
        held.enter_context(kernels_for(config.device))
        held.enter_context(torch.random.fork_rng())
        torch.manual_seed(config.seed)
        trainer = _Trainer(run, dataset, folder, evaluation)
        with on_signals(trainer.interruption.ask):
            result = trainer.fit(on_epoch, on_batch, on_stats, on_evaluation)
    if result.reason != "interrupted":
        clear_packed(config)
    return result


class _Trainer:
    def __init__(
        self, run: Run, dataset: NodeDataset, folder: Path | None, evaluation: Evaluation | None
    ) -> None:
        config = run.config
        self._config, self._dataset, self._device = config, dataset, run.device
        self._folder = folder
        self._metric = dataset.task.chosen(config.metric)
        dataset.task.check_metric(self._metric, dataset.name)
        self._reported = dataset.task.reported(self._metric)
        self._num_train = dataset.task.num_seeds("train")
        self._model = make_model(run, dataset).to(run.device)
        self._steps = make_steps(run, dataset, self._model, evaluation)
        self._rate = LearningRate(config, self._steps, self._metric)
        self._pipeline = self._steps if isinstance(self._steps, PipelineSteps) else None
        kept_in = config.resume or config.out
        self._kept_in = Path(kept_in) if kept_in else None  # on all ranks
        self._is_first = rank_of_process() == 0
        if self._kept_in is not None:
            self._files = RankFiles(self._kept_in, run.stages * run.ways)
        self._staleness, self._watch = StalenessWatch(), DivergenceWatch(config)
        self._finite = True  # the weights, when they were looked at last
        self._best_model: dict[str, torch.Tensor] | None = None
        self._state = RunState()
        self.interruption = Interruption()
        self._interrupted = False  # what all ranks agreed on
        if config.resume:
            before = Path(config.resume)
            self._restore(load_checkpoint(before), before)
        self._log = RunLog(folder, self._state.metrics_bytes, self._state.step)
        self._begin = time.perf_counter() - self._state.seconds
        stores = [table.store for table in dataset.tables.values()]
        self._depth = max((store.depth for store in stores), default=0)
        path = next((store.path for store in stores if store.depth), None)
        disk = load_disk_profile(path) if path else None
        self._disk_watch = DiskWatch(disk.iops if disk else 0)
        self._mapping_watch = MappingWatch(None if dataset.heterogeneous else dataset.graph.file)
        self._logged = self._stats()  # what the last epoch's curves were made of
        self._last_step_record = self._test_seconds = 0.0
        self._last_checkpoint = time.monotonic()
        self._nothing_kept = NothingKept(config)

    # The loop -------------------------------------------------------------------------------------

    def fit(
        self,
        on_epoch: Callable[[EpochRecord], None],
        on_batch: _OnBatch,
        on_stats: Callable[[FeatureStats], None],
        on_evaluation: Progress,
    ) -> TrainResult:
        state, config = self._state, self._config
        self._steps.progress = on_evaluation
        self._log_start()
        for record in state.history:
            on_epoch(EpochRecord(**record))
        try:
            while state.epoch <= (config.epochs or 0) and not self._is_stale():
                self._train_epoch(on_batch, on_stats)
                if self._interrupted:
                    break
                self._end_epoch()
                on_epoch(EpochRecord(**state.history[-1]))
                if (state.epoch - 1) % config.checkpoint_epochs == 0:
                    self._checkpoint()
        except DivergedError:
            self._log.write("end", time=time.time(), reason="diverged")
            self._log.close()
            raise
        stopped = "early stop" if self._is_stale() else "done"
        reason = "interrupted" if self._interrupted else stopped
        if reason != "interrupted" and self._steps.test_at_end and not state.best_test:
            self._checkpoint()
            began = self._seconds()
            if not self._score_test(on_evaluation):
                reason = "interrupted"
            self._test_seconds = self._seconds() - began
        return self._finish(reason)

    def _train_epoch(self, on_batch: _OnBatch, on_stats: Callable[[FeatureStats], None]) -> None:
        state, total = self._state, self._steps.num_batches()
        if state.batch == 0:
            state.epoch_began, state.load_began = self._seconds(), self._load_seconds()
        for batch in self._batches():
            self._rate.begin_step(state.step)
            loss, seeds = self._steps.step(batch)
            done = min(self._steps.batches_a_step, total - state.batch)
            state.batch, state.step = state.batch + done, state.step + done
            if not math.isfinite(loss):
                self._watch.bad_loss(loss, self._place(), self._steps.inputs(batch))
            state.loss_sum += loss * seeds
            state.seeds += seeds
            stats = self._stats()
            self._log_step(loss, stats)
            on_batch(state.epoch, state.batch, total)
            on_stats(stats)
            self._warn(self._disk_watch.look(stats))
            self._warn(self._mapping_watch.look())
            self._nothing_kept.look(state.step, total * (self._config.epochs or 0))
            minutes = (time.monotonic() - self._last_checkpoint) / 60
            due = self._kept_in is not None and minutes >= self._config.checkpoint_minutes
            if self._steps.any_rank(self.interruption.here or due):
                self._interrupted = self._steps.any_rank(self.interruption.here)
                self._check_weights()
                self._checkpoint()
            if self._interrupted:
                return

    def _batches(self) -> Iterator[Any]:
        """The rest of an epoch's batches; none where the run was asked to end while they were
        prepared."""
        tell = self._steps.progress
        self._steps.progress = self._until_asked(tell or (lambda what, done, total: None))
        try:
            return self._steps.batches(self._state.epoch - 1, self._state.batch)
        except AskedToEndError:
            self._interrupted = True
            return iter(())
        finally:
            self._steps.progress = tell

    def _until_asked(self, tell: Progress) -> Progress:
        """Tells on, until the run is asked to end."""

        def go_on(what: str, done: int, total: int) -> None:
            if self.interruption.is_heard_of():
                raise AskedToEndError
            tell(what, done, total)

        return go_on

    def _end_epoch(self) -> None:
        state, config = self._state, self._config
        self._check_weights()
        trained = self._seconds()
        loss = state.loss_sum / self._num_train
        val = test = None
        before = self._stats()
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs:
            val = self._steps.evaluate(self._reported, "val")
            state.stale += 1
            score = val[self._metric]
            if self._is_first:
                warn_of_nan(self._metric, score)
            self._rate.judge(score, state.step)
            if self._finite and is_better(self._metric, score, state.best_val.get(self._metric)):
                test = (
                    {} if self._steps.test_at_end else self._steps.evaluate(self._reported, "test")
                )
                state.best_epoch, state.best_val, state.best_test = state.epoch, val, test
                state.stale = 0
                self._best_model = self._steps.keep_best(state.epoch)
        record = EpochRecord(
            epoch=state.epoch,
            loss=loss,
            val=None if val is None else val[self._metric],
            test=state.best_test.get(self._metric),
        )
        state.history.append(dataclasses.asdict(record))
        facts = self._steps.facts()
        if facts.get("staleness"):
            self._warn(self._staleness.look(loss, facts["staleness"]))
        self._log_epoch(
            loss=loss,
            val=val,
            test=test or None,
            epoch_seconds=trained - state.epoch_began,
            eval_seconds=self._seconds() - trained,
            eval_bytes=(self._stats() - before).bytes,
            lr=self._rate.last,
            **facts,
        )
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0

    def _place(self) -> str:
        return f"epoch {self._state.epoch}, batch {self._state.batch} (step {self._state.step})"

    def _check_weights(self) -> None:
        """Once after the steps, before weights are judged or kept."""
        self._finite = not self._steps.any_rank(not self._steps.is_finite())
        if not self._finite:
            self._watch.bad_weights(self._place())

    def _warn(self, note: str | None) -> None:
        if note is not None and self._is_first:
            _log.warning("%s: %s", self._config.dataset, note)

    def _score_test(self, on_evaluation: Progress) -> bool:
        """Scores the test nodes by the best weights; False where the run was asked to end."""
        if self._best_model is None:
            return True
        self._steps.progress = self._until_asked(
            lambda what, done, total: on_evaluation(f"test, {what}", done, total)
        )
        with suppress(AskedToEndError), self._steps.with_weights(self._best_model):
            self._state.best_test = self._steps.evaluate(self._reported, "test")
            return True
        return False

    def _is_stale(self) -> bool:
        return 0 < self._config.patience <= self._state.stale

    def _finish(self, reason: str) -> TrainResult:
        state = self._state
        result = TrainResult(
            config=self._config,
            metric=self._metric,
            reason=reason,
            history=tuple(EpochRecord(**record) for record in state.history),
            best_epoch=state.best_epoch,
            best_val=state.best_val,
            best_test=state.best_test,
            seconds=self._seconds(),
            load_seconds=self._load_seconds(),
            test_seconds=self._test_seconds,
            counters=self._served(),
            reads=dict(self._stats().reads),
            memory=memory_facts(),
            ranks=self._steps.ranks(),
            evaluation=self._steps.evaluation(),
            padding=self._steps.padding(),
            offload=self._steps.end_offload(),
            parallel=None if self._pipeline is None else self._pipeline.summary(),
        )
        self._checkpoint()
        if self._pipeline is not None:
            self._pipeline.draw_timeline(self._config, self._kept_in)
        if reason != "interrupted":
            final = final_scores(state.best_val, state.best_test)
            self._log.hyperparameters(hyperparameters(self._config), final)
        told = result.as_dict()  # once: the peak of memory may grow
        self._log.write("end", time=time.time(), reason=reason, result=told)
        self._log.close()
        if self._folder:
            replace_file(self._folder / RESULT, f"{json_text(told)}\n".encode())
        return result

    # What is kept ---------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Writes all that the next batch depends on: rank 0, but for what other ranks hold."""
        self._last_checkpoint = time.monotonic()
        if self._kept_in is None or not self._finite:
            return
        kept = self._files.save(self._steps, self._best_model)
        if self._folder is None:
            return
        state = self._state
        self._log.flush()
        state.seconds = self._seconds()
        state.metrics_bytes = self._log.length
        checkpoint = Checkpoint(
            config=describe(self._config),
            dataset=self._dataset.digest,
            state=dataclasses.replace(
                state,
                served={tier: [s.rows, s.bytes] for tier, s in self._served().tiers().items()},
                reads=dict(self._stats().reads),
                load_seconds=self._load_seconds(),
                padded_sizes=self._steps.padded_sizes,
                learning_rate=self._rate.state(),
            ),
            **kept,
            torch_rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
        )
        with self._steps.committing(self._folder / CHECKPOINT) as checkpoint.tables:
            save_checkpoint(self._folder, checkpoint)

    def _restore(self, checkpoint: Checkpoint, folder: Path) -> None:
        changed = check_fits(checkpoint, folder, self._dataset.digest, self._config)
        if changed and self._is_first:
            _log.warning(
                "%s: goes on with %s: its losses are then not those of an unchanged run",
                folder, ", ".join(changed),
            )  # fmt: skip
        if self._config.data and self._is_first:
            replace_file(folder / CONFIG, config_to_toml(self._config).encode())
        fit_state(self._model, self._steps.optimizer, checkpoint, folder / CHECKPOINT)
        self._best_model = own_part(self._steps, checkpoint.best_model)
        self._state = checkpoint.state
        self._steps.padded_sizes = self._state.padded_sizes
        self._rate.load(self._state.learning_rate)
        # A run that was interrupted after an epoch's step has it behind.
        trained = self._state.epoch - 1 + (self._state.batch if self._pipeline else 0)
        self._files.load(self._steps, checkpoint, trained)
        torch.set_rng_state(checkpoint.torch_rng)
        if checkpoint.cuda_rng and self._device.type == "cuda":
            torch.cuda.set_rng_state_all(checkpoint.cuda_rng)

    def _served(self) -> Counters:
        total = Counters.total([self._steps.served])
        for tier, (rows, nbytes) in self._state.served.items():
            total.add(tier, rows, nbytes)
        return total

    def _stats(self) -> FeatureStats:
        served = self._served().as_dict()
        reads = self._dataset.reads() if self._steps.reads is None else self._steps.reads
        return FeatureStats(
            seconds=self._seconds(),
            rows=served["rows"],
            bytes=served["bytes"],
            reads=add_counts(self._state.reads, reads),
            depth=self._depth,
        )

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def _load_seconds(self) -> float:
        return self._state.load_seconds + self._steps.load_seconds

    # What is told ---------------------------------------------------------------------------------

    def _log_start(self) -> None:
        if self._config.resume:
            epoch, batch = self._state.epoch, self._state.batch
            self._log.write("resume", time=time.time(), epoch=epoch, batch=batch)
            return
        self._log.write(
            "start",
            time=time.time(),
            dataset=self._dataset.facts(),
            metric=self._metric,
            evaluation=self._steps.evaluation(),
            parameters=sum(p.numel() for p in self._model.parameters()),
            versions=versions(),
            machine=machine(),
            config=describe(self._config),
        )

    def _log_step(self, loss: float, stats: FeatureStats) -> None:
        now = time.monotonic()
        if self._folder is None or now - self._last_step_record < _STEP_SECONDS:
            return
        self._last_step_record = now
        state = self._state
        place = {"epoch": state.epoch, "batch": state.batch, "step": state.step}
        self._log.write("step", **place, loss=loss, **self._usage(stats))
        self._log.scalars(state.step, {"loss/step": loss})

    def _log_epoch(self, **found: Any) -> None:
        if self._folder is None:
            return
        state, stats = self._state, self._stats()
        place = {"epoch": state.epoch, "step": state.step, "best_epoch": state.best_epoch}
        record = {**place, **found, **self._usage(stats)}
        self._log.write("epoch", **record)
        served, self._logged = stats - self._logged, stats
        sizes = self._steps.num_batches(), self._num_train
        self._log.scalars(state.epoch, epoch_curves(record, served, *sizes))

    def _usage(self, stats: FeatureStats) -> dict[str, Any]:
        return {
            "seconds": stats.seconds,
            "load_seconds": self._load_seconds() - self._state.load_began,  # of the epoch
            "seeds": self._state.seeds,
            "rows": stats.rows,
            "bytes": stats.bytes,
            **({"reads": stats.reads} if stats.reads else {}),
            "rss": psutil.Process().memory_info().rss,
        }
