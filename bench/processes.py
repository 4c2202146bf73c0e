"""Memory of a process tree, from /proc (Linux; 0 elsewhere)."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType

SAMPLE_S = 0.5
EXACT_COUNT_GROWTH = 1.01  # growth of the kernel's counters that triggers an exact count


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def resident_bytes(pid: int) -> int:
    """Memory that a process has written; pages shared with other processes count in parts. 0 where unknown.

    The code of libraries is left out: its share depends on which other processes have loaded it.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(size) for size in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))


def counted_bytes(pid: int) -> int:
    """About the same, with shared pages in full, from the kernel's counters, without slowing the process down.

    An exact count walks over all pages and holds the lock that the process needs for new ones: 24 ms for a GiB.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(size) for size in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))


class PeakMemory:
    """Samples the memory of a process tree while the block runs; `peak_bytes` is the highest value.

    The exact count is made only when the kernel's counters have grown, because it slows down the processes.
    """

    def __init__(self, pid: int) -> None:
        """`pid` is the root of the tree."""
        self._pid, self.peak_bytes = pid, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        highest = 0.0
        while True:
            pids = tree(self._pid)
            counted = sum(map(counted_bytes, pids))
            if counted > highest * EXACT_COUNT_GROWTH:
                highest = counted
                self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, pids)))
            if self._ended.wait(SAMPLE_S):
                return
