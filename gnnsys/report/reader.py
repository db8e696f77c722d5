"""Reads the folder of a training run: ``metrics.jsonl`` and ``config.toml``.

A run that was killed and resumed trains some batches twice. Its file holds both; what is read here
holds the later ones only, so that time and counts never go back.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gnnsys.config.run_files import CONFIG, LOCK, METRICS, TIMELINE
from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.report.run import Epoch, RecordedRun, Resume, Sample, Span, as_object
from gnnsys.report.seeds import SeedEnd, SeedEpoch
from gnnsys.system.files import check_file, is_locked, lock_holder, read_text_file
from gnnsys.system.records import as_record, read_toml

__all__ = ["read_run"]

_T = TypeVar("_T")


def read_run(folder: Path) -> RecordedRun:
    """Reads the run in ``folder``, finished or not.

    Raises:
        MissingFileError: there is no such folder, or no metrics.jsonl in it.
        FileFormatError: a line other than a cut last one is not what ``gnnsys train`` writes.
    """
    path = folder / METRICS
    way_out = "gnnsys train --out RUN makes the folder RUN with it"
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "no such folder"
        raise MissingFileError(f"{folder}: {found}, expected that of a run; {way_out}")
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, expected the metrics of a run; {way_out}")
    builder = _Builder()
    records, cut = _read_records(path)
    for record in records:
        builder.add(record)
    run = builder.run
    if cut:  # whatever it was to be, it came after an end
        run.cut, run.reason, run.result = True, None, {}
    recorded = as_object(run.start.get("config"))  # also options that are not set, unlike the file
    file = folder / CONFIG
    run.options = {**recorded, **(read_toml(file, str(file), "") if file.is_file() else {})}
    lock = folder / LOCK
    run.writer = lock_holder(lock) if lock.is_file() and is_locked(lock) else None
    run.spans = _read_spans(folder / TIMELINE)
    return run


@dataclass(frozen=True, slots=True)
class _TraceEvent:
    """Of the Trace Event Format; times in microseconds."""

    ph: str
    pid: int
    name: str
    ts: float = 0.0
    dur: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Trace:
    traceEvents: list[_TraceEvent]


def _read_spans(path: Path) -> list[Span]:
    """The spans of a trace; none where there is no file, as of a run that is not parallel."""
    if not path.exists():
        return []
    way_out = "remove the file: it is of the timeline alone"
    try:
        content = json.loads(read_text_file(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: is not JSON ({error}); {way_out}") from error
    return [
        Span(
            rank=event.pid,
            kind=event.name,
            chunk=chunk if type(chunk := event.args.get("chunk", -1)) is int else -1,
            start=event.ts / 1e6,
            end=(event.ts + event.dur) / 1e6,
        )
        for event in as_record(content, _Trace, str(path), way_out).traceEvents
        if event.ph == "X" and math.isfinite(event.ts) and math.isfinite(event.dur)
    ]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the file."""

    place: str
    fields: dict[str, Any]

    def read(self, kind: type[_T]) -> _T:
        place = f"{self.place}: a {self.fields['kind']!r} record"
        unset = {name: None for name in ("val", "test") if self.fields.get(name, ...) is None}
        return as_record(_known(self.fields) | unset, kind, place, _WAY_OUT)


@dataclass(frozen=True, slots=True)
class _Name:
    """Bytes that a name of the memory's table stands for."""

    planned: int
    held: int


@dataclass(frozen=True, slots=True)
class _Memory:
    """The table of memory in the result of a run."""

    names: dict[str, _Name] = field(default_factory=dict)
    total: int | None = None
    peak: int = 0
    anonymous: int = 0
    file: int = 0


_WAY_OUT = "remove the line, or train again with gnnsys train --out"


def _read_records(path: Path) -> tuple[list[_Line], bool]:
    """The records of the file, and whether its last line is cut off."""
    check_file(path)
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror})") from error
    records = [_parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    if not rest:
        return records, False
    try:
        records.append(_parse(f"{path}, line {len(lines) + 1}", rest))
    except FileFormatError:
        return records, True
    return records, False


def _parse(place: str, line: bytes) -> _Line:
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{place}: {_excerpt(line)} is not JSON ({error}), expected one object a line; "
            f"{_WAY_OUT}"
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str):
        raise FileFormatError(
            f'{place}: {_excerpt(line)}, expected an object with a "kind"; {_WAY_OUT}'
        )
    return _Line(place, fields)


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


class _Builder:
    """Makes a run of its records, one after the other."""

    def __init__(self) -> None:
        self.run = RecordedRun()
        self._resumed = False  # and no sample has come since

    def add(self, record: _Line) -> None:
        run, fields = self.run, record.fields
        kind = fields["kind"]
        if kind in ("start", "resume", "step", "epoch"):  # after an end: the run was resumed
            run.reason, run.result = None, {}
        if kind == "start":
            run.start = fields
        elif kind == "resume":
            run.resumes.append(replace(record.read(Resume), seconds=run.seconds))
            self._resumed = True
        elif run.start.get("command") == "cluster" and kind in ("epoch", "seed"):
            if kind == "epoch":
                run.seed_epochs.append(record.read(SeedEpoch))
            else:
                run.seed_ends.append(record.read(SeedEnd))
        elif kind == "step":
            self._append(record.read(Sample))
        elif kind == "epoch":
            self._append(record.read(Epoch))
        elif kind == "end":
            run.reason = str(fields.get("reason", "done"))
            run.result = as_object(fields.get("result"))
            memory = run.result.get("memory") or {}
            as_record(memory, _Memory, f"{record.place}: result.memory", _WAY_OUT)

    def _append(self, sample: Sample) -> None:
        """Adds a sample in place of those that came after the checkpoint resumed from."""
        run = self.run
        samples = run.samples
        before = len(samples)
        while samples and self._repeats(sample, samples[-1]):
            samples.pop()
        run.redone += before - len(samples)
        if self._resumed:
            done = samples[-1].seconds if samples else 0.0
            run.resumes = [replace(each, seconds=min(each.seconds, done)) for each in run.resumes]
        self._resumed = False
        samples.append(sample)

    def _repeats(self, sample: Sample, earlier: Sample) -> bool:
        if (earlier.epoch, earlier.batch) >= (sample.epoch, sample.batch):
            return True
        # Not every batch is written: of those trained twice some are there the first time only.
        return self._resumed and earlier.seconds > sample.seconds


def _known(value: Any) -> Any:
    """``value`` with NaN for null, which is JSON's way to write what is not a number."""
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return math.nan if value is None else value
