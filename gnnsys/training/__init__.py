"""Training and what surrounds it: tasks, steps, the loop, exact inference, checkpoints, metrics.

Stands on datasets, features, options and the pipeline; knows nothing of reports, plans or
commands. Invariant: the same options give the same losses, also when a run is broken off.
"""
