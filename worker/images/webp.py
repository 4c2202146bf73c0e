"""Decode large WebP files with torchvision, in less memory than Pillow needs."""

from __future__ import annotations

import torch
from PIL import Image
from torch.nn import functional

from worker.images.resize import Geometry, target_if_large


def shrink_webp(image: Image.Image, data: bytes, geometry: Geometry, *, rotated: bool) -> Image.Image | None:
    """Decode and shrink a large, opaque, still WebP, of which Pillow would hold four copies; None for all others."""
    target = target_if_large(image, geometry, rotated=rotated)
    if target is None or image.mode != "RGB" or getattr(image, "is_animated", False):
        return None
    from torchvision.io import ImageReadMode, decode_webp  # takes 0.2 s to import; large WebP are rare

    pixels = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB).unsqueeze(0)
    small = functional.interpolate(pixels, target[::-1], mode=geometry.interpolation, antialias=True)
    return Image.fromarray(small.squeeze(0).permute(1, 2, 0).contiguous().numpy())
