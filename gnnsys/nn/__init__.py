"""Trainable tables past memory as modules of torch.

``Embedding`` stands for ``torch.nn.Embedding(sparse=True)``, ``Adagrad`` and ``SparseAdam`` for the
optimisers of ``torch.optim``, ``save_checkpoint`` and ``load_checkpoint`` for ``torch.save`` and
``torch.load``. The package may import ``cache``, ``memory`` and what is below. Invariant: losses
are those of torch's classes, bit for bit.
"""

from gnnsys.nn.checkpoint import load_checkpoint, save_checkpoint
from gnnsys.nn.embedding import Embedding
from gnnsys.nn.optimizers import Adagrad, SparseAdam

__all__ = ["Adagrad", "Embedding", "SparseAdam", "load_checkpoint", "save_checkpoint"]
