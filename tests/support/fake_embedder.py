"""A fake embedder whose vectors are mean colors, and fixtures that build pipelines around it."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from bench.image_samples import encoded
from producer.embedding import Space
from producer.queue.messages import EmbedBatch, Poster
from producer.settings import Settings
from tests.support.memory_store import MemoryStore
from worker.images.decode import Geometry
from worker.model.inference import EmbeddedChunk
from worker.pipeline.pipeline import Pipeline

DIMENSION = 8
SPACE = Space("fake", "0" * 32, "gelu", "16x16", DIMENSION)


class Chunk(EmbeddedChunk):
    """A fake device computes at once: the pending chunk is its own result."""

    def result(self) -> EmbeddedChunk:
        return self


class ColorEmbedder:
    """Its vector is the mean color of the picture, so that a shifted row is noticed."""

    space, geometry, device, provenance = SPACE, Geometry(16, 16), torch.device("cpu"), {"device": "none"}

    def __init__(self, chunk: int = 4) -> None:
        self.chunk, self.canary = chunk, None
        self.sizes: list[int] = []
        self.refuse: set[int] = set()  # red values of images without a vector
        self.error: Exception | None = None

    def submit(self, pixels: torch.Tensor, *, urgent: bool = False) -> Chunk:
        if self.error:
            raise self.error
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1:] == (3, 16, 16)
        self.sizes.append(len(pixels))
        colors = pixels.double().mean(dim=(2, 3)).numpy()
        vectors = np.zeros((len(pixels), DIMENSION), np.float32)
        vectors[:, :3] = colors + 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        failures = {row: "no number" for row, color in enumerate(colors) if round(color[0]) in self.refuse}
        return Chunk(vectors, failures)


def color_of(number: int) -> tuple[int, int, int]:
    return (number * 7 % 251, number * 31 % 241, number * 101 % 239)


def expected(number: int) -> np.ndarray:
    vector = np.zeros(DIMENSION)
    vector[:3] = np.array(color_of(number)) + 1
    return vector / np.linalg.norm(vector)


@pytest.fixture
def root(tmp_path):
    return tmp_path


def write(root, number: int, name: str = "") -> Poster:
    name = name or f"{number:03}.png"
    path = root / name
    path.write_bytes(encoded(Image.new("RGB", (20, 30), color_of(number)), "PNG"))
    age(path)
    stat = path.stat()
    return Poster(name, name, stat.st_size, stat.st_mtime_ns)


def age(path) -> None:
    """Set a file's time back so far that it proves its content."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10 * 10**9))


def batch(posters, **options) -> EmbedBatch:
    return EmbedBatch("job", "job.1", tuple(posters), **options)


@pytest.fixture
def make(root):
    made = []

    def build(embedder=None, store=None, clock=time.perf_counter, **options):
        pipeline = Pipeline(embedder or ColorEmbedder(), store or MemoryStore(), Settings(root=root, **options), clock)
        made.append(pipeline)
        return pipeline

    yield build
    for pipeline in made:
        pipeline.close()
