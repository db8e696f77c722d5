"""Converts graphs of other formats to dataset folders and back, in bounded memory.

Owns the readers of each format and the external sort of edges. Writes through
``gnnsys.dataset.writer`` only. Invariants: nothing appears under the final name before it is
complete; the same source and options give the same bytes; memory does not grow with the edges.
"""
