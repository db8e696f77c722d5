"""The software feature cache: lookahead, policies, victim buffer, sharing, simulator.

Owns the plans by which rows move between tiers: what a batch will do is decided ahead
(``planner``, defined by ``reference``) as data (``plan``), so that it can be carried out, undone,
simulated (``simulate``) and compared. A cache is a store that wraps a slower store. It may import
``memory``, ``errors``, ``counters`` and ``rng``, never a loader or the unified tensor.
"""
