"""Room for a chunk: pinned where it helps, and there all the same where it cannot be had."""

import pytest
import torch

from worker.images.decode import Geometry
from worker.pipeline import buffers
from worker.pipeline.buffers import chunk_buffer, keep_rows


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3], [0, 2, 3], [3], [0]])
def test_rows_are_kept_in_place(rows):
    """A copy would lie in memory that is not pinned, and the card would wait for it."""
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 2, 2)
    kept = keep_rows(pixels, rows)
    assert kept[:, 0, 0, 0].tolist() == rows
    assert kept.data_ptr() == pixels.data_ptr()


def test_without_pinned_memory_all_goes_on_and_says_so_once(monkeypatch, caplog):
    """The system bounds pinned memory; a chunk that gets none is only copied slower."""
    empty = torch.empty

    def scarce(shape, *, dtype, pin_memory=False):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(buffers.torch, "empty", scarce)
    monkeypatch.setattr(buffers, "_told", False)
    for _ in range(2):
        assert chunk_buffer(2, Geometry(4, 6), torch.device("cuda", 0)).shape == (2, 3, 4, 6)
    assert caplog.text.count("no pinned memory") == 1


def test_room_is_writable_separate_and_goes_back():
    """Each chunk has memory of its own; a hundred of 10 MB, one after the other, take no more than one."""
    resource = pytest.importorskip("resource")
    cpu, geometry = torch.device("cpu"), Geometry(224, 224)
    first, second = chunk_buffer(2, geometry, cpu).fill_(1), chunk_buffer(2, geometry, cpu).fill_(2)
    assert (first == 1).all()
    assert (second == 2).all()
    assert chunk_buffer(0, geometry, cpu).shape == (0, 3, 224, 224)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        chunk_buffer(64, geometry, cpu).fill_(3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
