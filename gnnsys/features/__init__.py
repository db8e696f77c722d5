"""Which rows go to which tier: options, what is decided from them, importance, statistics.

Stands on dataset folders and the cache. Invariant: what is decided here changes speed, never a
batch.
"""
