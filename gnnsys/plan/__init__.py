"""What a run will cost before it runs: caches of several sizes, hardware, splits of ranks.

Stands on training (a task's graph), the pipeline and the cache's simulator. Invariant: nothing is
trained, and no feature is read.
"""
