"""Threads that use one core each, so that several of them never fight over the same ones."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def usable_cores() -> int:
    """Cores that this process may use; containers and taskset often allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads in which torch computes on one core; elsewhere it goes on as it was set.

    torch would give each thread as many helpers as there are cores: with two threads on two cores, four
    run, and every step waits for the one that had to wait for its core.
    """
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_use_one_core)
    started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(usual)  # torch keeps the number per thread, and also the one for threads to come
    return pool


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes over the number for threads to come when it first asks; now that is 1
