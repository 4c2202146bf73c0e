"""CLIPEmbedder: image files to unit vectors, for scripts, notebooks and the worker."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, overload

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from producer.embedding import Space, Vectors
from producer.errors import UnreadablePoster, WeightsUnavailable
from producer.files import read_file
from producer.host import usable_cores
from producer.requests.texts import as_texts
from producer.settings import Settings
from worker.images.decode import Limits, decode, fit
from worker.model.autotune import choose_chunk_size
from worker.model.device import choose_device, choose_precision, device_name, own_torch_defaults, select_gpu
from worker.model.encoder import OpenClipEncoder
from worker.model.executors import create_executor
from worker.model.fingerprint import geometry_of, identify
from worker.model.inference import CpuFallback, EmbeddedChunk, Engine, Pending
from worker.model.parity import ChosenEncoder, choose_encoder
from worker.model.text import EmbeddedTexts, LazyTextTower, TextTower
from worker.model.weights import Weights, build, digest, find_weights
from worker.pipeline.buffers import chunk_buffer, keep_rows
from worker.pipeline.loader import Loader

PROGRESS_BAR_IMAGES: Final = 64  # fewer images show no progress bar
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedPaths:
    """The vectors of a list of paths.

    Attributes:
        vectors: float32 (N, dimension), unit length, of the N paths that could be embedded.
        indices: row i belongs to ``paths[indices[i]]``.
        failures: position in the list → why that path has no row.
    """

    vectors: Vectors
    indices: tuple[int, ...]
    failures: Mapping[int, UnreadablePoster]


class CLIPEmbedder:
    """One open_clip image encoder on one device. `submit` may be called by several threads, nothing else."""

    @own_torch_defaults()
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
        text: bool = True,
    ) -> None:
        """Load the model.

        Args:
            model_name: any open_clip model, ``ViT-B/32`` or ``ViT-B-32``; or ``local-dir:FOLDER``.
            device: ``auto`` (a GPU if there is one, else the CPU, logging why), ``cuda``, ``cuda:N``, ``cpu``.
            pretrained: an open_clip tag, a checkpoint file (state dict or safetensors), or ``untrained``.
            batch_size: most images per forward pass; halves when memory runs out. ``auto``: measured here.
            precision: ``auto``, ``fp32``, ``fp16``, ``bf16``.
            quick_gelu: the activation, for a checkpoint file that does not record it.
            cache_dir: where downloaded weights are kept; None: open_clip's default.
            gpu_memory_fraction: share of the GPU's memory that may be used.
            decode_threads: 0: one per core that this process may use.
            text: whether embed_text may load the text tower, which takes memory, when it is first called.

        Raises:
            ConfigurationError: or one of its kinds; names the value and what to do.
        """
        self.device = choose_device(device)
        requested = choose_precision(precision, self.device)
        weights = find_weights(
            model_name, pretrained, quick_gelu=quick_gelu, cache_dir=Path(cache_dir) if cache_dir else None
        )
        select_gpu(self.device, gpu_memory_fraction)
        chosen = self._load(weights, requested, forced=precision != "auto")
        self.precision, self.dimension, self.canary = chosen.precision, chosen.dimension, chosen.canary
        self._engine = Engine(
            create_executor(self.device, chosen.encoder),
            CpuFallback(lambda: self._exact_encoder(weights)),
            self.dimension,
            1 if batch_size == "auto" else batch_size,
            watch_speed=self.device.type == "cuda",
        )
        self._threads, self._max_file_bytes, self._limits = decode_threads, max_file_bytes, limits or Limits()
        self._text = LazyTextTower(lambda: TextTower(weights, self.space, self.device, self.precision), is_allowed=text)
        self.device_name = device_name(self.device)
        self.provenance = {
            "pretrained": weights.label,
            "device": self.device_name,
            "precision": self.precision,
            "tower": chosen.implementation,
            **{name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
        }
        if batch_size == "auto":
            choose_chunk_size(self._engine, self._blank, self.device)

    def _load(self, weights: Weights, precision: str, *, forced: bool) -> ChosenEncoder:
        """Set geometry, normalization and space from the model; returns its encoder on the device."""
        if weights.untrained:
            logger.warning("UNTRAINED weights: the vectors are meaningless; for demonstrations and tests only")
        tower = _image_tower(weights)
        config = dict(tower.preprocess_cfg)
        self.geometry = geometry_of(config)
        self._mean, self._std = torch.tensor(config["mean"]) * 255, torch.tensor(config["std"]) * 255
        identity = identify(tower, weights, config)
        chosen = choose_encoder(tower, self._mean, self._std, self.geometry, self.device, precision, forced=forced)
        self.space = Space(**identity, dimension=chosen.dimension)
        return chosen

    @classmethod
    def from_settings(cls, settings: Settings) -> CLIPEmbedder:
        """Create an embedder from settings."""
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
            limits=Limits.from_settings(settings),
            text=settings.text,
        )

    @property
    def chunk(self) -> int:
        """Images per forward pass; adapts to the free memory."""
        return self._engine.chunk_size.size

    @property
    def chunk_limit(self) -> int:
        """Images per forward pass at most."""
        return self._engine.chunk_size.limit

    @property
    def halvings(self) -> int:
        """How often memory ran out so far, and `chunk` was halved."""
        return self._engine.chunk_size.halvings

    def embed_image(self, image_path: str | Path) -> Vectors:
        """Embed one file: float32 (dimension,), unit length.

        Raises:
            UnreadablePoster: names the file and the reason; `word` is ``missing`` if the file does not exist.
            TypeError: it is not a path.
        """
        if not isinstance(image_path, (str, os.PathLike)):
            raise TypeError(f"embed_image takes one path, not {_kind(image_path)}; embed_paths takes several")
        result = self.embed_paths([image_path], batch_size=1)
        for failure in result.failures.values():
            raise failure
        row: Vectors = result.vectors[0]
        return row

    def embed_batch(self, image_paths: Iterable[str | Path], batch_size: int = 16) -> Vectors:
        """Embed files: float32 (N, dimension), unit length, in the order of the paths.

        A path that cannot be embedded (missing, damaged …) has no row, so that N is smaller than the number
        of paths; a warning names it and its position. embed_paths also returns which row belongs to which
        path. An empty list gives (0, dimension).
        """
        paths = _as_paths(image_paths)
        result = self.embed_paths(paths, batch_size)
        if result.failures:
            listed = "; ".join(f"[{position}] {failure}" for position, failure in result.failures.items())
            warnings.warn(
                f"{len(result.failures)} of {len(paths)} paths have no row: {listed}. "
                "embed_paths() also returns which row belongs to which path",
                stacklevel=2,
            )
        return result.vectors

    def embed_paths(self, image_paths: Iterable[str | Path], batch_size: int = 16) -> EmbeddedPaths:
        """Embed files; returns which row belongs to which path, and why others have none.

        Args:
            image_paths: in any iterable that has an order; read to its end before the first is embedded.
            batch_size: most images that are embedded together, at least 1.

        Raises:
            TypeError: one path instead of several, or something that is no path.
            DeviceLost: the accelerator needs a fresh process.
            OSError: the file system failed, not a single file (too many open files, a dead disk).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        paths = _as_paths(image_paths)
        rows: dict[int, Vectors] = {}  # position → vector, ascending because chunks come in order
        failures: dict[int, UnreadablePoster] = {}
        on_device: deque[tuple[list[int], Pending]] = deque()

        def collect() -> None:
            indices, pending = on_device.popleft()
            chunk = pending.result()
            for row, index in enumerate(indices):
                if row in chunk.failures:
                    failures[index] = UnreadablePoster(str(paths[index]), "internal", chunk.failures[row])
                else:
                    rows[index] = chunk.vectors[row]

        for indices, pixels in self._decoded(paths, batch_size, failures):
            on_device.append((indices, self._engine.submit(pixels)))
            if len(on_device) > 1:  # one is computed while the next one is decoded
                collect()
        while on_device:
            collect()
        vectors = np.stack(list(rows.values())) if rows else np.zeros((0, self.dimension), np.float32)
        return EmbeddedPaths(vectors, tuple(rows), dict(sorted(failures.items())))

    @overload
    def embed_text(self, text: str) -> Vectors: ...
    @overload
    def embed_text(self, text: Iterable[str]) -> Vectors: ...
    def embed_text(self, text: object) -> Vectors:
        """Embed a description: float32 (dimension,), unit length, in the space of the images. Several: (N, dimension).

        The first call loads the text tower, which takes seconds, and memory as the image tower does; the log says both.

        Raises:
            UnreadablePoster: a text is empty, too long for the model (which would read its beginning only), or holds a
                character that no text has; says why.
            TextUnavailable: the model has no text tower, or its tokenizer is out of reach; names the way out.
            TypeError: it is neither a text nor several.
        """
        texts = as_texts(text)
        result = self.embed_texts(texts)
        for failure in result.failures.values():
            raise failure
        return result.vectors[0] if isinstance(text, str) else result.vectors

    def embed_texts(self, texts: Sequence[str]) -> EmbeddedTexts:
        """Embed texts together; one that has no vector fails alone. Otherwise like embed_text; raises DeviceLost."""
        return self._text.embed(texts)

    @property
    def has_text(self) -> bool:
        """Whether the text tower is loaded."""
        return self._text.is_loaded

    def load_text(self) -> None:
        """Load the text tower now, for the calls that follow; another thread may use the embedder meanwhile.

        Raises:
            TextUnavailable: see embed_text.
        """
        self._text.load()

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """The model's input for an image of any mode: float32 (3, height, width), normalized.

        Raises:
            UnreadablePoster: its pixels cannot be loaded, or its mode cannot be converted to color.
            TypeError: it is not a PIL image.
        """
        given: object = image
        if not isinstance(given, Image.Image):
            hint = ": PIL.Image.fromarray makes one of it" if isinstance(given, np.ndarray) else ""
            raise TypeError(f"preprocess takes a PIL image, not {_kind(given)}{hint}")
        mean, std = self._mean.view(3, 1, 1), self._std.view(3, 1, 1)
        return fit(image, self.geometry).to(torch.float32).sub_(mean).div_(std)

    def submit(self, pixels: torch.Tensor, *, urgent: bool = False) -> Pending:
        """Start on images at the model's size without waiting; ``submit(pixels).result()`` is embed_pixels.

        Each thread fetches its results in the order of its submits. Two submitted chunks keep a device busy; more
        only take memory.

        Args:
            pixels: uint8 (n, 3, height, width), n > 0, on the CPU, pinned or not; must not change before the
                result was fetched.
            urgent: compute them before what was submitted earlier, where the device can do so.

        Raises:
            TypeError: they are not a tensor of this type and shape.
            DeviceLost: the accelerator needs a fresh process.
        """
        self._check_pixels(pixels)
        return self._engine.submit(pixels, urgent=urgent)

    def embed_pixels(self, pixels: torch.Tensor) -> EmbeddedChunk:
        """Embed images at the model's size.

        When memory runs out, the chunk is halved; an image that does not fit alone is embedded on the CPU.
        A row that is NaN or zero is recomputed in fp32; if that fails as well, it is reported as a failure.

        Args:
            pixels: uint8 (n, 3, height, width), on the CPU, pinned or not.

        Raises:
            TypeError: they are not a tensor of this type and shape.
            DeviceLost: the accelerator needs a fresh process.
        """
        self._check_pixels(pixels)
        if not len(pixels):
            return EmbeddedChunk(np.zeros((0, self.dimension), np.float32), {})
        return self._engine.submit(pixels).result()

    def warm_up(self) -> float:
        """Run the chunk sizes that batches will use, so that one-time costs do not fall into the first batch.

        Returns the seconds that the largest took.
        """
        began = 0.0
        for size in sorted({1, max(1, self.chunk // 8), self.chunk}):
            began = time.perf_counter()
            self.embed_pixels(self._blank(size))
        return time.perf_counter() - began

    def probe(self) -> None:
        """Compute something small on the device; may be called by a thread of its own. Raises DeviceLost."""
        self._engine.probe()

    def close(self) -> None:
        """End the threads; the embedder must not be used afterwards."""
        self._engine.executor.close()
        self._text.close()

    def _check_pixels(self, pixels: object) -> None:
        """Raise TypeError for what embed_pixels would embed to something else, or not at all."""
        shape = 3, self.geometry.height, self.geometry.width
        if isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8 and pixels.shape[1:] == shape:
            return
        given = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else _kind(pixels)
        hint = ""
        if isinstance(pixels, torch.Tensor) and pixels.is_floating_point():
            hint = "; preprocess() gives the normalized input of the model itself, which open_clip's encode_image takes"
        raise TypeError(f"embed_pixels takes a torch.uint8 tensor {('n', *shape)} of 0 to 255, not {given}{hint}")

    def _decoded(
        self, paths: Sequence[str | Path], size: int, failures: dict[int, UnreadablePoster]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Chunks of up to `size` images with their positions in `paths`; unreadable ones go to `failures`."""

        def load(indices: Sequence[int], targets: torch.Tensor) -> list[UnreadablePoster | None]:
            return [self._fill(paths[index], target) for index, target in zip(indices, targets, strict=True)]

        threads = max(1, min(self._threads or usable_cores(), len(paths)))
        hide_bar = len(paths) < PROGRESS_BAR_IMAGES or not sys.stderr.isatty()
        bar = tqdm(total=len(paths), unit="image", disable=hide_bar)
        with bar, closing(Loader(self.geometry, self.device, lambda: size, threads=threads)) as loader:
            for chunk in loader.chunks(range(len(paths)), load):
                bar.update(len(chunk.items))
                errors = chunk.results()
                failures |= {
                    index: error for index, error in zip(chunk.items, errors, strict=True) if error is not None
                }
                rows = [row for row, error in enumerate(errors) if error is None]
                if rows:
                    yield [chunk.items[row] for row in rows], keep_rows(chunk.pixels, rows)

    def _fill(self, path: str | Path, target: torch.Tensor) -> UnreadablePoster | None:
        """Fill in the pixels of a file, or say why it has none."""
        try:
            content = read_file(path, max_bytes=self._max_file_bytes)
            decode(content.data, self.geometry, name=str(path), limits=self._limits, out=target)
        except UnreadablePoster as error:
            return error
        return None

    def _exact_encoder(self, weights: Weights) -> OpenClipEncoder:
        """fp32 on the CPU, loaded from the file again: the weights on the device may be rounded."""
        tower = _image_tower(weights)
        if digest(tower) != self.space.weights.removeprefix("untrained-"):
            raise WeightsUnavailable(f"{weights.label} was changed since this program started: start it again")
        return OpenClipEncoder(tower, self._mean, self._std, torch.device("cpu"), torch.float32)

    def _blank(self, count: int) -> torch.Tensor:
        return chunk_buffer(count, self.geometry, self.device).zero_()


def _image_tower(weights: Weights) -> Any:
    """The model's image tower in inference mode; the text tower is not kept."""
    model: Any = build(weights)
    return model.visual.eval().requires_grad_(False)


def _as_paths(image_paths: object) -> list[str | Path]:
    """The paths as a list; TypeError for one path, for what has no order, and for what is no path."""
    if isinstance(image_paths, (str, bytes, os.PathLike)):
        raise TypeError(f"a list of paths is needed, not the one path {image_paths!r}: embed_image takes one")
    if not isinstance(image_paths, Iterable) or isinstance(image_paths, (Set, Mapping)):
        raise TypeError(f"a list of paths is needed, not {_kind(image_paths)}: row i belongs to path i")
    paths = list(image_paths)
    for position, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"[{position}] is {_kind(path)}, not a path")
    return paths


def _kind(value: object) -> str:
    """The type of a value that was not expected, for a message."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


if __name__ == "__main__":
    from worker.demo import demo

    demo(obj=CLIPEmbedder, prog_name="python -m worker.clip_embedder")
