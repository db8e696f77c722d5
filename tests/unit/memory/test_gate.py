"""A gate in a forked child, whose parent's threads it lacks."""

from __future__ import annotations

import os
import signal
import threading

from gnnsys.memory.gate import Gate


def test_a_forked_child_passes_and_closes_a_gate_that_a_thread_of_its_parent_is_inside() -> None:
    gate, inside, leave = Gate("x"), threading.Event(), threading.Event()

    def stay() -> None:
        with gate:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    with gate._change:  # as another thread may hold it in the moment of the fork
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with gate:
                pass
            os._exit(0 if gate.close() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join()
    assert gate.close()
