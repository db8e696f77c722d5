"""Options about how features are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gnnsys.config.file import check_resumed, config_to_toml, fixed_options, read_config
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions, parse_cache


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("auto", "auto"),
        ("0", 0),
        ("1", 1),
        ("1000000", 1_000_000),
        ("0.25", 0.25),
        (".5", 0.5),
        ("1.0", 1.0),
        ("25%", 0.25),
        ("100%", 1.0),
        ("8GB", "8GB"),
        ("0.5GB", "0.5GB"),
        ("100B", "100B"),
    ],
)
def test_a_cache_is_rows_a_share_bytes_or_none(text: str, expected: Any) -> None:
    found = parse_cache(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "text", ["", "all", "-1", "1.5", "0.0", "8XB", "GB", "1e6", "9" * 40, "0%", "101%"]
)
def test_another_cache_is_one_error_that_names_the_option(text: str) -> None:
    with pytest.raises(ArgumentError, match=f"--cache {text}: expected"):
        TrainConfig(dataset="demo", cache=text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": -1}, "--window -1: expected auto or at least 0"),
        ({"victim_buffer": "much"}, "--victim-buffer much: expected a number of bytes"),
        ({"cache": "none", "policy": "lru"}, "--policy lru: of the cache, but --cache none"),
        ({"full_batch": True, "cache": "1GB"}, "--cache 1GB: for features in a file, but --full"),
        ({"full_batch": True, "trace": "t", "window": 3}, "--window 3 --trace t: for features"),
    ],
)
def test_options_that_do_not_fit_are_one_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        TrainConfig(dataset="demo", **options)


def test_options_go_through_a_configuration_file(tmp_path: Path) -> None:
    config = TrainConfig(
        dataset="demo", cache="0.1", policy="s3fifo", window=7, victim_buffer="1MB", storage="pread"
    )
    path = tmp_path / "c.toml"
    path.write_text(config_to_toml(config))
    assert FeatureOptions.of(read_config(path)) == FeatureOptions.of(config)
    path.write_text('cache = 0.5\nwindow = "auto"\nvictim_buffer = 4096\n')
    found = FeatureOptions.of(read_config(path))
    assert found == FeatureOptions(cache="0.5", victim_buffer="4096")
    path.write_text('window = "wide"\n')
    with pytest.raises(ArgumentError, match=r"window is 'wide', expected .*int.*'auto'"):
        read_config(path)


def test_a_resumed_run_may_read_its_features_in_another_way(tmp_path: Path) -> None:
    run = TrainConfig(dataset="demo", cache="none", epochs=3)
    (tmp_path / "config.toml").write_text(config_to_toml(run))
    other = FeatureOptions(
        cache="1GB", policy="lru", window=3, victim_buffer="1MB", storage="uring", score="degree",
        trace="t",
    )  # fmt: skip
    names = [field.name for field in dataclasses.fields(FeatureOptions)]
    assert not {*names, "stats"} & fixed_options(run).keys()
    changes = {name: getattr(other, name) for name in names}
    resumed = dataclasses.replace(run, resume=str(tmp_path), stats=True, **changes)
    check_resumed(resumed)
    with pytest.raises(ArgumentError, match="--batch-size 7"):
        check_resumed(dataclasses.replace(resumed, batch_size=7))
