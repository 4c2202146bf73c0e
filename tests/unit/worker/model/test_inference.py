"""Engine: whatever fails on the device, each image is embedded once, in order, with its own vector."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from producer.errors import DeviceLost, WeightsUnavailable, WrongVectors
from worker.model.inference import CpuFallback, Engine, same_vectors
from worker.model.oom_backoff import GROW_AFTER

DIMENSION = 6


def accelerator_error(code: int, text: str) -> torch.AcceleratorError:
    """As torch raises it for a failed CUDA call, with the runtime's error number."""
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    accelerator_error(2, "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in …"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
    MemoryError(),
]
LOST = [
    accelerator_error(700, "CUDA error: an illegal memory access was encountered"),
    accelerator_error(710, "CUDA error: device-side assert triggered"),
    accelerator_error(214, "CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported at some other call"),
]


def truth(pixels: torch.Tensor) -> np.ndarray:
    """What a healthy device returns: a unit vector of the image's first numbers."""
    vectors = pixels.flatten(1)[:, :DIMENSION].double().numpy() + 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Device:
    """A fake executor with memory for `capacity` images; above that it raises `error`, at the launch or later."""

    def __init__(self, error: Exception | None = None, *, capacity: int = 1000, late: bool = False) -> None:
        self.error, self.capacity, self.late = error, capacity, late
        self.launched: list[int] = []
        self.done: list[int] = []  # the first number of each image that was computed
        self.freed = 0
        self.seconds = 0.001
        self.launches: list[Launch] = []
        self.spoil = lambda vectors: vectors

    def launch(self, pixels, urgent=False):
        self.launched.append(len(pixels))
        full = self.error is not None and len(pixels) > self.capacity
        if full and not self.late:
            raise self.error
        self.launches.append(Launch(self, pixels, fails=full))
        return self.launches[-1]

    def free_memory(self):
        self.freed += 1

    def probe(self):
        if self.error is not None:
            raise self.error

    def close(self):
        pass


class Launch:
    def __init__(self, device, pixels, *, fails):
        self.device, self.pixels, self.fails = device, pixels, fails

    def __call__(self):
        if self.fails:
            raise self.device.error
        self.device.done += self.pixels.flatten(1)[:, 0].tolist()
        return self.device.spoil(truth(self.pixels)), self.device.seconds


def images(count: int) -> torch.Tensor:
    """Image i begins with the number i."""
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))
    pixels[:, 0, 0, 0] = torch.arange(count)
    return pixels


def engine_on(device, limit=16, build=None, **options) -> Engine:
    fallback = CpuFallback(build or (lambda: lambda pixels: torch.from_numpy(truth(pixels))))
    return Engine(device, fallback, DIMENSION, limit, **options)


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:40])
def test_a_probe_tells_a_lost_device_from_one_that_answers(error):
    """A full one has answered; what is unknown is raised as it is."""
    with pytest.raises(DeviceLost, match="context is broken"):
        engine_on(Device(error)).probe()
    for answered in (None, *EXHAUSTED):
        engine_on(Device(answered)).probe()
    with pytest.raises(RuntimeError, match="unknown"):
        engine_on(Device(RuntimeError("something unknown"))).probe()


@pytest.mark.parametrize("late", [False, True], ids=["at the launch", "later"])
@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: str(error)[:40])
def test_out_of_memory_halves_and_gives_the_same_vectors(error, late, caplog):
    """Every image once, in order, whichever component ran out of memory, and when."""
    device = Device(error, capacity=3, late=late)
    chunk = engine_on(device).submit(images(40)).result()
    assert chunk.failures == {}
    assert (chunk.vectors * truth(images(40))).sum(axis=1).min() >= 0.9999
    assert sorted(device.done) == list(range(40)), "finished slices are kept, and nothing is computed twice"
    assert device.freed == device.launched.count(16) + device.launched.count(8) + device.launched.count(4) > 0
    assert "out of memory at 16 image(s): halving" in caplog.text


def test_a_finished_slice_is_kept_when_a_later_one_fails():
    """Only the failed slice is repeated."""
    device = Device(capacity=1000)
    engine = engine_on(device)
    pending = engine.submit(images(48))
    device.launches[1].fails, device.error, device.capacity = True, EXHAUSTED[0], 8
    chunk = pending.result()
    assert (chunk.vectors * truth(images(48))).sum(axis=1).min() >= 0.9999
    assert device.launched == [16, 16, 16, 16, 8, 8], "three slices, the second repeated as a whole, and then in halves"
    assert sorted(device.done) == list(range(48))


def test_the_size_that_fits_is_remembered_and_grows_back():
    """Another program takes the card's memory for a while; then throughput recovers."""
    device = Device(EXHAUSTED[0], capacity=2)
    engine = engine_on(device)
    engine.submit(images(16)).result()
    assert engine.chunk_size.size == 2
    device.launched.clear()
    engine.submit(images(8)).result()
    assert device.launched == [2, 2, 2, 2], "the next chunk does not fail again"
    device.capacity = 1000
    for _ in range(4 * GROW_AFTER):
        engine.submit(images(16)).result()
    assert engine.chunk_size.size == 16
    device.launched.clear()
    engine.submit(images(16)).result()
    assert device.launched == [16]


def test_one_image_that_does_not_fit_is_embedded_on_the_cpu(caplog):
    """The last resort, with a warning, and the right vectors."""
    chunk = engine_on(Device(EXHAUSTED[0], capacity=0)).submit(images(3)).result()
    assert chunk.failures == {}
    assert (chunk.vectors * truth(images(3))).sum(axis=1).min() >= 0.9999
    assert "on the CPU in fp32" in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "not even one fits"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not even one fits"),
        (WeightsUnavailable("the file is gone"), "the file is gone"),
    ],
)
def test_if_the_cpu_fails_as_well_only_that_image_fails(error, reason):
    """Its neighbors keep their vectors."""

    def build():
        def embed(pixels):
            if pixels[0, 0, 0, 0] == 1:
                raise error
            return torch.from_numpy(truth(pixels))

        return embed

    chunk = engine_on(Device(EXHAUSTED[0], capacity=0), build=build).submit(images(3)).result()
    assert list(chunk.failures) == [1]
    assert reason in chunk.failures[1]
    assert not chunk.vectors[1].any()
    assert (chunk.vectors * truth(images(3))).sum(axis=1)[[0, 2]].min() >= 0.9999


@pytest.mark.parametrize("late", [False, True], ids=["at the launch", "later"])
@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:50])
def test_a_broken_context_is_not_mistaken_for_memory(error, late):
    """Halving would never end on a dead device: it is tried once, and DeviceLost is raised."""
    device = Device(error, capacity=0, late=late)
    with pytest.raises(DeviceLost, match=str(error).splitlines()[0].removeprefix("CUDA error: ")):
        engine_on(device).submit(images(4)).result()
    assert device.launched == [4]


def test_a_context_that_breaks_while_memory_is_freed_is_recognized():
    """Errors show at the first call that waits for the device."""
    device = Device(EXHAUSTED[0], capacity=1)

    def broken():
        raise LOST[0]

    device.free_memory = broken
    with pytest.raises(DeviceLost, match="illegal memory access"):
        engine_on(device).submit(images(4))


def test_other_errors_are_raised_unchanged(caplog):
    """A bug is neither exhausted memory nor a lost device."""
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
    with pytest.raises(RuntimeError, match="mat1"):
        engine_on(Device(error, capacity=0)).submit(images(4)).result()
    assert caplog.text == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_a_row_that_is_not_a_unit_vector_is_recomputed(value):
    """An fp16 overflow must not become a NaN in the store, nor affect other rows."""
    device = Device()

    def spoil(vectors):
        vectors[2] = vectors[2] * value if value == 2 else value
        return vectors

    device.spoil = spoil
    chunk = engine_on(device).submit(images(5)).result()
    assert chunk.failures == {}
    assert (chunk.vectors * truth(images(5))).sum(axis=1).min() >= 0.9999


def test_a_collapse_of_throughput_is_reported_once(caplog):
    """On Windows the driver may move GPU memory into system memory: nothing fails, but everything is slow."""
    device = Device()
    engine = engine_on(device, watch_speed=True)
    for device.seconds in [0.001] * 20 + [0.1] * 30:
        engine.submit(images(16)).result()
    assert caplog.text.count("POSTERS_GPU_MEMORY_FRACTION") == 1


def test_single_images_are_not_reported_as_slow(caplog):
    """A backend requests one poster at a time, which is slower per image anyway."""
    engine = engine_on(Device(), watch_speed=True)
    for count in [16] * 20 + [1] * 50:
        engine.submit(images(count)).result()
    assert caplog.text == ""


@pytest.mark.parametrize("late", [False, True], ids=["at the launch", "later"])
def test_threads_that_share_an_engine_get_their_own_vectors(late):
    """Batches and requests, while memory runs out for both."""
    engine = engine_on(Device(EXHAUSTED[0], capacity=3, late=late))

    def embed(number):
        pixels = images(64)[number : number + 1 + number % 9]
        found = engine.submit(pixels, urgent=bool(number % 2)).result()
        return found.failures, float((found.vectors * truth(pixels)).sum(axis=1).min())

    with ThreadPoolExecutor(4) as threads:
        for failures, cosine in threads.map(embed, range(50)):
            assert (failures, cosine > 0.9999) == ({}, True)


def alike() -> torch.Tensor:
    """Eight images; 2 and 5 differ only where the model does not look."""
    pixels = images(8)
    pixels[5, 0] = pixels[2, 0]
    return pixels


def test_different_images_with_one_vector_are_recomputed_on_the_cpu(caplog):
    """The CPU agrees here: it is the model's vector, its own is taken, and a warning says so."""
    recomputed = []

    def build():
        return lambda pixels: recomputed.append(len(pixels)) or torch.from_numpy(truth(pixels))

    chunk = engine_on(Device(), build=build).submit(alike()).result()
    assert recomputed == [1, 1]
    assert np.array_equal(chunk.vectors[2], chunk.vectors[5])
    assert chunk.failures == {}
    assert "2 different images got the same vector" in caplog.text


def test_the_same_image_twice_may_have_one_vector():
    """Nothing is recomputed."""
    pixels = images(8)
    pixels[5] = pixels[2]
    chunk = engine_on(Device(), build=None).submit(pixels).result()
    assert np.array_equal(chunk.vectors[2], chunk.vectors[5])


@pytest.mark.parametrize("count", [2, 8])
def test_a_device_that_gives_one_vector_for_different_images_is_lost(count):
    """As cards with broken memory were seen to do, unnoticed for months."""
    device = Device()
    device.spoil = lambda vectors: np.concatenate([np.repeat(vectors[:1], count, axis=0), vectors[count:]])
    with pytest.raises(WrongVectors, match=f"{count} different images got the same"):
        engine_on(device).submit(images(8)).result()


def test_if_the_cpu_cannot_compare_the_images_have_no_vector():
    """A vector that may be wrong is not stored."""
    device = Device()
    device.spoil = lambda vectors: np.concatenate([vectors[:1], vectors[:1], vectors[2:]])

    def build():
        raise WeightsUnavailable("the file is gone")

    chunk = engine_on(device, build=build).submit(images(8)).result()
    assert sorted(chunk.failures) == [0, 1]
    assert not chunk.vectors[:2].any()


def test_equal_rows_are_found_by_all_their_bits():
    """Rows that share a beginning are not equal; rows of zeros are failures, not vectors."""
    vectors = np.zeros((6, 4), np.float32)
    vectors[0] = vectors[3] = [1, 0, 0, 0]
    vectors[1] = [1, 0, 0, 1e-8]
    vectors[4] = [0, 1, 0, 0]
    assert same_vectors(vectors) == [[0, 3]]
    assert same_vectors(vectors[:1]) == []
