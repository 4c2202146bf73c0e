"""Draw the sample posters: ``python examples/draw_posters.py`` rewrites posters/ and data/posters.json.

Original art, drawn with Pillow and NumPy, the same on every machine. ``--sheet FILE`` also writes a
contact sheet. Two of the samples are derived from others, as results for the nearest-neighbor search: a
re-encoded copy, and a crop. ``--more 300 --into FOLDER`` draws a larger collection instead, in which motifs and words
of titles recur.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 400, 600
SUPERSAMPLING = 2  # everything is drawn this much larger and then reduced, for smooth edges
W, H = WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING

Color = tuple[int, int, int]
Canvas = Image.Image


@dataclass
class Sheet:
    """A poster to draw: file, title, motif, colors from top to bottom, and metadata for the catalogue."""

    file: str
    title: str
    motif: Callable[[Canvas, np.random.Generator, list[Color]], Canvas]
    colors: list[str]
    about: dict[str, Any] = field(default_factory=dict)


def rgb(text: str) -> Color:
    """``#rrggbb`` as numbers."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def gradient(top: Color, bottom: Color, power: float = 1.0) -> Canvas:
    """A vertical blend of two colors."""
    share = (np.linspace(0, 1, H) ** power)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.broadcast_to(rows, (H, W, 3)).astype(np.uint8).copy())


def glow(canvas: Canvas, x: float, y: float, radius: float, color: Color, strength: float = 0.9) -> Canvas:
    """Light around a point, falling off smoothly."""
    down, across = np.mgrid[0:H, 0:W]
    distance = np.hypot(across - x * W, down - y * H) / (radius * W)
    share = (strength * np.exp(-(distance**2) * 2.5))[..., None]
    return Image.fromarray((np.asarray(canvas) * (1 - share) + np.array(color) * share).astype(np.uint8))


def disc(canvas: Canvas, x: float, y: float, radius: float, color: Color) -> None:
    """A filled circle; radius as a share of the width."""
    r = radius * W
    ImageDraw.Draw(canvas).ellipse((x * W - r, y * H - r, x * W + r, y * H + r), fill=color)


def shape(canvas: Canvas, points: list[tuple[float, float]], color: Color) -> None:
    """A filled polygon; points as shares of width and height."""
    ImageDraw.Draw(canvas).polygon([(x * W, y * H) for x, y in points], fill=color)


def line(canvas: Canvas, points: list[tuple[float, float]], color: Color, width: float) -> None:
    """A line with round joints; width as a share of the poster's width."""
    ImageDraw.Draw(canvas).line([(x * W, y * H) for x, y in points], fill=color, width=int(width * W), joint="curve")


def ridge(
    canvas: Canvas, random: np.random.Generator, level: float, height: float, color: Color, rough: float = 1
) -> None:
    """A mountain line across the poster, filled to the bottom."""
    across = np.linspace(0, 1, 120)
    up = sum(np.sin(across * (2.3 * n * rough) * math.pi + random.uniform(0, 7)) / n for n in range(1, 7))
    top = level - height * (np.asarray(up) + 1) / 3
    shape(canvas, [(0, 1), *zip(across.tolist(), top.tolist(), strict=True), (1, 1)], color)


def stars(canvas: Canvas, random: np.random.Generator, count: int, below: float = 0.6) -> None:
    """Small lights of different sizes in the upper part."""
    for _ in range(count):
        light = int(random.integers(150, 256))
        disc(canvas, random.random(), random.random() * below, random.uniform(0.001, 0.004), (light, light, light))


def gear(canvas: Canvas, x: float, y: float, radius: float, teeth: int, color: Color, hole: Color) -> None:
    """A cog wheel with a hub and spokes."""
    points = []
    for n in range(teeth * 4):
        angle = 2 * math.pi * n / (teeth * 4)
        r = radius * (1.0 if n % 4 < 2 else 0.86)
        points.append((x + r * math.cos(angle), y + r * math.sin(angle) * W / H))
    shape(canvas, points, color)
    disc(canvas, x, y, radius * 0.66, hole)
    for n in range(6):
        angle = math.pi * n / 6
        ends = [
            (x + s * radius * 0.7 * math.cos(angle), y + s * radius * 0.7 * math.sin(angle) * W / H) for s in (-1, 1)
        ]
        line(canvas, ends, color, radius * 0.09)
    disc(canvas, x, y, radius * 0.2, color)


def clockwork(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """Cog wheels, a clock face, and a figure in a lab coat before them."""
    canvas = glow(canvas, 0.5, 0.42, 0.7, c[2])
    for x, y, r, teeth in ((0.2, 0.2, 0.26, 22), (0.86, 0.33, 0.2, 18), (0.12, 0.66, 0.17, 14), (0.84, 0.7, 0.25, 20)):
        gear(canvas, x, y, r, teeth, c[3], c[1])
    disc(canvas, 0.5, 0.42, 0.3, c[4])
    disc(canvas, 0.5, 0.42, 0.275, c[0])
    for hour in range(12):
        angle = 2 * math.pi * hour / 12
        reach = [(0.5 + r * math.sin(angle), 0.42 - r * math.cos(angle) * W / H) for r in (0.22, 0.255)]
        line(canvas, reach, c[4], 0.012)
    line(canvas, [(0.5, 0.42), (0.5 + 0.13, 0.42 - 0.09)], c[4], 0.018)
    line(canvas, [(0.5, 0.42), (0.5 - 0.05, 0.42 - 0.145)], c[4], 0.012)
    shape(canvas, [(0.36, 1), (0.4, 0.66), (0.46, 0.61), (0.54, 0.61), (0.6, 0.66), (0.66, 1)], c[5])
    shape(canvas, [(0.48, 0.62), (0.52, 0.62), (0.53, 0.8), (0.47, 0.8)], c[0])
    disc(canvas, 0.5, 0.565, 0.062, c[0])
    return canvas


def shrine(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A gate before the moon, over water."""
    stars(canvas, random, 90)
    canvas = glow(canvas, 0.5, 0.36, 0.55, c[2])
    disc(canvas, 0.5, 0.36, 0.25, c[2])
    ridge(canvas, random, 0.72, 0.09, c[3])
    for x in (0.3, 0.7):
        shape(canvas, [(x - 0.022, 0.84), (x - 0.016, 0.4), (x + 0.016, 0.4), (x + 0.022, 0.84)], c[4])
    shape(canvas, [(0.16, 0.365), (0.5, 0.39), (0.84, 0.365), (0.82, 0.415), (0.18, 0.415)], c[4])
    shape(canvas, [(0.24, 0.46), (0.76, 0.46), (0.76, 0.485), (0.24, 0.485)], c[4])
    shape(canvas, [(0, 0.84), (1, 0.84), (1, 1), (0, 1)], c[5])
    for n in range(22):
        y, half = 0.85 + n * 0.0065, random.uniform(0.04, 0.22)
        line(canvas, [(0.5 - half, y), (0.5 + half, y)], c[2], 0.003)
    return canvas


def city(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """Towers with lit windows in three depths."""
    canvas = glow(canvas, 0.7, 0.55, 0.8, c[2], 0.7)
    draw = ImageDraw.Draw(canvas)
    for depth, color in ((0.42, c[3]), (0.55, c[4]), (0.7, c[5])):
        x = -0.05
        while x < 1:
            wide, top = random.uniform(0.07, 0.16), depth + random.uniform(-0.14, 0.12)
            shape(canvas, [(x, 1), (x, top), (x + wide, top), (x + wide, 1)], color)
            for row in np.arange(top + 0.012, 0.98, 0.017):
                for column in np.arange(x + 0.012, x + wide - 0.012, 0.02):
                    if random.random() < 0.32 and depth > 0.5:
                        box = (column * W, row * H, (column + 0.009) * W, (row + 0.008) * H)
                        draw.rectangle(box, fill=c[2] if random.random() < 0.8 else c[1])
            x += wide + random.uniform(0, 0.02)
    return canvas


def wave(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A sun over rolling water, and a small boat."""
    disc(canvas, 0.32, 0.3, 0.2, c[2])
    for n in range(9):
        across, level = np.linspace(0, 1, 90), 0.5 + n * 0.06
        top = level + 0.028 * np.sin(across * (5 + n) + n * 1.7) + 0.012 * np.sin(across * 17 + n)
        share = n / 8
        color = tuple(int(a * (1 - share) + b * share) for a, b in zip(c[3], c[5], strict=True))
        shape(
            canvas,
            [(0, 1), *zip(across.tolist(), top.tolist(), strict=True), (1, 1)],
            (color[0], color[1], color[2]),
        )
        if n == 3:
            shape(canvas, [(0.55, 0.665), (0.83, 0.655), (0.78, 0.705), (0.6, 0.71)], c[4])
            shape(canvas, [(0.69, 0.65), (0.69, 0.47), (0.82, 0.63)], (250, 245, 235))
    return canvas


def blossom(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A bending tree in flower, petals in the wind."""
    canvas = glow(canvas, 0.65, 0.3, 0.6, c[2])
    ridge(canvas, random, 0.9, 0.06, c[5])
    line(canvas, [(0.2, 0.95), (0.24, 0.75), (0.33, 0.58), (0.36, 0.4), (0.5, 0.28)], c[4], 0.06)
    line(canvas, [(0.33, 0.58), (0.55, 0.46), (0.72, 0.44)], c[4], 0.03)
    line(canvas, [(0.36, 0.42), (0.2, 0.3), (0.12, 0.2)], c[4], 0.028)
    for _ in range(260):
        x, y = ((0.5, 0.25), (0.75, 0.42), (0.14, 0.2), (0.35, 0.35))[int(random.integers(4))]
        disc(canvas, x + random.normal(0, 0.1), y + random.normal(0, 0.055), random.uniform(0.012, 0.034), c[3])
    for _ in range(60):
        disc(canvas, random.random(), 0.45 + 0.5 * random.random(), random.uniform(0.005, 0.011), c[3])
    return canvas


def train(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A train on a bridge before far hills."""
    disc(canvas, 0.76, 0.24, 0.13, c[2])
    ridge(canvas, random, 0.56, 0.13, c[3])
    ridge(canvas, random, 0.66, 0.1, c[4])
    for n in range(6):
        x = n / 5
        shape(canvas, [(x - 0.02, 1), (x - 0.012, 0.66), (x + 0.012, 0.66), (x + 0.02, 1)], c[5])
    shape(canvas, [(0, 0.645), (1, 0.645), (1, 0.67), (0, 0.67)], c[5])
    for n in range(4):
        left = -0.12 + n * 0.275
        shape(canvas, [(left, 0.565), (left + 0.26, 0.565), (left + 0.26, 0.64), (left, 0.64)], c[1])
        for k in range(4):
            x = left + 0.025 + k * 0.058
            shape(canvas, [(x, 0.58), (x + 0.04, 0.58), (x + 0.04, 0.607), (x, 0.607)], (255, 244, 190))
    return canvas


def cat(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A cat on a roof against a large disc."""
    disc(canvas, 0.5, 0.4, 0.36, c[2])
    shape(canvas, [(0, 0.8), (0.5, 0.72), (1, 0.8), (1, 1), (0, 1)], c[5])
    for n in range(9):
        line(canvas, [(0, 0.82 + n * 0.024), (0.5, 0.74 + n * 0.026), (1, 0.82 + n * 0.024)], c[3], 0.006)
    ImageDraw.Draw(canvas).ellipse((0.36 * W, 0.5 * H, 0.62 * W, 0.76 * H), fill=c[4])
    disc(canvas, 0.49, 0.47, 0.115, c[4])
    shape(canvas, [(0.38, 0.46), (0.385, 0.375), (0.46, 0.42)], c[4])
    shape(canvas, [(0.6, 0.46), (0.595, 0.375), (0.52, 0.42)], c[4])
    line(canvas, [(0.6, 0.72), (0.74, 0.7), (0.78, 0.6), (0.73, 0.54)], c[4], 0.035)
    for x in (0.445, 0.535):
        disc(canvas, x, 0.465, 0.021, c[1])
        disc(canvas, x, 0.465, 0.009, (20, 16, 24))
    return canvas


def peak(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """One great mountain with snow, forests below."""
    canvas = glow(canvas, 0.5, 0.5, 0.7, c[2], 0.6)
    shape(canvas, [(-0.1, 0.85), (0.46, 0.2), (0.53, 0.2), (1.1, 0.85)], c[3])
    snow = [
        (0.46, 0.2),
        (0.53, 0.2),
        (0.68, 0.375),
        (0.62, 0.36),
        (0.57, 0.41),
        (0.5, 0.35),
        (0.43, 0.42),
        (0.38, 0.35),
        (0.32, 0.37),
    ]
    shape(canvas, snow, (245, 248, 252))
    for level, color in ((0.8, c[4]), (0.9, c[5])):
        for x in np.arange(-0.02, 1.04, 0.035):
            tall = random.uniform(0.06, 0.13)
            shape(canvas, [(x - 0.03, level + 0.02), (x, level - tall), (x + 0.03, level + 0.02)], color)
        shape(canvas, [(0, level), (1, level), (1, 1), (0, 1)], color)
    return canvas


def islands(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """Rocks that float, each with its meadow and tree."""
    for _ in range(14):
        x, y, r = random.random(), random.uniform(0.1, 0.95), random.uniform(0.05, 0.12)
        for n in range(4):
            disc(canvas, x + n * r * 0.6, y, r * random.uniform(0.4, 0.7), c[2])
    for x, y, size in ((0.34, 0.36, 0.25), (0.74, 0.58, 0.19), (0.26, 0.76, 0.14)):
        shape(
            canvas,
            [
                (x - size, y),
                (x + size, y),
                (x + size * 0.4, y + size * 0.5),
                (x, y + size * 0.85),
                (x - size * 0.5, y + size * 0.45),
            ],
            c[4],
        )
        shape(
            canvas,
            [
                (x - size, y),
                (x - size * 0.5, y - size * 0.1),
                (x + size * 0.6, y - size * 0.08),
                (x + size, y),
                (x, y + size * 0.1),
            ],
            c[3],
        )
        line(canvas, [(x, y), (x, y - size * 0.3)], c[5], size * 0.1)
        disc(canvas, x, y - size * 0.42, size * 0.3, c[3])
    return canvas


def orbit(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A ringed planet and a ship's trail."""
    stars(canvas, random, 260, below=1)
    canvas = glow(canvas, 0.6, 0.42, 0.55, c[2], 0.6)
    disc(canvas, 0.6, 0.42, 0.27, c[3])
    for n in range(7):
        y = 0.27 + n * 0.048
        half = math.sqrt(max(0.0, 0.27**2 - ((y - 0.42) * H / W) ** 2))
        line(canvas, [(0.6 - half, y), (0.6 + half, y)], c[4], 0.02)
    ring = Image.new("L", (W, H))
    ImageDraw.Draw(ring).ellipse((0.14 * W, 0.36 * H, 1.06 * W, 0.48 * H), outline=255, width=int(0.03 * W))
    ImageDraw.Draw(ring).rectangle((0.33 * W, 0.3 * H, 0.87 * W, 0.42 * H), fill=0)
    canvas.paste(c[2], mask=ring.rotate(14, center=(0.6 * W, 0.42 * H)))
    line(canvas, [(0.05, 0.95), (0.28, 0.72)], c[1], 0.008)
    shape(canvas, [(0.26, 0.735), (0.35, 0.665), (0.3, 0.75)], (240, 240, 250))
    return canvas


def lanterns(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """Paper lanterns rising in the night."""
    for n in range(26):
        x, y = random.random(), 0.12 + 0.78 * (n / 25)
        size = 0.03 + 0.06 * (n / 25)
        canvas = glow(canvas, x, y, size * 2.6, c[2], 0.55)
        shape(
            canvas,
            [
                (x - size * 0.7, y - size * 0.8),
                (x + size * 0.7, y - size * 0.8),
                (x + size, y + size * 0.6),
                (x - size, y + size * 0.6),
            ],
            c[3],
        )
        line(canvas, [(x - size, y + size * 0.6), (x + size, y + size * 0.6)], c[4], 0.008)
    ridge(canvas, random, 0.96, 0.05, c[5])
    return canvas


def blade(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A sword down the middle, brush strokes behind it."""
    for _ in range(16):
        x, y = random.uniform(0, 1), random.uniform(0.1, 0.9)
        line(canvas, [(x - 0.4, y + 0.12), (x + 0.4, y - 0.12)], c[2], random.uniform(0.01, 0.07))
    disc(canvas, 0.5, 0.4, 0.3, c[3])
    shape(canvas, [(0.47, 0.7), (0.47, 0.16), (0.5, 0.1), (0.53, 0.16), (0.53, 0.7)], (232, 236, 240))
    shape(canvas, [(0.5, 0.7), (0.5, 0.1), (0.53, 0.16), (0.53, 0.7)], (170, 180, 190))
    shape(canvas, [(0.37, 0.7), (0.63, 0.7), (0.61, 0.725), (0.39, 0.725)], c[4])
    shape(canvas, [(0.472, 0.725), (0.528, 0.725), (0.52, 0.88), (0.48, 0.88)], c[5])
    return canvas


def guitar(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A guitar across beams of stage light."""
    for n in range(7):
        x = n / 6
        shape(canvas, [(x - 0.01, 0), (x + 0.01, 0), (x * 1.6 - 0.1, 1), (x * 1.6 - 0.3, 1)], c[2 + n % 2])
    line(canvas, [(0.42, 0.62), (0.82, 0.14)], c[4], 0.05)
    shape(canvas, [(0.78, 0.16), (0.84, 0.09), (0.92, 0.13), (0.85, 0.2)], c[4])
    for x, y, r in ((0.32, 0.73, 0.21), (0.43, 0.6, 0.15)):
        disc(canvas, x, y, r, c[5])
    disc(canvas, 0.4, 0.645, 0.06, c[0])
    for n in range(4):
        line(canvas, [(0.3 + n * 0.012, 0.75), (0.8 + n * 0.012, 0.15)], (240, 235, 225), 0.003)
    return canvas


def mecha(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A machine in armor, eyes lit, the sun behind."""
    canvas = glow(canvas, 0.5, 0.35, 0.75, c[2])
    for n in range(24):
        angle = 2 * math.pi * n / 24
        shape(
            canvas,
            [
                (0.5, 0.4),
                (0.5 + 1.4 * math.cos(angle), 0.4 + 1.4 * math.sin(angle)),
                (0.5 + 1.4 * math.cos(angle + 0.12), 0.4 + 1.4 * math.sin(angle + 0.12)),
            ],
            c[1],
        )
    shape(canvas, [(0.12, 1), (0.08, 0.62), (0.26, 0.52), (0.74, 0.52), (0.92, 0.62), (0.88, 1)], c[3])
    shape(canvas, [(0.3, 1), (0.26, 0.6), (0.5, 0.68), (0.74, 0.6), (0.7, 1)], c[4])
    shape(
        canvas, [(0.36, 0.53), (0.34, 0.34), (0.42, 0.27), (0.58, 0.27), (0.66, 0.34), (0.64, 0.53), (0.5, 0.58)], c[5]
    )
    shape(canvas, [(0.5, 0.3), (0.2, 0.16), (0.47, 0.27)], c[2])
    shape(canvas, [(0.5, 0.3), (0.8, 0.16), (0.53, 0.27)], c[2])
    for x in (0.43, 0.57):
        shape(canvas, [(x - 0.05, 0.4), (x + 0.05, 0.39), (x + 0.04, 0.425), (x - 0.04, 0.43)], (120, 255, 220))
    return canvas


def rain(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """An umbrella in the rain, seen from behind."""
    for _ in range(240):
        x, y = random.uniform(-0.1, 1), random.uniform(0, 1)
        line(canvas, [(x, y), (x + 0.018, y + 0.045)], c[2], 0.004)
    ImageDraw.Draw(canvas).pieslice((0.14 * W, 0.26 * H, 0.86 * W, 0.74 * H), 180, 360, fill=c[3])
    for x in (0.26, 0.42, 0.58, 0.74):
        line(canvas, [(0.5, 0.26), (x, 0.5)], c[4], 0.006)
    line(canvas, [(0.5, 0.5), (0.5, 0.72)], c[5], 0.014)
    shape(canvas, [(0.36, 1), (0.4, 0.62), (0.5, 0.58), (0.6, 0.62), (0.64, 1)], c[5])
    disc(canvas, 0.5, 0.56, 0.06, c[5])
    return canvas


def dunes(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """Sand in long curves and a line of travelers."""
    disc(canvas, 0.7, 0.22, 0.1, c[2])
    for level, color in ((0.55, c[3]), (0.7, c[4]), (0.86, c[5])):
        ridge(canvas, random, level, 0.07, color, rough=0.4)
    for n in range(5):
        x, y = 0.18 + n * 0.09, 0.735 + 0.006 * n
        shape(canvas, [(x - 0.018, y), (x - 0.012, y - 0.04), (x + 0.012, y - 0.04), (x + 0.018, y)], (40, 24, 30))
        disc(canvas, x, y - 0.05, 0.013, (40, 24, 30))
    return canvas


def lighthouse(canvas: Canvas, random: np.random.Generator, c: list[Color]) -> Canvas:
    """A tower on a cliff, its beam across the sky."""
    stars(canvas, random, 120, below=0.7)
    shape(canvas, [(0.3, 0.31), (1.1, 0.1), (1.1, 0.34)], c[2])
    shape(canvas, [(0, 0.72), (0.45, 0.7), (0.55, 0.84), (0.5, 1), (0, 1)], c[5])
    shape(canvas, [(0.5, 0.88), (1, 0.88), (1, 1), (0.5, 1)], c[3])
    for n in range(5):
        y = 0.36 + n * 0.072
        color = (238, 232, 224) if n % 2 else c[4]
        grow = n * 0.008
        shape(canvas, [(0.24 - grow, y), (0.36 + grow, y), (0.368 + grow, y + 0.072), (0.232 - grow, y + 0.072)], color)
    shape(canvas, [(0.25, 0.36), (0.35, 0.36), (0.34, 0.28), (0.26, 0.28)], (255, 240, 170))
    shape(canvas, [(0.23, 0.285), (0.3, 0.235), (0.37, 0.285)], c[4])
    return canvas


def titled(canvas: Canvas, title: str, color: Color, high: bool) -> Canvas:
    """Draw the title as large as fits, with a soft shadow."""
    size = 92
    while (font := ImageFont.load_default(size)).getlength(title) > W * 0.86 and size > 20:
        size -= 2
    at = (W / 2, H * (0.085 if high else 0.93))
    shadow = Image.new("L", (W, H))
    ImageDraw.Draw(shadow).text(at, title, font=font, fill=230, anchor="mm")
    canvas.paste((0, 0, 0), mask=shadow.filter(ImageFilter.GaussianBlur(10)))
    ImageDraw.Draw(canvas).text(at, title, font=font, fill=color, anchor="mm")
    return canvas


def draw(sheet: Sheet, number: int) -> Canvas:
    """Draw one poster: RGB, WIDTH × HEIGHT."""
    random = np.random.default_rng(1000 + number)
    colors = [rgb(text) for text in sheet.colors]
    canvas = sheet.motif(gradient(colors[0], colors[1], 1.2), random, colors)
    canvas = titled(canvas, sheet.title, (250, 246, 236), high=number % 3 != 0)
    return finished(canvas, random, grain=0 if sheet.file.endswith(".png") else 2.0)


def finished(canvas: Canvas, random: np.random.Generator, grain: float) -> Canvas:
    """Reduced to WIDTH × HEIGHT, with the grain of film."""
    noise = random.normal(0, grain, (HEIGHT, WIDTH, 1)) if grain else 0
    small = np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
    return Image.fromarray(np.clip(small + noise, 0, 255).astype(np.uint8))


SHEETS = [
    Sheet("steins_gate.png", "Steins;Gate", clockwork, ["#1c1512", "#4a2b16", "#c8772e", "#6b4423", "#f0d9a8", "#e9e4da"], {"id": "steins-gate", "year": 2011}),
    Sheet("moonlit_shrine.jpg", "Moonlit Shrine", shrine, ["#0b1030", "#3a2a63", "#f3e6c4", "#1a1b3f", "#b3262d", "#10132f"], {"year": 2004}),
    Sheet("neon_harbor.jpg", "Neon Harbor", city, ["#1b0b35", "#e0457b", "#ffd166", "#5a2a6e", "#33184f", "#180a2b"], {"year": 1998}),
    Sheet("tidewalker.jfif", "Tidewalker", wave, ["#ffe3b0", "#ff9a76", "#ff5d5d", "#58b4c4", "#7a3b2e", "#0d4a6b"], {"year": 2015}),
    Sheet("petal_letters.webp", "Petal Letters", blossom, ["#d9efff", "#fff4f7", "#fff0d0", "#ff9ec4", "#5b3a35", "#7fa06a"], {"year": 2018}),
    Sheet("last_train_north.jpg", "Last Train North", train, ["#f6b35d", "#d8573c", "#fff0c0", "#a2473f", "#5c2f3c", "#27202e"], {"year": 2009}),
    Sheet("rooftop_cat.png", "Rooftop Cat", cat, ["#123a3f", "#2c7a72", "#f4d35e", "#0a2326", "#1b1b22", "#163034"], {"year": 2001}),
    Sheet("snow_oath.jpg", "Snow Oath", peak, ["#8fc2f0", "#f4d6c8", "#ffe9d0", "#6d7fa8", "#2f4f4a", "#17302f"], {"year": 1995}),
    Sheet("classics/sky_archipelago.jpg", "Sky Archipelago", islands, ["#4aa3e0", "#c9ecff", "#ffffff", "#6cbf57", "#8a6a4a", "#5b4029"], {"year": 1986}),
    Sheet("classics/ring_of_callisto.jpg", "Ring of Callisto", orbit, ["#05060f", "#141a3a", "#e8b27a", "#c0603f", "#8d3d33", "#05060f"], {"year": 1989}),
    Sheet("classics/lantern_festival.webp", "Lantern Festival", lanterns, ["#0d0620", "#3c1646", "#ffb54a", "#ff7a2f", "#7a1f1f", "#0a0414"], {"year": 1991}),
    Sheet("classics/crimson_edge.jpg", "Crimson Edge", blade, ["#f2ead8", "#e4d6b8", "#d8c6a0", "#c01f2b", "#26201c", "#4b2a24"], {"year": 1984}),
    Sheet("feedback_girls.jpg", "Feedback Girls", guitar, ["#2a0845", "#6441a5", "#8e54e9", "#4776e6", "#3b2a20", "#f25f5c"], {"year": 2012}),
    Sheet("iron_aurora.jpg", "Iron Aurora", mecha, ["#ffcf56", "#f29e4c", "#ffef9f", "#2d4a73", "#1f3050", "#3f6ca3"], {"year": 1999}),
    Sheet("seven_days_of_rain.jpg", "Seven Days of Rain", rain, ["#5d7283", "#9fb4bf", "#c9d8de", "#d64545", "#7d1f28", "#22303a"], {"year": 2020}),
    Sheet("salt_caravan.webp", "Salt Caravan", dunes, ["#fbd786", "#f7797d", "#fff3d6", "#e0985a", "#c47442", "#8d4a30"], {"year": 2007}),
    Sheet("keeper_of_the_light.png", "Keeper of the Light", lighthouse, ["#08203e", "#28557a", "#fff2b0", "#123a5a", "#c8382e", "#141c26"], {"year": 2016}),
    Sheet("emerald_circuit.jpg", "Emerald Circuit", city, ["#03211a", "#0f6b50", "#b9f5a0", "#0b4a3a", "#07352b", "#031a15"], {"year": 2022}),
    Sheet("white_cat_mansion.jpg", "White Cat Mansion", cat, ["#5b1a2e", "#a83c4e", "#f7c9b6", "#3f0f20", "#f3eee6", "#2a0b16"], {"year": 2010}),
    Sheet("frost_engine.jpg", "Frost Engine", mecha, ["#0f2c52", "#3a7ca5", "#d9f0ff", "#e6edf2", "#aebfcc", "#7f97ab"], {"year": 2003}),
    Sheet("winter_sea.jpg", "Winter Sea", wave, ["#2b3a4a", "#7f93a3", "#e8eef2", "#8fa5b2", "#3c2f2a", "#1c2b38"], {"year": 1993}),
    Sheet("autumn_platform.webp", "Autumn Platform", train, ["#3b5f8a", "#a9c6df", "#ffffff", "#c76b28", "#8f3d1d", "#2e3d2a"], {"year": 2013}),
]  # fmt: skip

MOTIFS = [clockwork, shrine, city, wave, blossom, train, cat, peak, islands, orbit, lanterns, blade, guitar, mecha, rain, dunes, lighthouse]  # fmt: skip
WORDS = ["Amber", "Ashen", "Broken", "Crimson", "Distant", "Eternal", "Frozen", "Gilded", "Hollow", "Iron", "Last", "Midnight", "Neon", "Pale", "Quiet", "Silver", "Velvet", "Wild"]  # fmt: skip
THINGS = ["Archive", "Bridge", "Carnival", "Courier", "Dynasty", "Echo", "Garden", "Harbor", "Island", "Lantern", "Machine", "Orchard", "Paradox", "Requiem", "Signal", "Voyage"]  # fmt: skip


def palette(random: np.random.Generator) -> list[str]:
    """Six colors of neighboring hues, two of them opposite, from dark to light or the other way."""
    hue, lights = random.random(), np.linspace(0.15, 0.95, 6)[:: random.choice([-1, 1])]
    hues = [hue, hue + 0.06, hue + 0.5, hue + 0.12, hue + 0.55, hue - 0.06]
    colors = [colorsys.hsv_to_rgb(h % 1, random.uniform(0.25, 0.85), v) for h, v in zip(hues, lights, strict=True)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in colors]


def scatter(canvas: Canvas, random: np.random.Generator, colors: list[Color]) -> None:
    """Things in the foreground, no two posters alike: cogs, sheets, rods, and lights."""
    for _ in range(int(random.integers(14, 30))):
        x, y, size = random.random(), random.uniform(0.12, 0.9), random.uniform(0.03, 0.11)
        color = colors[random.integers(len(colors))]
        kind = random.integers(4)
        if kind == 0:
            gear(canvas, x, y, size, int(random.integers(7, 18)), color, colors[random.integers(len(colors))])
        elif kind == 1:
            angles = np.sort(random.uniform(0, 2 * math.pi, int(random.integers(3, 8))))
            reach = random.uniform(0.5, 1.3, len(angles)) * size
            shape(
                canvas,
                list(
                    zip((x + reach * np.cos(angles)).tolist(), (y + 0.7 * reach * np.sin(angles)).tolist(), strict=True)
                ),
                color,
            )
        elif kind == 2:
            bend = np.add(random.uniform(-0.2, 0.2, (3, 2)).cumsum(axis=0), (x, y))
            line(canvas, [(x, y), *map(tuple, bend.tolist())], color, random.uniform(0.004, 0.02))
        else:
            for ring in range(int(random.integers(1, 5)), 0, -1):
                disc(canvas, x, y, size * ring / 4, colors[(ring + int(random.integers(2))) % len(colors)])


def draw_one_of_many(number: int, seed: int = 0) -> Canvas:
    """Poster `number` of an endless collection: a part of a motif, turned over or not, behind things of its own."""
    random = np.random.default_rng([seed, number])
    title = f"{WORDS[random.integers(len(WORDS))]} {THINGS[random.integers(len(THINGS))]}"
    sheet = Sheet(".jpg", title, MOTIFS[random.integers(len(MOTIFS))], palette(random))
    colors = [rgb(text) for text in sheet.colors]
    canvas = sheet.motif(gradient(colors[0], colors[1], random.uniform(0.6, 1.8)), random, colors)
    share = random.uniform(0.6, 1)
    left, top = random.uniform(0, 1 - share) * W, random.uniform(0, 1 - share) * H
    canvas = canvas.resize((W, H), Image.Resampling.BICUBIC, (left, top, left + share * W, top + share * H))
    if random.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scatter(canvas, random, colors)
    return finished(titled(canvas, title, (250, 246, 236), high=bool(random.integers(2))), random, grain=2.0)


def draw_many(root: Path, count: int, seed: int) -> None:
    """Write `count` posters as JPEG files below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        save(draw_one_of_many(number, seed), root / f"{number:04}.jpg")


QUALITY = {".jpg": 80, ".jfif": 80, ".webp": 78}


def save(image: Canvas, path: Path) -> None:
    """Write in the format of the file name's suffix; PNG with 64 colors, to stay small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix
    if suffix == ".png":
        image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    elif suffix == ".webp":
        image.save(path, "WEBP", quality=QUALITY[suffix], method=6)
    else:
        image.save(path, "JPEG", quality=QUALITY[suffix], optimize=True, progressive=suffix == ".jfif")


def draw_all(root: Path) -> list[dict[str, Any]]:
    """Write every poster below `root`; returns the catalogue."""
    catalogue = []
    drawn: dict[str, Canvas] = {}
    for number, sheet in enumerate(SHEETS):
        drawn[sheet.file] = draw(sheet, number)
        save(drawn[sheet.file], root / sheet.file)
        catalogue.append({"file": sheet.file, "title": sheet.title, "motif": sheet.motif.__name__} | sheet.about)
    copy = drawn["moonlit_shrine.jpg"].resize((300, 450), Image.Resampling.BICUBIC)
    copy.save(root / "moonlit_shrine_copy.webp", "WEBP", quality=60, method=6)
    crop = drawn["iron_aurora.jpg"].crop((16, 24, WIDTH - 16, HEIGHT - 24))
    crop.save(root / "iron_aurora_crop.jpg", "JPEG", quality=75, optimize=True)
    for file, original, kind in (
        ("moonlit_shrine_copy.webp", "moonlit_shrine.jpg", "re-encoded copy"),
        ("iron_aurora_crop.jpg", "iron_aurora.jpg", "crop"),
    ):
        title = next(entry["title"] for entry in catalogue if entry["file"] == original)
        catalogue.append({"file": file, "title": f"{title} ({kind})", "copy_of": original})
    return catalogue


def contact_sheet(root: Path, catalogue: list[dict[str, Any]], path: Path) -> None:
    """A contact sheet of all posters."""
    across, wide, tall = 8, 120, 180
    down = math.ceil(len(catalogue) / across)
    sheet = Image.new("RGB", (across * (wide + 8) + 8, down * (tall + 8) + 8), (24, 24, 28))
    for number, entry in enumerate(catalogue):
        with Image.open(root / entry["file"]) as image:
            small = image.convert("RGB").resize((wide, tall), Image.Resampling.LANCZOS)
        sheet.paste(small, (8 + (number % across) * (wide + 8), 8 + (number // across) * (tall + 8)))
    sheet.save(path, quality=82, optimize=True)


def main() -> None:
    """Draw all posters and write the catalogue."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    project = Path(__file__).resolve().parent.parent
    options.add_argument("--into", type=Path, default=project, help="folder for posters/ and data/ (the project)")
    options.add_argument("--sheet", type=Path, help="also write a contact sheet")
    options.add_argument(
        "--more", type=int, metavar="N", help="draw N posters of a larger collection into --into instead"
    )
    options.add_argument("--seed", type=int, default=0, help="of --more")
    chosen = options.parse_args()
    top: Path = chosen.into
    if chosen.more:
        draw_many(top, chosen.more, chosen.seed)
        return
    catalogue = draw_all(top / "posters")
    (top / "data").mkdir(exist_ok=True)
    text = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in catalogue)
    (top / "data" / "posters.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    if chosen.sheet:
        contact_sheet(top / "posters", catalogue, chosen.sheet)


if __name__ == "__main__":
    main()
