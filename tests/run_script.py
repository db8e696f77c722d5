"""What a forked process does to run ``script`` from beginning to end, as Python does.

Runs with the names ``script``, ``arguments``, ``environment``, ``folder``, which it works in, and
``out`` and ``err``, the files of its output.
"""

import ctypes
import gc
import os
import runpy
import sys

import torch

gc.freeze()  # looking for garbage in what was imported would copy its pages
os.environ.update(environment)  # noqa: F821
os.chdir(folder)  # noqa: F821
if "NAMESPACE" in environment:  # noqa: F821
    # Of the network, as ``ip netns exec`` would have it.
    with open(f"/run/netns/{os.environ['NAMESPACE']}") as network:
        assert ctypes.CDLL(None).setns(network.fileno(), 0) == 0
for number, path in ((1, out), (2, err)):  # noqa: F821
    os.dup2(os.open(path, os.O_WRONLY), number)
if "OMP_NUM_THREADS" in environment:  # noqa: F821
    # torch was imported before it was there to be read.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
sys.argv = [str(script), *arguments]  # noqa: F821
status = 0
try:
    runpy.run_path(str(script), run_name="__main__")  # noqa: F821
except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
except BaseException:
    sys.excepthook(*sys.exc_info())
    status = 1
# Takes Python down, as at the end of a script; multiprocessing would leave that out.
ctypes.pythonapi.Py_Exit(status)
