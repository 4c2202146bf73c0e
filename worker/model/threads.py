"""Thread pools in which torch uses one core per thread, so that threads do not compete for cores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` started threads in which torch uses one core; other threads keep their setting.

    By default torch gives each thread as many helpers as there are cores: two threads on two cores become
    four, and every step waits for one that has no core.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_use_one_core)
    started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)  # torch keeps the number per thread, and also as the default of later threads
    return pool


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call fixes this thread's number to the current default, which now is 1
