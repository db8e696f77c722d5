"""A worker does what it is given in order, lets go of it, and ends when it is not used."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import CancelledError

import pytest
import torch

from gnnsys.errors import ArgumentError, ResourceError
from gnnsys.offload.workers import Worker


def test_work_is_done_in_order_and_errors_go_to_its_future() -> None:
    worker, done = Worker("gnnsys-test"), []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        go_on.wait()
        return threading.current_thread().name

    one = worker.submit(first)
    begun.wait()
    fails = worker.submit(lambda: 1 // 0)
    cancelled = worker.submit(lambda: done.append("cancelled"))
    others = [worker.submit(lambda k=k: done.append(k)) for k in range(5)]
    assert cancelled.cancel()
    go_on.set()
    worker.close()
    assert one.result() == "gnnsys-test"
    with pytest.raises(ZeroDivisionError):
        fails.result()
    with pytest.raises(CancelledError):
        cancelled.result()
    assert all(other.done() for other in others)
    assert done == list(range(5))
    worker.close()
    with pytest.raises(ArgumentError, match="gnnsys-test: work was submitted after it was closed"):
        worker.submit(first)


def test_what_was_done_holds_no_memory_and_a_worker_dropped_ends_its_thread() -> None:
    worker, begin, held = Worker("gnnsys-test-dropped"), threading.Event(), list[bool]()
    data = torch.zeros(10)
    gone = weakref.ref(data)

    def work(data: torch.Tensor = data) -> torch.Tensor:
        begin.wait()
        return data.sum()

    future = worker.submit(work)
    future.add_done_callback(lambda _: held.append(gone() is not None))
    del data, work
    begin.set()
    future.result()
    worker.submit(lambda: None).result()  # the callback has been called
    assert held == [False]
    thread = next(each for each in threading.enumerate() if each.name == "gnnsys-test-dropped")
    del worker
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_thread_that_is_refused_is_one_error_and_nothing_is_left_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, done = Worker("gnnsys-test"), []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResourceError, match=r"no more threads \(gnnsys-test\)"):
            worker.submit(lambda: done.append(1))
    worker.submit(lambda: done.append(2)).result()
    worker.close()
    assert done == [2]


def test_a_forked_child_is_told_that_the_thread_is_its_parents() -> None:
    worker = Worker("gnnsys-test")
    worker.submit(lambda: None).result()
    with worker._lock:  # as another thread may hold it in the moment of the fork
        child = os.fork()
        if child == 0:
            worker.close()
            try:
                worker.submit(lambda: None)
            except ArgumentError as error:
                os._exit(0 if f"is in process {os.getppid()}" in str(error) else 1)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.submit(lambda: 3).result() == 3
    worker.close()
