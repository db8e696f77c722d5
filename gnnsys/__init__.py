"""gnnsys trains graph neural networks on features that stay where they fit.

Public names are handed on lazily (PEP 562), so that importing this package, as ``gnnsys --help``
does, imports neither torch nor anything else that is large.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys._version import __version__ as __version__
    from gnnsys.cache.arena import CacheArena as CacheArena
    from gnnsys.cache.embedding.store import EmbeddingStore as EmbeddingStore
    from gnnsys.dataset.folder import Dataset as Dataset
    from gnnsys.dataset.folder import open_dataset as open_dataset
    from gnnsys.feature_store import FeatureStore as FeatureStore
    from gnnsys.loaders.cooperative import CooperativeSampler as CooperativeSampler
    from gnnsys.loaders.leakage import check_leakage as check_leakage
    from gnnsys.loaders.link_neighbor_loader import LinkNeighborLoader as LinkNeighborLoader
    from gnnsys.loaders.neighbor_loader import NeighborLoader as NeighborLoader
    from gnnsys.loaders.neighbor_sampler import NeighborSampler as NeighborSampler
    from gnnsys.memory.alloc import keep_freed_memory as keep_freed_memory
    from gnnsys.message_passing.fused_layers import fuse as fuse
    from gnnsys.offload.activation_offload import ActivationOffload as ActivationOffload
    from gnnsys.training.exact_inference import inference as inference
    from gnnsys.training.typed_inference import hetero_inference as hetero_inference
    from gnnsys.unified_tensor import UnifiedTensor as UnifiedTensor
    from gnnsys.unified_tensor import unified as unified

_HOME = {
    "ActivationOffload": "gnnsys.offload.activation_offload",
    "CacheArena": "gnnsys.cache.arena",
    "CooperativeSampler": "gnnsys.loaders.cooperative",
    "Dataset": "gnnsys.dataset.folder",
    "EmbeddingStore": "gnnsys.cache.embedding.store",
    "FeatureStore": "gnnsys.feature_store",
    "LinkNeighborLoader": "gnnsys.loaders.link_neighbor_loader",
    "NeighborLoader": "gnnsys.loaders.neighbor_loader",
    "NeighborSampler": "gnnsys.loaders.neighbor_sampler",
    "UnifiedTensor": "gnnsys.unified_tensor",
    "__version__": "gnnsys._version",
    "check_leakage": "gnnsys.loaders.leakage",
    "fuse": "gnnsys.message_passing.fused_layers",
    "hetero_inference": "gnnsys.training.typed_inference",
    "inference": "gnnsys.training.exact_inference",
    "keep_freed_memory": "gnnsys.memory.alloc",
    "open_dataset": "gnnsys.dataset.folder",
    "unified": "gnnsys.unified_tensor",
}

__all__ = [*_HOME]

# A checkout that is not built says so first.
__getattr__, __dir__ = hand_on(__name__, _HOME, first="gnnsys.system.extension")
