"""The ``gnnsys`` command: ``cli``, ``arguments`` and one file for each command.

Stands on everything else. Invariant: a command's code is imported when that command runs.
"""
