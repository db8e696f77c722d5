"""Training and what surrounds it: tasks, steps, the loop, exact inference, checkpoints, metrics.

Stands on datasets, features, options and the pipeline; knows nothing of reports, plans or
commands. Invariant: the same options give the same losses, also when a run is broken off.

``rank_links``, ``top_links`` and their metrics are for programs, too.

``run_training`` is what ``gnnsys train`` does, for programs; ``examples/log_to_wandb.py`` logs it.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys.training.link_metrics import known_answers as known_answers
    from gnnsys.training.link_metrics import link_auc as link_auc
    from gnnsys.training.link_metrics import rank_metrics as rank_metrics
    from gnnsys.training.link_metrics import rank_scores as rank_scores
    from gnnsys.training.link_metrics import retrieval_metrics as retrieval_metrics
    from gnnsys.training.link_ranking import rank_links as rank_links
    from gnnsys.training.link_ranking import top_links as top_links
    from gnnsys.training.link_ranking import write_top_links as write_top_links
    from gnnsys.training.loop import run_training as run_training
    from gnnsys.training.result import EpochRecord as EpochRecord
    from gnnsys.training.result import TrainResult as TrainResult

_HOME = {
    "EpochRecord": "gnnsys.training.result",
    "TrainResult": "gnnsys.training.result",
    "known_answers": "gnnsys.training.link_metrics",
    "link_auc": "gnnsys.training.link_metrics",
    "rank_links": "gnnsys.training.link_ranking",
    "rank_metrics": "gnnsys.training.link_metrics",
    "rank_scores": "gnnsys.training.link_metrics",
    "retrieval_metrics": "gnnsys.training.link_metrics",
    "run_training": "gnnsys.training.loop",
    "top_links": "gnnsys.training.link_ranking",
    "write_top_links": "gnnsys.training.link_ranking",
}

__all__ = [*_HOME]

__getattr__, __dir__ = hand_on(__name__, _HOME)
