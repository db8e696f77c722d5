"""Options that say how features and neighbours in a file are read: what stays in memory, the way to
the disk.

Owns ``FeatureOptions``, ``TopologyOptions`` and what their texts mean. Imports nothing that is
large: the command line's options are made of it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from gnnsys.choices import ImportanceChoice, Policy, SharingChoice, Storage, Topology
from gnnsys.errors import ArgumentError
from gnnsys.system.sizes import parse_bytes, parse_bytes_or_share

__all__ = ["FeatureOptions", "TopologyOptions", "Window", "parse_cache"]

Window = int | Literal["auto"]

_OF_THE_CACHE = ("policy", "window", "victim_buffer", "score", "trace")


def parse_cache(text: str) -> int | float | str | None:
    """What a cache's size means: rows, a share of the rows, bytes, or None for no cache.

    ``auto`` stays as it is.

    >>> [parse_cache(text) for text in ("8GB", "100000", "0.25", "25%", "none")]
    ['8GB', 100000, 0.25, 0.25, None]
    """
    if text in ("auto", "none"):
        return None if text == "none" else text
    if re.fullmatch(r"\d{1,30}", text):
        return int(text)
    if re.fullmatch(r"\d{0,30}\.\d{1,30}|\d{1,30}\.", text):
        share = float(text)
        if not 0 < share <= 1:
            raise ArgumentError(
                f"--cache {text}: expected a share of the rows above 0 and up to 1; "
                "a number without a point is one of rows, and 8GB one of bytes"
            )
        return share
    if text[:1].isdigit():
        size = parse_bytes_or_share(text, "--cache")
        if isinstance(size, int):
            return text
        if size > 0:
            return float(size)
    raise ArgumentError(
        f"--cache {text}: expected auto, none, bytes such as 8GB, rows such as 100000, or a share "
        "of the rows such as 10% or 0.1"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions:
    """How features that lie in a file are read; see the options of ``gnnsys train``."""

    cache: str = "auto"
    policy: Policy = "hybrid"
    window: Window = "auto"
    victim_buffer: str = "0"
    storage: Storage = "auto"
    score: ImportanceChoice = "auto"
    trace: str | None = None
    share_cache: SharingChoice = "auto"

    def __post_init__(self) -> None:
        parse_cache(self.cache)
        parse_bytes(self.victim_buffer, "--victim-buffer")
        if self.window != "auto" and self.window < 0:
            raise ArgumentError(f"--window {self.window}: expected auto or at least 0")
        given = self.given()
        if self.cache == "none" and given:
            raise ArgumentError(
                f"{' '.join(given)}: of the cache, but --cache none asks for none; leave one out"
            )

    @classmethod
    def of(cls, config: Any) -> FeatureOptions:
        """Those among the options of a command."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: getattr(config, name) for name in names})

    def given(self) -> list[str]:
        """Options of the cache that are not at their defaults, as a user writes them.

        >>> FeatureOptions(policy="lru", storage="mmap").given()
        ['--policy lru']
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            f"--{name.replace('_', '-')} {getattr(self, name)}"
            for name in _OF_THE_CACHE
            if getattr(self, name) != defaults[name]
        ]

    def check_without_file(self, what: str) -> None:
        """Raises ArgumentError where options are given and ``what`` has its features in memory."""
        given = self.given()
        given += [f"--cache {self.cache}"] if self.cache not in ("auto", "none") else []
        given += [f"--storage {self.storage}"] if self.storage != "auto" else []
        _refuse(given, "features", what)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopologyOptions:
    """How neighbours that lie in a file are read; see the options of ``gnnsys train``."""

    topology: Topology = "auto"
    topology_memory: str | None = None

    def __post_init__(self) -> None:
        if self.kept_bytes() is not None and self.topology not in ("auto", "read"):
            raise ArgumentError(
                f"--topology-memory {self.topology_memory}: for neighbours that are read, but "
                f"--topology {self.topology} maps them; leave one out, or give --topology read"
            )

    @classmethod
    def of(cls, config: Any) -> TopologyOptions:
        """Those among the options of a command."""
        return cls(topology=config.topology, topology_memory=config.topology_memory)

    def kept_bytes(self) -> int | None:
        """Of neighbours that are to stay in memory; None where that was not said.

        >>> TopologyOptions(topology_memory="1KB").kept_bytes()
        1024
        """
        if self.topology_memory is None:
            return None
        return parse_bytes(self.topology_memory, "--topology-memory")

    def check_without_file(self, what: str) -> None:
        """Raises ArgumentError where options are given and ``what`` has its graph in memory."""
        given = [f"--topology {self.topology}"] if self.topology != "auto" else []
        if self.topology_memory is not None:
            given.append(f"--topology-memory {self.topology_memory}")
        _refuse(given, "neighbours", what)


def _refuse(given: list[str], of: str, what: str) -> None:
    if given:
        raise ArgumentError(
            f"{' '.join(given)}: for {of} in a file, but {what}; leave them out, or name a dataset "
            "folder (gnnsys convert makes one)"
        )
