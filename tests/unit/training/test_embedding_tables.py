"""The tables of a model beside a run: their best rows, and gradients that would spoil them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.nn import Embedding, SparseAdam
from gnnsys.training.embedding_tables import EmbeddingTables

ROWS = torch.arange(20)


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.ModuleDict:
    table = Embedding(20, 3, folder=tmp_path / "a", optimizer="sparse_adam", cache=4)
    return torch.nn.ModuleDict({"a": table, "head": torch.nn.Linear(3, 1)})


def step(model: torch.nn.ModuleDict, scale: float = 1.0) -> None:
    model.zero_grad()
    (scale * model["head"](model["a"](ROWS[3:9]))).sum().backward()
    SparseAdam(model["a"].parameters(), lr=0.1).step()


def test_best_rows_are_those_of_their_epoch_until_a_checkpoint_names_others(
    model: torch.nn.ModuleDict, tmp_path: Path
) -> None:
    tables, path, kept = EmbeddingTables(model, threads=1), tmp_path / "c.pt", {}
    for epoch in (1, 2):
        step(model)
        tables.keep_best(epoch)
        kept[epoch] = model["a"](ROWS).detach()
    step(model)
    trained = model["a"]
    with tables.judging(), torch.no_grad():
        assert torch.equal(model["a"](ROWS), kept[2])
        assert torch.equal(model["a"].rows[ROWS], kept[2])
    assert model["a"] is trained
    last = trained(ROWS)
    assert not torch.equal(last, kept[2])
    with pytest.raises(ZeroDivisionError), tables.committing(path):
        raise ZeroDivisionError
    with tables.committing(path) as saved:
        path.write_bytes(b"a checkpoint")
    for epoch in (3, 4):  # the one that the checkpoint names stays
        step(model)
        tables.keep_best(epoch)
        kept_now = {each.name for each in tmp_path.glob("a.best-*")}
        assert kept_now == {"a.best-2.npy", f"a.best-{epoch}.npy"}
    tables.restore(saved, 2, path)
    assert torch.equal(trained(ROWS), last)
    with pytest.raises(ArgumentError, match=r"c\.pt: of the embeddings none, but"):
        tables.restore({}, 2, path)
    for spoil in (lambda file: np.save(file, kept[1][1:]), Path.unlink):
        spoil(tmp_path / "a.best-2.npy")
        with pytest.raises(MissingFileError, match=r"epoch 2 was the best, but .*\(20, 3\); bring"):
            tables.restore(saved, 2, path)


def test_of_best_epochs_before_a_checkpoint_the_last_alone_stays(
    model: torch.nn.ModuleDict, tmp_path: Path
) -> None:
    tables = EmbeddingTables(model, threads=1)
    for epoch in (1, 3, 4):
        tables.keep_best(epoch)
        assert [each.name for each in tmp_path.glob("a.best-*")] == [f"a.best-{epoch}.npy"]


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_are_seen(model: torch.nn.ModuleDict, scale: float) -> None:
    tables = EmbeddingTables(model, threads=1)
    step(model)
    tables.look_at_gradients()
    assert tables.finite
    step(model, scale)
    tables.look_at_gradients()
    assert not tables.finite
    step(model)
    tables.look_at_gradients()  # the rows stay as they are
    assert not tables.finite
