"""Training of one seed: reconstruction, k-means, then the contrastive and the clustering loss."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor, nn
from torch.optim import Optimizer

from gnnsys.clustering.batches import Batch, Batches
from gnnsys.clustering.encoders import make_decoder, make_encoder
from gnnsys.clustering.graph import ClusterGraph
from gnnsys.clustering.scores import cluster_scores
from gnnsys.config_cluster import ClusterConfig
from gnnsys.errors import ArgumentError
from gnnsys.losses import dec_kl, pamc_loss, student_t_assign, target_distribution

__all__ = ["Epoch", "SeedResult", "train_seed"]

_RECONSTRUCTED = 256  # nodes of a batch
_STARTS = 20  # of k-means
_MANY = 200_000  # nodes, from which on k-means sees them in batches

Progress = Callable[[str, int, int], None]
_Looked = tuple[list[float], Tensor, Tensor]
"""The loss and its two parts; (n, dim) embeddings; (n, K) assignments."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave; number 0 is the start, before any training."""

    number: int
    loss: float
    contrastive: float
    clustering: float
    scores: dict[str, float]
    """Of the clusters at that point; empty without labels."""


@dataclass(slots=True)
class SeedResult:
    """A trained seed."""

    seed: int
    epochs: list[Epoch] = field(default_factory=list)
    selected: Epoch | None = None
    """The one whose clusters are kept."""

    assignments: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,)."""

    embeddings: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, dim)."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the encoder, and ``centers`` (K, dim)."""

    seconds: float = 0.0


def train_seed(
    config: ClusterConfig,
    graph: ClusterGraph,
    batches: Batches,
    clusters: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> SeedResult:
    """Trains one seed.

    Args:
        clusters: K.

    Raises:
        ArgumentError: the training has diverged.
    """
    begun = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = _Trainer(config, graph, batches, clusters, seed, device, progress)
        trainer.reconstruct()
        trainer.start()
        result = trainer.train()
    result.seconds = time.perf_counter() - begun
    return result


class _Trainer:
    def __init__(
        self,
        config: ClusterConfig,
        graph: ClusterGraph,
        batches: Batches,
        clusters: int,
        seed: int,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self._config, self._graph, self._batches = config, graph, batches
        self._clusters, self._seed, self._device = clusters, seed, device
        self._progress = progress
        width = graph.data.x.shape[1]
        self._encoder = make_encoder(config.encoder, width, config.hidden, config.dim).to(device)
        self._decoder = make_decoder(config.encoder, width, config.hidden, config.dim).to(device)
        self._centers = nn.Parameter(torch.empty(clusters, config.dim, device=device))

    # The start ------------------------------------------------------------------------------------

    def reconstruct(self) -> None:
        """Trains the encoder to keep what features can be made of again."""
        config = self._config
        parameters = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, config.lr)
        for epoch in range(config.pretrain_epochs):
            for x, z in self._embedded(epoch):
                optimizer.zero_grad()
                F.mse_loss(self._decoder(z), x).backward()
                optimizer.step()
            self._progress(f"seed {self._seed}: start", epoch + 1, config.pretrain_epochs)

    def _embedded(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and embeddings: of few nodes at a time if that is all an encoder needs."""
        if self._config.encoder != "mlp":
            for batch in self._batches.epoch(epoch, self._seed):
                yield batch.x, self._encoder(batch.x, batch.edge_index)
            return
        for nodes in torch.randperm(self._graph.num_nodes).split(_RECONSTRUCTED):
            x = self._batches.rows(nodes)
            yield x, self._encoder(x)

    def start(self) -> None:
        """Puts the centers where k-means finds clusters."""
        z = self._batches.embed(self._encoder).cpu().numpy()
        if not np.isfinite(z).all():
            raise ArgumentError(f"--lr {self._config.lr}: reconstruction diverged; use a lower one")
        many = len(z) > _MANY
        means = (MiniBatchKMeans if many else KMeans)(
            self._clusters, n_init=3 if many else _STARTS, random_state=self._seed
        ).fit(z)
        with torch.no_grad():
            self._centers.copy_(torch.from_numpy(means.cluster_centers_))

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
            epoch = Epoch(number, loss, contrastive, clustering, self._score(assignments))
            result.epochs.append(epoch)
            worth = self._worth(epoch)
            if worth > best:
                best = worth
                result.selected, result.state, result.assignments = epoch, state, assignments
                result.embeddings = z.cpu().numpy()
            self._progress(f"seed {self._seed}: train", number, config.epochs)
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
            q = student_t_assign(z, self._centers)
            contrastive = pamc_loss(
                z, batch.pairs, None, q.argmax(1), self._clusters, config.tau or 1.0, config.mode
            )
            clustering = dec_kl(target_distribution(q, totals), q)
            loss = (config.alpha or 0.0) * contrastive + (config.beta or 0.0) * clustering
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [part.item() for part in (loss, contrastive, clustering)], z.detach(), q.detach()

    def _score(self, assignments: NDArray[np.int64]) -> dict[str, float]:
        labels = self._graph.labels
        return {} if labels is None else cluster_scores(labels, assignments)

    def _worth(self, epoch: Epoch) -> float:
        if self._config.select == "last":
            return epoch.number
        return epoch.scores["acc"] if self._config.select == "labels" else -epoch.loss
