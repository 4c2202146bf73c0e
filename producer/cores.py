"""How many CPU cores this process may use."""

import os


def usable_cores() -> int:
    """CPU cores that this process may use; containers and taskset often allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
