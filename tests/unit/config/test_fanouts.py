"""Every command takes fanouts in one way: between spaces or commas, and as a list in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tyro

from gnnsys.config.file import read_config
from gnnsys.config.plan import PlanConfig
from gnnsys.config.score import ScoreConfig
from gnnsys.config.train import TrainConfig

CONFIGS = [TrainConfig, PlanConfig, ScoreConfig]
WRITTEN = [
    (["15", "10"], (15, 10)),
    (["15,10"], (15, 10)),
    (["-1", "5"], (-1, 5)),
    (["-1,5"], (-1, 5)),
    (["5,-1"], (5, -1)),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("words", "fanouts"), WRITTEN)
def test_spaces_and_commas_are_alike_in_every_command(
    config: Any, words: list[str], fanouts: tuple[int, ...]
) -> None:
    parsed = tyro.cli(config, args=["my-graph", "--fanouts", *words])
    assert parsed.fanouts == fanouts
    assert config(dataset="my-graph", fanouts=tuple(words)).fanouts == fanouts
    assert config(dataset="my-graph", fanouts=fanouts).fanouts == fanouts


@pytest.mark.parametrize("text", ["[5, -1, 3]", "'5,-1,3'", "'5 -1 3'", "'5, -1, 3'"])
def test_a_file_has_a_list_or_what_the_command_line_takes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"layers = 3\nfanouts = {text}\n")
    assert read_config(path).fanouts == (5, -1, 3)
