"""Reads the folder of a training run: ``metrics.jsonl`` and ``config.toml``.

A run that was killed and resumed trains some batches twice. Its file holds both; what is read here
holds the later ones only, so that time and counts never go back.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.report.run import Epoch, Resume, Run, Sample, as_object

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_run"]

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.toml"
_END_OF_EPOCH = math.inf


def read_run(folder: Path) -> Run:
    """Reads the run in ``folder``, finished or not.

    Raises:
        MissingFileError: there is no such folder, or no metrics.jsonl in it.
        FileFormatError: a line other than a cut last one is not what ``gnnsys train`` writes.
    """
    path = folder / METRICS_FILE
    way_out = "gnnsys train --out RUN makes the folder RUN with it"
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder, expected that of a run; {way_out}")
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
    run.options = {**recorded, **_read_options(folder / CONFIG_FILE)}
    return run


class _Record:
    """One line of the file, whose fields are checked as they are read."""

    def __init__(self, place: str, fields: dict[str, Any]) -> None:
        self.place = place
        self.fields = fields

    def number(self, name: str) -> float:
        return self._check_number(name, self._get(name))

    def integer(self, name: str) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(name, value, "an integer")
        return value

    def numbers(self, name: str) -> dict[str, float]:
        """Of an object whose values are numbers."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._error(name, value, "an object")
        return {key: self._check_number(f"{name}.{key}", each) for key, each in value.items()}

    def number_list(self, name: str) -> tuple[float, ...]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._error(name, value, "a list")
        return tuple(self._check_number(f"{name}[{i}]", each) for i, each in enumerate(value))

    def numbers_or_none(self, name: str) -> dict[str, float] | None:
        return None if self._get(name) is None else self.numbers(name)

    def _get(self, name: str) -> Any:
        if name not in self.fields:
            raise FileFormatError(
                f"{self.place}: a {self.fields['kind']!r} record without {name!r}; {_WAY_OUT}"
            )
        return self.fields[name]

    def _check_number(self, name: str, value: Any) -> float:
        if value is None:  # JSON's own way to write what is not a number
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(name, value, "a number")
        return value

    def _error(self, name: str, value: Any, expected: str) -> FileFormatError:
        return FileFormatError(
            f"{self.place}: {name} is {value!r}, expected {expected}; {_WAY_OUT}"
        )


_WAY_OUT = "remove the line, or train again with gnnsys train --out"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror})") from error


def _read_records(path: Path) -> tuple[list[_Record], bool]:
    """The records of the file, and whether its last line is cut off."""
    *lines, rest = _read(path).split(b"\n")
    records = [_parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    if not rest:
        return records, False
    try:
        records.append(_parse(f"{path}, line {len(lines) + 1}", rest))
    except FileFormatError:
        return records, True
    return records, False


def _parse(place: str, line: bytes) -> _Record:
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
    return _Record(place, fields)


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


class _Builder:
    """Makes a run of its records, one after the other."""

    def __init__(self) -> None:
        self.run = Run()
        self._resumed = False  # and no sample has come since

    def add(self, record: _Record) -> None:
        run, fields = self.run, record.fields
        kind = fields["kind"]
        if kind in ("start", "resume", "step", "epoch"):  # after an end: the run was resumed
            run.reason, run.result = None, {}
        if kind == "start":
            run.start = fields
        elif kind == "resume":
            run.resumes.append(
                Resume(run.seconds, record.integer("epoch"), record.integer("batch"))
            )
            self._resumed = True
        elif kind == "step":
            self._append(Sample(batch=record.integer("batch"), **_counts(record)))
        elif kind == "epoch":
            self._append(_epoch(record))
        elif kind == "end":
            run.reason = str(fields.get("reason", "done"))
            run.result = as_object(fields.get("result"))

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


def _epoch(record: _Record) -> Epoch:
    return Epoch(
        batch=_END_OF_EPOCH,
        **_counts(record),
        val=record.numbers_or_none("val"),
        test=record.numbers_or_none("test"),
        best_epoch=record.integer("best_epoch"),
        epoch_seconds=record.number("epoch_seconds"),
        eval_seconds=record.number("eval_seconds"),
        staleness=record.number_list("staleness") if "staleness" in record.fields else (),
    )


def _counts(record: _Record) -> dict[str, Any]:
    return {
        "epoch": record.integer("epoch"),
        "loss": record.number("loss"),
        "seconds": record.number("seconds"),
        "seeds": record.number("seeds"),
        "rows": record.numbers("rows"),
        "bytes": record.numbers("bytes"),
        "rss": record.number("rss"),
        "reads": record.numbers("reads") if "reads" in record.fields else {},
    }


def _read_options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(_read(path).decode())
    except ValueError as error:  # of the decoding or of TOML
        raise FileFormatError(
            f"{path}: is not TOML ({error}), expected the options of the run; "
            "mend or remove it: metrics.jsonl has them too"
        ) from error
