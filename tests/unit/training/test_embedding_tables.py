"""The tables of a model beside a run: their best rows, and gradients that would spoil them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gnnsys.errors import ArgumentError
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
    assert len([*tmp_path.glob("a.best-*")]) == 2
    with tables.committing(path) as saved:
        path.write_bytes(b"a checkpoint")
    assert [each.name for each in tmp_path.glob("a.best-*")] == ["a.best-2.npy"]
    step(model)
    tables.restore(saved, 2, path)
    assert torch.equal(trained(ROWS), last)
    with pytest.raises(ArgumentError, match=r"c\.pt: of the embeddings none, but"):
        tables.restore({}, 2, path)


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
