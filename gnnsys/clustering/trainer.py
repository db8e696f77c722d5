"""Training of one seed: reconstruction, the contrastive loss alone, k-means, and then the
contrastive and the clustering loss together."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor, nn
from torch.optim import Optimizer

from gnnsys.clustering.batches import Batch, Batches
from gnnsys.clustering.encoders import (
    Encoder,
    MlpEncoder,
    make_decoder,
    make_encoder,
    normalize_rows,
)
from gnnsys.clustering.graph import ClusterGraph
from gnnsys.clustering.metrics import cluster_metrics, modularity
from gnnsys.clustering.objectives import make_objective
from gnnsys.config.cluster import ClusterConfig
from gnnsys.errors import DivergedError
from gnnsys.losses import dec_kl, student_t_assign, target_distribution
from gnnsys.system.progress import Progress

__all__ = ["ClusterEpoch", "ClusterTask", "SeedResult", "scale_of_features", "train_seed"]

_RECONSTRUCTED = 256  # nodes of a batch
_STARTS = 20  # of k-means
_RENEWED = 10  # epochs for which clusters of the contrastive loss alone are kept
_MANY = 200_000  # nodes, from which on k-means sees them in batches

_SCALED_BY = 1 << 16  # nodes that the scale of features is taken from

_Looked = tuple[list[float], Tensor, Tensor]
"""The loss and its two parts; (n, dim) embeddings; (n, K) assignments."""


@dataclass(frozen=True, slots=True)
class ClusterEpoch:
    """What one epoch gave; number 0 is the start, before any training."""

    number: int
    loss: float
    contrastive: float
    clustering: float
    metrics: dict[str, float]
    """Of the clusters at that point; empty without labels."""

    modularity: float | None
    """Of the clusters at that point, if epochs are selected by it."""


@dataclass(slots=True)
class SeedResult:
    """A trained seed."""

    seed: int
    epochs: list[ClusterEpoch] = field(default_factory=list)
    selected: ClusterEpoch | None = None
    """The one whose clusters are kept."""

    assignments: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,)."""

    embeddings: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, dim)."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the encoder, and ``centers`` (K, dim)."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterTask:
    """What all seeds train on."""

    config: ClusterConfig

    graph: ClusterGraph

    batches: Batches

    clusters: int
    """K."""

    device: torch.device

    progress: Progress

    scale: float
    """Of features; ``scale_of_features``."""


def scale_of_features(batches: Batches, num_nodes: int, normalize: str) -> float:
    """What brings the root of their mean square to 1, whatever unit they are in.

    Without it, the gradients of small features vanish beside what Adam adds to its divisor.
    """
    nodes = torch.arange(num_nodes)
    if num_nodes > _SCALED_BY:
        draw = torch.Generator().manual_seed(0)
        nodes = torch.randint(num_nodes, (_SCALED_BY,), generator=draw)
    square = normalize_rows(batches.rows(nodes), normalize).square().mean().item()
    return 1 / math.sqrt(square) if square > 0 else 1.0


def train_seed(task: ClusterTask, seed: int) -> SeedResult:
    """Trains one seed.

    Raises:
        DivergedError: the loss or the embeddings are NaN or infinite.
    """
    begun = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = _SeedTrainer(task, seed)
        trainer.start()
        result = trainer.train()
    result.seconds = time.perf_counter() - begun
    return result


class _SeedTrainer:
    def __init__(self, task: ClusterTask, seed: int) -> None:
        self._task, self._config, self._batches, self._seed = task, task.config, task.batches, seed
        self._objective = make_objective(task.config)
        self._encoder: Encoder
        self._centers: nn.Parameter

    def _tell(self, what: str, done: int, total: int) -> None:
        self._task.progress(f"seed {self._seed}: {what}", done, total)

    def _diverged(self, what: str) -> DivergedError:
        config = self._config
        return DivergedError(
            f"{config.dataset}: {what}, of seed {self._seed}; try a lower --lr than {config.lr:g}"
        )

    # The start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Makes an encoder, and centers where k-means finds clusters: of some, those whose clusters
        have the greatest modularity."""
        best = -math.inf
        for number in range(self._config.starts):
            encoder = self._reconstruct(number)
            self._contrast(encoder, number)
            means = self._means(encoder, self._task.clusters, _STARTS)
            worth = 0.0 if self._config.starts == 1 else self._modularity(means.labels_)
            if worth > best:
                best, self._encoder = worth, encoder
                centers = torch.from_numpy(means.cluster_centers_).to(self._task.device)
                self._centers = nn.Parameter(centers)

    def _reconstruct(self, start: int) -> Encoder:
        """A new encoder, trained to keep what features can be made of again."""
        config, device = self._config, self._task.device
        shape = config.encoder, self._task.graph.data.x.shape[1], config.hidden, config.dim
        encoder = make_encoder(*shape, config.normalize or "none", self._task.scale).to(device)
        decoder = make_decoder(*shape).to(device)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, config.lr)
        for epoch in range(config.pretrain_epochs):
            for x, z in self._embedded(encoder, epoch):
                wanted = (
                    encoder.prepare(x) if isinstance(encoder, MlpEncoder) else x * self._task.scale
                )
                _descend(optimizer, F.mse_loss(decoder(z), wanted))
            self._tell(f"reconstruct{self._of(start)}", epoch + 1, config.pretrain_epochs)
        return encoder

    def _of(self, start: int) -> str:
        return f", start {start + 1} of {self._config.starts}" if self._config.starts > 1 else ""

    def _embedded(self, encoder: Encoder, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and embeddings: of few nodes at a time if that is all an encoder needs."""
        if self._config.encoder != "mlp":
            for batch in self._batches.epoch(epoch, self._seed):
                yield batch.x, encoder(batch.x, batch.edge_index)
            return
        for nodes in torch.randperm(self._task.graph.num_nodes).split(_RECONSTRUCTED):
            x = self._batches.rows(nodes)
            yield x, encoder(x)

    def _contrast(self, encoder: Encoder, start: int) -> None:
        """Trains the encoder by the contrastive loss alone."""
        config = self._config
        clusters = config.warm_clusters or self._task.clusters
        optimizer = torch.optim.Adam(encoder.parameters(), config.lr)
        of = torch.empty(0)
        for epoch in range(config.warm_epochs):
            if epoch % _RENEWED == 0:
                of = torch.from_numpy(self._means(encoder, clusters, 1).labels_).long()
            for batch in self._batches.epoch(epoch, self._seed):
                z = encoder(batch.x, batch.edge_index)
                mine = of[batch.nodes].to(z.device)
                _descend(optimizer, self._objective(encoder, batch, z, mine))
            self._tell(f"contrast{self._of(start)}", epoch + 1, config.warm_epochs)

    def _means(self, encoder: Encoder, clusters: int, starts: int) -> Any:
        """Fitted k-means of the embedding, the best of some starts."""
        z = self._batches.embed(encoder).cpu().numpy()
        if not np.isfinite(z).all():
            raise self._diverged("embeddings are NaN or infinite")
        if len(z) > _MANY:
            return MiniBatchKMeans(clusters, n_init=3, random_state=self._seed).fit(z)
        return KMeans(clusters, n_init=starts, random_state=self._seed).fit(z)

    # Training -------------------------------------------------------------------------------------

    def train(self) -> SeedResult:
        """Trains all epochs, and keeps the one that the options select."""
        config = self._config
        result = SeedResult(self._seed)
        parameters = [*self._encoder.parameters(), self._centers]
        optimizer = torch.optim.Adam(parameters, config.lr)
        run = self._whole_epoch if self._batches.is_whole else self._sampled_epoch
        best = -math.inf
        for number in range(config.epochs + 1):
            state = copy.deepcopy(self._encoder.state_dict())
            state["centers"] = self._centers.detach().clone()
            # The last epoch only looks at what the steps before have made.
            losses, z, q = run(number, optimizer if number < config.epochs else None)
            assignments = q.argmax(1).cpu().numpy()
            loss, contrastive, clustering = losses
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} in epoch {number}")
            labels = self._task.graph.labels
            metrics = {} if labels is None else cluster_metrics(labels, assignments)
            graded = self._modularity(assignments) if config.select == "modularity" else None
            epoch = ClusterEpoch(number, loss, contrastive, clustering, metrics, graded)
            result.epochs.append(epoch)
            worth = self._worth(epoch)
            if worth > best:
                best = worth
                result.selected, result.state, result.assignments = epoch, state, assignments
                result.embeddings = z.cpu().numpy()
            self._tell("train", number, config.epochs)
        return result

    def _whole_epoch(self, number: int, optimizer: Optimizer | None) -> _Looked:
        """One step on all nodes: what it embeds is what the epoch is judged by."""
        (batch,) = self._batches.epoch(number, self._seed)
        return self._step(batch, None, optimizer)

    def _sampled_epoch(self, number: int, optimizer: Optimizer | None) -> _Looked:
        """Judged by all nodes as the epoch finds them; the loss is that of its batches."""
        z = self._batches.embed(self._encoder)
        with torch.no_grad():
            q = student_t_assign(z, self._centers)
        sums, nodes = torch.zeros(3, dtype=torch.float64), 0
        for batch in self._batches.epoch(number, self._seed):
            losses, _, _ = self._step(batch, q.sum(0), optimizer)
            sums += torch.tensor(losses, dtype=torch.float64) * len(batch.x)
            nodes += len(batch.x)
        return (sums / nodes).tolist(), z, q

    def _step(self, batch: Batch, totals: Tensor | None, optimizer: Optimizer | None) -> _Looked:
        """A step on a batch, or none.

        Args:
            totals: (K,), the sums of all nodes' assignments; None if the batch has all nodes.
        """
        config = self._config
        with torch.set_grad_enabled(optimizer is not None):
            z = self._encoder(batch.x, batch.edge_index)
            if not bool(z.isfinite().all()):
                raise self._diverged("embeddings are NaN or infinite")
            q = student_t_assign(z, self._centers)
            of = q.argmax(1)
            contrastive = self._objective(self._encoder, batch, z, of)
            clustering = dec_kl(target_distribution(q, totals), q)
            loss = (config.alpha or 0.0) * contrastive + (config.beta or 0.0) * clustering
        if optimizer is not None:
            _descend(optimizer, loss)
        return [part.item() for part in (loss, contrastive, clustering)], z.detach(), q.detach()

    def _modularity(self, assignments: NDArray[np.int64]) -> float:
        return modularity(self._task.graph.data.edge_index.numpy(), assignments)

    def _worth(self, epoch: ClusterEpoch) -> float:
        worth = {
            "loss": -epoch.loss,
            "modularity": epoch.modularity,
            "last": epoch.number,
            "labels": epoch.metrics.get("acc"),
        }[self._config.select]
        assert worth is not None
        return worth


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
