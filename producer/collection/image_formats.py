"""Image formats that workers read: how their files begin, and how the names of such files end."""

from __future__ import annotations

from itertools import chain
from typing import Final

# Names whose files a search takes for posters. How a file is read depends on its content, not on this. HEIC and JPEG XL
# are always included: where their plugins are not installed, such posters fail with a reason instead of being skipped.
EXTENSIONS_OF: Final = {
    "image/jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "image/png": (".png",),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/avif": (".avif",),
    "image/heic": (".heic", ".heif", ".hif"),
    "image/jxl": (".jxl",),
    "image/bmp": (".bmp",),
    "image/tiff": (".tif", ".tiff"),
}
EXTENSIONS: Final = frozenset(chain.from_iterable(EXTENSIONS_OF.values()))
JXL_CODESTREAM: Final = b"\xff\x0a"
SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (JXL_CODESTREAM, "image/jxl"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),  # BigTIFF
    (b"MM\0+", "image/tiff"),
)
# Brands of ISO 14496-12, by which HEIF (ISO 23008-12) and AVIF say what is in a file.
HEIC_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
ANY_CODEC: Final = frozenset((b"mif1", b"msf1"))  # the compatible brands say which
FTYP_MOST_BYTES: Final = 4096  # of the box of brands: others take less than a hundred


def media_type(data: bytes) -> str | None:
    """The media type of an image file by its first bytes; None: no image that workers read."""
    if data[4:8] == b"ftyp":
        return _type_of_brands(data)
    if data[:4] == b"RIFF":
        return "image/webp" if data[8:12] == b"WEBP" else None
    return next((kind for signature, kind in SIGNATURES if data.startswith(signature)), None)


def _type_of_brands(data: bytes) -> str | None:
    brand = data[8:12]
    if brand in ANY_CODEC:
        end = min(int.from_bytes(data[:4], "big"), FTYP_MOST_BYTES)
        compatible = {data[at : at + 4] for at in range(16, end, 4)}
        return "image/avif" if compatible & AVIF_BRANDS else "image/heic"
    if brand in HEIC_BRANDS:
        return "image/heic"
    return "image/avif" if brand in AVIF_BRANDS else None
