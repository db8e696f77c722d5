"""Training on mini-batches of links, and ranks of those held out, with types and without.

Invariants: no edge of a batch joins the two ends of one of its links, in either direction; but for
those of in-batch, negatives are no links to train on; embeddings by which links that have times are
judged see nothing that is newer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.links import HARD_TARGETS, evaluates_exactly, link_training
from gnnsys.config.resolve import Run
from gnnsys.config.train import TrainConfig
from gnnsys.errors import DivergedError
from gnnsys.loaders import LinkNeighborLoader, NeighborSampler, degree_weights
from gnnsys.losses import in_batch_loss, link_bce_loss, link_bpr_loss, link_info_nce_loss
from gnnsys.system.budget import process_budget
from gnnsys.system.once import warn_once
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.hetero_steps import bad_inputs, typed_inputs
from gnnsys.training.link_batches import link_negatives, link_sampler
from gnnsys.training.link_embeddings import exact_embeddings, sampled_embeddings
from gnnsys.training.link_evaluation import LinkJudge
from gnnsys.training.link_memory import EMBEDDED, HARD_BLOCK_BYTES, LINKS
from gnnsys.training.link_models import LinkModel
from gnnsys.training.link_ranking import fill_top_ids
from gnnsys.training.link_task import LinkTask, stacked
from gnnsys.training.memory import reclaim_activations
from gnnsys.training.metrics import Loss
from gnnsys.training.mini_batch import note_served
from gnnsys.training.table_steps import TableMiniBatch
from gnnsys.training.task import PARTS, Part

__all__ = ["LinkMiniBatch"]

_log = logging.getLogger(__name__)

_LOSSES = {"bce": link_bce_loss, "bpr": link_bpr_loss, "infonce": link_info_nce_loss}


class LinkMiniBatch(TableMiniBatch):
    """``MiniBatch`` of links: seeds are both of their ends and those of negatives, and what is
    judged are ranks by embeddings of all nodes."""

    _model: LinkModel

    def __init__(self, run: Run, dataset: NodeDataset, model: LinkModel) -> None:
        task = dataset.task
        assert isinstance(task, LinkTask)
        self._task, self._options = task, link_training(run.config)
        self._source, self._target = task.edge_type[0], task.edge_type[2]
        links = task.links("train")
        self._links = stacked(links)
        held = 2 * self._links.nbytes  # with those of the task
        held += 0 if links.time is None else links.time.nbytes
        process_budget().hold(LINKS, held, self._links)
        self._log_q: Tensor | None = None
        if self._options.sampling == "in-batch":
            weight = degree_weights(self._links[1], dataset.num_nodes[self._target], power=1)
            self._log_q = (weight / weight.sum()).log().float()
        self._hard_epoch = 0  # before which they were found
        self._embedded: dict[int | None, dict[str, Tensor]] = {}  # by time
        self._embedded_in: list[ScratchFolder] = []
        super().__init__(run, dataset, model)
        reclaim_activations(run.config)
        self._judge = LinkJudge(
            task,
            dataset.num_nodes[self._source],
            dataset.num_nodes[self._target],
            self._options.candidates,
            run.config.seed,
        )

    # Training -------------------------------------------------------------------------------------

    def _make_loss(self, config: TrainConfig, dataset: NodeDataset) -> Loss:
        return _LOSSES[self._options.loss]

    def _make_sampler(self) -> NeighborSampler:
        self._time_attr = self._dataset.time_attr
        self._all_neighbours = evaluates_exactly(self._config, self._task.timed)
        return self._sampler_of(hide_links=self._task.is_edge)

    def _sampler_of(self, hide_links: bool) -> NeighborSampler:
        dataset = self._dataset
        plain = not dataset.heterogeneous and self._time_attr is None
        source = dataset.graph if plain else dataset.source
        return link_sampler(
            self._config, self._task, source, self._time_attr, hide_links=hide_links
        )

    def _make_train_loader(self) -> LinkNeighborLoader:
        config, task = self._config, self._task
        dataset = self._dataset
        self._negatives = link_negatives(config, task, self._links, dataset.num_nodes, dataset.name)
        time = task.links("train").time
        if self._time_attr is not None and task.is_edge:
            _warn_of_few(task, config.dataset)
        return LinkNeighborLoader(
            self._dataset.source,
            self._sampler.num_neighbors,
            (task.edge_type if self._dataset.heterogeneous else None, self._links),
            edge_label_time=None if self._time_attr is None else time,
            time_attr=self._time_attr,
            neg_sampling=self._negatives,
            neighbor_sampler=self._sampler,
            batch_size=config.batch_size,
            shuffle=True,
            seed=config.seed,
            seed_block=config.seed_block,
            threads=config.threads,
            transform=partial(note_served, self._dataset),
            filter_per_worker=True,
        )

    def _make_evaluation(self) -> Evaluation | None:
        return None

    def _test_waits(self) -> bool:
        return False

    def _num_seeds(self, batch: Any) -> int:
        return len(self._ids(batch))

    def _ids(self, batch: Any) -> Tensor:
        """(n,) which of the links to train on the batch's are."""
        found: Tensor = (batch[self._task.edge_type] if self._typed else batch).input_id
        return found

    @property
    def _typed(self) -> bool:
        return self._dataset.heterogeneous

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """See ``Steps.batches``; hard negatives are found anew before the first."""
        if self._options.sampling == "hard" and epoch > 0 and first == 0:
            try:
                self._find_hard(epoch)
            except DivergedError:  # those of before stay
                if self._config.nan_loss == "stop":
                    raise
        return super().batches(epoch, first)

    def _find_hard(self, epoch: int) -> None:
        found = self.embeddings("val")
        source, target = found[self._source], found[self._target]
        top = torch.empty(len(source), min(HARD_TARGETS, len(target)), dtype=torch.int32)
        fill_top_ids(
            top,
            source,
            target,
            known=self._links,
            score=self._score,
            block_bytes=HARD_BLOCK_BYTES,
        )
        self._set_hard(top, epoch)

    def _score(self, sources: Tensor, targets: Tensor) -> Tensor:
        """(q, c) of rows of both."""
        return self._queries(sources) @ targets.t()

    def _queries(self, sources: Tensor) -> Tensor:
        """What sources' embeddings are multiplied with targets' as, on the CPU."""
        return self._model.queries(sources.to(self._device)).detach().cpu()

    def _set_hard(self, table: Tensor, epoch: int) -> None:
        assert self._negatives is not None
        self._negatives.hard, self._hard_epoch = table, epoch

    def snapshot_epoch(self) -> int | None:
        """See ``Steps.snapshot_epoch``; of hard negatives."""
        return self._hard_epoch if self._options.sampling == "hard" else None

    def snapshot(self) -> dict[int, dict[str, Tensor]]:
        """See ``Steps.snapshot``."""
        assert self._negatives is not None
        assert self._negatives.hard is not None
        made = torch.tensor(self._hard_epoch)
        return {0: {"hard": self._negatives.hard, "epoch": made}}

    def load(
        self,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        snapshot: Iterable[Mapping[str, Tensor]] | None,
        epoch: int,
    ) -> None:
        """See ``Steps.load``."""
        super().load(model, optimizer, snapshot, epoch)
        for part in snapshot or ():
            self._set_hard(part["hard"], int(part["epoch"]))

    def _loss(self, batch: Any) -> Tensor:
        self.served = batch.served
        batch = batch.to(self._device)
        with self._autocast:
            out = self._trained(*self._inputs(batch))
        source, target = self._rows(out, self._source), self._rows(out, self._target)
        if self._options.sampling == "in-batch":
            return self._in_batch(batch, source.float(), target.float())
        store = batch[self._target] if self._typed else batch
        own = batch[self._source] if self._typed else batch
        rows = self._model.queries(source.float()[own.src_index])
        positive = (rows * target.float()[store.dst_pos_index]).sum(1)
        others = target.float()[store.dst_neg_index.view(len(rows), -1)]
        return self._loss_of(positive, torch.einsum("nd,nkd->nk", rows, others))

    def _in_batch(self, batch: Any, source: Tensor, target: Tensor) -> Tensor:
        store = batch[self._task.edge_type] if self._typed else batch
        first, last = store.edge_label_index
        scores = self._model.queries(source[first]) @ target[last].t()
        targets = self._links[1][self._ids(batch).cpu()]
        assert self._log_q is not None
        return in_batch_loss(scores, self._log_q[targets].to(scores.device), targets)

    def _inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the model takes."""
        if self._typed:
            return typed_inputs(batch)
        return batch.x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges

    def _rows(self, out: Any, kind: str) -> Tensor:
        """Embeddings of a type, the seeds' first."""
        found: Tensor = out[kind] if self._typed else out
        return found

    def inputs(self, batch: Any) -> Any:
        """See ``Steps.inputs``."""
        return bad_inputs(batch) if self._typed else batch

    # Evaluation -----------------------------------------------------------------------------------

    def evaluate(self, metrics: Iterable[str], part: Part) -> dict[str, float]:
        """See ``Steps.evaluate``; none without links, NaN where scores are."""
        if not self._task.num_seeds(part):
            named = self._task.named
            warn_once(_log, "%s: no %s link is known, so there is no score of it", named, part)
            return {}
        rows, names = self.embeddings(part), [*metrics]
        ends = rows[self._source], rows[self._target]
        try:
            found = self._judge.measure(names, part, *ends, self._queries)
        except DivergedError:
            if self._config.nan_loss == "stop":
                raise
            found = dict.fromkeys(names, math.nan)
        self.served = self._dataset.served()
        return found

    def forget(self) -> None:
        """See ``Steps.forget``."""
        self._embedded.clear()
        self._embedded_in.clear()

    def embeddings(self, part: Part | None = None) -> dict[str, Tensor]:
        """(nodes, hidden) of the types of both ends; where links have times, as a part's first link
        sees them, or as the last one of all does."""
        time = self._time_of(part)
        if time not in self._embedded:
            self.forget()  # those of another time
            tell = self.progress or (lambda what, done, total: None)
            if self._all_neighbours:
                found, folder = exact_embeddings(
                    self._config, self._dataset, self._model, self._device, tell
                )
                self._embedded_in += [folder] if folder else []
            else:
                self._model.eval()
                sampler = self._sampler_of(hide_links=False)
                found = {
                    kind: sampled_embeddings(
                        self._config, self._dataset, kind, sampler,
                        partial(self._embed_seeds, kind), time, tell, self._announced,
                    )
                    for kind in self._task.ends
                }  # fmt: skip
                for rows in found.values():
                    process_budget().hold(EMBEDDED, rows.nbytes, rows)
            self._embedded[time] = found
        return self._embedded[time]

    def _time_of(self, part: Part | None) -> int | None:
        if self._time_attr is None:
            return None
        links = [self._task.links(each) for each in PARTS if self._task.num_seeds(each)]
        if part is not None:
            links = [self._task.links(part)]
        times = [each.time for each in links if each.time is not None and len(each)]
        if not times:
            return None
        return int(times[0].min() if part else max(each.max() for each in times))

    def known(self, sources: Tensor) -> Tensor:
        """(2, m) numbers of sources, ascending, above their targets in links of any part."""
        return self._judge.answers(sources)

    def _embed_seeds(self, kind: str, batch: Any) -> Tensor:
        size = (batch[kind] if self._typed else batch).batch_size
        return self._rows(self._model(*self._inputs(batch.to(self._device))), kind)[:size]

    def evaluation(self) -> dict[str, Any]:
        """See ``Steps.evaluation``."""
        links = self._task.num_seeds("val") + self._task.num_seeds("test")
        nodes = sum(self._dataset.num_nodes[kind] for kind in self._task.ends)
        among = self._options.candidates or self._dataset.num_nodes[self._target]
        way = "layerwise" if self._all_neighbours else "sampled"
        return {
            "way": way,
            "nodes": nodes,
            "test_at_end": False,
            "why": f"{way}, {links:,} links ranked among {among:,} targets each",
        }


def _warn_of_few(task: LinkTask, name: str) -> None:
    """Warns where most links to train on are newer than what embeddings are judged at."""
    train = task.links("train").time
    judged = [task.links(part).time for part in ("val", "test") if task.num_seeds(part)]
    times = [time.min() for time in judged if time is not None]
    if train is None or not times:
        return
    known = int((train <= min(times)).sum())
    if 2 * known < len(train):
        warn_once(
            _log, "%s: links held out are judged as the first of them sees the graph, with %d of "
            "%d links to train on; gnnsys convert --hold-out-by time, or --ignore-times, shows "
            "more", name, known, len(train)
        )  # fmt: skip
