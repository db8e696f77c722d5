"""The page of a run, or of several: reads what they left, draws charts, writes one HTML file.

Stands on ``pages``, and on ``training`` for the timeline of a parallel run. Invariant:
reads a run that goes on without disturbing it.
"""
