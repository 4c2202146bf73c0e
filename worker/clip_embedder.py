"""From files to unit vectors: CLIPEmbedder, the engine as a script, a notebook or the worker holds it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from producer.embedding import Space, Vectors
from producer.errors import UnreadablePoster, WeightsUnavailable
from producer.files import read_file
from producer.settings import Settings
from worker.images.decode import Limits, decode, fit
from worker.model.autotune import choose_chunk
from worker.model.device import choose_device, choose_precision, device_name
from worker.model.encoder import OpenClipEncoder
from worker.model.executors import forward_on
from worker.model.fingerprint import geometry_of, identify
from worker.model.inference import CpuFallback, EmbeddedChunk, Engine, Pending
from worker.model.parity import choose_encoder, use_card
from worker.model.threads import one_core_threads, usable_cores
from worker.model.weights import Weights, build, digest, find_weights
from worker.pipeline.buffers import chunk_buffer
from worker.pipeline.loader import look_ahead

LONG_BATCH: Final = 64  # images from which a person wants to see a bar
CHUNKS_AHEAD: Final = 3  # decoded while one is on the device
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedPaths:
    """What became of a list of paths.

    Attributes:
        vectors: float32 (N, dimension), unit length, for the N paths that could be embedded.
        indices: row i belongs to ``paths[indices[i]]``.
        failures: position in the list → why that path has no row.
    """

    vectors: Vectors
    indices: tuple[int, ...]
    failures: Mapping[int, UnreadablePoster]


class CLIPEmbedder:
    """One open_clip image tower on one device. Not safe to share between threads."""

    def __init__(
        self,
        model_name: str = "ViT-B/32",
        device: str = "auto",
        *,
        pretrained: str = "openai",
        batch_size: int | Literal["auto"] = 16,
        precision: str = "auto",
        quick_gelu: bool | None = None,
        cache_dir: str | Path | None = None,
        gpu_memory_fraction: float | None = None,
        decode_threads: int = 0,
        max_file_bytes: int = 100_000_000,
        limits: Limits | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_name: any open_clip model, ``ViT-B/32`` or ``ViT-B-32``; or ``local-dir:FOLDER``.
            device: ``auto`` (a GPU if there is one, else the CPU, saying why), ``cuda``, ``cuda:N``, ``cpu``.
            pretrained: an open_clip tag, a checkpoint file (state dict or safetensors), or ``untrained``.
            batch_size: images per forward pass, at most; halves when memory runs out. ``auto``: measured
                here, up to where throughput stops growing.
            precision: ``auto``, ``fp32``, ``fp16``, ``bf16``.
            quick_gelu: the activation, for a checkpoint file that cannot say it.
            cache_dir: where downloaded weights are kept; None: open_clip's default.
            gpu_memory_fraction: share of the card's memory that may be taken.
            decode_threads: 0: one per core that this process may use.

        Raises:
            UnknownModel, WeightsUnavailable, ActivationMismatch, DeviceUnavailable, ConfigurationError:
                each names what was asked for and the way out.
        """
        self.device = choose_device(device)
        wanted = choose_precision(precision, self.device)
        weights = find_weights(
            model_name, pretrained, quick_gelu=quick_gelu, cache_dir=Path(cache_dir) if cache_dir else None
        )
        if weights.untrained:
            logger.warning("UNTRAINED weights: the vectors mean nothing; for demonstrations and tests only")
        tower = _image_tower(weights)
        config = dict(tower.preprocess_cfg)
        self.geometry = geometry_of(config)
        identity = identify(tower, weights, config)
        self._mean, self._std = torch.tensor(config["mean"]) * 255, torch.tensor(config["std"]) * 255
        use_card(self.device, gpu_memory_fraction)
        placed = choose_encoder(
            tower, self._mean, self._std, self.geometry, self.device, wanted, forced=precision != "auto"
        )
        del tower  # in fp32 on the CPU; what runs has its own numbers
        self.precision, self.dimension = placed.precision, placed.dimension
        self.space = Space(**identity, dimension=self.dimension)
        self._engine = Engine(
            forward_on(self.device, placed.tower),
            CpuFallback(lambda: self._exact_tower(weights)),
            self.dimension,
            1 if batch_size == "auto" else batch_size,
            watched=self.device.type == "cuda",
        )
        self._threads, self._max_file_bytes, self._limits = decode_threads, max_file_bytes, limits or Limits()
        self.device_name = device_name(self.device)
        self.provenance = {
            "pretrained": weights.told,
            "device": self.device_name,
            "precision": self.precision,
            "tower": placed.way,
            **{name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
        }
        if batch_size == "auto":
            choose_chunk(self._engine, self._blank, self.device)

    @classmethod
    def from_settings(cls, settings: Settings) -> CLIPEmbedder:
        """The embedder that the settings describe."""
        return cls(
            settings.model_name,
            settings.device,
            pretrained=settings.pretrained,
            batch_size=settings.batch_size,
            precision=settings.precision,
            quick_gelu=settings.quick_gelu,
            cache_dir=settings.cache_dir,
            gpu_memory_fraction=settings.gpu_memory_fraction,
            decode_threads=settings.decode_threads,
            max_file_bytes=settings.max_file_bytes,
            limits=Limits(settings.max_pixels),
        )

    @property
    def chunk(self) -> int:
        """Images per forward pass that fit at the moment."""
        return self._engine.chunk_size.size

    def embed_image(self, image_path: str | Path) -> Vectors:
        """Embed one file: float32 (dimension,), unit length.

        Raises:
            UnreadablePoster: names the file and the reason; `word` is ``missing`` when it is not there.
        """
        result = self.embed_paths([image_path], batch_size=1)
        for failure in result.failures.values():
            raise failure
        row: Vectors = result.vectors[0]
        return row

    def embed_batch(self, image_paths: Sequence[str | Path], batch_size: int = 16) -> Vectors:
        """Embed files: float32 (N, dimension), unit length, in the order of the paths.

        A path that cannot be embedded (missing, damaged …) has no row, and a warning names it and
        its position: then N is smaller than the number of paths. To map rows to paths whatever
        happens, use embed_paths, whose `indices` say which path each row belongs to. No paths give (0, dimension).
        """
        result = self.embed_paths(image_paths, batch_size)
        if result.failures:
            listed = "; ".join(f"[{position}] {failure}" for position, failure in result.failures.items())
            warnings.warn(
                f"{len(result.failures)} of {len(image_paths)} paths have no row: {listed}. "
                "embed_paths() returns the rows together with the positions they belong to",
                stacklevel=2,
            )
        return result.vectors

    def embed_paths(self, image_paths: Sequence[str | Path], batch_size: int = 16) -> EmbeddedPaths:
        """Embed files and say which row belongs to which path, and why the others have none.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
            OSError: the file system failed, not a file (too many open files, a dead disk).
        """
        paths = list(image_paths)
        rows: dict[int, Vectors] = {}
        failures: dict[int, UnreadablePoster] = {}
        on_the_way: deque[tuple[list[int], Pending]] = deque()

        def collect() -> None:
            indices, pending = on_the_way.popleft()
            chunk = pending.result()
            for row, index in enumerate(indices):
                if row in chunk.failures:
                    failures[index] = UnreadablePoster(str(paths[index]), "internal", chunk.failures[row])
                else:
                    rows[index] = chunk.vectors[row]

        for indices, pixels in self._decoded(paths, batch_size, failures):
            on_the_way.append((indices, self._engine.submit(pixels)))
            if len(on_the_way) > 1:  # one is computed while the next one is decoded
                collect()
        while on_the_way:
            collect()
        indices = sorted(rows)
        matrix = np.stack([rows[index] for index in indices]) if rows else np.zeros((0, self.dimension), np.float32)
        return EmbeddedPaths(matrix, tuple(indices), dict(sorted(failures.items())))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """The model's input for an image of any mode: float32 (3, height, width), normalized.

        Raises:
            UnreadablePoster: its pixels cannot be loaded, or have no meaning as color.
        """
        mean, std = self._mean.view(3, 1, 1), self._std.view(3, 1, 1)
        return fit(image, self.geometry).to(torch.float32).sub_(mean).div_(std)

    def submit(self, pixels: torch.Tensor) -> Pending:
        """Start on images at the model's size without waiting; ``submit(pixels).result()`` is embed_pixels.

        Results have to be fetched in the order of the submits. Two on the way keep a device busy; more
        only take memory.

        Args:
            pixels: uint8 (n, 3, height, width), n > 0, on the CPU, pinned or not; must stay as they are
                until the result was fetched.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        return self._engine.submit(pixels)

    def embed_pixels(self, pixels: torch.Tensor) -> EmbeddedChunk:
        """Embed images at the model's size.

        When memory runs out, halves and goes on; one image that does not fit alone is embedded on the
        CPU. A row that comes out as NaN or zero is computed again in fp32; failing that, it is a failure.

        Args:
            pixels: uint8 (n, 3, height, width), on the CPU, pinned or not.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        if not len(pixels):
            return EmbeddedChunk(np.zeros((0, self.dimension), np.float32), {})
        return self._engine.submit(pixels).result()

    def warm_up(self) -> None:
        """Run the sizes that will come, so that the first batch meets no first-time cost."""
        for size in sorted({1, max(1, self.chunk // 8), self.chunk}):
            self.embed_pixels(self._blank(size))

    def close(self) -> None:
        """End the threads; the embedder must not be used afterwards."""
        self._engine.forward.close()

    def _decoded(
        self, paths: Sequence[str | Path], size: int, failures: dict[int, UnreadablePoster]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Chunks of up to `size` images and their positions in `paths`; those without pixels go to `failures`."""
        threads = max(1, min(self._threads or usable_cores(), len(paths)))
        bar = tqdm(total=len(paths), unit="image", disable=len(paths) < LONG_BATCH or not sys.stderr.isatty())
        with bar, one_core_threads(threads, "decode") as pool:
            waiting: list[tuple[int, torch.Tensor]] = []
            for position, (_, future) in enumerate(look_ahead(self._load, paths, pool, depth=CHUNKS_AHEAD * size)):
                bar.update()
                try:
                    waiting.append((position, future.result()))
                except UnreadablePoster as error:
                    failures[position] = error
                if waiting and (len(waiting) == size or position == len(paths) - 1):
                    pixels = chunk_buffer(len(waiting), self.geometry, self.device)
                    torch.stack([image for _, image in waiting], out=pixels)
                    yield [index for index, _ in waiting], pixels
                    waiting.clear()

    def _load(self, path: str | Path) -> torch.Tensor:
        content = read_file(path, max_bytes=self._max_file_bytes)
        return decode(content.data, self.geometry, name=str(path), limits=self._limits)

    def _exact_tower(self, weights: Weights) -> OpenClipEncoder:
        """From the file again: the numbers on the device were rounded."""
        tower = _image_tower(weights)
        if digest(tower) != self.space.weights.removeprefix("untrained-"):
            raise WeightsUnavailable(f"{weights.told} was changed since this program started: start it again")
        return OpenClipEncoder(tower, self._mean, self._std, torch.device("cpu"), torch.float32)

    def _blank(self, count: int) -> torch.Tensor:
        return chunk_buffer(count, self.geometry, self.device).zero_()


def _image_tower(weights: Weights) -> Any:
    """The image tower alone, ready to run; the text tower goes."""
    model: Any = build(weights)
    return model.visual.eval().requires_grad_(False)


def main() -> None:
    """Run ``python -m worker.clip_embedder``, see worker/demo.py."""
    from worker.demo import demonstrate

    demonstrate(obj=CLIPEmbedder, prog_name="python -m worker.clip_embedder")


if __name__ == "__main__":
    main()
