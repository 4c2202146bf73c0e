"""Every format, mode and orientation that a collection may hold, made in code."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 300, height: int = 450, seed: int = 0) -> Image.Image:
    """A structured RGB picture: shapes, gradients and edges, no noise that a codec would lose."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (max(2, height // 75), max(2, width // 75), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    down, across = np.mgrid[0:height, 0:width]
    waves = 40 * np.sin(across / 17)[..., None] + 30 * np.cos(down / 23)[..., None]
    discs = 60 * (np.hypot(across - width * 0.6, down - height * 0.3) < min(width, height) / 4)[..., None]
    return Image.fromarray(np.clip(smooth + waves - discs, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Sample:
    """A file, and the RGB picture that it means: what a careful person would see."""

    name: str
    data: bytes
    meant: Image.Image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """Pillow's full, strict decode as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """What shows on white paper."""
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def translucent(seed: int = 1) -> Image.Image:
    """RGBA whose transparent part hides loud colours."""
    image = picture(seed=seed).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    alpha[:100] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def sixteen_bits(seed: int = 2) -> tuple[Image.Image, Image.Image]:
    """A 16-bit grey image, and the 8-bit one that it means."""
    grey = np.asarray(picture(seed=seed).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 257), Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def wide_gamut_profile() -> bytes:
    """An ICC profile whose red, green and blue are far from sRGB's: that of the XYZ cube, from Little CMS."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def samples() -> list[Sample]:
    """All of them; built on each call, they take a second."""
    rgb, grey = picture(), picture(seed=3).convert("L").convert("RGB")
    out: list[Sample] = []

    def add(name: str, data: bytes, meant: Image.Image | None = None) -> None:
        out.append(Sample(name, data, meant if meant is not None else decoded(data)))

    add("jpeg", encoded(rgb, "JPEG", quality=90))
    add("jpeg progressive", encoded(rgb, "JPEG", quality=90, progressive=True))
    add("jpeg 4:4:4", encoded(rgb, "JPEG", quality=95, subsampling=0))
    add("jpeg large", encoded(picture(1000, 1500), "JPEG", quality=90))
    add("jpeg huge", encoded(picture(2400, 3600), "JPEG", quality=90))
    add("jpeg grey", encoded(grey.convert("L"), "JPEG", quality=90))
    add("jpeg cmyk", encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture(420, 300, seed=orientation), "JPEG", quality=92, exif=exif)
        add(f"jpeg exif {orientation}", data, turned(decoded(data), orientation))
    add("png", encoded(rgb, "PNG"), rgb)
    add("png grey", encoded(grey.convert("L"), "PNG"), grey)
    add("png palette", encoded(rgb.quantize(64), "PNG"), rgb.quantize(64).convert("RGB"))
    add("png rgba", encoded(translucent(), "PNG"), on_white(translucent()))
    la = translucent().convert("LA")
    add("png la", encoded(la, "PNG"), on_white(la))
    palette = rgb.quantize(32)
    clear = encoded(palette, "PNG", transparency=5)
    add("png palette transparent", clear, on_white(Image.open(io.BytesIO(clear))))
    key = encoded(Image.new("RGB", (60, 90), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    add("png colour key", key, Image.new("RGB", (60, 90), "white"))
    add("png 1 bit", encoded(rgb.convert("1"), "PNG"), rgb.convert("1").convert("L").convert("RGB"))
    deep, meant = sixteen_bits()
    add("png 16 bit", encoded(deep, "PNG"), meant)
    add("tiff 16 bit", encoded(deep, "TIFF"), meant)
    add("tiff", encoded(rgb, "TIFF"), rgb)
    add("tiff lzw", encoded(rgb, "TIFF", compression="tiff_lzw"), rgb)
    add("bmp", encoded(rgb, "BMP"), rgb)
    add("gif", encoded(rgb.quantize(64), "GIF"), rgb.quantize(64).convert("RGB"))
    frames = [picture(seed=n).quantize(64) for n in (7, 8, 9)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    add("gif animated", moving, frames[0].convert("RGB"))
    add("webp lossy", encoded(rgb, "WEBP", quality=90))
    add("webp lossless", encoded(rgb, "WEBP", lossless=True), rgb)
    add("webp rgba", encoded(translucent(), "WEBP", lossless=True, exact=True), on_white(translucent()))
    pictures = [picture(seed=n) for n in (7, 8)]
    add(
        "webp animated",
        encoded(pictures[0], "WEBP", lossless=True, save_all=True, append_images=pictures[1:]),
        pictures[0],
    )
    add("avif", encoded(rgb, "AVIF", quality=90))
    add("mpo", encoded(rgb, "MPO", save_all=True, append_images=[picture(seed=5)], quality=90))
    add("tiny 1x1", encoded(Image.new("RGB", (1, 1), (10, 200, 30)), "PNG"), Image.new("RGB", (1, 1), (10, 200, 30)))
    for width, height in ((1, 5000), (5000, 1), (6000, 20), (40, 600), (223, 225), (225, 450)):
        odd = picture(width, height, seed=width)
        add(f"png {width}x{height}", encoded(odd, "PNG"), odd)
    return out


TURNS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90, expand=True),
    6: lambda image: image.rotate(-90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-90, expand=True),
    8: lambda image: image.rotate(90, expand=True),
}


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """As the Exif orientation says that it is to be shown (Exif 2.32, table 4)."""
    return TURNS[orientation](image)
