"""Tests that need a GPU (marked `gpu`; skipped with a reason where there is none).

Real out-of-memory errors, streams and precision, and a broken CUDA context in a process of its own.
"""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.project import PROJECT
from tests.support.tiny_model import SIDE, write_tiny_model
from worker.clip_embedder import CLIPEmbedder
from worker.model.device import memory_bytes, why_no_cuda

REASON = why_no_cuda()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"needs an NVIDIA GPU: {REASON}")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def pixels(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@pytest.fixture
def whole_card():
    """Removes the memory limit that a test has set."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_card_gives_the_vectors_of_the_cpu(precision):
    """ViT-B/32 in each precision against open_clip's numbers in fp32 on the CPU."""
    exact = CLIPEmbedder("ViT-B/32", "cpu", pretrained="untrained", precision="fp32")
    fast = CLIPEmbedder("ViT-B/32", "cuda", pretrained="untrained", precision=precision)
    images = pixels(16, 224)
    expected, found = exact.embed_pixels(images).vectors, fast.embed_pixels(images).vectors
    assert (found * expected).sum(axis=1).min() >= 0.999
    assert fast.space == exact.space
    assert fast.provenance["tower"] == "lean"


def test_auto_is_fp16(tiny):
    """It falls back only where the parity check fails."""
    assert CLIPEmbedder(tiny, "auto").precision == "fp16"


@pytest.mark.parametrize("pinned", [False, True])
def test_chunks_on_the_device_do_not_mix(tiny, pinned):
    """Streams overlap; every result belongs to its pixels, also if their memory is released at once."""
    embedder = CLIPEmbedder(tiny, "cuda", batch_size=64, precision="fp32")
    chunks = [pixels(64).roll(shift, dims=0) for shift in range(20)]
    expected = [embedder.embed_pixels(chunk).vectors for chunk in chunks]
    pending, found = [], []
    for chunk in chunks:
        pending.append(embedder.submit(chunk.pin_memory() if pinned else chunk.clone()))
        if len(pending) > 1:
            found.append(pending.pop(0).result())
    found.append(pending.pop().result())
    for result, vectors in zip(found, expected, strict=True):
        assert np.allclose(result.vectors, vectors, atol=1e-5)
        assert result.seconds > 0


def test_the_memory_of_the_card_is_measured(tiny):
    """What this process holds, held at most, and what is left for others."""
    embedder = CLIPEmbedder(tiny, "cuda", batch_size=64)
    embedder.warm_up()
    memory = memory_bytes(embedder.device)
    assert 0 < memory["allocated"] <= memory["used"] <= memory["peak"]
    assert 0 < memory["free"] < memory["total"]
    assert memory["total"] == torch.cuda.get_device_properties(0).total_memory


def test_real_exhaustion_halves_and_gives_the_same_vectors(whole_card, caplog):
    """With memory for the weights and a few images: every image once, with its vector."""
    embedder = CLIPEmbedder("ViT-B/32", "cuda", pretrained="untrained", batch_size=1024)
    images = pixels(1024, 224)
    expected = np.concatenate([embedder.embed_pixels(part).vectors for part in images.split(16)])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 300 * 2**20) / total)
    found = embedder.embed_pixels(images)
    assert "out of memory" in caplog.text
    assert embedder.chunk < 1024
    assert found.failures == {}
    assert (found.vectors * expected).sum(axis=1).min() >= 0.9999


def test_throughput_recovers_when_another_program_frees_memory(whole_card):
    """The chunk size shrinks and grows back."""
    embedder = CLIPEmbedder("ViT-B/32", "cuda", pretrained="untrained", batch_size=256)
    images = pixels(256, 224)
    embedder.embed_pixels(images)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    other = torch.empty(max(1, free - 100 * 2**20), dtype=torch.uint8, device="cuda")
    embedder.embed_pixels(images)
    small = embedder.chunk
    assert small < 256
    del other
    torch.cuda.empty_cache()
    for _ in range(60):
        embedder.embed_pixels(images)
    assert embedder.chunk == 256


def test_one_image_that_does_not_fit_is_embedded_on_the_cpu(tiny, whole_card, caplog):
    """With a warning."""
    embedder = CLIPEmbedder(tiny, "cuda", batch_size=4, precision="fp32")
    expected = embedder.embed_pixels(pixels(2)).vectors
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    left = []  # what is free inside blocks that the allocator already has
    for size in (2**16, 2**9):
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                left.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    found = embedder.embed_pixels(pixels(2))
    assert found.failures == {}
    assert (found.vectors * expected).sum(axis=1).min() >= 0.9999
    assert "on the CPU" in caplog.text


def test_auto_finds_a_chunk_size_within_memory():
    """It tries larger chunks until they are no faster."""
    embedder = CLIPEmbedder("ViT-B/32", "cuda", pretrained="untrained", batch_size="auto")
    assert 16 <= embedder.chunk <= 1024


def test_a_broken_context_raises_device_lost(tiny):
    """A device-side assert, in a process of its own: DeviceLost instead of endless halving."""
    code = f"""
import torch
from worker.clip_embedder import CLIPEmbedder
from producer.errors import DeviceLost
embedder = CLIPEmbedder({tiny!r}, "cuda", batch_size=4)
encoder = embedder._engine.executor._encoder
def broken(pixels):
    torch.zeros(2, device="cuda")[torch.tensor([7], device="cuda")]
    return encoder(pixels)
embedder._engine.executor._encoder = broken
try:
    embedder.embed_pixels(torch.zeros((4, 3, {SIDE}, {SIDE}), dtype=torch.uint8))
except DeviceLost as error:
    print("lost:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert "lost: the GPU's context is broken" in done.stdout, done.stderr
