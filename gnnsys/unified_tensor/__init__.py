"""The unified tensor: a ``torch.Tensor`` whose rows stay in a store.

``unified`` (``factory``) chooses the store and makes a ``UnifiedTensor`` (``tensor``), which finds
for each operator of torch what is done with it (``operators``); all that it knows of its store is
in ``rows``. Imports ``memory`` and ``cache``, never a loader. It is thin: everything it does is a
call into its store. Invariants: a gather equals torch's indexing of the same rows bit for bit and
is an ordinary tensor, a copy; nothing here copies the whole unless it is asked to, or the whole is
small.

Source of the idea: PyTorch-Direct (Min et al., "Large graph convolutional network training with
GPU-oriented data communication architecture", VLDB 2021).
"""

from gnnsys.unified_tensor.factory import unified
from gnnsys.unified_tensor.tensor import UnifiedTensor

__all__ = ["UnifiedTensor", "unified"]
