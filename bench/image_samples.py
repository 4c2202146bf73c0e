"""Sample images of every supported format, mode and orientation, generated in code."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 300, height: int = 450, seed: int = 0) -> Image.Image:
    """A structured RGB picture with shapes, gradients and edges, but no noise that codecs would lose."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (max(2, height // 75), max(2, width // 75), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    down, across = np.mgrid[0:height, 0:width]
    waves = 40 * np.sin(across / 17)[..., None] + 30 * np.cos(down / 23)[..., None]
    discs = 60 * (np.hypot(across - width * 0.6, down - height * 0.3) < min(width, height) / 4)[..., None]
    return Image.fromarray(np.clip(smooth + waves - discs, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Sample:
    """A file and the RGB picture that it represents, as a viewer shows it."""

    name: str
    data: bytes
    expected: Image.Image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """Pillow's full, strict decode as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """The image composited on white."""
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def translucent(seed: int = 1) -> Image.Image:
    """RGBA with bright colors in its transparent part."""
    image = picture(seed=seed).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    alpha[:100] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def sixteen_bits(seed: int = 2) -> tuple[Image.Image, Image.Image]:
    """A 16-bit gray image and its 8-bit equivalent."""
    gray = np.asarray(picture(seed=seed).convert("L")).astype(np.uint16)
    return Image.fromarray(gray * 257), Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def wide_gamut_profile() -> bytes:
    """An ICC profile whose primaries are far from sRGB's: Little CMS' XYZ profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def swapped_profile() -> bytes:
    """sRGB's profile with red and blue swapped: valid, and visibly different."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", raw[128:132])[0]
    places = {bytes(raw[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    raw[red + 4 : red + 12], raw[blue + 4 : blue + 12] = raw[blue + 4 : blue + 12], raw[red + 4 : red + 12]
    text = struct.unpack(">II", raw[places[b"desc"] + 4 : places[b"desc"] + 12])
    raw[text[0] : text[0] + text[1]] = raw[text[0] : text[0] + text[1]].replace(b"\0s\0R\0G\0B", b"\0x\0R\0G\0B")
    return bytes(raw)


# cjpeg -arithmetic -quality 60, of picture(48, 72); Pillow reads arithmetic coding but does not write it
ARITHMETIC_JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWM"
    "T47pHU`kO^PygEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2J"
    "01*fPNB}Sc0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfHy-96_yj=Pi1MDStPKKNn2SES^homA7+h|*>ihi}Fze*-"
    "~=vcq%I@qdr!Ti(slor&y_G~ZZJZzk$D)+<wHH~O{I91Xz{6WeLf6gtG<52nsx0a)F(4#7Oh~G~>mwxR6sEO$<)p#87=tjg9@6lT"
    "N@OqIL8-"
    "5=$VOD<!hl*p+7*5Z{daSXj*}jN0S@L)q)DFfeWvXKs7q+0#<Kf!R{D^#>L?D{>iQNntE&TGtA|tXPJSU8qIf!UwU+!;WDUBSMeF"
    "7-Zlxn|_?}sO&<mC#iPC)alBo>ZUE9RQ4k8XQndzrh=&}c?%+h-p4k%rr^g-!Vq#6(eKfNN1ccMCN_wZv-"
    "8cfcQt9LMq9x=w!TOTY#6w$!m!4+{*$7`RNXSbeGruME!i_J^SV*#"
)


def interlaced_png(image: Image.Image) -> bytes:
    """An Adam7 PNG of an RGB image (PNG specification, section 8.2), which Pillow reads but does not write."""
    pixels = np.asarray(image)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    lines = [
        b"\0" + row.tobytes()
        for top, left, down, across in passes
        for row in pixels[top::down, left::across]
        if row.size
    ]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def samples() -> list[Sample]:
    """All samples; generated on each call, in about a second."""
    rgb, gray = picture(), picture(seed=3).convert("L").convert("RGB")
    out: list[Sample] = []

    def add(name: str, data: bytes, expected: Image.Image | None = None) -> None:
        out.append(Sample(name, data, expected if expected is not None else decoded(data)))

    add("jpeg", encoded(rgb, "JPEG", quality=90))
    add("jpeg progressive", encoded(rgb, "JPEG", quality=90, progressive=True))
    add("jpeg 4:4:4", encoded(rgb, "JPEG", quality=95, subsampling=0))
    add("jpeg large", encoded(picture(1000, 1500), "JPEG", quality=90))
    add("jpeg huge", encoded(picture(2400, 3600), "JPEG", quality=90))
    add("jpeg gray", encoded(gray.convert("L"), "JPEG", quality=90))
    add("jpeg cmyk", encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture(420, 300, seed=orientation), "JPEG", quality=92, exif=exif)
        add(f"jpeg exif {orientation}", data, oriented(decoded(data), orientation))
    add("jpeg arithmetic", ARITHMETIC_JPEG)
    add("png", encoded(rgb, "PNG"), rgb)
    add("png interlaced", interlaced_png(rgb), rgb)
    add("png gray", encoded(gray.convert("L"), "PNG"), gray)
    add("png palette", encoded(rgb.quantize(64), "PNG"), rgb.quantize(64).convert("RGB"))
    add("png rgba", encoded(translucent(), "PNG"), on_white(translucent()))
    la = translucent().convert("LA")
    add("png la", encoded(la, "PNG"), on_white(la))
    palette = rgb.quantize(32)
    clear = encoded(palette, "PNG", transparency=5)
    add("png palette transparent", clear, on_white(Image.open(io.BytesIO(clear))))
    key = encoded(Image.new("RGB", (60, 90), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    add("png color key", key, Image.new("RGB", (60, 90), "white"))
    add("png 1 bit", encoded(rgb.convert("1"), "PNG"), rgb.convert("1").convert("L").convert("RGB"))
    deep, gray_8_bit = sixteen_bits()
    add("png 16 bit", encoded(deep, "PNG"), gray_8_bit)
    add("tiff 16 bit", encoded(deep, "TIFF"), gray_8_bit)
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
    large = picture(2101, 3001, seed=4)
    for mode in ("RGB", "L", "P", "1", "CMYK"):
        converted = large.quantize(64, Image.Quantize.FASTOCTREE) if mode == "P" else large.convert(mode)
        format = "TIFF" if mode == "CMYK" else "PNG"
        data = encoded(converted, format, compress_level=1)  # TIFF ignores the level
        add(f"{format.lower()} large {mode}", data, converted.convert("RGB"))
    fading = large.convert("RGBA")
    fading.putalpha(Image.linear_gradient("L").resize(large.size))
    add("png large RGBA", encoded(fading, "PNG", compress_level=1), on_white(fading))
    light = large.convert("L")
    sixteen = Image.fromarray(np.asarray(light).astype(np.uint16) * 257)
    add("png large 16 bit", encoded(sixteen, "PNG", compress_level=1), light.convert("RGB"))
    add("webp large", encoded(large, "WEBP", lossless=True, quality=0, method=0), large)
    for orientation in (3, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(large, "PNG", compress_level=1, exif=exif)
        add(f"png large exif {orientation}", data, oriented(large, orientation))
    for width, height in ((1, 2000), (2000, 1), (6000, 20), (40, 600), (223, 225), (225, 450)):
        odd = picture(width, height, seed=width)
        add(f"png {width}x{height}", encoded(odd, "PNG"), odd)
    return out


ORIENT: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90, expand=True),
    6: lambda image: image.rotate(-90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-90, expand=True),
    8: lambda image: image.rotate(90, expand=True),
}


def oriented(image: Image.Image, orientation: int) -> Image.Image:
    """The image as displayed with an Exif orientation (Exif 2.32, table 4)."""
    return ORIENT[orientation](image)
