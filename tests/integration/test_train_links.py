"""``gnnsys train --task link`` on dataset folders with types and without."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn.models import GraphSAGE

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.loaders import LinkNegatives, degree_weights
from gnnsys.report.page import about
from gnnsys.report.reader import read_run
from gnnsys.training.checkpoint import load_weights
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.link_models import HeteroEmbedder, LinkModel
from gnnsys.training.link_task import LinkTask, stacked
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.models import NodeClassifier, make_model
from gnnsys.training.pipeline_steps import make_steps

sys.path.insert(0, str(Path(__file__).parent))
from link_folders import ITEMS, LIKES, SMALL, USERS, held_folder, shop, train, web

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return held_folder(tmp_path_factory.mktemp("typed") / "shop", *shop(), LIKES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return held_folder(tmp_path_factory.mktemp("plain") / "web", *web())


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


def graph_of(folder: Path) -> Any:
    """The folder's edges and features, in memory."""
    dataset = gnnsys.open_dataset(folder)
    if not dataset.heterogeneous:
        x = torch.from_numpy(dataset.node_table("features").copy())
        return Data(x=x, edge_index=dataset.edge_index())
    data = HeteroData()
    for kind in dataset.node_types:
        data[kind].num_nodes = dataset.num_nodes(kind)
        if dataset.has("features", kind):
            data[kind].x = torch.from_numpy(dataset.node_table("features", kind).copy())
    for of in dataset.edge_types:
        data[of].edge_index = dataset.edge_index(of)
    return data


def embed_typed(model: LinkModel, batch: HeteroData, ids: dict[str, Tensor]) -> tuple[Tensor, ...]:
    x = {"user": batch["user"].x}
    out = model(x, batch.edge_index_dict, ids)
    return out["user"], out["item"]


def test_losses_on_types_are_those_of_a_plain_loop(typed: Path) -> None:
    result = train(typed, model="rgcn", negatives=3, negative_sampling="degree", epochs=1)
    data = graph_of(typed)
    links = data[LIKES].edge_index
    torch.manual_seed(0)
    net = HeteroEmbedder(
        "rgcn", ["user", "item"], in_channels={"user": 8},
        num_nodes={"user": USERS, "item": ITEMS}, edge_types=data.edge_types, hidden=16, layers=2,
        dropout=0.0,
    )  # fmt: skip
    model = LinkModel(net, 16, "dot")
    decay = result.config.weight_decay
    rows = net.inputs["item"].weight
    others = [each for each in model.parameters() if each is not rows]
    optimizers = (
        torch.optim.Adam(others, lr=result.config.lr, weight_decay=decay),
        torch.optim.SparseAdam([rows], lr=result.config.lr),
    )
    weight = degree_weights(links[1], ITEMS)
    loader = gnnsys.LinkNeighborLoader(
        data, [4, 3], (LIKES, links), batch_size=256, shuffle=True, seed=0, hide_links=True,
        neg_sampling=LinkNegatives("triplet", 3, dst_weight=weight, known=links),
    )  # fmt: skip
    total = 0.0
    for batch in loader:
        model.zero_grad()
        user, item = embed_typed(model, batch, {k: batch[k].n_id for k in batch.node_types})
        source = user[batch["user"].src_index]
        positive = (source * item[batch["item"].dst_pos_index]).sum(1)
        negative = (source[:, None] * item[batch["item"].dst_neg_index]).sum(2)
        loss = -F.logsigmoid(positive[:, None] - negative).mean()
        loss.backward()
        for each in optimizers:
            each.step()
        total += loss.item() * len(source)
    assert losses(result)[0] == pytest.approx(total / links.shape[1], rel=1e-5)


@pytest.mark.parametrize("way", ["bce", "in-batch"])
def test_losses_without_types_are_those_of_a_plain_loop(plain: Path, way: str) -> None:
    given = {"negative_sampling": way} if way == "in-batch" else {"link_loss": way, "negatives": 2}
    result = train(plain, model="sage", decoder="distmult", epochs=1, **given)
    data = graph_of(plain)
    links = data.edge_index
    torch.manual_seed(0)
    encoder = NodeClassifier(
        "sage", in_channels=8, hidden=16, out_channels=16, layers=2, dropout=0.0
    )
    relation = nn.Parameter(torch.ones(16))
    decay = result.config.weight_decay
    weights = [*encoder.parameters(), relation]
    optimizer = torch.optim.Adam(weights, lr=result.config.lr, weight_decay=decay)
    asked = None if way == "in-batch" else LinkNegatives("triplet", 2, known=links)
    loader = gnnsys.LinkNeighborLoader(
        data, [4, 3], links, batch_size=256, shuffle=True, seed=0, hide_links=True,
        neg_sampling=asked,
    )  # fmt: skip
    total, share = 0.0, torch.bincount(links[1], minlength=USERS) / links.shape[1]
    for batch in loader:
        optimizer.zero_grad()
        out = encoder(batch.x, batch.edge_index)
        if way == "in-batch":
            source, target = batch.edge_label_index
            ids = links[1, batch.input_id]
            scores = (out[source] * relation) @ out[target].t() - share[ids].log()
            same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
            loss = F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(ids)))
        else:
            rows = out[batch.src_index] * relation
            positive = (rows * out[batch.dst_pos_index]).sum(1)
            negative = (rows[:, None] * out[batch.dst_neg_index]).sum(2)
            truth = torch.cat([torch.ones(len(rows)), torch.zeros(negative.numel())])
            scores = torch.cat([positive, negative.flatten()])
            loss = F.binary_cross_entropy_with_logits(scores, truth)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch.input_id)
    assert losses(result)[0] == pytest.approx(total / links.shape[1], rel=1e-5)


def brute_force_mrr(source: Tensor, target: Tensor, links: Tensor, known: Tensor) -> float:
    """Filtered, of scores without ties."""
    answers = {(int(a), int(b)) for a, b in known.t()}
    found = []
    for a, b in links.t().tolist():
        scores = target @ source[a]
        better = (scores > scores[b]).nonzero().flatten().tolist()
        found.append(1 / (1 + sum((a, other) not in answers for other in better)))
    return float(np.mean(found))


@pytest.mark.parametrize("kind", ["typed", "plain"])
def test_the_mrr_is_that_of_the_full_graph_and_beats_chance(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, held = request.getfixturevalue(kind), (shop if kind == "typed" else web)()[1]
    run = tmp_path / "run"
    options: dict[str, Any] = {"negatives": 4, "negative_sampling": "hard", "epochs": 10}
    result = train(folder, model="sage", out=str(run), decoder="distmult", lr=0.02, **options)
    data = graph_of(folder)
    config = resolve(resumed_config(run))
    dataset = load_run_dataset(config)
    model = make_model(config, dataset)
    dataset.close()
    assert isinstance(model, LinkModel)
    load_weights(run, model)
    model.eval()
    with torch.no_grad():
        if kind == "typed":
            ids = {"user": torch.arange(USERS), "item": torch.arange(ITEMS)}
            source, target = embed_typed(model, data, ids)
            train_links = data[LIKES].edge_index
        else:
            source = target = model(data.x, data.edge_index)
            train_links = data.edge_index
        source = model.queries(source)
    known = torch.cat([train_links, *held.values()], 1)
    for part, found in (("val", result.best_val), ("test", result.best_test)):
        assert found["mrr"] == pytest.approx(
            brute_force_mrr(source, target, held[part], known), abs=1e-6
        )
    chance = float((1 / torch.arange(1, len(target) + 1)).mean())
    assert result.best_test["mrr"] > 2.5 * chance
    assert set(result.best_test) == {"mrr", "hits@1", "hits@3", "hits@10"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of which ``gnnsys convert`` took the links."""
    place = tmp_path_factory.mktemp("converted")
    data = shop()[0]
    back = data["item", "rev_likes", "user"]  # which has other edges, in spite of its name
    data["item", "liked_by", "user"].edge_index = back.edge_index
    back.edge_index = torch.stack([torch.arange(ITEMS), torch.arange(ITEMS)])
    both = web()[0]  # in which links lead back, too
    both.edge_index = torch.cat([both.edge_index, both.edge_index.flip(0)], 1).unique(dim=1)
    for kind, graph, of in (("typed", data, [",".join(LIKES)]), ("plain", both, [])):
        torch.save(graph, place / f"{kind}.pt")
        asked = ["convert", str(place / f"{kind}.pt"), str(place / kind), "--hold-out", *of]
        asked += ["--hold-out-reverses", "item,liked_by,user"] if of else []
        assert main([*asked, "--hold-out-shares", "0.1,0.1"]) == 0
    return {kind: place / kind for kind in ("typed", "plain")}


@pytest.mark.parametrize("kind", ["typed", "plain"])
def test_no_link_of_a_batch_and_none_held_out_is_a_message(
    kind: str, converted: dict[str, Path]
) -> None:
    config = TrainConfig(dataset=str(converted[kind]), model="sage", negatives=2, **SMALL)
    run = resolve(config)
    dataset = load_run_dataset(run)
    steps = make_steps(run, dataset, make_model(run, dataset), None)
    assert isinstance(dataset.task, LinkTask)
    links = stacked(dataset.task.links("train"))
    known = pairs_of(*links)
    hidden = {
        pair for part in ("val", "test") for pair in pairs_of(*stacked(dataset.task.links(part)))
    }
    count = 0
    for batch in steps.batches(0, 0):
        if kind == "typed":
            ids, own = batch[LIKES].input_id, (batch["user"].n_id, batch["item"].n_id)
            index, back = batch[LIKES].edge_index, batch["item", "liked_by", "user"].edge_index
            ways = [(own[0][index[0]], own[1][index[1]]), (own[0][back[1]], own[1][back[0]])]
            ends = own[0][batch["user"].src_index], own[1][batch["item"].dst_neg_index]
        else:
            ids, index = batch.input_id, batch.n_id[batch.edge_index]
            ways = [(index[0], index[1]), (index[1], index[0])]
            ends = batch.n_id[batch.src_index], batch.n_id[batch.dst_neg_index]
        for way in ways:
            told = pairs_of(*way)
            assert told
            assert not told & pairs_of(*links[:, ids])
            assert not told & hidden
        assert not known & pairs_of(ends[0].repeat_interleave(2), ends[1].flatten())
        count += len(ids)
    assert count == links.shape[1]
    assert hidden
    dataset.close()


def pairs_of(source: Tensor, target: Tensor) -> set[tuple[int, int]]:
    return {*zip(source.tolist(), target.tolist(), strict=True)}


class Killed(BaseException):
    """Stands for a signal: no ``except Exception`` handles it."""


def test_a_run_that_was_broken_off_goes_on_with_its_hard_negatives(
    typed: Path, tmp_path: Path
) -> None:
    options = {"model": "rgcn", "negatives": 4, "negative_sampling": "hard", "epochs": 3}
    whole = train(typed, **options)
    plain = train(typed, **{**options, "negative_sampling": "uniform"})
    assert losses(whole)[0] == losses(plain)[0]  # there is no top yet
    assert losses(whole)[1] != losses(plain)[1]

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) in ((2, 2), (3, 2)):
            os.kill(os.getpid(), signal.SIGINT)

    def kill(epoch: int, done: int, total: int) -> None:
        if epoch == 3:
            raise Killed

    out = str(tmp_path / "run")
    config = TrainConfig(dataset=str(typed), out=out, **{**SMALL, **options})
    assert run_training(config, on_batch=interrupt).reason == "interrupted"
    with pytest.raises(Killed):
        run_training(resumed_config(out), on_batch=kill)
    assert run_training(resumed_config(out), on_batch=interrupt).reason == "interrupted"
    rest = run_training(resumed_config(out))
    assert losses(rest) == losses(whole)
    assert (rest.best_val, rest.best_test) == (whole.best_val, whole.best_test)
    told = read_run(Path(out))
    assert "user,likes,item of 2 node types" in about(told)
    assert told.loss_name == "bpr"


def test_sampled_embeddings_with_all_neighbours_are_the_exact_ones(
    typed: Path, plain: Path
) -> None:
    for folder, model in ((typed, "rgcn"), (plain, "gin")):
        options = {"model": model, "fanouts": (-1, -1), "epochs": 1, "metric": "ndcg@10"}
        exact, sampled = (train(folder, eval=how, **options) for how in ("layerwise", "sampled"))
        assert losses(exact) == losses(sampled)
        assert exact.best_val == pytest.approx(sampled.best_val, abs=1e-6)
        assert (exact.evaluation["way"], sampled.evaluation["way"]) == ("layerwise", "sampled")
        names = sampled.memory["names"]
        assert names["links"] == dict.fromkeys(("planned", "held"), 32 * exact_links(folder))
        assert names["negatives"]["planned"] == 24 * exact_links(folder)
        assert names["embeddings of evaluation"]["planned"] > 0


def exact_links(folder: Path) -> int:
    dataset = gnnsys.open_dataset(folder)
    return dataset.num_edges(LIKES) if dataset.heterogeneous else dataset.num_edges()


class Sums(nn.Module):
    """A user's model, which gives as many columns as it is asked for, or one more."""

    def __init__(self, in_channels: int, out_channels: int, more: int = 0) -> None:
        super().__init__()
        self.gnn = GraphSAGE(in_channels, 8, 2, out_channels + more)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.gnn(x, edge_index)


def one_more(in_channels: int, out_channels: int) -> nn.Module:
    return Sums(in_channels, out_channels, more=1)


def test_a_model_of_ones_own_embeds_nodes(plain: Path) -> None:
    result = train(plain, model=f"{__name__}:Sums", epochs=1)
    assert result.evaluation["way"] == "sampled"
    assert result.best_val["mrr"] > 0
    with pytest.raises(gnnsys.errors.ArgumentError, match="expected floats"):
        train(plain, model=f"{__name__}:one_more")


def test_fewer_candidates_make_better_ranks(typed: Path) -> None:
    among_all = train(typed, model="rgcn", epochs=1)
    few = train(typed, model="rgcn", epochs=1, eval_candidates=5, metric="auc")
    assert losses(among_all) == losses(few)
    assert few.best_val["mrr"] > among_all.best_val["mrr"]
    assert 0 <= few.best_test["auc"] <= 1
    assert few.evaluation["why"] == "layerwise, 200 links ranked among 5 targets each"


def test_a_source_that_has_all_targets_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = shop()
    data["item"].num_nodes = 1
    data[LIKES].edge_index = torch.stack([torch.arange(90), torch.zeros(90, dtype=torch.int64)])
    data["item", "rev_likes", "user"].edge_index = data[LIKES].edge_index.flip(0)
    one = {part: torch.tensor([[100 + len(part)], [0]]) for part in held}
    folder = held_folder(tmp_path / "one", data, one, LIKES)
    options: list[str] = ["train", str(folder), "--task", "link", "--model", "rgcn"]
    assert main(options) == 2
    assert "node 0 of type 'user' of shop has links to all 1 nodes" in " ".join(
        capsys.readouterr().err.split()
    )
    result = train(folder, model="rgcn", negative_sampling="in-batch", epochs=1)
    assert result.best_val["mrr"] == 1
    for more in ({}, {"eval_candidates": 5}):  # which are all known
        result = train(
            folder, model="rgcn", negative_sampling="in-batch", epochs=1, metric="auc", **more
        )
        assert np.isnan(result.best_val["auc"])


@pytest.mark.parametrize("kind", ["typed", "plain"])
def test_training_goes_on_with_scores_of_nan_when_asked(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    options = {"model": "sage", "lr": 1e20, "negatives": 2, "negative_sampling": "hard"}
    for how in ("layerwise", "sampled"):
        result = train(folder, eval=how, nan_loss="go-on", **options)
        assert len(result.history) == 2
        assert np.isnan(result.history[-1].val)
    with pytest.raises(gnnsys.errors.DivergedError):
        train(folder, **options)


REFUSED = [
    (["--full-batch"], "--full-batch: is not for links, but --task link is of them"),
    (["--full-batch", "--parallel", "graph", "--model", "gcn"], "--full-batch: is not for links"),
    (["--ranks", "2"], "--ranks 2: is not for links"),
    (["--cooperative"], "--cooperative: is not for links"),
    (["--class-weights", "balanced"], "--class-weights balanced: is not for links"),
    (["--loss", "l1"], "--loss l1: is not for links"),
    (["--static-shapes"], "--static-shapes: is not for links"),
    (["--compile"], "--compile: is not for links"),
    (["--pack"], "--pack: is not for links"),
    (["--sums", "scaled", "--model", "gin"], "--sums scaled: takes the degrees of the graph"),
    (["--sampler", "gpu"], "--sampler gpu: draws no links"),
    (["--eval", "neighborhoods"], "--eval neighborhoods: links are ranked among all nodes"),
    (
        ["--score", "presample", "--cache", "50%"],
        "--score presample: samples around training nodes",
    ),
    (["--metric", "accuracy"], "--metric accuracy: --task link is of links; expected one of mrr"),
    (["--metric", "recall@10", "--eval-candidates", "9"], "is of the best of all candidates"),
    (["--negatives", "0"], "--negatives 0: expected at least 1"),
    (["--negative-sampling", "in-batch", "--negatives", "2"], "--negatives 2: none are drawn"),
    (["--negative-sampling", "in-batch", "--link-loss", "bpr"], "give infonce or leave it out"),
    (["--target", "user"], "--target user: expected an edge type, SRC,REL,DST"),
    (
        ["--target", "user,sells,item"],
        "has no such edge type; expected one of user,likes,item item,rev_likes,user",
    ),
    (["--target", "item,rev_likes,user"], "no val links of item,rev_likes,user"),
    (["--model", "gin"], "is heterogeneous; expected rgcn, rgat, hgt, sage, gat"),
]


@pytest.mark.parametrize(
    ("options", "says"),
    REFUSED,
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_links_cannot_have_is_told_in_one_message(
    options: list[str], says: str, typed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(typed), "--task", "link", "--out", str(tmp_path / "run"), *options]
    assert main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--task", "link"], "--task link: demo has no tasks; leave it out"),
        (["demo", "--decoder", "dot"], "--decoder dot: goes with --task link"),
        (["demo", "--metric", "mrr"], "--metric mrr: the nodes of demo have a class each"),
        (["FOLDER", "--task", "sales"], "no tasks; give node for labels"),
    ],
)
def test_options_of_links_are_refused_without_links(
    arguments: list[str], says: str, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [str(plain) if word == "FOLDER" else word for word in arguments]
    assert main(["train", *place]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
