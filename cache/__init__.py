"""The software feature cache: rows of a slow store in memory, chosen by what comes next.

A cache is a store that wraps a slower store: ``gnnsys.cache.store.CachedStore``, which
``gnnsys.unified(path, cache=…)`` makes. Nothing is decided while rows are waited for: batches are
announced as they are sampled (``tickets``), a planner compiles each into a ``BatchPlan`` (``plan``,
``planner``; ``reference`` defines it), and an engine reads ahead and carries plans out (``engine``,
``executor``). ``simulate`` replays a recorded ``trace`` without moving a row; ``scores`` says which
rows are worth caching before anything is known; ``arena`` divides a budget among tables.

The package may import ``memory``, ``files``, ``sizes``, ``errors``, ``counters`` and ``rng``, never
a loader or the unified tensor. Invariants: rows are bit for bit the source's, whatever the policy;
plans depend on no clock or thread; rows served add up to rows asked for, by tier.
"""
