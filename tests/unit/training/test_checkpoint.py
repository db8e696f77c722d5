"""Files of a run: what they hold, what writing them takes, what a full disk leaves."""

from __future__ import annotations

import copy
import json
import random
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from gnnsys.training.checkpoint import (
    CHECKPOINT,
    WEIGHTS,
    Checkpoint,
    RunState,
    fit_state,
    load_checkpoint,
    load_shards,
    load_state,
    load_weights,
    save_checkpoint,
    save_shards,
    snapshot_names,
    state_names,
    state_shard,
)


def checkpoint_of(model: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(
        config={"model": "sage"},
        dataset="none",
        state=RunState(epoch=3, best_epoch=2),
        model=model,
        best_model=None,
        optimizer={},
        torch_rng=torch.get_rng_state(),
        cuda_rng=[],
    )


def test_safetensors_reads_the_weights_as_they_were(tmp_path: Path) -> None:
    model = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, 6, dtype=torch.float64).t(),
        "c": torch.tensor(7),
        "d": torch.randn(2, 3).bfloat16(),
        "e": torch.tensor([True, False, True]),
        "f": torch.empty(0, 4),
        "g": torch.arange(9.0)[::4][1:2],  # contiguous, though its stride is 4
    }
    save_checkpoint(tmp_path, checkpoint_of(model))
    found = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safetensors.safe_open(tmp_path / WEIGHTS, "pt") as file:
        about = file.metadata()
    assert json.loads(about.pop("crc32")).keys() == model.keys()
    assert about == {"model": "sage"}
    again = load_checkpoint(tmp_path)
    assert again.state == RunState(epoch=3, best_epoch=2)
    assert all(torch.equal(again.model[name], tensor) for name, tensor in model.items())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["weights", "checkpoint", "snapshot"])
def test_damage_of_any_tensor_is_noticed(kind: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    model = torch.nn.Linear(64, 64)
    save_checkpoint(tmp_path, checkpoint_of(dict(model.state_dict())))
    names = snapshot_names(1, 1)
    save_shards(tmp_path, names, {0: dict(model.state_dict())})

    def load() -> None:
        if kind == "weights":
            load_weights(tmp_path, model)
        elif kind == "checkpoint":
            load_checkpoint(tmp_path)
        else:
            (shard,) = load_shards(tmp_path, names)
            assert [shard[name].shape for name in shard]

    load()
    name = {"weights": WEIGHTS, "checkpoint": "checkpoint.pt", "snapshot": names[0]}[kind]
    content = bytearray((tmp_path / name).read_bytes())
    weights = model.weight.detach().numpy().tobytes()
    begin = content.index(weights) + draw.randrange(len(weights) - 200)
    content[begin : begin + 200] = bytes(200)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=f"{name}: .*checksum"):
        load()


def test_writing_takes_no_copy_of_what_is_written(
    tmp_path: Path, run_forked: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    script = f"""
        import resource, sys
        from pathlib import Path
        import torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_checkpoint import checkpoint_of
        from gnnsys.training.checkpoint import save_checkpoint, save_shards, snapshot_names
        run = Path()
        small = {{"w": torch.ones(8)}}
        save_checkpoint(run, checkpoint_of(small))
        save_shards(run, snapshot_names(0, 1), {{0: small}})
        large = {{"w": torch.ones(16 << 20)}}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        save_checkpoint(run, checkpoint_of(large))
        save_shards(run, snapshot_names(1, 1), {{0: large}})
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    told = run_forked(script, tmp_path)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) < 16 << 20  # of 64 MiB that each file holds


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    old, new = {"w": torch.zeros(8)}, {"w": torch.ones(1 << 20)}
    save_checkpoint(tmp_path, checkpoint_of(old))
    names = snapshot_names(0, 2)
    save_shards(tmp_path, names, {1: old})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(StorageError, match=f"{WEIGHTS}: cannot be written"):
            save_checkpoint(tmp_path, checkpoint_of(new))
        few = checkpoint_of(old)
        few.optimizer = new
        with pytest.raises(StorageError, match=f"{CHECKPOINT}: cannot be written"):
            save_checkpoint(tmp_path, few)
        with pytest.raises(StorageError, match=r"snapshot-0-1-of-2\.safetensors: cannot be "):
            save_shards(tmp_path, names, {1: new})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(load_checkpoint(tmp_path).model["w"], old["w"])
    (shard,) = load_shards(tmp_path, names[1:])
    assert torch.equal(shard["w"], old["w"])
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, CHECKPOINT, names[1]}


def test_sizes_of_padding_from_before_each_rank_had_its_own_are_rank_0_s(tmp_path: Path) -> None:
    kept = checkpoint_of({"w": torch.ones(1)})
    kept.state.padded_sizes = ([33, 65], [64])
    save_checkpoint(tmp_path, kept)
    assert load_checkpoint(tmp_path).state.padded_sizes == [([33, 65], [64])]


def test_parts_of_ranks_make_the_checkpoint_of_one_process(tmp_path: Path) -> None:
    one, parts = tmp_path / "one", tmp_path / "parts"
    model = {name: torch.randn(3) for name in ("z", "layers.10.w", "layers.9.w")}
    best = {name: value + 1 for name, value in model.items()}
    moments = {name: {"step": torch.tensor(4.0), "avg": value} for name, value in model.items()}
    whole = checkpoint_of(model)
    whole.best_model, whole.optimizer = best, moments
    halves = [["z"], ["layers.10.w", "layers.9.w"], []]
    names: list[str] = []
    for number in (1, 2, 3):
        before, names = names, state_names(3, names)
        assert not {*names} & {*before}
        shards = {
            rank: state_shard(*({n: each[n] for n in half} for each in (model, best, moments)))
            for rank, half in enumerate(halves)
        }
        parts.mkdir(exist_ok=True)
        save_shards(parts, names, shards)
        assert len([*parts.glob("state-*")]) == min(3 * number, 6)  # with those of before
        divided = checkpoint_of({})
        for name, value in load_state(parts, names).items():
            setattr(divided, name, value)
        divided.state_files = names
        save_checkpoint(parts, divided)
        assert sorted(path.name for path in parts.glob("state-*")) == names
    one.mkdir()
    save_checkpoint(one, whole)
    assert (one / WEIGHTS).read_bytes() == (parts / WEIGHTS).read_bytes()
    again = load_checkpoint(parts)
    assert again.best_model is not None
    for found, wanted in ((again.model, model), (again.best_model, best)):
        assert [*found] == [*wanted]
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for name, kept in moments.items():
        assert {key: value.tolist() for key, value in again.optimizer[name].items()} == {
            key: value.tolist() for key, value in kept.items()
        }
    assert load_state(parts, names[2:]) == {"model": {}, "best_model": None, "optimizer": {}}


def moments_of(value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(1.0), "exp_avg": value, "exp_avg_sq": value}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda kept: kept.optimizer["state"][1].update(exp_avg=torch.zeros(3)),
            r"model: the optimizer's exp_avg of bias is \(3,\), expected \(2,\)",
        ),
        (
            lambda kept: kept.optimizer["state"][1].update(exp_avg=torch.tensor(0.0)),
            r"model: the optimizer's exp_avg of bias is \(\), expected \(2,\)",
        ),
        (
            lambda kept: kept.optimizer["state"][1].pop("exp_avg"),
            "optimizer: it has exp_avg_sq, step of bias, expected exp_avg, exp_avg_sq, step",
        ),
        (
            lambda kept: kept.optimizer["param_groups"][0]["params"].append(2),
            "model: its optimizer has 3 parameters, expected 2",
        ),
        (  # as pipelines have it
            lambda kept: setattr(kept, "optimizer", {"weight": moments_of(torch.zeros(5))}),
            r"model: the optimizer's exp_avg of weight is \(5,\), expected \(2, 4\)",
        ),
        (lambda kept: setattr(kept, "best_model", {}), "model: bias is missing, expected float32"),
    ],
)
def test_state_of_another_shape_is_refused_and_changes_no_weight(
    change: Callable[[Checkpoint], None], told: str
) -> None:
    trained, model = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    optimizer, new = (torch.optim.Adam(each.parameters()) for each in (trained, model))
    trained(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    kept = checkpoint_of(trained.state_dict())
    kept.optimizer = optimizer.state_dict()
    before = model.weight.clone()
    damaged = copy.deepcopy(kept)
    change(damaged)
    with pytest.raises(ArgumentError, match=rf"c\.pt: of another {told}"):
        fit_state(model, new, damaged, Path("c.pt"))
    assert torch.equal(model.weight, before)
    fit_state(model, new, kept, Path("c.pt"))
    assert torch.equal(model.weight, trained.weight)


def test_shards_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    names = snapshot_names(4, 2)
    save_shards(tmp_path, names, {0: {"w": torch.randn(40, 3)}})
    shards = load_shards(tmp_path, names)
    assert [*next(shards)] == ["w"]
    with pytest.raises(MissingFileError, match=r"snapshot-4-1-of-2\.safetensors: no such file"):
        next(shards)
    path = tmp_path / names[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match=r"snapshot-4-0-of-2\.safetensors: not a whole"):
        next(load_shards(tmp_path, names))
