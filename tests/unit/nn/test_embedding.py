"""Embeddings in folders train as torch's in memory: rows, gradients and losses, bit by bit."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    MissingFileError,
    RowIndexError,
    StorageError,
    UnsupportedError,
)
from gnnsys.nn import Adagrad, Embedding, SparseAdam, load_checkpoint, save_checkpoint

ROWS, DIM, PADDING = 300, 5, 17
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adagrad": (torch.optim.Adagrad, Adagrad, {"lr": 0.1, "lr_decay": 0.01}),
    "sparse_adam": (torch.optim.SparseAdam, SparseAdam, {"lr": 0.05, "betas": (0.8, 0.99)}),
}


def make(folder: Path, cache: int = 40, rows: int = ROWS, **options: Any) -> Embedding:
    given = {"optimizer": "adagrad", "padding_idx": PADDING} | options
    return Embedding(rows, DIM, folder=folder, cache=cache, **given)


def rows_of(model: torch.nn.Embedding) -> Tensor:
    if isinstance(model, Embedding):
        return model.store.gather(torch.arange(model.num_embeddings))
    return model.weight.detach()


def losses_of(
    model: torch.nn.Embedding, head: torch.nn.Linear, optimizer: Any, ahead: bool
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    batches = [(torch.rand((2, 3, 20), generator=draw) ** 2 * ROWS).long() for _ in range(200)]
    dense = torch.optim.SGD(head.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.5)
    losses = []
    for number, (left, right) in enumerate(batches):
        if ahead and isinstance(model, Embedding) and number + 1 < len(batches):
            model.prefetch(batches[number + 1][0])
        # Ids that repeat, two lookups of one table in a step, and two backwards at times.
        loss = (head(model(left)) - model(right).sum(-1, keepdim=True)).pow(2).mean()
        loss.backward()
        if number % 5:
            optimizer.step()
            dense.step()
            optimizer.zero_grad()
            dense.zero_grad()
        schedule.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize(("name", "ahead"), [("adagrad", True), ("sparse_adam", False)])
@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.usefixtures("one_thread")
def test_losses_of_200_steps_are_those_of_torch(name: str, ahead: bool, tmp_path: Path) -> None:
    in_memory, in_folder, options = OPTIMIZERS[name]
    runs = []
    for kind in (in_memory, in_folder):
        torch.manual_seed(11)
        if kind is in_memory:
            model = torch.nn.Embedding(ROWS, DIM, PADDING, sparse=True)
        else:
            model = make(tmp_path / "t", optimizer=name)
        start = rows_of(model).clone()
        head = torch.nn.Linear(DIM, 1)
        optimizer = kind(model.parameters(), **options)
        losses = losses_of(model, head, optimizer, ahead)
        runs.append((model, optimizer, [start, torch.stack(losses), rows_of(model)]))
    (theirs, their_optimizer, expected), (ours, _, found) = runs
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[2])
    kept = ours.store.gather_state(torch.arange(ROWS))
    for field, values in kept.items():
        assert torch.equal(values, their_optimizer.state[theirs.weight][field])


def test_gradients_and_rows_are_those_of_torch_for_any_shape_of_ids(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = torch.nn.Embedding(ROWS, DIM, PADDING, sparse=True)
    torch.manual_seed(5)
    ours = make(tmp_path / "t")
    for ids in (
        torch.tensor([[1, PADDING], [1, 299]]),
        torch.empty(0, dtype=torch.long),
        torch.tensor([4, 4], dtype=torch.int32),
    ):
        for model in (theirs, ours):
            model.zero_grad()
            model(ids).pow(2).sum().backward()
        assert torch.equal(ours(ids), theirs(ids))
        assert ours.weight.shape == theirs.weight.shape
        mine, other = ours.weight.grad, theirs.weight.grad
        assert torch.equal(mine.coalesce().indices(), other.coalesce().indices())
        assert torch.equal(mine.coalesce().values(), other.coalesce().values())


@pytest.mark.parametrize("rows", [1, 3, 100, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_drawn_as_torch_draws_them(
    rows: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnnsys.cache.embedding.table._BLOCK_BYTES", 1000)
    torch.manual_seed(rows)
    expected = torch.nn.Embedding(rows, DIM, 0, dtype=dtype).weight.detach()
    torch.manual_seed(rows)
    assert torch.equal(rows_of(make(tmp_path / "t", 5, rows, padding_idx=0, dtype=dtype)), expected)


def test_an_embedding_is_a_module_that_is_moved_and_saved_without_its_rows(tmp_path: Path) -> None:
    model = torch.nn.Sequential(make(tmp_path / "t"), torch.nn.Linear(DIM, 2))
    model.double().to("cpu").eval().requires_grad_(False).requires_grad_(True)
    assert model[0].weight.dtype == torch.float32
    assert isinstance(model[0], torch.nn.Embedding)
    assert "folder=" in repr(model)
    assert [*model.state_dict()] == ["1.weight", "1.bias"]
    model.load_state_dict(model.state_dict())
    assert len([*model.parameters()]) == 3
    with torch.no_grad():
        assert model[0](torch.tensor([2])).shape == (1, DIM)


def test_what_would_need_the_rows_in_memory_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "t")
    model(torch.tensor([3])).sum().backward()
    for attempt in (
        lambda: model.weight + 1,
        lambda: model.weight.data.zero_(),
        lambda: torch.optim.Adagrad(model.parameters()),
        lambda: torch.optim.SparseAdam(model.parameters()).step(),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model.weight),
        lambda: pickle.dumps(model.store),
        lambda: model.load_state_dict({"weight": torch.zeros(ROWS, DIM)}),
        lambda: Embedding.from_pretrained(torch.zeros(3, 2)),
    ):
        with pytest.raises(UnsupportedError, match=r"weight: |from_pretrained|pickled"):
            attempt()
    assert "StoredWeight" in repr(model.weight)


def test_bad_input_is_told(tmp_path: Path) -> None:
    model = make(tmp_path / "t")
    with pytest.raises(RowIndexError, match="id 300 at position 1 is outside"):
        model(torch.tensor([0, ROWS]))
    model.store.close()
    for options in ({"rows": 299}, {"optimizer": "sparse_adam"}, {"dtype": torch.float64}):
        with pytest.raises(ArgumentError, match=r"folder: .*expected"):
            make(tmp_path / "t", **options)
    for options in (
        {"optimizer": "sgd"},
        {"padding_idx": ROWS},
        {"padding_idx": 1.5},
        {"padding_idx": True},
    ):
        with pytest.raises(ArgumentError, match="expected"):
            make(tmp_path / "u", **options)
    model = make(tmp_path / "t")
    dense = torch.nn.Linear(2, 2)
    for call in (
        lambda: Adagrad(dense.parameters()),
        lambda: SparseAdam(model.parameters()),
        lambda: Adagrad(model.parameters(), lr=-1),
        lambda: SparseAdam(model.parameters(), betas=(0.5, 1.0)),
    ):
        with pytest.raises(ArgumentError, match=r"params|lr|betas"):
            call()
    optimizer = Adagrad(model.parameters())
    with pytest.raises(ArgumentError, match="params"):
        optimizer.add_param_group({"params": dense.parameters()})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(TypeError, match="positional"):  # the fourth of torch is weight_decay
        Adagrad(model.parameters(), 0.1, 0.0, 0.01)
    model.weight.grad = torch.zeros(ROWS, DIM)
    with pytest.raises(UnsupportedError, match="not sparse"):
        optimizer.step()
    theirs = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(ROWS, DIM))])
    with pytest.raises(ArgumentError, match="sum"):
        optimizer.load_state_dict(theirs.state_dict())


# Checkpoints -------------------------------------------------------------------------------------


def step(model: Embedding, optimizer: Any, *ids: int) -> None:
    optimizer.zero_grad()
    model(torch.tensor(ids)).pow(2).sum().backward()
    optimizer.step()


def test_a_checkpoint_brings_back_rows_state_and_steps(tmp_path: Path) -> None:
    model = make(tmp_path / "t", optimizer="sparse_adam")
    optimizer = SparseAdam(model.parameters())
    step(model, optimizer, 1, 2)
    save_checkpoint(tmp_path / "c.pt", model, {"optimizer": optimizer.state_dict()})
    step(model, optimizer, 2, 3)
    expected = rows_of(model).clone()
    for reopen in (False, True):
        if reopen:
            model.store.close()
            model = make(tmp_path / "t", optimizer="sparse_adam")
            optimizer = SparseAdam(model.parameters())
        state = load_checkpoint(tmp_path / "c.pt", model)
        optimizer.load_state_dict(state["optimizer"])
        step(model, optimizer, 2, 3)
        assert torch.equal(rows_of(model), expected)


def test_a_checkpoint_that_cannot_be_written_is_the_one_before(tmp_path: Path) -> None:
    model = make(tmp_path / "t")
    optimizer = Adagrad(model.parameters())
    step(model, optimizer, 1)
    save_checkpoint(tmp_path / "c.pt", model, {"number": 1})
    saved = rows_of(model).clone()
    step(model, optimizer, 1)
    with pytest.raises(StorageError, match="cannot be written"):
        save_checkpoint(tmp_path / "none" / "c.pt", model, {"number": 2})
    model.store.close()
    model = make(tmp_path / "t")
    assert load_checkpoint(tmp_path / "c.pt", model) == {"number": 1}
    assert torch.equal(rows_of(model), saved)


def test_a_checkpoint_of_others_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = make(tmp_path / "t")
    path = tmp_path / "c.pt"
    with pytest.raises(MissingFileError, match="no such file"):
        load_checkpoint(path, model)
    path.write_bytes(b"no")
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        load_checkpoint(path, model)
    save_checkpoint(path, model, {})
    before = rows_of(model).clone()
    others = {
        "other state": make(tmp_path / "a", optimizer="sparse_adam"),
        "other table": make(tmp_path / "b"),
        "other shape": make(tmp_path / "d", rows=50),
        "other names": torch.nn.Sequential(make(tmp_path / "e")),
    }
    for other in others.values():
        with pytest.raises(ArgumentError, match=r"c\.pt: .*(state|id|shape|embeddings)"):
            load_checkpoint(path, other)
    for damage in ({"state": ("exp_avg",)}, {"version": 5}):
        saved = torch.load(path)
        saved["tables"][""] |= damage
        torch.save(saved, tmp_path / "d.pt")
        with pytest.raises(ArgumentError, match=r"state|version"):
            load_checkpoint(tmp_path / "d.pt", model)
    assert torch.equal(rows_of(model), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_tables_of_one_model_go_together_wherever_a_checkpoint_fails(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict({n: make(folder / n, threads=1) for n in ("users", "goods")})

    def train(model: torch.nn.ModuleDict) -> list[Tensor]:
        for each in model.values():
            step(each, Adagrad(each.parameters()), 1, 2)
        return [rows_of(each).clone() for each in model.values()]

    monkeypatch.setattr("gnnsys.cache.embedding.files._LEAST_LOG_BYTES", 20000)
    first = int.from_bytes(os.urandom(1), "little") % 4 + 1  # all of them take too long
    print(f"first {first}")
    for at in itertools.count(first, 4):
        folder, left = tmp_path / f"{at}", [at]
        model = build(folder)
        versions = {1: train(model)}
        save_checkpoint(folder / "c.pt", model, {"number": 1})
        versions[2] = train(model)

        def wrapped(done: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0 and error is OSError:
                    raise error(28, "No space left on device")
                result = done(*args, **options)
                if left[0] == 0:
                    raise error
                return result

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "fsync", "rename"):
                patch.setattr(os, name, wrapped(getattr(os, name)))
            with contextlib.suppress(KeyboardInterrupt, StorageError):
                save_checkpoint(folder / "c.pt", model, {"number": 2})
        with contextlib.suppress(ArgumentError):  # interrupted between the decisions for tables
            train(model)  # goes on
        for each in model.values():
            each.store.close()
        model = build(folder)
        number = load_checkpoint(folder / "c.pt", model)["number"]
        assert all(map(torch.equal, map(rows_of, model.values()), versions[number])), at
        if left[0] > 0:
            assert number == 2
            break
        for each in model.values():
            each.store.close()


def test_training_goes_on_where_one_table_cannot_follow_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.ModuleDict({name: make(tmp_path / name) for name in ("users", "goods")})
    optimizers = [Adagrad(each.parameters()) for each in model.values()]
    for each, optimizer in zip(model.values(), optimizers, strict=True):
        step(each, optimizer, 1, 2)
    saved = [rows_of(each).clone() for each in model.values()]

    def full(files: Any) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("gnnsys.cache.embedding.files.RowFiles.apply", full)
        with pytest.raises(StorageError, match="disk full"):
            save_checkpoint(tmp_path / "c.pt", model, {})
    for each, optimizer in zip(model.values(), optimizers, strict=True):
        step(each, optimizer, 1, 2)
    assert load_checkpoint(tmp_path / "c.pt", model) == {}
    assert all(map(torch.equal, map(rows_of, model.values()), saved))


def test_a_checkpoint_is_durable_before_its_tables_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path / "t")
    step(model, Adagrad(model.parameters()), 1)
    told: list[tuple[str, str]] = []
    fsync, replaced, renamed = os.fsync, os.replace, os.rename

    def fsync_(handle: int) -> None:
        told.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def moved(done: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            told.append(("to", os.path.basename(target)))
            done(source, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync_)
    monkeypatch.setattr(os, "replace", moved(replaced))
    monkeypatch.setattr(os, "rename", moved(renamed))
    save_checkpoint(tmp_path / "c.pt", model, {})
    ours = [each for each in told if each[0] == "to" or each[1] in (tmp_path.name, "t", "rows.npy")]
    assert ours == [
        ("to", "prepared.bin"), ("sync", "t"),
        ("to", "c.pt"), ("sync", tmp_path.name),
        ("to", "committed.bin"), ("sync", "t"),
        ("sync", "rows.npy"), ("to", "table.json"), ("sync", "t"),
        ("sync", "t"),  # committed.bin is removed
    ]  # fmt: skip


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[3] / "docs" / "embeddings.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, page, "exec"), names)
    assert names["state"]["batch"] == 19
    assert names["goods"].store.version == 2
