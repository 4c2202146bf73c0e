"""Chunk buffers: pinned where possible, ordinary memory otherwise."""

import subprocess
import sys

import pytest
import torch

from tests.support.project import PROJECT
from worker.images.resize import Geometry
from worker.pipeline import buffers
from worker.pipeline.buffers import chunk_buffer, keep_rows


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3], [0, 2, 3], [3], [0]])
def test_rows_are_kept_in_place(rows):
    """A copy would not be pinned, and the GPU would wait for it."""
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 2, 2)
    kept = keep_rows(pixels, rows)
    assert kept[:, 0, 0, 0].tolist() == rows
    assert kept.data_ptr() == pixels.data_ptr()


def test_missing_pinned_memory_is_reported_once(monkeypatch, caplog):
    """The system limits pinned memory; without it, chunks are copied more slowly."""
    empty = torch.empty

    def scarce(shape, *, dtype, device=None, pin_memory=False):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(buffers.torch, "empty", scarce)
    monkeypatch.setattr(buffers, "_warned", False)
    for _ in range(2):
        assert chunk_buffer(2, Geometry(4, 6), torch.device("cuda", 0)).shape == (2, 3, 4, 6)
    assert caplog.text.count("no pinned memory") == 1


def test_buffers_are_writable_and_separate():
    """Each chunk has memory of its own; an empty one has the right shape."""
    cpu, geometry = torch.device("cpu"), Geometry(224, 224)
    first, second = chunk_buffer(2, geometry, cpu).fill_(1), chunk_buffer(2, geometry, cpu).fill_(2)
    assert (first == 1).all()
    assert (second == 2).all()
    assert chunk_buffer(0, geometry, cpu).shape == (0, 3, 224, 224)


@pytest.mark.slow
def test_memory_of_buffers_is_returned_to_the_system():
    """A hundred of 10 MB, one after the other, take no more than one; in a process whose peak is its own."""
    pytest.importorskip("resource")
    code = """
import resource, torch
from worker.images.resize import Geometry
from worker.pipeline.buffers import chunk_buffer
peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak_kib()
for _ in range(100):
    chunk_buffer(64, Geometry(224, 224), torch.device("cpu")).fill_(3)
print(peak_kib() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000
