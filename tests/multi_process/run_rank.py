"""What a forked process does to be a rank: ``script`` from beginning to end, as Python runs it.

Runs with the names ``script``, ``environment``, ``out`` and ``err``, the files of its output.
"""

import ctypes
import os
import runpy
import sys

import torch

os.environ.update(environment)  # noqa: F821
os.chdir(script.parent)  # noqa: F821
for number, path in ((1, out), (2, err)):  # noqa: F821
    os.dup2(os.open(path, os.O_WRONLY), number)
torch.set_num_threads(1)  # it was imported before the environment was there to be read
status = 0
try:
    runpy.run_path(str(script), run_name="__main__")  # noqa: F821
except BaseException:
    sys.excepthook(*sys.exc_info())
    status = 1
# Takes Python down, as at the end of a script; multiprocessing would leave that out.
ctypes.pythonapi.Py_Exit(status)
