"""What autograd keeps for backward, moved out of memory while forward goes on, and back in time.

Owns ``ActivationOffload``; see docs/offload.md. Imports ``system`` and ``memory``, nothing that
knows of graphs: it serves any module. Invariants: gradients are bitwise those of plain training
with every policy but bf16; bytes that it holds stay within the budget; a fault raises, and never
gives a wrong gradient; no file outlives the process.

Wu et al.: "SSDTrain: An Activation Offloading Framework to SSDs for Faster Large Language Model
Training", arXiv 2408.10013.
"""

from gnnsys.offload.activation_offload import ActivationOffload
from gnnsys.offload.planner import SavedStorage, StepPlan, StepProfile, plan_step
from gnnsys.offload.stats import StepStats

__all__ = [
    "ActivationOffload",
    "SavedStorage",
    "StepPlan",
    "StepProfile",
    "StepStats",
    "plan_step",
]
