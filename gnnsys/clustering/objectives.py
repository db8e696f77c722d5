"""The contrastive losses that an encoder may be trained by."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch_geometric.utils import dropout_edge, mask_feature

from gnnsys.clustering.batches import Batch
from gnnsys.clustering.encoders import Encoder
from gnnsys.config.cluster import ClusterConfig
from gnnsys.losses import cca_ssg_loss, dense_contrastive_loss, info_nce_loss, pamc_loss

__all__ = ["Objective", "make_objective"]

Objective = Callable[[Encoder, Batch, Tensor, Tensor], Tensor]
"""Of the encoder, a batch, its embeddings (n, dim) and its clusters (n,)."""


def make_objective(config: ClusterConfig) -> Objective:
    """The contrastive loss of the options."""
    tau = config.tau or 1.0

    def pamc(encoder: Encoder, batch: Batch, z: Tensor, of: Tensor) -> Tensor:
        # A batch may have fewer nodes than there are clusters; those without nodes do not count.
        present, number = of.unique(return_inverse=True)
        return pamc_loss(z, batch.pairs, None, number, len(present), tau, config.mode)

    def scgc(encoder: Encoder, batch: Batch, z: Tensor, of: Tensor) -> Tensor:
        pairs, weight = batch.pairs.edges()
        return dense_contrastive_loss(z, pairs.to(z.device), weight.to(z.device), tau)

    def grace(encoder: Encoder, batch: Batch, z: Tensor, of: Tensor) -> Tensor:
        return info_nce_loss(*_views(encoder, batch, config.augment), temperature=1 / tau)

    def cca_ssg(encoder: Encoder, batch: Batch, z: Tensor, of: Tensor) -> Tensor:
        return cca_ssg_loss(*_views(encoder, batch, config.augment))

    return {"pamc": pamc, "scgc": scgc, "grace": grace, "cca-ssg": cca_ssg}[config.loss]


def _views(encoder: Encoder, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
    """Embeddings of the batch with some columns and some edges left out, twice."""

    def view() -> Tensor:
        x, _ = mask_feature(batch.x, share, mode="col")
        edge_index, _ = dropout_edge(batch.edge_index, share)
        z: Tensor = encoder(x, edge_index)
        return z

    return view(), view()
