"""Layer-pipelined model parallelism for full-graph training.

Nothing is here yet. It may import torch, torch.distributed and ``errors``, never a loader, a cache
or the unified tensor.
"""
