"""The page of a run: reads what the run left, draws charts, writes one HTML file.

Stands on ``pages``. Invariant: reads a run that goes on without disturbing it.
"""
