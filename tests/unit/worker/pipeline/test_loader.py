"""Loader: chunks in order, a bound on what is loaded ahead, and failures that stay with their item."""

import threading
from contextlib import closing

import pytest
import torch

from worker.images.resize import Geometry
from worker.pipeline.loader import CHUNKS_AHEAD, Loader, next_chunk_size


@pytest.fixture
def make_loader():
    loaders = []

    def build(size, **options):
        options = {"threads": 4} | options
        loaders.append(Loader(Geometry(1, 2), torch.device("cpu"), lambda: size, **options))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


def fill(numbers, targets: torch.Tensor) -> list[int]:
    assert len(targets) == len(numbers)
    for number, target in zip(numbers, targets, strict=True):
        target.fill_(number)
    return [number * number for number in numbers]


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("ahead", [0, 1, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_items_come_in_order_with_their_pixels_and_results(make_loader, count, ahead, ramp):
    """Whatever the size of chunks and look-ahead, row i and result i are those of item i."""
    items, pixels, results = [], [], []
    for chunk in make_loader(3, look_ahead_images=ahead, ramp=ramp).chunks(range(count), fill):
        assert len(chunk.items) <= 3
        assert chunk.pixels.shape == (len(chunk.items), 3, 1, 2)
        items += chunk.items
        pixels += chunk.pixels[:, 2, 0, 1].tolist()
        results += chunk.results()
    assert items == pixels == list(range(count))
    assert results == [number * number for number in range(count)]


def test_memory_is_filled_again_once_nobody_reads_it(make_loader):
    """Mapping new memory would take longer than all of the loader; a chunk that is in use is left alone."""
    loader, places, kept = make_loader(4, ramp=True), set(), []
    for _ in range(3):
        for number, chunk in enumerate(loader.chunks(range(40), fill)):
            assert chunk.pixels[:, 0, 0, 0].tolist() == list(chunk.items)
            places.add(chunk.memory.data_ptr())
            if number == 5:
                kept.append((chunk.pixels, list(chunk.items)))  # never given back
            else:
                loader.recycle(chunk)
    assert len(places) <= CHUNKS_AHEAD + 1 + len(kept)
    for pixels, items in kept:
        assert pixels[:, 0, 0, 0].tolist() == items


def test_memory_that_is_too_small_is_not_filled_again():
    """The chunk size grows again when the device's memory is free again."""
    sizes = iter([2, 2, 2, 2, 9, 9, 9, 9])
    loader = Loader(Geometry(1, 2), torch.device("cpu"), lambda: next(sizes, 9), threads=1, look_ahead_images=1)
    with closing(loader):
        for chunk in loader.chunks(range(30), fill):
            assert chunk.pixels[:, 0, 0, 0].tolist() == list(chunk.items)
            assert len(chunk.memory) > len(chunk.items)
            loader.recycle(chunk)


def test_an_exception_is_raised_by_the_results_of_its_chunk(make_loader):
    """Other chunks are loaded."""
    chunks = list(
        make_loader(3).chunks([2, 1, 0, 4, 5, 6], lambda numbers, targets: [1 // number for number in numbers])
    )
    with pytest.raises(ZeroDivisionError):
        chunks[0].results()
    assert chunks[1].results() == [0, 0, 0]


@pytest.mark.parametrize(("size", "threads", "slices"), [(64, 2, 4), (64, 64, 64), (10, 4, 4), (256, 4, 16), (1, 4, 1)])
def test_a_chunk_is_loaded_in_slices_for_all_threads(make_loader, size, threads, slices):
    """As few as possible of at most 16, and no thread is left without one."""
    calls = []
    loader = make_loader(size, threads=threads)
    list(loader.chunks(range(size), lambda numbers, targets: calls.append(numbers) or list(numbers)))
    assert len(calls) == slices
    assert max(map(len, calls)) <= 16
    assert sorted(number for numbers in calls for number in numbers) == list(range(size))


@pytest.mark.parametrize("threads", [1, 4])
def test_loads_ahead_are_bounded(make_loader, threads):
    """Memory is bounded by the look-ahead, not by the number of items."""
    started = []

    def load(numbers, targets):
        started.extend(numbers)
        return list(numbers)

    chunks = make_loader(2, threads=threads, look_ahead_images=5).chunks(range(100), load)
    for number in range(10):
        assert list(next(chunks).items) == [2 * number, 2 * number + 1]
        assert len(started) <= 2 * number + 2 + 6  # the chunks yielded, and the look-ahead in whole chunks
    chunks.close()
    assert len(started) <= 26


def test_closing_early_cancels_what_has_not_begun(make_loader):
    """A consumer that stops does not wait for the rest."""
    gate, done = threading.Event(), []

    def load(numbers, targets):
        if numbers[0]:
            assert gate.wait(30)
            done.extend(numbers)
        return list(numbers)

    loader = make_loader(1, threads=1, look_ahead_images=10)
    chunks = loader.chunks(range(50), load)
    next(chunks)
    chunks.close()
    gate.set()
    loader.close()
    assert len(done) <= 1


def test_threads_are_kept_between_calls(make_loader):
    """A worker does not start threads for every batch."""
    loader, names = make_loader(2, threads=1), set()
    for _ in range(2):
        for chunk in loader.chunks(range(4), lambda numbers, targets: [threading.current_thread()] * len(numbers)):
            names |= set(chunk.results())
    assert len(names) == 1


@pytest.mark.parametrize("full", [1, 3, 8, 64, 256])
def test_a_ramp_begins_and_ends_with_small_chunks(full):
    """The device starts early and has little left when the last image is decoded; no chunk is smaller than needed."""
    least = max(1, full // 8)
    for count in [*range(1, 300), 4096]:
        sizes: list[int] = []
        while sum(sizes) < count:
            sizes.append(next_chunk_size(sizes[-1] if sizes else 0, full, count - sum(sizes)))
        assert sum(sizes) == count
        assert max(sizes) <= max(full, 2 * least - 1)
        assert min(sizes) >= min(least, count)
        if count > 4 * full:
            assert full in sizes
            assert max(sizes[0], sizes[-1]) <= 2 * least
