"""Losses over nodes, whose cost is linear in the graph, and over links.

``pamc_loss`` (``pamc``) puts a positive part over weighted pairs of nodes (``pairs``, whose hot
loop is compiled) against a negative part over clusters (``negatives``, ``tiles``). ``assignments``
has the soft assignments and the target of deep embedded clustering, ``influence`` the weights of
the pairs, ``baselines`` the losses it is compared with. ``links`` has those of links against
negative ones.

The package may import torch, numpy, scipy, ``errors``, ``system``, ``message_passing`` and the
compiled core; no dataset and no training loop. Invariants: nothing that autograd keeps grows faster
than the nodes and pairs; values do not depend on the number of threads beyond torch's own products;
a node without a direction (a zero row) has cosine 0 with all, an empty cluster counts nowhere.
"""

from gnnsys.losses.assignments import dec_kl, student_t_assign, target_distribution
from gnnsys.losses.baselines import cca_ssg_loss, dense_contrastive_loss, info_nce_loss
from gnnsys.losses.influence import influence_adjacency
from gnnsys.losses.links import (
    in_batch_loss,
    link_bce_loss,
    link_bpr_loss,
    link_info_nce_loss,
)
from gnnsys.losses.pairs import PositivePairs
from gnnsys.losses.pamc import pamc_loss

__all__ = [
    "PositivePairs",
    "cca_ssg_loss",
    "dec_kl",
    "dense_contrastive_loss",
    "in_batch_loss",
    "influence_adjacency",
    "info_nce_loss",
    "link_bce_loss",
    "link_bpr_loss",
    "link_info_nce_loss",
    "pamc_loss",
    "student_t_assign",
    "target_distribution",
]
