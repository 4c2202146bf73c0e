"""Sample images of every supported format, mode and orientation, generated in code."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 300, height: int = 450, seed: int = 0) -> Image.Image:
    """A structured RGB picture with shapes, gradients and edges, but no noise that codecs would lose."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (max(2, height // 75), max(2, width // 75), 3), dtype=np.uint8)
    shown = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    down, across = np.arange(height)[:, None], np.arange(width)
    shown += (40 * np.sin(across / 17) + 30 * np.cos(down / 23))[..., None]
    shown[np.hypot(across - width * 0.6, down - height * 0.3) < min(width, height) / 4] -= 60
    return Image.fromarray(np.clip(shown, 0, 255, out=shown).astype(np.uint8))


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


@cache
def _rgb() -> Image.Image:
    return picture()


@cache
def _gray() -> Image.Image:
    return picture(seed=3).convert("L")


@cache
def _large() -> Image.Image:
    """Six megapixels, which `picture` itself would take three times as long to draw."""
    return picture(701, 1001, seed=4).resize((2101, 3001))


def _png(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "PNG", compress_level=1, **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _jpeg_exif(orientation: int) -> Made:
    data = encoded(picture(420, 300, seed=orientation), "JPEG", quality=92, exif=_exif(orientation))
    return data, oriented(decoded(data), orientation)


def _png_transparent_palette() -> Made:
    data = encoded(_rgb().quantize(32), "PNG", transparency=5)
    return data, on_white(Image.open(io.BytesIO(data)))


def _sixteen_bits(format: str) -> Made:
    gray = picture(seed=2).convert("L")
    return encoded(_as_16_bits(gray), format), gray.convert("RGB")


def _as_16_bits(gray: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)


def _gif_animated() -> Made:
    frames = [picture(seed=seed).quantize(64) for seed in (7, 8, 9)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), frames[0].convert("RGB")


def _webp_animated() -> Made:
    first, second = picture(seed=7), picture(seed=8)
    return encoded(first, "WEBP", lossless=True, save_all=True, append_images=[second]), first


def _large_rgba() -> Made:
    fading = _large().convert("RGBA")
    fading.putalpha(Image.linear_gradient("L").resize(fading.size))
    return _png(fading), on_white(fading)


def _large_palette() -> Made:
    converted = _large().quantize(64, Image.Quantize.FASTOCTREE)
    return _png(converted), converted.convert("RGB")


def _large_exif(orientation: int) -> Made:
    return _png(_large(), exif=_exif(orientation)), oriented(_large(), orientation)


def _odd(width: int, height: int) -> Made:
    return _same(picture(width, height, seed=width), "PNG")


def _same(image: Image.Image, format: str, **options: object) -> Made:
    """A format that keeps every pixel."""
    return encoded(image, format, **options), image.convert("RGB")


def _as_decoded(image: Image.Image, format: str, **options: object) -> Made:
    """A lossy format: expected is what Pillow decodes."""
    data = encoded(image, format, **options)
    return data, decoded(data)


Made = tuple[bytes, Image.Image]  # a file and the picture that it represents
MAKERS: dict[str, Callable[[], Made]] = {
    "jpeg": lambda: _as_decoded(_rgb(), "JPEG", quality=90),
    "jpeg progressive": lambda: _as_decoded(_rgb(), "JPEG", quality=90, progressive=True),
    "jpeg 4:4:4": lambda: _as_decoded(_rgb(), "JPEG", quality=95, subsampling=0),
    "jpeg large": lambda: _as_decoded(picture(1000, 1500), "JPEG", quality=90),
    "jpeg huge": lambda: _as_decoded(picture(800, 1200).resize((2400, 3600)), "JPEG", quality=90),
    "jpeg gray": lambda: _as_decoded(_gray(), "JPEG", quality=90),
    "jpeg cmyk": lambda: _as_decoded(_rgb().convert("CMYK"), "JPEG", quality=95),
    **{f"jpeg exif {orientation}": partial(_jpeg_exif, orientation) for orientation in range(1, 9)},
    "jpeg arithmetic": lambda: (ARITHMETIC_JPEG, decoded(ARITHMETIC_JPEG)),
    "png": lambda: _same(_rgb(), "PNG"),
    "png interlaced": lambda: (interlaced_png(_rgb()), _rgb()),
    "png gray": lambda: _same(_gray(), "PNG"),
    "png palette": lambda: _same(_rgb().quantize(64), "PNG"),
    "png rgba": lambda: (encoded(translucent(), "PNG"), on_white(translucent())),
    "png la": lambda: (encoded(translucent().convert("LA"), "PNG"), on_white(translucent().convert("LA"))),
    "png palette transparent": _png_transparent_palette,
    "png color key": lambda: (
        encoded(Image.new("RGB", (60, 90), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        Image.new("RGB", (60, 90), "white"),
    ),
    "png 1 bit": lambda: _same(_rgb().convert("1"), "PNG"),
    "png 16 bit": lambda: _sixteen_bits("PNG"),
    "tiff 16 bit": lambda: _sixteen_bits("TIFF"),
    "tiff": lambda: _same(_rgb(), "TIFF"),
    "tiff lzw": lambda: _same(_rgb(), "TIFF", compression="tiff_lzw"),
    "bmp": lambda: _same(_rgb(), "BMP"),
    "gif": lambda: _same(_rgb().quantize(64), "GIF"),
    "gif animated": _gif_animated,
    "webp lossy": lambda: _as_decoded(_rgb(), "WEBP", quality=90),
    "webp lossless": lambda: _same(_rgb(), "WEBP", lossless=True),
    "webp rgba": lambda: (encoded(translucent(), "WEBP", lossless=True, exact=True), on_white(translucent())),
    "webp animated": _webp_animated,
    "avif": lambda: _as_decoded(_rgb(), "AVIF", quality=90),
    "mpo": lambda: _as_decoded(_rgb(), "MPO", save_all=True, append_images=[picture(seed=5)], quality=90),
    "tiny 1x1": lambda: _same(Image.new("RGB", (1, 1), (10, 200, 30)), "PNG"),
    "png large RGB": lambda: _same(_large(), "PNG", compress_level=1),
    "png large L": lambda: _same(_large().convert("L"), "PNG", compress_level=1),
    "png large P": _large_palette,
    "png large 1": lambda: _same(_large().convert("1"), "PNG", compress_level=1),
    "tiff large CMYK": lambda: _same(_large().convert("CMYK"), "TIFF"),
    "png large RGBA": _large_rgba,
    "png large 16 bit": lambda: (_png(_as_16_bits(_large().convert("L"))), _large().convert("L").convert("RGB")),
    "webp large": lambda: _same(_large(), "WEBP", lossless=True, quality=0, method=0),
    **{f"png large exif {orientation}": partial(_large_exif, orientation) for orientation in (3, 6, 7)},
    **{
        f"png {width}x{height}": partial(_odd, width, height)
        for width, height in ((1, 2000), (2000, 1), (6000, 20), (40, 600), (223, 225), (225, 450))
    },
}


def sample(name: str) -> Sample:
    """One of MAKERS' samples, generated on each call."""
    return Sample(name, *MAKERS[name]())


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
