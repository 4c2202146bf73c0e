"""Decode large WebP files with torchvision, in less memory than Pillow needs."""

from __future__ import annotations

import torch
from PIL import Image
from torch.nn import functional

from worker.images.resize import Geometry, target_if_large


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas by its header (RFC 9649); (0, 0) for another format.

    Pillow's decoder reserves two canvases when it opens a file: 1.5 GB for one of 46 bytes.
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8 ":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return 0, 0


def shrink_webp(image: Image.Image, data: bytes, geometry: Geometry, *, rotated: bool) -> Image.Image | None:
    """Decode and shrink a large, opaque, still WebP, of which Pillow would hold four copies; None for all others."""
    target = target_if_large(image, geometry, rotated=rotated)
    if target is None or not is_plain(image):
        return None
    from torchvision.io import ImageReadMode, decode_webp  # takes 0.2 s to import; large WebP are rare

    pixels = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB).unsqueeze(0)
    small = functional.interpolate(pixels, target[::-1], mode=geometry.interpolation, antialias=True)
    return Image.fromarray(small.squeeze(0).permute(1, 2, 0).contiguous().numpy())


def is_plain(image: Image.Image) -> bool:
    """Whether a WebP is opaque and still."""
    return image.mode == "RGB" and not getattr(image, "is_animated", False)
