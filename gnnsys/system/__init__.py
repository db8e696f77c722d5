"""The machine, and no graph in it: files, disks, sizes, devices, signals, progress.

Imports the standard library, numpy, rich, psutil and ``gnnsys.errors``; nothing else of gnnsys.
Invariant: what is asked of the kernel here is asked nowhere else.
"""
