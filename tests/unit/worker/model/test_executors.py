"""Executors: slices come back in order, each thread uses one core, and CUDA streams are synchronized."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch

from worker.model import executors
from worker.model.executors import CpuExecutor, CudaExecutor


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def first_number(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, 0, 0, :].to(torch.float32)


@pytest.fixture
def cpu():
    made = []

    def build(encoder=first_number, **options):
        made.append(CpuExecutor(encoder, **options))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 33, 100])
def test_slices_come_back_in_order(cpu, cores, count):
    """Whichever core is faster."""

    def uneven(pixels):
        time.sleep(0.002 if pixels[0, 0, 0, 0] % 3 else 0)
        return first_number(pixels)

    found, _ = cpu(uneven, cores=cores).launch(numbered(count))()
    assert found[:, 0].tolist() == list(range(count))


def test_each_slice_runs_on_a_core_of_its_own(cpu):
    """Slices run in parallel, in threads in which torch uses one core; other threads keep their setting."""
    together, seen = threading.Barrier(2, timeout=10), set()

    def encoder(pixels):
        together.wait()
        seen.add(torch.get_num_threads())
        return first_number(pixels)

    before = torch.get_num_threads()
    assert cpu(encoder, cores=2).launch(numbered(8))()[0].shape == (8, 2)
    assert seen == {1}
    after: list[int] = []
    thread = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before
    assert after == [before]


def test_a_chunk_is_launched_before_the_previous_one_is_fetched(cpu):
    """`launch` does not wait, so that cores never idle between chunks."""
    gate = threading.Event()

    def gated(pixels):
        gate.wait(10)
        return first_number(pixels)

    device = cpu(gated, cores=2, core_clock=time.perf_counter)  # a thread that sleeps has used no core
    first, second = device.launch(numbered(8)), device.launch(numbered(4))
    gate.set()
    assert first()[0][:, 0].tolist() == list(range(8))
    assert second()[0][:, 0].tolist() == list(range(4))


def test_an_urgent_chunk_waits_for_none_that_was_launched_before(cpu):
    """It runs beside them; its seconds are those of the cores that it used."""
    gate = threading.Event()

    def gated(pixels):
        if pixels[0, 0, 0, 0] < 100:
            gate.wait(10)
        time.sleep(0.02)
        return first_number(pixels)

    device = cpu(gated, cores=2, core_clock=time.perf_counter)  # a thread that sleeps has used no core
    before = [device.launch(numbered(64)) for _ in range(2)]
    found, seconds = device.launch(numbered(101)[100:], urgent=True)()
    assert found[:, 0].tolist() == [100]
    assert 0.01 <= seconds < 0.1, "of two cores it used one"
    gate.set()
    for fetch in before:
        assert fetch()[0][:, 0].tolist() == list(range(64))


def test_a_failure_is_raised_only_when_no_slice_is_running(cpu):
    """Otherwise the pixels could be reused for the next chunk while a core still reads them."""
    running = []

    def encoder(pixels):
        if pixels[0, 0, 0, 0] == 0:
            raise MemoryError
        running.append(1)
        time.sleep(0.2)
        running.pop()
        return first_number(pixels)

    fetch = cpu(encoder, cores=2).launch(numbered(4))
    with pytest.raises(MemoryError):
        fetch()
    assert running == []


def test_device_seconds_are_counted_once(cpu):
    """Time in which chunks overlap is not counted twice."""

    def slow(pixels):
        time.sleep(0.05)
        return first_number(pixels)

    device = cpu(slow, cores=2)
    began = time.perf_counter()
    launched = [device.launch(numbered(2)) for _ in range(4)]
    seconds = sum(fetch()[1] for fetch in launched)
    assert 0.15 < seconds <= time.perf_counter() - began


class Streams:
    """Replaces torch.cuda and records the order in which streams and events are used."""

    def __init__(self, monkeypatch):
        self.calls: list[str] = []
        self.current = "default"
        calls, streams = self.calls, self

        class Stream:
            def __init__(self, device):
                self.name = f"stream {sum('new' in one for one in calls)}"
                calls.append(f"new {self.name}")

            def wait_stream(self, other):
                calls.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, enable_timing):
                self.name = ""

            def record(self):
                calls.append(f"event in {streams.current}")

            def synchronize(self):
                calls.append("host waits")

            def elapsed_time(self, other):
                return 250.0

        class Within:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                streams.current = self.stream.name

            def __exit__(self, *_):
                streams.current = "default"

        for name, value in {"Stream": Stream, "Event": Event, "stream": Within}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: calls.append(f"kept for {stream.name}"), raising=False
        )
        empty = torch.empty
        monkeypatch.setattr(executors.torch, "empty", lambda *shape, pin_memory, **rest: empty(*shape, **rest))


def test_cuda_copies_on_one_stream_and_computes_on_another(monkeypatch):
    """Computation waits for the copy, and the host waits for the computation."""
    streams = Streams(monkeypatch)

    def encoder(pixels):
        streams.calls.append(f"computed in {streams.current}")
        return first_number(pixels)

    device = CudaExecutor(torch.device("cpu"), encoder)
    fetch = device.launch(numbered(3))
    streams.calls.append("launched")
    vectors, seconds = fetch()
    assert vectors[:, 0].tolist() == [0, 1, 2]
    assert seconds == 0.25
    assert streams.calls == [
        "new stream 0",
        "new stream 1",
        "synchronize",  # the weights are on the device
        "stream 1 waits for stream 0",
        "kept for stream 1",
        "event in stream 1",
        "computed in stream 1",
        "event in stream 1",
        "launched",
        "host waits",
    ]
    device.free_memory()
    assert streams.calls[-2:] == ["synchronize", "empty_cache"], "work in progress first, then the cache"


def test_a_probe_computes_where_chunks_are_computed(monkeypatch):
    """And has the result when it returns, as `item` waits for it."""
    streams = Streams(monkeypatch)
    device, ones = CudaExecutor(torch.device("cpu"), first_number), torch.ones

    def computed(*shape, **options):
        streams.calls.append(f"computed in {streams.current}")
        return ones(*shape, **options)

    monkeypatch.setattr(executors.torch, "ones", computed)
    device.probe()
    assert streams.calls[-1] == "computed in stream 1"


def test_pixels_are_kept_until_they_are_copied(monkeypatch):
    """The pipeline drops a chunk after submitting it; its memory must not be reused while a copy reads it."""
    Streams(monkeypatch)
    device = CudaExecutor(torch.device("cpu"), first_number)
    pixels = numbered(3)
    alive = weakref.ref(pixels)
    fetch = device.launch(pixels)
    del pixels
    assert alive() is not None
    found, _ = fetch()
    assert alive() is None
    assert isinstance(found, np.ndarray)
    assert found.flags.owndata, "pinned memory is released at once"
