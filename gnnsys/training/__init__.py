"""Training and what surrounds it: tasks, steps, the loop, exact inference, checkpoints, metrics.

Stands on datasets, features, options and the pipeline; knows nothing of reports, plans or
commands. Invariant: the same options give the same losses, also when a run is broken off.

``run_training`` is what ``gnnsys train`` does, for programs; ``examples/log_to_wandb.py`` logs it.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys.training.loop import run_training as run_training
    from gnnsys.training.result import EpochRecord as EpochRecord
    from gnnsys.training.result import TrainResult as TrainResult

_HOME = {
    "EpochRecord": "gnnsys.training.result",
    "TrainResult": "gnnsys.training.result",
    "run_training": "gnnsys.training.loop",
}

__all__ = [*_HOME]

__getattr__, __dir__ = hand_on(__name__, _HOME)
