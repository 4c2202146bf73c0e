"""bench.scale: the producer's memory does not grow with the collection."""

import json
import subprocess
import sys

import pytest

from tests.support.project import PROJECT


@pytest.mark.chaos
@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Forty times the posters need little more memory in the producer; each command's result is checked."""
    command = [sys.executable, "-m", "bench.scale", "--sizes", "500,20000", "--folder", str(tmp_path), "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peaks = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        peaks.setdefault(entry["what"], []).append(entry["peak_mb"])
    assert len(peaks) == 5
    for what, (small, large) in peaks.items():
        assert large < small + 25, what  # the page cache of a temporary database
    assert list(tmp_path.iterdir()) == []
