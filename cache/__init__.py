"""The software feature cache: lookahead, policies, victim buffer, sharing, simulator.

Nothing is here yet. It will own the plans by which rows move between tiers; a cache is a store that
wraps a slower store. It may import ``memory``, ``errors``, ``counters`` and ``rng``, never a loader
or the unified tensor.
"""
