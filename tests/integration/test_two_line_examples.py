"""The programs of examples/ that are PyG's but for two lines have the same losses without them."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.loader
from torch import Tensor
from torch_geometric.sampler import BaseSampler

import gnnsys

FOLDER = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = {
    # Arguments, and the range of the last score: better than guessing.
    "node_classification": (["--nodes", "600", "--epochs", "2"], (0.5, 1.0)),
    "gat_products": (["--nodes", "1000", "--epochs", "3"], (0.25, 1.0)),
    "link_prediction": (["--nodes", "300", "--epochs", "2"], (0.7, 1.0)),
    "unsupervised_sage": (["--nodes", "300", "--epochs", "2"], (0.6, 1.0)),
    "hetero_classification": (["--papers", "600", "--epochs", "3"], (0.35, 1.0)),
    "temporal_link_prediction": (["--users", "50", "--epochs", "3"], (0.6, 1.0)),
    "rating_regression": (["--epochs", "3"], (0.0, 0.82)),
}
LOADERS = ("NeighborLoader", "LinkNeighborLoader")


class FixedSampler(BaseSampler):
    """Draws by the seeds of a batch alone: told no epoch and no number, whichever loader asks."""

    def __init__(self, sampler: gnnsys.NeighborSampler) -> None:
        self._sampler = sampler

    @property
    def edge_permutation(self) -> Any:
        return self._sampler.edge_permutation

    def sample_from_nodes(self, inputs: Any) -> Any:
        return self._sampler.sample_from_nodes(inputs)

    def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> Any:
        return self._sampler.sample_from_edges(inputs, neg_sampling)


def with_fixed_sampler(loader: Callable[..., Any]) -> Callable[..., Any]:
    """The loader with a sampler of its own arguments, and seeds shuffled as torch does."""
    names = inspect.signature(gnnsys.NeighborSampler).parameters

    def make(data: Any, num_neighbors: Any, **given: Any) -> Any:
        options = {name: given[name] for name in names if name in given}
        sampler = FixedSampler(gnnsys.NeighborSampler(data, num_neighbors, seed=5, **options))
        generator = torch.Generator().manual_seed(7)
        fixed = {"neighbor_sampler": sampler, "generator": generator}
        return loader(data, num_neighbors, **given, **fixed)

    return make


def without_the_lines(source: str) -> str:
    """The program as it was with PyG."""
    source, new = re.subn(r"^.*  # line 1: new\n", "", source, flags=re.M)
    source, old = re.subn(r"gnnsys\.\w+\(  # line 2: was (\S+)$", r"\1(", source, flags=re.M)
    source, imported = re.subn(
        r"^import gnnsys$", "import torch_geometric.loader", source, flags=re.M
    )
    assert (new, old, imported) == (1, 1, 1)
    assert "gnnsys" not in source
    return source


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], list[float]]]:
    """Runs a program with a fixed sampler; returns its losses."""
    for module in (torch_geometric.loader, gnnsys):
        for name in LOADERS:
            monkeypatch.setattr(module, name, with_fixed_sampler(getattr(module, name)))
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the batches are small

    def losses(name: str, source: str) -> list[float]:
        names: dict[str, Any] = {"__name__": name}
        exec(compile(source, f"{name}.py", "exec"), names)
        return names["main"](PROGRAMS[name][0])

    yield losses
    torch.set_num_threads(threads)
    sys.modules.pop("graphs", None)


def test_every_program_with_the_lines_is_tested() -> None:
    marked = {path.stem for path in FOLDER.glob("*.py") if "# line 1: new" in path.read_text()}
    assert marked == PROGRAMS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_losses_are_those_without_the_lines_bit_for_bit(
    name: str,
    run: Callable[[str, str], list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    expected = run(name, without_the_lines(source))
    lowest, highest = PROGRAMS[name][1]
    assert lowest < float(capsys.readouterr().out.split()[-1]) < highest
    assert len(set(expected)) > len(expected) // 2  # they move

    unified, tables = gnnsys.unified, []

    def from_memory(x: Tensor) -> Tensor:
        tables.append(unified(x))
        return tables[-1]

    def from_file(x: Tensor) -> Tensor:
        path = tmp_path / f"{len(tables)}.npy"
        np.save(path, x.numpy())
        tables.append(unified(path, cache="64KB"))
        return tables[-1]

    for unify in (from_memory, from_file):
        tables.clear()
        monkeypatch.setattr(gnnsys, "unified", unify)
        assert run(name, source) == expected
        assert tables
        assert all(table.counters.tiers() for table in tables)  # the rows came from there
