"""The software feature cache: rows of a slow store in memory, chosen by what comes next.

A cache is a store that wraps a slower store: ``CachedStore`` (``store``), which
``gnnsys.unified(path, cache=…)`` makes. Nothing is decided while rows are waited for: batches are
announced as they are sampled (``tickets``), a planner compiles each into a ``BatchPlan`` (``plan``,
``planner``), and an engine reads ahead and carries plans out (``engine``,
``executor``). ``simulator`` replays a recorded ``trace`` without moving a row; ``importance`` says
which rows are worth caching before anything is known; ``arena`` divides a budget among tables.

The package may import ``memory``, ``system``, ``errors``, ``counters`` and ``rng``, never a
loader or the unified tensor. Invariants: rows are bit for bit the source's, whatever the policy;
plans depend on no clock or thread; rows served add up to rows asked for, by tier.

Public names are handed on lazily (PEP 562): the command line reads ``plan`` and imports no torch.
"""

from typing import TYPE_CHECKING

from gnnsys.system.lazy import hand_on

if TYPE_CHECKING:
    from gnnsys.cache.arena import CacheArena
    from gnnsys.cache.simulator import simulate
    from gnnsys.cache.store import CachedStore
    from gnnsys.cache.trace import TraceWriter, read_trace

__all__ = ["CacheArena", "CachedStore", "TraceWriter", "read_trace", "simulate"]

_HOME = {
    "CacheArena": "gnnsys.cache.arena",
    "CachedStore": "gnnsys.cache.store",
    "TraceWriter": "gnnsys.cache.trace",
    "read_trace": "gnnsys.cache.trace",
    "simulate": "gnnsys.cache.simulator",
}

__getattr__, __dir__ = hand_on(__name__, _HOME)
