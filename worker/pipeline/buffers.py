"""Memory for a chunk of pixels, in the kind that the device reads fastest."""

from __future__ import annotations

import logging
import math
import mmap

import torch

from worker.images.decode import Geometry

logger = logging.getLogger(__name__)
_told = False


def chunk_buffer(count: int, geometry: Geometry, device: torch.device) -> torch.Tensor:
    """Uninitialized uint8 (count, 3, height, width) on the CPU; for CUDA pinned, where it can be had.

    Only from pinned memory does a copy run beside computation. The system bounds it; without it all
    goes on, slower.
    """
    global _told
    shape = (count, 3, geometry.height, geometry.width)
    if device.type == "cuda":
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            if not _told:
                logger.warning("no pinned memory for %d images (%s): copies to the card are slower", count, error)
                _told = True
    size = math.prod(shape)
    if not size:
        return torch.empty(shape, dtype=torch.uint8)
    # From the system and not from malloc: ten megabytes that come and go between small things that stay would
    # leave holes, and a worker that grows.
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(shape)


def keep_rows(pixels: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """The rows in this ascending order, moved together in place: a copy elsewhere would not be pinned."""
    if len(rows) == len(pixels):
        return pixels
    for position, row in enumerate(rows):
        if position != row:
            pixels[position].copy_(pixels[row])
    return pixels[: len(rows)]
