"""What each rank did when, as a file of the Trace Event Format.

chrome://tracing and https://ui.perfetto.dev open it. The format: "Trace Event Format", The Chromium
Authors. A rank is a process there, so that its name and its lane stand beside the others'.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnnsys.config.train import TrainConfig
from gnnsys.pipeline.schedule import Event, Kind

__all__ = ["title_of", "trace_file"]

_MICROSECONDS = 1e6
_CATEGORIES = {
    Kind.FORWARD: "compute",
    Kind.BACKWARD: "compute",
    Kind.STEP: "compute",
    Kind.RECEIVE_FORWARD: "wait",
    Kind.RECEIVE_BACKWARD: "wait",
    Kind.SEND_FORWARD: "send",
    Kind.SEND_BACKWARD: "send",
    Kind.SYNC: "sync",
}


def title_of(config: TrainConfig) -> str:
    """Of what a training run's timeline shows."""
    return f"Last epoch of {config.model} on {Path(config.dataset).name}"


def trace_file(events: Sequence[Event], title: str) -> bytes:
    """The file, as JSON: a complete event ("X") for each of ``events``, in microseconds.

    Args:
        events: with times in seconds.
        title: of the whole.
    """
    told: list[dict[str, Any]] = []
    for rank in sorted({event.rank for event in events}):
        about = {"ph": "M", "pid": rank, "tid": rank}
        told.append({**about, "name": "process_name", "args": {"name": f"rank {rank}"}})
        told.append({**about, "name": "process_sort_index", "args": {"sort_index": rank}})
    for event in events:
        told.append(
            {
                "ph": "X",
                "name": event.kind,
                "cat": _CATEGORIES[Kind(event.kind)],
                "pid": event.rank,
                "tid": event.rank,
                "ts": _MICROSECONDS * event.start,
                "dur": _MICROSECONDS * (event.end - event.start),
                "args": {} if event.chunk < 0 else {"chunk": event.chunk},
            }
        )
    content = {"traceEvents": told, "displayTimeUnit": "ms", "otherData": {"title": title}}
    return (json.dumps(content) + "\n").encode()
