"""Processes that work together: starting them, messages between them, who is alive.

Stands on ``system`` alone; knows nothing of graphs. Invariant: a rank that is missing ends the
others with an error that names it.
"""
