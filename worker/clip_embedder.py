"""From pixels to unit vectors: the only home of torch and open_clip models."""

from __future__ import annotations

import copy
import gc
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from worker.device import PRECISIONS, choose_device, choose_precision, device_name, is_exhaustion, is_lost
from worker.errors import DeviceLost, UnreadablePoster
from worker.files import read_file
from worker.halving import Halving
from worker.images import Geometry, Limits, decode, fit
from worker.lookahead import look_ahead
from worker.settings import Settings
from worker.space import Space
from worker.vectors import Vectors
from worker.weights import build, digest, find_weights

PROOF_IMAGES: Final = 4
PROOF_COSINE: Final = 0.999  # below it, the fast precision is not the same embedding any more
LONG_BATCH: Final = 64  # images from which a person wants to see a bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedChunk:
    """Row i of `vectors`, float32 (n, dimension), belongs to image i; rows in `failures` are zero and mean nothing."""

    vectors: Vectors
    failures: Mapping[int, str]


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
        batch_size: int = 16,
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
            batch_size: images per forward pass, at most; halves when memory runs out.
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
        self.precision = choose_precision(precision, self.device)
        weights = find_weights(
            model_name, pretrained, quick_gelu=quick_gelu, cache_dir=Path(cache_dir) if cache_dir else None
        )
        if weights.untrained:
            logger.warning("UNTRAINED weights: the vectors mean nothing; for demonstrations and tests only")
        model = build(weights)
        tower: Any = model.visual
        del model  # the text tower goes with it
        config = dict(tower.preprocess_cfg)
        self.geometry = _geometry(config)
        self._tower = tower.eval().requires_grad_(False)
        self.dimension = self._probe_dimension()
        self.space = Space(
            model=weights.model,
            weights=("untrained-" if weights.untrained else "") + digest(self._tower),
            activation="quick_gelu" if _has_quick_gelu(self._tower) else "gelu",
            preprocessing=_describe(config, self.geometry),
            dimension=self.dimension,
        )
        self._mean = torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(config["std"]).view(1, 3, 1, 1) * 255
        self._spare: torch.nn.Module | None = None
        self._halving = Halving(batch_size)
        self._threads, self._max_file_bytes, self._limits = decode_threads, max_file_bytes, limits or Limits()
        self._to_device(gpu_memory_fraction, forced=precision != "auto")
        self.device_name = device_name(self.device)
        self.provenance = {
            "pretrained": weights.told,
            "device": self.device_name,
            "precision": self.precision,
            **{name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
        }

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
        return self._halving.size

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
        rows, indices = [], []
        failures: dict[int, UnreadablePoster] = {}
        bar = tqdm(total=len(paths), unit="image", disable=len(paths) < LONG_BATCH or not sys.stderr.isatty())
        with bar, ThreadPoolExecutor(self._threads or None, thread_name_prefix="decode") as pool:
            waiting: list[tuple[int, torch.Tensor]] = []
            done = look_ahead(self._load, paths, pool, depth=2 * batch_size)
            for position, (_, future) in enumerate(done):
                bar.update()
                try:
                    waiting.append((position, future.result()))
                except UnreadablePoster as error:
                    failures[position] = error
                if waiting and (len(waiting) == batch_size or position == len(paths) - 1):
                    chunk = self.embed_pixels(torch.stack([pixels for _, pixels in waiting]))
                    for row, (index, _) in enumerate(waiting):
                        if row in chunk.failures:
                            failures[index] = UnreadablePoster(str(paths[index]), "internal", chunk.failures[row])
                        else:
                            rows.append(chunk.vectors[row])
                            indices.append(index)
                    waiting.clear()
        matrix = np.stack(rows) if rows else np.zeros((0, self.dimension), np.float32)
        return EmbeddedPaths(matrix, tuple(indices), dict(sorted(failures.items())))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """The model's input for an image of any mode: float32 (3, height, width), normalised.

        Raises:
            UnreadablePoster: its pixels cannot be loaded, or have no meaning as colour.
        """
        return self._normalise(fit(image, self.geometry).unsqueeze(0), torch.device("cpu")).squeeze(0)

    def embed_pixels(self, pixels: torch.Tensor) -> EmbeddedChunk:
        """Embed images at the model's size.

        When memory runs out, halves and goes on; one image that does not fit alone is embedded on the
        CPU. A row that comes out as NaN or zero is computed again in fp32; failing that, it is a failure.

        Args:
            pixels: uint8 (n, 3, height, width), on the CPU, pinned or not.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        count = len(pixels)
        vectors = np.zeros((count, self.dimension), np.float32)
        failures: dict[int, str] = {}
        for start, stop, result in self._halving.run(
            count,
            lambda start, stop: self._forward(pixels[start:stop]),
            is_exhaustion=is_exhaustion,
            recover=self._free_memory,
        ):
            if result is not None:
                vectors[start:stop] = result
        for row in np.flatnonzero(~np.isclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)):
            again = self._on_cpu(pixels[row : row + 1])
            if isinstance(again, str):
                failures[int(row)] = again
                vectors[row] = 0
            else:
                vectors[row] = again
        return EmbeddedChunk(vectors, failures)

    def warm_up(self) -> None:
        """Run the sizes that will come, so that the first batch meets no first-time cost."""
        shape = (3, self.geometry.height, self.geometry.width)
        for size in sorted({1, max(1, self.chunk // 8), self.chunk}):
            self.embed_pixels(torch.zeros((size, *shape), dtype=torch.uint8))

    def _load(self, path: str | Path) -> torch.Tensor:
        content = read_file(path, max_bytes=self._max_file_bytes)
        return decode(content.data, self.geometry, name=str(path), limits=self._limits)

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> Vectors:
        """float32 (n, dimension): unit length, or NaN or zero where the numbers ran away."""
        try:
            return self._run(self._tower, self._normalise(pixels, self.device).to(PRECISIONS[self.precision]))
        except RuntimeError as error:
            if is_lost(error):
                raise DeviceLost(f"the GPU's context is broken: {str(error).splitlines()[0]}") from error
            raise

    def _normalise(self, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        """uint8 → float32, minus mean, over standard deviation; on the device, so that bytes are copied."""
        numbers = pixels.to(device, non_blocking=True).to(torch.float32)
        return numbers.sub_(self._mean.to(device)).div_(self._std.to(device))

    def _run(self, tower: torch.nn.Module, images: torch.Tensor) -> Vectors:
        features = tower(images)
        if isinstance(features, tuple):  # CoCa's tower gives its tokens, too
            features = features[0]
        unit = torch.nn.functional.normalize(features.to(torch.float32), dim=-1)
        found: Vectors = unit.cpu().numpy()
        return found

    @torch.inference_mode()
    def _on_cpu(self, pixels: torch.Tensor) -> Vectors | str:
        """One image in fp32 on the CPU: its vector, or why there is none."""
        if self._spare is None:
            logger.warning(
                "an image is embedded on the CPU in fp32: it does not fit the device, or came out as no number"
            )
            self._spare = copy.deepcopy(self._tower).to("cpu", torch.float32)
        try:
            vector: Vectors = self._run(self._spare, self._normalise(pixels, torch.device("cpu")))[0]
        except RuntimeError as error:
            if not is_exhaustion(error):
                raise
            return "not even one image fits into memory, neither on the device nor on the CPU"
        if not np.isclose(np.linalg.norm(vector), 1, atol=1e-3):
            return "the model gives no vector for it, not even in fp32"
        return vector

    def _free_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory at %d images: halving", self._halving.size)

    def _probe_dimension(self) -> int:
        shape = (1, 3, self.geometry.height, self.geometry.width)
        with torch.inference_mode():
            return int(self._run(self._tower, torch.zeros(shape)).shape[1])

    def _to_device(self, gpu_memory_fraction: float | None, *, forced: bool) -> None:
        """Move the tower to its device and precision, and prove that it still is the same embedding."""
        expected = None
        if self.precision != "fp32":
            proof = _structured_images(self.geometry)
            with torch.inference_mode():
                expected = self._run(self._tower, self._normalise(proof, torch.device("cpu")))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            if gpu_memory_fraction is not None:
                torch.cuda.set_per_process_memory_fraction(gpu_memory_fraction, self.device)
        exact = copy.deepcopy(self._tower) if expected is not None and not forced else None
        self._tower.to(self.device, PRECISIONS[self.precision])
        if expected is None:
            return
        cosine = float((self._forward(proof) * expected).sum(axis=1).min())
        logger.info("%s proven against fp32 on a fixed probe: cosine %.5f", self.precision, cosine)
        if not cosine >= PROOF_COSINE:
            if exact is None:
                logger.warning("%s was asked for, and is inexact here: cosine %.5f to fp32", self.precision, cosine)
                return
            logger.warning("%s is inexact here (cosine %.5f to fp32): using fp32", self.precision, cosine)
            self.precision, self._tower = "fp32", exact.to(self.device)


def _geometry(config: Mapping[str, Any]) -> Geometry:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    interpolation: Literal["bicubic", "bilinear"] = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return Geometry(height, width, config["resize_mode"], interpolation, int(config.get("fill_color", 0)))


def _describe(config: Mapping[str, Any], geometry: Geometry) -> str:
    mean, std = (",".join(f"{value:.6g}" for value in config[name]) for name in ("mean", "std"))
    size = f"{geometry.height}x{geometry.width}"
    return f"{size} {geometry.resize_mode} {geometry.interpolation} mean {mean} std {std} fill {geometry.fill}"


def _has_quick_gelu(tower: torch.nn.Module) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in tower.modules())


def _structured_images(geometry: Geometry) -> torch.Tensor:
    """Fixed images with edges, gradients and noise: uint8 (PROOF_IMAGES, 3, height, width)."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 255, geometry.width)[None, :]
    down = np.linspace(0, 255, geometry.height)[:, None]
    images = []
    for index in range(PROOF_IMAGES):
        waves = 127 + 127 * np.sin(across / (3 + 9 * index)) * np.cos(down / (5 + 7 * index))
        noise = generator.normal(0, 12 * index, (3, geometry.height, geometry.width))
        images.append(np.stack([waves, (across + down) / 2, np.abs(across - down)]) + noise)
    return torch.from_numpy(np.clip(np.stack(images), 0, 255).astype(np.uint8))


def main() -> None:
    """Run the demonstration; see worker/demonstration.py."""
    from worker.demonstration import demonstrate

    demonstrate(prog_name="python -m worker.clip_embedder")


if __name__ == "__main__":
    main()
