"""The metrics of a run: one JSON object a line, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gnnsys.config.run_files import METRICS
from gnnsys.system.files import as_storage_error, check_file
from gnnsys.system.records import json_text

__all__ = ["RunLog"]

_log = logging.getLogger(__name__)


class RunLog:
    """Appends records to ``metrics.jsonl`` and scalars to ``tensorboard/``.

    Args:
        run: folder of the run; None writes nothing.
        length: bytes of ``metrics.jsonl`` to keep: what a killed run wrote after its last
            checkpoint is done again.
        step: from which TensorBoard is to leave out what it has.
        board: whether TensorBoard is written at all.
    """

    def __init__(
        self, run: Path | None, length: int = 0, step: int = 0, board: bool = True
    ) -> None:
        self._path = run / METRICS if run else None
        self._board: Any = None
        if run is None or self._path is None:
            return
        check_file(self._path)
        with as_storage_error(self._path):
            self._path.touch()
            os.truncate(self._path, min(length, self._path.stat().st_size))
        if board:
            with self._going_on_without():
                self._board = _open_board(run / "tensorboard", step)

    def write(self, kind: str, **values: Any) -> None:
        """Appends one record."""
        if self._path is None:
            return
        with as_storage_error(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json_text({"kind": kind, **values}) + "\n")

    def scalars(self, step: int, curves: Mapping[str, float]) -> None:
        """Adds points to TensorBoard's curves."""
        if self._board is None:
            return
        with self._going_on_without():
            for name, value in curves.items():
                self._board.add_scalar(name, value, step)

    def hyperparameters(self, values: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Adds the run to TensorBoard's table of runs."""
        if self._board is None:
            return
        with self._going_on_without():
            self._board.add_hparams(dict(values), dict(scores), run_name=".")

    @property
    def length(self) -> int:
        """Bytes of ``metrics.jsonl``."""
        return self._path.stat().st_size if self._path else 0

    def flush(self) -> None:
        """Brings TensorBoard's points to its file."""
        if self._board is not None:
            with self._going_on_without():
                self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            with self._going_on_without():
                self._board.close()

    @contextlib.contextmanager
    def _going_on_without(self) -> Iterator[None]:
        """Lets go of TensorBoard where its file cannot be written."""
        try:
            yield
        except OSError as error:
            self._board = None
            _log.warning(
                "TensorBoard is written no further (%s), only %s", error.strerror or error, METRICS
            )


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        _log.warning(
            "TensorBoard is not written, only %s (%s): pip install tensorboard", METRICS, error
        )
        return None
    _quiet_writers()
    return SummaryWriter(str(folder), purge_step=step or None)


@functools.cache
def _quiet_writers() -> None:
    """What ends TensorBoard's writing thread is raised to its user, too: not printed as well."""
    before = threading.excepthook

    def tell(args: Any) -> None:
        module = type(args.thread).__module__
        if not (module.startswith("tensorboard.") and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = tell
