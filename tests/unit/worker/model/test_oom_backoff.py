"""AdaptiveBatchSize: every item is covered once and in order, whatever fails, and the size grows back."""

import gc
import weakref

import pytest

from worker.model.oom_backoff import GROW_AFTER, AdaptiveBatchSize


class Full(Exception):
    """Stands for exhausted memory."""


def run(chunk_size, count, step, recovered=None):
    recover = (lambda: recovered.append(1)) if recovered is not None else (lambda: None)
    return list(chunk_size.run(count, step, is_exhaustion=lambda error: isinstance(error, Full), recover=recover))


def fits(limit):
    def step(start, stop):
        if stop - start > limit:
            raise Full
        return list(range(start, stop))

    return step


@pytest.mark.parametrize("count", [0, 1, 7, 16, 100])
@pytest.mark.parametrize("limit", [1, 3, 8, 1000])
def test_each_item_is_processed_once_and_in_order(count, limit):
    """Whatever fits, the slices cover the items exactly."""
    slices = run(AdaptiveBatchSize(16), count, fits(limit))
    assert [item for part in slices for item in part.result] == list(range(count))
    assert all(part.stop - part.start <= limit for part in slices)


def test_only_the_failed_slice_is_repeated():
    """Finished slices are kept: no item succeeds twice."""
    done = []

    def step(start, stop):
        if start == 16 and stop - start > 4:
            raise Full
        done.extend(range(start, stop))

    recovered = []
    run(AdaptiveBatchSize(16), 48, step, recovered)
    assert sorted(done) == list(range(48))
    assert len(recovered) == 2, "16 and 8 failed, 4 fitted"


def test_the_size_that_fits_is_remembered():
    """The next run starts with it and does not fail again."""
    chunk_size = AdaptiveBatchSize(64)
    run(chunk_size, 64, fits(10))
    assert chunk_size.size == 8
    assert chunk_size.halvings == 3
    recovered = []
    run(chunk_size, 24, fits(10), recovered)
    assert recovered == []
    assert chunk_size.halvings == 3


def test_one_item_that_does_not_fit_has_no_result():
    """A single item cannot be halved: its slice has no result, its neighbors have theirs."""

    def step(start, stop):
        if start <= 5 < stop:
            raise Full
        return stop - start

    slices = run(AdaptiveBatchSize(8), 12, step)
    assert [part.start for part in slices if part.result is None] == [5]
    assert sum(part.result for part in slices if part.result) == 11


def test_other_errors_are_not_swallowed():
    """Only exhausted memory leads to halving."""

    def step(start, stop):
        raise KeyError("no")

    with pytest.raises(KeyError):
        run(AdaptiveBatchSize(8), 8, step)


def test_the_size_grows_back_when_memory_is_free_again():
    """Throughput recovers after another program has released the card."""
    chunk_size = AdaptiveBatchSize(32)
    run(chunk_size, 32, fits(4))
    assert chunk_size.size == 4
    run(chunk_size, 4 * GROW_AFTER + 8 * GROW_AFTER + 16 * GROW_AFTER, fits(1000))
    assert chunk_size.size == 32


def test_a_size_that_keeps_failing_is_tried_ever_less_often():
    """Probing upward costs little where memory stays short."""
    chunk_size = AdaptiveBatchSize(32)
    recovered = []
    run(chunk_size, 4 * 2000, fits(4), recovered)
    assert chunk_size.size in (4, 8)
    assert len(recovered) <= 3 + 8


def test_memory_is_freed_after_the_except_block():
    """`recover` runs when the failed step's locals are freed: inside the block, the traceback would keep them."""

    class Tensor:
        pass

    alive = []

    def step(start, stop):
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        if stop - start > 1:
            raise Full
        return

    seen = []

    def recover():
        gc.collect()
        seen.append(alive[-1]() is None)

    list(AdaptiveBatchSize(4).run(4, step, is_exhaustion=lambda error: isinstance(error, Full), recover=recover))
    assert seen
    assert all(seen)


def test_a_limit_below_one_is_refused():
    """The size is a number of images."""
    with pytest.raises(ValueError, match="at least 1"):
        AdaptiveBatchSize(0)
