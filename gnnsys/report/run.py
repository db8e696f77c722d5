"""What a training run's folder says, as the report needs it. Reads no file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gnnsys.choices import METRICS
from gnnsys.config.run_files import result_name
from gnnsys.report.seeds import SeedEnd, SeedEpoch

__all__ = ["Epoch", "RankTotals", "RecordedRun", "Resume", "Sample", "Span", "as_object"]

_Otherwise = TypeVar("_Otherwise", float, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What the run had done at one moment: a ``step`` of the file. Counts are since the start of
    the run, and NaN where the file has null."""

    epoch: int
    """From 1."""

    batch: float
    """Of the epoch, from 1; infinite at its end."""

    loss: float
    """Of the batch, or the epoch's mean."""

    seconds: float
    """Of training, without the time between a kill and the resume."""

    seeds: float
    """Seed nodes trained on."""

    rows: Mapping[str, float]
    """Feature rows served, by tier."""

    bytes: Mapping[str, float]
    """Their bytes, by tier."""

    rss: float
    """Resident memory of the process in bytes."""

    reads: Mapping[str, float] = field(default_factory=dict)
    """Counts of the cache and its reads; empty where there are none, as in older runs."""

    load_seconds: float = 0.0
    """For which training waited for batches in this epoch so far; 0 also in older runs."""

    step: float | None = None
    """Batches trained on in all epochs; None at the end of epochs of older runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch(Sample):
    """A sample at the end of an epoch, and what else is known then: an ``epoch`` of the file."""

    batch: float = math.inf

    val: Mapping[str, float] | None
    """Validation values by metric, where the epoch was evaluated."""

    test: Mapping[str, float] | None
    """Test values by metric, likewise."""

    best_epoch: int
    """With the best validation metric so far; 0 before the first evaluation."""

    epoch_seconds: float
    """Of training in this epoch."""

    eval_seconds: float
    """Of evaluation after it."""

    staleness: tuple[float, ...] = ()
    """Of each graph layer of a pipeline; empty where there is none."""

    eval_bytes: Mapping[str, float] = field(default_factory=dict)
    """Feature bytes that evaluation was served, by tier; empty where they were not recorded."""

    ranks: list[dict[str, Any]] = field(default_factory=list)
    """What each of several ranks that share mini-batches did so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTotals:
    """What a rank did since the run was begun or resumed; counts that were not recorded are 0."""

    sent: Mapping[str, float]
    """Bytes, by kind."""

    messages: float

    waited: float
    """Seconds, for other ranks."""

    rows: float = 0.0
    """Served to its mini-batches and evaluation; ``served`` are their bytes."""

    served: float = 0.0

    read: float = 0.0
    """Bytes, past the page cache."""

    loading: float = 0.0
    """Seconds, for batches."""

    peak: float = 0.0
    """Bytes that were resident at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """The run went on from a checkpoint."""

    epoch: int
    """Of the checkpoint."""

    batch: int
    """Of the checkpoint."""

    seconds: float = 0.0
    """Of training before the resume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What a rank did for some time."""

    rank: int

    kind: str
    """As ``gnnsys.pipeline.schedule.Kind`` has it."""

    chunk: int
    """-1 where it was about none."""

    start: float
    """Seconds since the epoch began."""

    end: float


@dataclass(slots=True)
class RecordedRun:
    """What a run's folder says."""

    start: Mapping[str, Any] = field(default_factory=dict)
    """The newest ``start`` record: dataset, metric, parameters, versions, machine."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``gnnsys train``, by name."""

    samples: list[Sample] = field(default_factory=list)
    """Steps and epochs in the order they were trained in."""

    resumes: list[Resume] = field(default_factory=list)

    redone: int = 0
    """Samples left out because a resumed run trained those batches again."""

    reason: str | None = None
    """Why the run ended; None while it goes on, or when it was killed."""

    result: Mapping[str, Any] = field(default_factory=dict)
    """Of the ``end`` record."""

    spans: list[Span] = field(default_factory=list)
    """Of the last epoch of a parallel run."""

    seed_epochs: list[SeedEpoch] = field(default_factory=list)
    """Of a clustering run, which has no samples."""

    seed_ends: list[SeedEnd] = field(default_factory=list)
    """Likewise."""

    writer: str | None = None
    """The process that is writing it, such as: process 123 on host."""

    cut: bool = False
    """The last line of the file was not written to its end."""

    @property
    def steps(self) -> list[Sample]:
        return [sample for sample in self.samples if not isinstance(sample, Epoch)]

    @property
    def epochs(self) -> list[Epoch]:
        return [sample for sample in self.samples if isinstance(sample, Epoch)]

    @property
    def is_clustering(self) -> bool:
        """Whether ``gnnsys cluster`` made it."""
        return bool(self.start.get("command", self.options.get("command")) == "cluster")

    @property
    def metric(self) -> str:
        """What the best epoch is chosen by."""
        return str(self.start.get("metric", "accuracy"))

    @property
    def loss_name(self) -> str:
        """What was minimised."""
        if self.metric in METRICS["links"]:
            in_batch = self.options.get("negative_sampling") == "in-batch"
            return "infonce" if in_batch else str(self.options.get("link_loss") or "bpr")
        of_numbers = self.metric in METRICS["values"]
        return str(self.options.get("loss") or "mse") if of_numbers else "cross entropy"

    @property
    def best(self) -> Epoch | None:
        """The best epoch so far, if one was evaluated."""
        epochs = self.epochs
        best = epochs[-1].best_epoch if epochs else 0
        return next((epoch for epoch in epochs if epoch.epoch == best), None)

    def best_metric(self) -> tuple[float | None, float | None]:
        """Validation and test value of the metric in the best epoch."""
        best = self.best
        if best is not None and best.val is not None:
            return best.val.get(self.metric), (best.test or {}).get(self.metric)
        short = result_name(self.metric)
        val, test = (self.result.get(f"{kind}_{short}") for kind in ("val", "test"))
        return _float_or(val, None), _float_or(test, None)

    @property
    def state(self) -> str:
        """Why the run ended, or that it has not."""
        return self.reason or ("going on" if self.writer else "not ended")

    def lost_scores(self) -> int:
        """Evaluated epochs whose validation score is not finite."""
        values = [(epoch.val or {}).get(self.metric, 0.0) for epoch in self.epochs]
        return sum(not math.isfinite(value) for value in values)

    def first_lost(self) -> Sample | None:
        """The first step or epoch whose loss is not finite."""
        return next((each for each in self.samples if not math.isfinite(each.loss)), None)

    @property
    def seconds(self) -> float:
        """Of training so far."""
        last = self.samples[-1].seconds if self.samples else 0.0
        return _float_or(self.result.get("seconds"), last)

    def times(self) -> dict[str, float]:
        """The ``seconds`` by what they went to: loading, which is waiting for batches and left out
        where there was none; training, evaluation and the rest, which is the checkpoints between
        epochs; NaN where a record lacks them."""
        epochs, total = self.epochs, self.seconds
        training = sum(epoch.epoch_seconds for epoch in epochs)
        evaluation = sum(epoch.eval_seconds for epoch in epochs)
        evaluation += _float_or(self.result.get("test_seconds"), 0.0)
        loading = sum(epoch.load_seconds for epoch in epochs)
        if self.samples and not isinstance(self.samples[-1], Epoch):  # in the middle of an epoch
            training += total - (epochs[-1].seconds if epochs else 0.0)
            loading += self.samples[-1].load_seconds
        loading = _float_or(self.result.get("load_seconds"), loading)
        rest = max(0.0, total - training - evaluation)
        parts = {"training": training - loading, "evaluation": evaluation, "checkpoints": rest}
        return {"loading": loading} | parts if loading else parts

    @property
    def peak_rss(self) -> float:
        """The most resident memory seen, in bytes."""
        seen = [sample.rss for sample in self.samples]
        seen.append(_float_or(self.result.get("peak_rss"), 0.0))
        return max(filter(math.isfinite, seen), default=0.0)

    def ranks(self) -> list[RankTotals]:
        """Of each of several ranks: at the end, or at that of the last epoch so far."""
        epochs = self.epochs
        shared = self.result.get("ranks") or (epochs[-1].ranks if epochs else [])
        if isinstance(shared, list) and shared:
            return [_rank_totals(as_object(each)) for each in shared]
        parallel = as_object(self.result.get("parallel"))
        ledgers, peaks = parallel.get("ranks"), parallel.get("peak_rss")
        if not isinstance(ledgers, list):
            return []
        known = isinstance(peaks, list) and len(peaks) == len(ledgers)
        sizes = peaks if known and isinstance(peaks, list) else [0.0] * len(ledgers)
        return [
            _rank_totals({"sent": ledger, "memory": {"peak": peak}})
            for ledger, peak in zip(ledgers, sizes, strict=True)
        ]

    def epoch_rates(self) -> list[tuple[Epoch, float]]:
        """Epochs and their seeds per second of training; NaN where that cannot be told."""
        rates = []
        before, seeds = 0, 0.0
        for epoch in self.epochs:
            known = epoch.epoch == before + 1 and epoch.epoch_seconds > 0
            rates.append(
                (epoch, (epoch.seeds - seeds) / epoch.epoch_seconds if known else math.nan)
            )
            before, seeds = epoch.epoch, epoch.seeds
        return rates

    def tier_names(self) -> list[str]:
        """Of the tiers that served rows, in the order of the file."""
        maps = [*(sample.bytes for sample in self.samples), self.tiers("bytes"), self.tiers("rows")]
        return list(dict.fromkeys(tier for each in maps for tier in each))

    def tiers(self, what: str) -> Mapping[str, float]:
        """The ``"rows"`` or ``"bytes"`` served by each tier so far."""
        ended = as_object(self.result.get(what))
        if ended or not self.samples:
            return {tier: _float_or(count, math.nan) for tier, count in ended.items()}
        return self.samples[-1].rows if what == "rows" else self.samples[-1].bytes

    def reads(self) -> Mapping[str, float]:
        """Counts of the cache and its reads so far; empty where there are none."""
        ended = as_object(self.result.get("reads"))
        if ended or not self.samples:
            return {name: _float_or(count, math.nan) for name, count in ended.items()}
        return self.samples[-1].reads


def _rank_totals(told: Mapping[str, Any]) -> RankTotals:
    ledger = as_object(told.get("sent"))
    return RankTotals(
        sent=_counts(ledger, "bytes"),
        messages=sum(_counts(ledger, "messages").values()),
        waited=sum(_counts(ledger, "seconds_waited").values()),
        rows=sum(_counts(told, "rows").values()),
        served=sum(_counts(told, "bytes").values()),
        read=_counts(told, "reads").get("bytes_read", 0.0),
        loading=_float_or(told.get("load_seconds"), 0.0),
        peak=_counts(told, "memory").get("peak", 0.0),
    )


def _counts(ledger: Mapping[str, Any], name: str) -> dict[str, float]:
    return {kind: _float_or(count, 0.0) for kind, count in as_object(ledger.get(name)).items()}


def as_object(value: Any) -> Mapping[str, Any]:
    """``value`` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _float_or(value: Any, otherwise: _Otherwise) -> float | _Otherwise:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else otherwise
