"""``gnnsys generate``."""

from __future__ import annotations

import dataclasses

from gnnsys.config.generate import GenerateConfig, RmatConfig
from gnnsys.generate import generate_community, generate_rmat
from gnnsys.system.progress import work_progress
from gnnsys.system.sizes import parse_bytes

__all__ = ["run_command"]


def run_command(config: GenerateConfig) -> int:
    """Generates the graph and prints its folder."""
    options = dataclasses.asdict(config.graph)
    path = options.pop("out")
    options["memory"] = parse_bytes(options["memory"], "--memory")
    make = generate_rmat if isinstance(config.graph, RmatConfig) else generate_community
    with work_progress() as progress:
        print(make(path, progress=progress, **options))
    return 0
