"""Warnings that a process gives once. Standard library only."""

from __future__ import annotations

import functools
import logging

__all__ = ["warn_once"]


@functools.cache
def warn_once(log: logging.Logger, message: str, *values: object) -> None:
    """Logs a warning unless the process has logged this one with these values before."""
    log.warning(message, *values)
