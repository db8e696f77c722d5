"""What autograd keeps between the forwards and backwards of a pipeline, handed to a context."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch_geometric.data import Data

from gnnsys.pipeline import GNNPipe, deep_layers
from gnnsys.pipeline.models import DEEP_MODELS

NODES = 60


def graph() -> Data:
    draw = torch.Generator().manual_seed(2)
    data = Data(
        x=torch.randn(NODES, 5, generator=draw),
        edge_index=torch.randint(0, NODES, (2, 300), generator=draw),
        y=torch.randint(0, 3, (NODES,), generator=draw),
    )
    data.train_mask = torch.rand(NODES, generator=draw) < 0.5
    return data


class ToFiles(TorchFunctionMode):
    """Keeps what autograd saves in files of a folder, and no tensor in memory.

    Each block is a step, which must come to its end before another begins, and whose files are gone
    then. Functions of torch pass it, too.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._hooks = folder, saved_tensors_hooks(self._write, self._read)
        self._thread: int | None = None
        self.steps: list[list[Path]] = []
        self.read: set[Path] = set()
        self.calls = 0

    def __enter__(self) -> ToFiles:
        assert self._thread is None
        self._thread = threading.get_ident()
        self.steps.append([])
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)
        self._thread = None
        for path in self.steps[-1]:
            path.unlink()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))

    def _write(self, x: Tensor) -> Path:
        assert threading.get_ident() == self._thread
        path = self._folder / f"{len(self.steps)}-{len(self.steps[-1])}"
        self.steps[-1].append(path)
        torch.save(x, path)
        return path

    def _read(self, path: Path) -> Tensor:
        assert threading.get_ident() == self._thread
        self.read.add(path)
        return torch.load(path)


@pytest.mark.parametrize("model", DEEP_MODELS)
@pytest.mark.parametrize(("stages", "ways", "chunks"), [(2, 1, 4), (1, 2, 2)])
def test_where_tensors_are_kept_does_not_change_a_bit(
    tmp_path: Path, model: str, stages: int, ways: int, chunks: int
) -> None:
    layers = deep_layers(model, in_channels=5, hidden=8, out_channels=3, layers=3, dropout=0.3)
    saving = ToFiles(tmp_path)
    runs = []
    for context in (None, saving):
        pipe = GNNPipe(
            layers, graph(), stages=stages, ways=ways, chunks=chunks, seed=3, saving=context
        )
        optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
        runs.append(([pipe.train_epoch(optimizer) for _ in range(3)], pipe.state_dict()))
        pipe.evaluate()
    # A step for each epoch, of all stages, ways and chunks, and none for evaluation.
    assert len(saving.steps) == 3
    for written in saving.steps:
        assert len(written) >= 3 * chunks
        assert saving.read.issuperset(written)
    assert saving.calls > 0
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
