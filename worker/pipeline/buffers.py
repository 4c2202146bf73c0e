"""Buffers for chunks of pixels, pinned for CUDA."""

from __future__ import annotations

import logging
import math
import mmap

import torch

from worker.images.resize import Geometry

logger = logging.getLogger(__name__)
_warned = False


def chunk_buffer(count: int, geometry: Geometry, device: torch.device) -> torch.Tensor:
    """Uninitialized uint8 (count, 3, height, width) on the CPU; for CUDA pinned, where the system allows it.

    Only copies from pinned memory run in parallel with computation. The system limits pinned memory;
    without it, copies are slower.
    """
    global _warned
    shape = (count, 3, geometry.height, geometry.width)
    if device.type == "cuda":
        try:
            return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            if not _warned:
                logger.warning("no pinned memory for %d images (%s): copies to the card are slower", count, error)
                _warned = True
    size = math.prod(shape)
    if not size:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    # mmap instead of malloc: 10 MB blocks that come and go between small long-lived ones would fragment the
    # heap, and the worker would grow.
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(shape)


def keep_rows(pixels: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """These rows, in ascending order, moved together in place: a copy would not be pinned."""
    if len(rows) == len(pixels):
        return pixels
    for position, row in enumerate(rows):
        if position != row:
            pixels[position].copy_(pixels[row])
    return pixels[: len(rows)]
