"""``gnnsys train --task link`` where links have times: what it sees, and what it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.link_ranking import fill_top_ids
from gnnsys.training.link_steps import LinkMiniBatch
from gnnsys.training.link_task import LinkTask
from gnnsys.training.loop import run_training
from gnnsys.training.models import make_model
from gnnsys.training.pipeline_steps import make_steps
from gnnsys.training.seed_times import settle_times

sys.path.insert(0, str(Path(__file__).parent))
from link_folders import ITEMS, LIKES, USERS, held_folder, shop

pytestmark = pytest.mark.usefixtures("one_thread")

BACK = "item", "rev_likes", "user"
FIRST = 60
"""Time of the first link to validate on; links to train on have times from 0 to 99."""


def config_of(folder: Path, **options: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "task": "link", "epochs": 1, "batch_size": 256, "hidden": 16, "fanouts": (4, 3),
        "dropout": 0.0, "device": "cpu", "model": "rgcn",
    }  # fmt: skip
    return TrainConfig(dataset=str(folder), **{**given, **options})


def timed_shop(path: Path, first: int = FIRST) -> tuple[Path, Any]:
    data, held = shop()
    draw = torch.Generator().manual_seed(0)
    data[LIKES].time = torch.randint(100, (data[LIKES].num_edges,), generator=draw)
    data[BACK].time = data[LIKES].time.clone()  # of reverses, in the same order
    times = {"val": first + torch.arange(100), "test": first + 5 + torch.arange(100)}
    return held_folder(path, data, held, LIKES, times), data


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return timed_shop(tmp_path_factory.mktemp("timed") / "shop")


def steps_of(folder: Path, **options: Any) -> tuple[LinkMiniBatch, LinkTask, Any]:
    run = settle_times(resolve(config_of(folder, **options)))
    dataset = load_run_dataset(run)
    model = make_model(run, dataset)
    steps = make_steps(run, dataset, model, None)
    assert isinstance(steps, LinkMiniBatch)
    assert isinstance(dataset.task, LinkTask)
    return steps, dataset.task, model


def test_embeddings_of_evaluation_see_what_was_there_at_the_parts_first_link(
    timed: tuple[Path, Any],
) -> None:
    folder, data = timed
    steps, _, model = steps_of(folder, fanouts=(-1, -1))
    model.eval()
    ids = {"user": torch.arange(USERS), "item": torch.arange(ITEMS)}

    def seen(until: int) -> Any:
        """By the whole graph of the edges that are no newer."""
        edges = {kind: data[kind].edge_index[:, data[kind].time <= until] for kind in (LIKES, BACK)}
        with torch.no_grad():
            return model({"user": data["user"].x}, edges, ids)

    for part, until in (("val", FIRST), ("test", FIRST + 5)):
        found, expected = steps.embeddings(part), seen(until)
        for kind in ids:
            torch.testing.assert_close(found[kind], expected[kind])
            assert not torch.allclose(found[kind], seen(until - 1)[kind])
            assert not torch.allclose(found[kind], seen(100)[kind])


def test_messages_of_both_types_are_no_newer_than_their_link(timed: tuple[Path, Any]) -> None:
    folder, data = timed
    steps, task, _ = steps_of(folder, negatives=2)
    when = task.links("train").time
    assert when is not None
    pairs = zip(*data[LIKES].edge_index.tolist(), strict=True)
    known = dict(zip(pairs, data[LIKES].time.tolist(), strict=True))
    for batch in steps.batches(0, 0):
        limit = when[batch[LIKES].input_id]
        for kind, (user, item) in ((LIKES, (0, 1)), (BACK, (1, 0))):
            index = batch[kind].edge_index
            ends = batch["user"].n_id[index[user]], batch["item"].n_id[index[item]]
            pairs = zip(*(each.tolist() for each in ends), strict=True)
            ages = torch.tensor([known[pair] for pair in pairs])
            assert len(ages)
            assert (ages <= limit[batch[kind[2]].batch[index[1]] % len(limit)]).all()


def nbytes(batch: Any) -> int:
    tensors = (value for store in batch.stores for value in store.values())
    return sum(value.nbytes for value in tensors if isinstance(value, Tensor))


def test_batches_are_planned_as_large_as_they_are(timed: tuple[Path, Any]) -> None:
    folder, _ = timed
    options: dict[str, Any] = {"negatives": 4, "negative_sampling": "hard", "fanouts": (10, 10)}
    names = run_training(config_of(folder, **options)).memory["names"]
    steps, task, _ = steps_of(folder, **options)
    first = next(iter(steps.batches(0, 0)))
    assert names["batches under way"]["planned"] / 3 == pytest.approx(nbytes(first), rel=0.2)
    train = task.num_seeds("train")
    assert names["links"] == dict.fromkeys(("planned", "held"), 40 * train)
    # Of one part's first link at a time.
    embeddings = dict.fromkeys(("planned", "held"), 4 * 16 * (USERS + ITEMS))
    assert names["embeddings of evaluation"] == embeddings
    tables = 2 * 4 * USERS * 32
    blocks = 2 * USERS * (4 * 16 + 12 * 32)
    assert names["negatives"]["planned"] == (24 + 64) * train + tables + blocks


def test_an_almost_empty_graph_to_judge_by_is_told_once(
    timed: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early, data = timed_shop(tmp_path / "early", first=10)
    known = int((data[LIKES].time <= 10).sum())
    for folder in (timed[0], early, early):
        steps_of(folder)
    found = [each.getMessage() for each in caplog.records if "first of them" in each.getMessage()]
    assert found == [
        f"{early}: links held out are judged as the first of them sees the graph, with {known} of "
        f"{data[LIKES].num_edges} links to train on; gnnsys convert --hold-out-by time, or "
        "--ignore-times, shows more"
    ]


def test_the_ids_of_the_top_fill_a_table_block_by_block() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randn(n, 4, generator=draw) for n in (600, 50))
    known = torch.stack([torch.arange(600), torch.arange(600) % 50])
    table = torch.empty(600, 5, dtype=torch.int32)
    assert fill_top_ids(table, queries, candidates, known=known, block_bytes=1) is table
    scores = queries @ candidates.t()
    scores[known[0], known[1]] = -torch.inf
    assert torch.equal(table.long(), scores.topk(5).indices)
