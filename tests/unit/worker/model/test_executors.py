"""Forward passes: slices come back in order, threads keep to their cores, and CUDA's streams wait where they must."""

import threading
import time

import numpy as np
import pytest
import torch

from worker.model import executors
from worker.model.executors import CpuForward, CudaForward


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def first_number(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, 0, 0, :].to(torch.float32)


@pytest.fixture
def cpu():
    made = []

    def build(tower=first_number, **options):
        made.append(CpuForward(tower, **options))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 33, 100])
def test_slices_come_back_in_order(cpu, cores, count):
    """Whatever core was faster."""

    def uneven(pixels):
        time.sleep(0.002 if pixels[0, 0, 0, 0] % 3 else 0)
        return first_number(pixels)

    found = cpu(uneven, cores=cores).launch(numbered(count)).fetch()
    assert found[:, 0].tolist() == list(range(count))


def test_all_cores_work_and_each_on_one(cpu):
    """Slices run side by side, in threads in which torch uses one core; elsewhere torch stays as it was set."""
    together, seen = threading.Barrier(2, timeout=10), set()

    def tower(pixels):
        together.wait()
        seen.add(torch.get_num_threads())
        return first_number(pixels)

    before = torch.get_num_threads()
    assert cpu(tower, cores=2).launch(numbered(8)).fetch().shape == (8, 2)
    assert seen == {1}
    after: list[int] = []
    thread = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before
    assert after == [before]


def test_a_chunk_is_on_its_way_before_the_one_before_it_is_fetched(cpu):
    """launch does not wait, so that a core goes from one chunk to the next without a pause."""
    gate = threading.Event()

    def gated(pixels):
        gate.wait(10)
        return first_number(pixels)

    device = cpu(gated, cores=2)
    first, second = device.launch(numbered(8)), device.launch(numbered(4))
    gate.set()
    assert first.fetch()[:, 0].tolist() == list(range(8))
    assert second.fetch()[:, 0].tolist() == list(range(4))


def test_a_slice_that_fails_is_heard_of_when_no_slice_runs_any_more(cpu):
    """Otherwise the pixels would be given to the next chunk while a core still reads them."""
    running = []

    def tower(pixels):
        if pixels[0, 0, 0, 0] == 0:
            raise MemoryError
        running.append(1)
        time.sleep(0.2)
        running.pop()
        return first_number(pixels)

    launched = cpu(tower, cores=2).launch(numbered(4))
    with pytest.raises(MemoryError):
        launched.fetch()
    assert running == []


def test_the_devices_seconds_are_counted_once(cpu):
    """Chunks that overlap do not make a second of work two."""

    def slow(pixels):
        time.sleep(0.05)
        return first_number(pixels)

    device = cpu(slow, cores=2)
    began = time.perf_counter()
    launched = [device.launch(numbered(2)) for _ in range(4)]
    for one in launched:
        one.fetch()
    took = time.perf_counter() - began
    assert 0.15 < sum(one.seconds for one in launched) <= took


class Streams:
    """Stands in for torch.cuda: notes in which order streams and events are used."""

    def __init__(self, monkeypatch):
        self.said: list[str] = []
        self.current = "default"
        said, streams = self.said, self

        class Stream:
            def __init__(self, device):
                self.name = f"stream {sum('new' in one for one in said)}"
                said.append(f"new {self.name}")

            def wait_stream(self, other):
                said.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, enable_timing):
                self.name = ""

            def record(self):
                said.append(f"event in {streams.current}")

            def synchronize(self):
                said.append("host waits")

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
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: said.append(name))
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: said.append(f"kept for {stream.name}"), raising=False
        )
        empty = torch.empty
        monkeypatch.setattr(executors.torch, "empty", lambda *shape, pin_memory, **rest: empty(*shape, **rest))


def test_cuda_copies_on_one_stream_and_computes_on_the_other(monkeypatch):
    """With streams that only take notes: what is computed has arrived, and what is read has been computed."""
    streams = Streams(monkeypatch)

    def tower(pixels):
        streams.said.append(f"computed in {streams.current}")
        return first_number(pixels)

    device = CudaForward(torch.device("cpu"), tower)
    launched = device.launch(numbered(3))
    streams.said.append("launched")
    assert launched.fetch()[:, 0].tolist() == [0, 1, 2]
    assert streams.said == [
        "new stream 0",
        "new stream 1",
        "synchronize",  # the weights are there
        "stream 1 waits for stream 0",
        "kept for stream 1",
        "event in stream 1",
        "computed in stream 1",
        "event in stream 1",
        "launched",
        "host waits",
    ]
    assert launched.seconds == 0.25
    device.free_memory()
    assert streams.said[-2:] == ["synchronize", "empty_cache"], "first what is on its way, then the cache"


def test_pixels_are_held_until_they_are_certainly_copied(monkeypatch):
    """The pipeline lets go of a chunk at once; its memory must not be another chunk's while a copy reads it."""
    Streams(monkeypatch)
    device = CudaForward(torch.device("cpu"), first_number)
    launched = device.launch(numbered(3))
    assert launched._pixels is not None
    found = launched.fetch()
    assert launched._pixels is None
    assert isinstance(found, np.ndarray)
    assert found.flags.owndata, "pinned memory goes back at once"
