"""Every combination of format, mode, bits, transparency, profile, orientation, byte order and damage beside the pixels.

Written by hand where Pillow would not write it. All show the same small picture, which has flat fields, so that
transparent values hit some of its pixels.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from bench.image_samples import encoded, oriented, picture, swapped_profile
from worker.images.profiles import PRIMARIES, SRGB_CURVE, SRGB_PRIMARIES, make_profile

WIDTH, HEIGHT = 48, 40
Variant = tuple[str, bytes] | tuple[str, bytes, np.ndarray | None]
PROFILES = {
    "": b"",
    "swapped": swapped_profile(),
    "p3": make_profile(PRIMARIES[12], SRGB_CURVE),
    "linear": make_profile(SRGB_PRIMARIES, (1.0,)),
}
GRAY_PROFILES = {"": b"", "linear": make_profile(None, (1.0,)), "1.8": make_profile(None, (1.8,))}


def pixels() -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 4): RGB and alpha, in steps that survive 4 bits."""
    rgb = np.asarray(picture(WIDTH, HEIGHT)).copy()
    rgb[:10, :10] = (255, 0, 0)
    rgb[:10, 10:20] = 0
    rgb[:10, 20:30] = 255
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    alpha[-8:], alpha[10:20] = 255, 0
    return np.dstack([rgb, alpha])


def gray_of(rgba: np.ndarray) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH)."""
    return np.asarray(Image.fromarray(rgba[..., :3]).convert("L"))


def packed(samples: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows of samples (height, values) of so many bits, each row padded to a byte."""
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in samples]
    if bits >= 16:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in samples]
    digits = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in digits]


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """8-bit values as numbers of another size."""
    return np.round(values.astype(np.float64) * ((1 << bits) - 1) / 255).astype(np.uint32)


RGB = pixels()[..., :3].astype(float)


def turned(orientation: int) -> np.ndarray:
    """The picture as it is shown with an Exif orientation."""
    return np.asarray(oriented(Image.fromarray(RGB.astype(np.uint8)), orientation)).astype(float)


def png_chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    """A chunk; its checksum is wrong with `damage`."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


def png(color: int, bits: int, chunks: bytes = b"", tail: bytes = b"") -> bytes:
    """The picture as a PNG of this color type and depth, with these chunks before and after its pixels."""
    rgba = pixels()
    gray = gray_of(rgba)[..., None]
    bands = {0: gray, 2: rgba[..., :3], 3: gray, 4: np.dstack([gray[..., 0], rgba[..., 3]]), 6: rgba}[color]
    rows = packed(scaled(bands, bits).reshape(HEIGHT, -1), bits)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, 0)
    palette = b""
    if color == 3:
        levels = np.linspace(0, 255, 1 << bits).astype(np.uint8)
        palette = png_chunk(b"PLTE", np.stack([levels, levels[::-1], levels // 2], axis=1).tobytes())
    body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    before, after = (chunks, b"") if not chunks.startswith(b"AFTER") else (b"", chunks[5:])
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + palette
        + after
        + body
        + tail
        + png_chunk(b"IEND", b"")
    )


def png_colors(color: int, bits: int, transparency: bytes = b"") -> np.ndarray:
    """What `png` shows, without a profile, on white."""
    rgba, most = pixels(), (1 << bits) - 1
    if color in (0, 3, 4):
        values = scaled(gray_of(rgba), bits)
        rgb = np.repeat(np.round(values * 255 / most)[..., None], 3, axis=2)
    else:
        values = scaled(rgba[..., :3], bits)
        rgb = np.round(values * 255 / most)
    alpha = rgba[..., 3] if color in (4, 6) else np.full(rgba.shape[:2], 255)
    if color == 3:
        levels = np.linspace(0, 255, 1 << bits).astype(np.uint8)
        rgb = np.stack([levels, levels[::-1], levels // 2], axis=1)[values]
        entries = np.full(1 << bits, 255)
        entries[: len(transparency)] = list(transparency)
        alpha = entries[values]
    elif transparency:
        key = struct.unpack(f">{len(transparency) // 2}H", transparency)
        alpha = np.where((values.reshape(*values.shape[:2], -1) == key).all(axis=2), 0, 255)
    return on_white(rgb, alpha)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """float (height, width, 3)."""
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def exif(orientation: int, order: str = "<") -> bytes:
    """Exif data with an orientation and nothing else."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def pngs() -> Iterator[Variant]:
    """PNG: depth × transparency × profile, and what stands beside the pixels."""
    depths = (
        [(0, b) for b in (1, 2, 4, 8, 16)]
        + [(3, b) for b in (1, 2, 4, 8)]
        + [(c, b) for c in (2, 4, 6) for b in (8, 16)]
    )
    for color, bits in depths:
        most = (1 << bits) - 1
        keys = {"": b""}
        if color == 0:
            keys |= {f"tRNS {value}": struct.pack(">H", value) for value in {0, most, most // 3}}
        elif color == 2:
            keys |= {"tRNS red": struct.pack(">3H", most, 0, 0), "tRNS black": bytes(6)}
        elif color == 3:
            keys |= {"tRNS": bytes([0, 128][: 1 << bits]), "tRNS all": bytes(range(0, 256, 256 >> bits))}
        profiles = GRAY_PROFILES if color in (0, 4) else PROFILES
        for (key, body), (name, profile) in itertools.product(keys.items(), profiles.items()):
            chunks = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)) if profile else b""
            trns = png_chunk(b"tRNS", body) if body else b""
            # iCCP stands before the palette, tRNS after it
            data = png(color, bits, chunks)
            at = data.index(b"IDAT") - 4
            shown = None if profile else png_colors(color, bits, body)
            yield f"png color {color} bits {bits} {key} {name}", data[:at] + trns + data[at:], shown
        gamma = png_chunk(b"gAMA", struct.pack(">I", 100000))
        yield f"png color {color} bits {bits} gAMA 1", png(color, bits, gamma)
        yield (
            f"png color {color} bits {bits} gAMA 1 sRGB",
            png(color, bits, gamma + png_chunk(b"sRGB", b"\0")),
            png_colors(color, bits),
        )
    wide = png_chunk(b"cHRM", struct.pack(">8I", *(round(v * 100000) for v in PRIMARIES[12])))
    yield "png cHRM", png(2, 8, wide)
    yield "png cHRM gAMA", png(2, 8, wide + png_chunk(b"gAMA", struct.pack(">I", 45455)))
    yield "png cHRM without a meaning", png(2, 8, png_chunk(b"cHRM", bytes(32)))
    yield "png cICP p3", png(2, 8, png_chunk(b"cICP", bytes([12, 13, 0, 1])))
    for orientation in range(1, 9):
        yield (
            f"png eXIf {orientation}",
            png(2, 8, png_chunk(b"eXIf", exif(orientation, "<" if orientation % 2 else ">"))),
            turned(orientation),
        )
        yield (
            f"png eXIf {orientation} after",
            png(2, 8, tail=png_chunk(b"eXIf", exif(orientation))),
            turned(orientation),
        )
    beside = {
        "text of 3 MB": png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        "text, wrong checksum": png_chunk(b"tEXt", b"k\0v", 1),
        "text without an end": png_chunk(b"zTXt", b"k\0\0x\x9c"),
        "profile, wrong checksum": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped_profile()), 1),
        "profile, damaged": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped_profile())[:-30] + bytes(30)),
        "short gAMA": png_chunk(b"gAMA", b"\0"),
        "gAMA of zero": png_chunk(b"gAMA", bytes(4)),
        "short cHRM": png_chunk(b"cHRM", b"\0"),
        "short pHYs": png_chunk(b"pHYs", b"\0"),
        "short sRGB": png_chunk(b"sRGB", b""),
        "animation, damaged": png_chunk(b"acTL", b"\0"),
        "frame, damaged": png_chunk(b"fcTL", b"\0"),
    }
    for name, chunk in beside.items():
        yield f"png {name}", png(2, 8, chunk), RGB
        yield f"png {name} after the pixels", png(2, 8, tail=chunk), RGB


def tiff(
    photometric: int,
    samples: np.ndarray,
    bits: int,
    *,
    order: str = "<",
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    kind: int = 1,
    extra: int | None = None,
    orientation: int = 1,
    strips: int = 1,
    fill_order: int = 1,
    colors: np.ndarray | None = None,
    subsampling: tuple[int, int] | None = None,
) -> bytes:
    """A TIFF of samples (height, width, bands), already of the right size for `bits`."""
    height, width, bands = samples.shape
    planes = [samples] if planar == 1 else [samples[..., band : band + 1] for band in range(bands)]
    rows_per_strip = -(-height // strips)
    blocks = []
    for plane in planes:
        if predictor == 2:
            plane = np.concatenate([plane[:, :1], (plane[:, 1:].astype(np.int64) - plane[:, :-1])], axis=1) % (
                1 << bits
            )
        rows = packed(plane.reshape(height, -1), bits, order)
        for top in range(0, height, rows_per_strip):
            block = b"".join(rows[top : top + rows_per_strip])
            if compression == 8:
                block = zlib.compress(block)
            elif compression == 32773:
                block = b"".join(
                    bytes([len(block[n : n + 128]) - 1]) + block[n : n + 128] for n in range(0, len(block), 128)
                )
            if fill_order == 2:
                block = bytes(int(f"{byte:08b}"[::-1], 2) for byte in block)
            blocks.append(block)
    position, offsets = 8, []
    for block in blocks:
        offsets.append(position)
        position += len(block) + len(block) % 2
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * bands),
        259: (3, [compression]),
        262: (3, [photometric]),
        266: (3, [fill_order]),
        273: (4, offsets),
        274: (3, [orientation]),
        277: (3, [bands]),
        278: (4, [rows_per_strip]),
        279: (4, [len(block) for block in blocks]),
        284: (3, [planar]),
        317: (3, [predictor]),
        339: (3, [kind] * bands),
    }
    if extra is not None:
        tags[338] = 3, [extra]
    if colors is not None:
        tags[320] = 3, [int(value) for value in colors]
    if subsampling:
        tags[530] = 3, list(subsampling)
    body = b"".join(block + bytes(len(block) % 2) for block in blocks)
    directory, behind = struct.pack(order + "H", len(tags)), b""
    at = position + 2 + 12 * len(tags) + 4
    for tag, (form, values) in sorted(tags.items()):
        packed_values = struct.pack(f"{order}{len(values)}{'H' if form == 3 else 'I'}", *values)
        if len(packed_values) > 4:
            directory += struct.pack(order + "HHII", tag, form, len(values), at + len(behind))
            behind += packed_values + bytes(len(packed_values) % 2)
        else:
            directory += struct.pack(order + "HHI", tag, form, len(values)) + packed_values.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", position) + body + directory + bytes(4) + behind


def tiffs() -> Iterator[Variant]:
    """TIFF: photometric interpretation × bits × byte order × planes × compression."""
    rgba, gray = pixels(), gray_of(pixels())[..., None]
    for order, compression in itertools.product("<>", (1, 8, 32773)):
        name = f"{'II' if order == '<' else 'MM'} compression {compression}"
        for photometric, bits in itertools.product((0, 1), (1, 2, 4, 8, 16, 32)):
            values = scaled(gray if photometric else 255 - gray, bits)
            yield (
                f"tiff gray {photometric} bits {bits} {name}",
                tiff(photometric, values, bits, order=order, compression=compression),
                quantized(gray, bits),
            )
        for bits in (1, 2, 4, 8):
            levels = np.linspace(0, 65535, 1 << bits)
            colors = np.concatenate([levels, levels[::-1], levels / 2])
            yield (
                f"tiff palette {bits} {name}",
                tiff(3, scaled(gray, bits), bits, order=order, compression=compression, colors=colors),
                colors.reshape(3, -1).T[scaled(gray[..., 0], bits)] / 257,
            )
        for bits, planar in itertools.product((8, 16), (1, 2)):
            options = {"order": order, "compression": compression, "planar": planar}
            yield f"tiff rgb {bits} planar {planar} {name}", tiff(2, scaled(rgba[..., :3], bits), bits, **options), RGB
            for extra in (0, 1, 2):
                alpha = rgba[..., 3] if extra else np.full(gray.shape[:2], 255)  # 0: unspecified, so no alpha
                values = rgba.astype(float)
                if extra == 1:
                    values[..., :3] *= values[..., 3:] / 255
                yield (
                    f"tiff rgba {bits} extra {extra} planar {planar} {name}",
                    tiff(2, scaled(values, bits), bits, extra=extra, **options),
                    on_white(RGB, alpha),
                )
                pair = np.dstack([gray[..., 0] * (values[..., 3] / 255 if extra == 1 else 1), values[..., 3]])
                yield (
                    f"tiff la {bits} extra {extra} planar {planar} {name}",
                    tiff(1, scaled(pair, bits), bits, extra=extra, **options),
                    on_white(np.repeat(gray, 3, axis=2), alpha),
                )
            ink = 255 - np.dstack([rgba[..., :3], np.full(rgba.shape[:2], 255)])
            yield f"tiff cmyk {bits} planar {planar} {name}", tiff(5, scaled(ink, bits), bits, **options), RGB
        ycc = np.asarray(Image.fromarray(rgba[..., :3]).convert("YCbCr"))
        yield f"tiff ycbcr {name}", tiff(6, ycc, 8, order=order, compression=compression, subsampling=(1, 1)), RGB
        lab = np.asarray(_lab(rgba[..., :3]))
        yield f"tiff lab {name}", tiff(8, lab, 8, order=order, compression=compression), RGB
        for bits in (8, 16):
            if compression == 8:
                yield (
                    f"tiff predictor {bits} {name}",
                    tiff(2, scaled(rgba[..., :3], bits), bits, order=order, compression=8, predictor=2),
                    RGB,
                )
        for photometric, bits in itertools.product((0, 1), (1, 8)):
            values = scaled(gray if photometric else 255 - gray, bits)
            yield (
                f"tiff fill order 2 gray {photometric} bits {bits} {name}",
                tiff(photometric, values, bits, order=order, compression=compression, fill_order=2),
                quantized(gray, bits),
            )
        yield (
            f"tiff signed 16 {name}",
            tiff(1, scaled(gray, 15), 16, order=order, compression=compression, kind=2),
            np.repeat(gray, 3, axis=2),
        )
        yield f"tiff strips {name}", tiff(2, rgba[..., :3], 8, order=order, compression=compression, strips=5), RGB
        for orientation in range(1, 9):
            yield (
                f"tiff orientation {orientation} {name}",
                tiff(2, rgba[..., :3], 8, order=order, compression=compression, orientation=orientation),
                turned(orientation),
            )


def quantized(gray: np.ndarray, bits: int) -> np.ndarray:
    """What is left of 8-bit gray in so many bits."""
    return np.repeat(np.round(scaled(gray, bits) * (255 / ((1 << bits) - 1))), 3, axis=2)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D50), 8 bits as TIFF stores them: a* and b* signed."""
    linear = rgb / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    )
    ratios = linear @ to_xyz.T / np.array([0.9642, 1, 0.8249])
    f = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios / (3 * (6 / 29) ** 2) + 4 / 29)
    light = 116 * f[..., 1] - 16
    a, b = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.dstack([np.round(light * 2.55), np.round(a) % 256, np.round(b) % 256]).clip(0, 255).astype(np.uint8)


def bmps() -> Iterator[Variant]:
    """BMP: depth × alpha × direction."""
    rgba = pixels()

    def bmp(
        bits: int,
        rows: list[bytes],
        *,
        compression: int = 0,
        masks: tuple[int, ...] = (),
        palette: bytes = b"",
        down: bool = False,
    ) -> bytes:
        size = 108 if masks else 40
        padded = b"".join(row + bytes(-len(row) % 4) for row in (rows if down else rows[::-1]))
        head = struct.pack(
            "<IiiHHIIiiII",
            size,
            WIDTH,
            -HEIGHT if down else HEIGHT,
            1,
            bits,
            compression,
            len(padded),
            2835,
            2835,
            len(palette) // 4,
            0,
        )
        if masks:
            head += struct.pack("<4I", *masks) + b"BGRs" + bytes(48)
        offset = 14 + len(head) + len(palette)
        return b"BM" + struct.pack("<IHHI", offset + len(padded), 0, 0, offset) + head + palette + padded

    bgra = rgba[..., [2, 1, 0, 3]]
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for down in (False, True):
        yield f"bmp 24 down {down}", bmp(24, [row[:, :3].tobytes() for row in bgra], down=down), RGB
        yield f"bmp 32 down {down}", bmp(32, [row.tobytes() for row in bgra], down=down), RGB
        yield (
            f"bmp 32 alpha down {down}",
            bmp(32, [row.tobytes() for row in bgra], compression=3, masks=masks, down=down),
            on_white(RGB, rgba[..., 3]),
        )
        clear = bgra.copy()
        clear[..., 3] = 0
        yield (
            f"bmp 32 alpha of zeros down {down}",
            bmp(32, [row.tobytes() for row in clear], compression=3, masks=masks, down=down),
            RGB,
        )
    wide = rgba.astype(np.uint16)
    high = (wide[..., 0] >> 3 << 11 | wide[..., 1] >> 2 << 5 | wide[..., 2] >> 3).astype("<u2")
    yield "bmp 565", bmp(16, [row.tobytes() for row in high], compression=3, masks=(0xF800, 0x7E0, 0x1F, 0)), RGB
    low = (wide[..., 0] >> 3 << 10 | wide[..., 1] >> 3 << 5 | wide[..., 2] >> 3).astype("<u2")
    yield "bmp 555", bmp(16, [row.tobytes() for row in low]), RGB
    for bits in (1, 4, 8):
        levels = np.linspace(0, 255, 1 << bits).astype(np.uint8)
        palette = np.stack([levels, levels[::-1], levels // 2, levels * 0], axis=1).tobytes()
        yield (
            f"bmp palette {bits}",
            bmp(bits, packed(scaled(gray_of(rgba), bits), bits), palette=palette),
            np.stack([levels // 2, levels[::-1], levels], axis=1)[scaled(gray_of(rgba), bits)],
        )
    palette = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(256, 4)
    palette[:, 1], palette[:, 3] = palette[::-1, 1].copy(), 0

    def run_colors(values: np.ndarray) -> np.ndarray:
        return palette[:, [2, 1, 0]][values].astype(float)

    runs = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in gray_of(rgba)]
    yield (
        "bmp run lengths",
        bmp(8, [b"".join([*runs[::-1], b"\0\1"])], compression=1, palette=palette.tobytes()),
        run_colors(gray_of(rgba)),
    )
    empty = [*runs[:10], b"\0\0", b"\0\0", *runs[12:]]
    yield (
        "bmp run lengths, empty rows",
        bmp(8, [b"".join([*empty[::-1], b"\0\1"])], compression=1, palette=palette.tobytes()),
        run_colors(np.concatenate([gray_of(rgba)[:10], np.zeros((2, WIDTH), np.uint8), gray_of(rgba)[12:]])),
    )
    skip = [*runs[:10], b"\1\7\0\2\5\1" + b"\1\7" * 3 + b"\0\0", *runs[12:]]
    yield (
        "bmp run lengths, skipped",
        bmp(8, [b"".join([*skip[::-1], b"\0\1"])], compression=1, palette=palette.tobytes()),
    )


def others() -> Iterator[Variant]:
    """JPEG, WebP, GIF, AVIF: what Pillow writes."""
    rgba = Image.fromarray(pixels())
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    for name, profile in PROFILES.items():
        options = {"icc_profile": profile} if profile else {}
        for progressive in (False, True):
            yield (
                f"jpeg {name} progressive {progressive}",
                encoded(rgb, "JPEG", quality=95, progressive=progressive, **options),
            )
        yield f"webp {name}", encoded(rgb, "WEBP", lossless=True, **options)
        yield f"webp alpha {name}", encoded(rgba, "WEBP", lossless=True, exact=True, **options)
        yield f"avif {name}", encoded(rgb, "AVIF", quality=95, subsampling="4:4:4", **options)
        yield f"avif alpha {name}", encoded(rgba, "AVIF", quality=95, subsampling="4:4:4", **options)
        yield f"tiff {name}", encoded(rgb, "TIFF", **options)
        yield f"tiff alpha {name}", encoded(rgba, "TIFF", **options)
    for name, profile in GRAY_PROFILES.items():
        options = {"icc_profile": profile} if profile else {}
        yield f"jpeg gray {name}", encoded(gray, "JPEG", quality=95, **options)
        yield f"tiff gray {name}", encoded(gray, "TIFF", **options)
    yield "jpeg cmyk", encoded(rgb.convert("CMYK"), "JPEG", quality=95)
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = orientation
        exact = {"JPEG": {"subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"subsampling": "4:4:4"}}
        for format, options in exact.items():
            yield (
                f"{format.lower()} exif {orientation}",
                encoded(rgb, format, quality=95, exif=tags, **options),
                turned(orientation),
            )
    colors = rgb.quantize(16)
    for interlace in (0, 1):
        yield f"gif interlace {interlace}", encoded(colors, "GIF", interlace=interlace)
        yield f"gif transparent {interlace}", encoded(colors, "GIF", interlace=interlace, transparency=3)
    data = bytearray(encoded(colors, "GIF"))
    struct.pack_into("<HH", data, 6, WIDTH + 20, HEIGHT + 10)
    at = data.index(b",", 13 + 3 * 16)
    struct.pack_into("<HH", data, at + 1, 5, 7)
    shown = np.full((HEIGHT + 10, WIDTH + 20, 3), 255.0)
    shown[7 : 7 + HEIGHT, 5 : 5 + WIDTH] = np.asarray(colors.convert("RGB"))
    yield "gif frame within its canvas", bytes(data), shown
    jpeg = encoded(rgb, "JPEG", quality=95, subsampling=0)
    yield "jpeg without its end", jpeg[:-2], RGB
    yield "jpeg without half its end", jpeg[:-1], RGB
    yield (
        "jpeg, progressive, without its end",
        encoded(rgb, "JPEG", quality=95, subsampling=0, progressive=True)[:-2],
        RGB,
    )
    yield "jpeg, Exif damaged", jpeg[:2] + b"\xff\xe1\0\x12Exif\0\0II*\0\xff\xff\xff\xff" + jpeg[2:], RGB
    yield "jpeg, profile incomplete", jpeg[:2] + b"\xff\xe2\0\x20ICC_PROFILE\0\1\2" + bytes(16) + jpeg[2:], RGB


def variants() -> Iterator[tuple[str, bytes, np.ndarray | None]]:
    """All of them: name, file, and what a viewer shows, where that is known without another reader."""
    for name, data, *shown in itertools.chain(pngs(), tiffs(), bmps(), others()):
        yield name, data, (shown or [None])[0]
