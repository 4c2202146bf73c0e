"""Variants of a poster as people send it: recompressed, cropped, a screenshot, a photograph of it, and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from producer.settings import Settings
from worker.images.decode import Limits
from worker.images.memory_budget import MemoryBudget
from worker.renditions.bounded import bounded_pixels, encoded

SIDE: Final = 1000  # pixels of the longer side: more than any model sees, and a tenth of a large scan's work
QUALITY: Final = 85  # of the JPEG files, as phones and web sites write them
STICKER_SHARE: Final = 0.1  # of the area
TURN_DEGREES: Final = 3.0
Random = np.random.Generator


def variants(data: bytes, settings: Settings, random: Random, *, name: str) -> dict[str, bytes]:
    """Each variant of an image, by its name, as a JPEG file; the same for the same state of `random`.

    Raises:
        UnreadablePoster: the image cannot be decoded.
    """
    limits, budget = Limits.from_settings(settings), MemoryBudget(settings.decode_memory_bytes)
    image = Image.fromarray(bounded_pixels(data, (SIDE, SIDE), limits, budget, name=name))
    made = {name: make(image, random) for name, make in _MAKERS.items()}
    files = {name: encoded(np.asarray(variant), "JPEG", quality=QUALITY) for name, variant in made.items()}
    return {"quality 30": encoded(np.asarray(image), "JPEG", quality=30)} | files


def _crop(image: Image.Image, random: Random, share: float) -> Image.Image:
    """Without `share` of width and height, at a random place."""
    width, height = max(1, round(image.width * (1 - share))), max(1, round(image.height * (1 - share)))
    left, top = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _screenshot(image: Image.Image, random: Random) -> Image.Image:
    """On the screen of a phone: bars of one color above and below, a caption in one of them."""
    width, height = 540, 1170
    small = _within(image, width, height * 3 // 4)
    dark = bool(random.integers(2))
    screen = Image.new("RGB", (width, height), (0, 0, 0) if dark else (250, 250, 250))
    top = (height - small.height) // 2
    screen.paste(small, ((width - small.width) // 2, top))
    text = ImageDraw.Draw(screen)
    color = (235, 235, 235) if dark else (30, 30, 30)
    text.text((20, 14), "21:47", font=ImageFont.load_default(22), fill=color)
    text.text((20, top + small.height + 24), "which one is this? #poster", font=ImageFont.load_default(26), fill=color)
    return screen


def _sticker(image: Image.Image, random: Random) -> Image.Image:
    """With a disc of one color over a tenth of it."""
    radius = math.sqrt(STICKER_SHARE * image.width * image.height / math.pi)
    x, y = random.uniform(0.2, 0.8) * image.width, random.uniform(0.2, 0.8) * image.height
    covered = image.copy()
    fill = tuple(int(part) for part in random.integers(40, 256, 3))
    ImageDraw.Draw(covered).ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return covered


def _watermark(image: Image.Image, random: Random) -> Image.Image:
    """With words half transparent across the middle, over a tenth of it."""
    layer = Image.new("L", image.size)
    height = STICKER_SHARE * image.height
    middle = random.uniform(0.3, 0.7) * image.height
    font = ImageFont.load_default(max(8, int(0.7 * height)))
    ImageDraw.Draw(layer).text((image.width / 2, middle), "SAMPLE COPY", font=font, fill=140, anchor="mm")
    marked = image.copy()
    marked.paste((255, 255, 255), mask=layer)
    return marked


def _turned(image: Image.Image, random: Random) -> Image.Image:
    """Turned by three degrees, to the left or to the right."""
    angle = TURN_DEGREES * (1 if random.integers(2) else -1)
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(128, 128, 128))


def _photograph(image: Image.Image, random: Random) -> Image.Image:
    """Photographed on a wall from the side, with light that falls off across it."""
    wide, tall = round(1.25 * image.width), round(1.2 * image.height)
    left, top = (wide - image.width) / 2, (tall - image.height) / 2
    corners = np.array([(0, 0), (image.width, 0), (image.width, image.height), (0, image.height)], float)
    seen = corners + (left, top) + random.uniform(-0.08, 0.08, (4, 2)) * image.size
    wall = tuple(int(part) for part in random.integers(90, 200, 3))
    scene = image.transform(
        (wide, tall), Image.Transform.PERSPECTIVE, _perspective(seen, corners), Image.Resampling.BICUBIC, fillcolor=wall
    )
    angle, down, across = random.uniform(0, 2 * math.pi), *np.mgrid[-1 : 1 : tall * 1j, -1 : 1 : wide * 1j]
    light = 0.85 + 0.3 * (math.cos(angle) * across + math.sin(angle) * down)
    return Image.fromarray(np.clip(np.asarray(scene) * light[..., None], 0, 255).astype(np.uint8))


def _perspective(seen: np.ndarray, corners: np.ndarray) -> list[float]:
    """The eight numbers by which Pillow maps the points of `seen` to those of `corners`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(seen, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(values))]


def _within(image: Image.Image, width: int, height: int) -> Image.Image:
    """As large as fits into these pixels; a line stays one."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


_MAKERS: Final[dict[str, Callable[[Image.Image, Random], Image.Image]]] = {
    "240 pixels": lambda image, random: _within(image, 240, 240),
    "crop 5 %": lambda image, random: _crop(image, random, 0.05),
    "crop 20 %": lambda image, random: _crop(image, random, 0.2),
    "crop 40 %": lambda image, random: _crop(image, random, 0.4),
    "screenshot": _screenshot,
    "brighter": lambda image, random: ImageEnhance.Brightness(image).enhance(1.4),
    "darker": lambda image, random: ImageEnhance.Brightness(image).enhance(0.6),
    "gray": lambda image, random: ImageOps.grayscale(image).convert("RGB"),
    "blurred": lambda image, random: image.filter(ImageFilter.GaussianBlur(max(image.size) / 250)),
    "sticker": _sticker,
    "watermark": _watermark,
    "turned 3°": _turned,
    "photograph": _photograph,
    "mirrored": lambda image, random: ImageOps.mirror(image),
}
