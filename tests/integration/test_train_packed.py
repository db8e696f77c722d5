"""``gnnsys train --pack``: the same losses, what is served from where, and what goes wrong."""

from __future__ import annotations

import json
import logging
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.parallel import check_ranks
from gnnsys.config.train import TrainConfig
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    StorageError,
    TooLargeError,
    UnsupportedError,
)
from gnnsys.generate import generate_community
from gnnsys.system.files import lock_file
from gnnsys.training.loop import TrainResult, run_training

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "hidden": 16,
    "fanouts": (4, 3),
    "seed": 5,
    "device": "cpu",
}
PACK: dict[str, Any] = {"cache": "0.1", "storage": "pread", "pack": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph that a GNN learns."""
    path = tmp_path_factory.mktemp("data") / "g"
    return generate_community(path, nodes=1000, classes=4, features=16, degree=8, signal=0.2)


@pytest.fixture(scope="module")
def plain(folder: Path) -> TrainResult:
    return train(folder, cache="none", storage="mmap")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are put, of which none is left."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield place
    assert not [each for each in place.iterdir() if "packed" in each.name]


def config_of(folder: Path, out: Path | None = None, **options: Any) -> TrainConfig:
    return TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    return run_training(config_of(folder, out, **options))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What --pack has warned of."""
    records = (r for r in caplog.records if r.levelno >= logging.WARNING)
    return [r.getMessage() for r in records if "pack" in r.getMessage()]


def rows_of(result: TrainResult) -> dict[str, int]:
    return dict(result.counters.as_dict()["rows"])


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "uring", "policy": "lookahead"},
        {"storage": "mmap", "score": "none"},
        {"eval": "sampled", "sampling": "labor"},
        {"cache": "0", "dependent_batches": 4, "threads": 1},
    ],
)
def test_losses_are_bit_identical_with_and_without_packing(
    folder: Path, plain: TrainResult, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"eval", "sampling", "dependent_batches"} & options.keys()
    expected = plain
    if changes:
        kept = {key: options[key] for key in changes}
        expected = train(folder, cache="none", storage="mmap", **kept)
    packed = train(folder, **PACK | options)
    assert packed.history == expected.history
    assert rows_of(packed)["packed"] > 0
    assert sum(rows_of(packed).values()) == sum(rows_of(expected).values())
    assert told(caplog) == []


def test_samples_that_are_used_again_are_packed_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gnnsys.features.packing")
    options: dict[str, Any] = {"epochs": 5, "reuse_samples": 2, "dropout": 0.0, "lr": 1e-30}
    results = [
        train(folder, tmp_path / name, **options | more)
        for name, more in (("plain", {"cache": "none"}), ("packed", PACK))
    ]
    assert results[0].history == results[1].history
    seen = [record.loss for record in results[0].history]  # by weights that hardly change
    assert abs(seen[0] - seen[1]) < 1e-6 < abs(seen[1] - seen[2])
    assert abs(seen[2] - seen[3]) < 1e-6 < abs(seen[3] - seen[4])
    assert sum("batches packed" in record.message for record in caplog.records) == 3
    result = json.loads((tmp_path / "packed" / "result.json").read_text())
    assert result["rows"]["packed"] == rows_of(results[1])["packed"]
    assert not [*(tmp_path / "packed").glob("gnnsys-packed*")]


# Going on -----------------------------------------------------------------------------------------


def test_a_run_broken_off_inside_an_epoch_goes_on_with_what_is_packed(
    folder: Path, tmp_path: Path, plain: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    break_off(folder, run)
    assert (run / "gnnsys-packed" / "pack.json").is_file()
    caplog.set_level(logging.INFO, "gnnsys.features.packing")
    result = run_training(resumed_config(run))
    assert result.history == plain.history
    assert sum("batches packed" in record.message for record in caplog.records) == 1  # of epoch 3
    assert told(caplog) == []
    assert not [*run.glob("gnnsys-packed*")]


class _BrokenOffError(Exception):
    pass


def break_off(folder: Path, run: Path) -> None:
    """Ends a run at its second epoch's third batch, as a kill does, but for a checkpoint."""

    def stop(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 3):
            raise _BrokenOffError

    with pytest.raises(_BrokenOffError):
        run_training(config_of(folder, run, **PACK, checkpoint_minutes=1e-6), on_batch=stop)


@pytest.mark.parametrize("damage", ["other seed", "rows", "manifest"])
def test_what_was_packed_for_another_run_or_is_damaged_is_packed_anew_and_told(
    folder: Path, tmp_path: Path, plain: TrainResult, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    break_off(folder, run)
    place = run / "gnnsys-packed"
    manifest = json.loads((place / "pack.json").read_text())
    if damage == "other seed":
        (place / "pack.json").write_text(json.dumps(manifest | {"seed": 7}))
    else:
        path = place / {"rows": "rows.bin", "manifest": "pack.json"}[damage]
        path.write_bytes(path.read_bytes()[:-3])
    assert run_training(resumed_config(run)).history == plain.history
    why = "seed 7 != 5" if damage == "other seed" else "damaged"
    (message,) = told(caplog)
    assert f"packed for another run ({why}" in message


def test_a_kill_in_the_middle_of_packing_leaves_nothing_that_is_used(
    folder: Path, tmp_path: Path, plain: TrainResult, run_forked: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    done = run_forked(
        """
        import os, signal, sys
        from gnnsys.config.train import TrainConfig
        from gnnsys.features import packing
        from gnnsys.training.loop import run_training

        pack_rows, calls = packing.pack_rows, []

        def pack_and_die(*given, **named):
            calls.append(given)
            def die(done, total):
                if len(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            pack_rows(*given, **named | {"progress": die})

        packing.pack_rows = pack_and_die
        run_training(TrainConfig(dataset=sys.argv[1], out=sys.argv[2], **eval(sys.argv[3])))
        """,
        tmp_path,
        folder,
        run,
        repr(OPTIONS | PACK | {"checkpoint_minutes": 1e-6}),
    )
    assert done.returncode == -9, done.stderr
    assert (run / "gnnsys-packed.new" / "rows.bin").is_file()
    assert not (run / "gnnsys-packed").exists()
    result = run_training(resumed_config(run))
    assert result.history == plain.history
    assert rows_of(result)["packed"] > 0
    assert not [*run.glob("gnnsys-packed*")]


def test_a_run_asked_to_end_while_it_packs_ends_and_goes_on(
    folder: Path, tmp_path: Path, plain: TrainResult
) -> None:
    def ask(what: str, done: int, total: int) -> None:
        if what.startswith("packing: batches") and (tmp_path / "run" / "checkpoint.pt").exists():
            signal.raise_signal(signal.SIGTERM)

    config = config_of(folder, tmp_path / "run", **PACK)
    result = run_training(config, on_evaluation=ask)
    assert (result.reason, len(result.history)) == ("interrupted", 1)
    assert run_training(resumed_config(tmp_path / "run")).history == plain.history


# Room ---------------------------------------------------------------------------------------------


def test_batches_beyond_the_space_are_read_from_the_table_and_told_once(
    folder: Path, tmp_path: Path, plain: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    places = tmp_path / "place"
    places.mkdir()
    sizes: list[int] = []

    def look(*_: Any) -> None:
        kept = (path for path in (places / "gnnsys-packed").iterdir() if path.suffix != ".json")
        sizes.append(sum(path.stat().st_size for path in kept))

    options = PACK | {"pack_space": "200KB", "pack_folder": str(places)}
    result = run_training(config_of(folder, **options), on_batch=look)
    assert result.history == plain.history
    assert 100 << 10 < max(sizes) <= 200 << 10
    assert rows_of(result)["file"] > rows_of(result)["packed"] > 0
    (message,) = told(caplog)
    assert "of 8 batches fit in 200 KiB" in message
    assert not [*places.iterdir()]


def test_plans_larger_than_the_space_are_not_kept(
    folder: Path, plain: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(folder, **PACK, pack_space="20KB")
    assert result.history == plain.history
    assert "packed" not in rows_of(result)
    (message,) = told(caplog)
    assert "rows are read from the table, unpacked: " in message
    assert "--pack-space 20 KiB; give more" in message


def test_room_for_the_plans_alone_packs_no_batch(
    folder: Path, tmp_path: Path, plain: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    places, sizes = tmp_path / "place", []
    places.mkdir()

    def look(*_: Any) -> None:
        kept = (places / "gnnsys-packed").iterdir()
        plans = (path for path in kept if path.name not in ("pack.json", "rows.bin"))
        sizes.append(sum(path.stat().st_size for path in plans))

    options = PACK | {"epochs": 1, "pack_folder": str(places)}
    whole = run_training(config_of(folder, **options), on_batch=look)
    assert rows_of(whole)["packed"] > 0
    result = train(folder, **options, pack_space=str(sizes[0]))
    assert result.history == plain.history[:1]
    assert "packed" not in rows_of(result)
    assert "0 of 8 batches fit in " in told(caplog)[0]


def test_a_disk_that_is_full_for_a_later_epoch_is_told_once(
    folder: Path, plain: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(epoch: int, done: int, total: int) -> None:  # by the error of another number
        resource.setrlimit(resource.RLIMIT_FSIZE, (150 << 10, limits[1]))  # SIGXFSZ is ignored

    try:
        result = run_training(config_of(folder, **PACK), on_batch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.history == plain.history
    assert rows_of(result)["packed"] > 0
    (message,) = told(caplog)
    assert "rows are read from the table, unpacked: " in message
    assert "File too large" in message


@pytest.mark.parametrize("error", [TooLargeError, FileFormatError, PermissionError])
def test_whatever_packing_fails_for_is_no_end_of_a_run(
    folder: Path,
    plain: TrainResult,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("this is why")

    def fail_later(epoch: int, done: int, total: int) -> None:
        monkeypatch.setattr("gnnsys.features.packing.record_plans", fail)

    result = run_training(config_of(folder, **PACK), on_batch=fail_later)
    assert result.history == plain.history
    assert rows_of(result)["packed"] > 0
    (message,) = told(caplog)
    assert message == "--pack: rows are read from the table, unpacked: this is why"


def test_a_run_that_packs_nothing_leaves_what_another_one_packs(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "gnnsys-packed"
    other.mkdir()
    options: dict[str, Any] = {"pack": True, "pack_folder": str(tmp_path), "epochs": 1}
    lock = lock_file(tmp_path / "gnnsys-packed.lock")
    assert lock is not None
    with lock:
        train(folder, **options)  # auto: all features fit in memory
        assert other.is_dir()
    train(folder, **options)
    assert not [*tmp_path.glob("gnnsys-packed*")]


def test_two_runs_do_not_pack_in_one_folder(folder: Path, tmp_path: Path) -> None:
    def start_another(epoch: int, done: int, total: int) -> None:
        with pytest.raises(StorageError, match=r"process \d+ .* packs there"):
            train(folder, **PACK, pack_folder=str(tmp_path))
        raise _BrokenOffError

    with pytest.raises(_BrokenOffError):
        run_training(config_of(folder, **PACK, pack_folder=str(tmp_path)), on_batch=start_another)


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": False, "pack_space": "1GB"}, "--pack-space 1GB: goes with --pack"),
        ({"pack": False, "pack_folder": "x"}, "--pack-folder x: goes with --pack"),
        ({"cache": "none"}, "--pack --cache none: packs what a cache misses"),
        ({"policy": "lru"}, "--pack --policy lru: plans an epoch by all of its batches"),
        ({"window": 3}, "--pack --window 3: an epoch is planned over all of its batches"),
        ({"victim_buffer": "1MB"}, "--pack --victim-buffer 1MB"),
        ({"pack_space": "much"}, "--pack-space much: expected a number of bytes"),
        ({"full_batch": True}, "--pack: is for mini-batches"),
        ({"reuse_samples": 0}, "--reuse-samples 0: expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_one_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TrainConfig(dataset="g", **{"pack": True} | options)


def test_ranks_and_features_in_memory_are_refused_and_a_missing_folder_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnsupportedError, match="--pack: the cache of 2 ranks"):
        check_ranks(TrainConfig(dataset="g", pack=True, ranks=2))
    arguments = ["train", str(folder), "--pack", "--cache", "0.1", "--pack-folder", "/nowhere"]
    assert main([*arguments, "--epochs", "1"]) != 0
    assert "--pack-folder /nowhere: no such folder" in capsys.readouterr().err
    assert train(folder, pack=True, epochs=1).history  # auto: all features fit in memory
    (message,) = told(caplog)
    assert message == "--pack: nothing is packed, for memory has room for all features"


def test_without_a_cache_for_want_of_memory_nothing_is_packed_and_it_is_told(
    folder: Path,
    plain: TrainResult,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gnnsys.features.setup.choose_cache", lambda *_: (None, "pread"))
    monkeypatch.setattr(
        "gnnsys.training.packing.process_budget", lambda: SimpleNamespace(left=lambda of: 1000)
    )
    assert train(folder, pack=True).history == plain.history
    (message,) = told(caplog)
    assert message == "--pack: nothing is packed, for there is no cache; --cache gives its size"


def test_predictions_by_samples_pack_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, tmp_path / "run", **PACK | {"epochs": 1})

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("predictions are packed")

    monkeypatch.setattr("gnnsys.training.packing.EpochPacker", refuse)
    options = ["--sampled", "--cache", "0.1", "--storage", "pread"]
    assert main(["predict", str(tmp_path / "run"), *options]) == 0


def test_the_second_planner_is_planned_for(folder: Path, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("plain", "packed")]
    for place, more in zip(places, ({}, {"pack": True}), strict=True):
        train(folder, place, **PACK | {"epochs": 1, "pack": False} | more)
    plain, packed = (
        json.loads((place / "result.json").read_text())["memory"]["names"] for place in places
    )
    assert "planner of --pack" not in plain
    assert packed["planner of --pack"]["planned"] == packed["planner of the cache"]["planned"]
