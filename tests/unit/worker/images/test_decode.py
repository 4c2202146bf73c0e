"""Decoding: every format gives the right picture, and bad files give an error that names the reason."""

import io
import re
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms

from bench.image_samples import MAKERS, encoded, picture, sample, swapped_profile, translucent
from producer.errors import UnreadablePoster
from worker.images.decode import Geometry, Limits, decode, fit
from worker.images.jpeg import MAX_SCANS

CLIP = Geometry(224, 224)
known = cache(sample)


def reference(image: Image.Image, **changes: object) -> torch.Tensor:
    """open_clip's own preprocessing of the RGB picture, without mean and standard deviation: 0 to 255."""
    config = PreprocessCfg(**{"size": 224, "mean": (0, 0, 0), "std": (1, 1, 1), **changes})
    return image_transform_v2(config, is_train=False)(image) * 255


def closeness(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Cosine of the two pictures around mid-gray, so that it does not flatter bright ones."""
    a, b = (pixels.double().flatten() - 127.5 for pixels in (ours, theirs))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("name", MAKERS)
def test_each_format_and_mode_gives_the_right_picture(name: str):
    """Cosine of at least 0.9995 to open_clip's preprocessing of the fully decoded picture.

    `fit`, for callers who hold an image, differs from `decode` only by the JPEG's reduced decoding.
    """
    data, expected = known(name).data, known(name).expected
    pixels = decode(data, CLIP, name=name)
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert closeness(pixels, reference(expected)) >= 0.9995
    with Image.open(io.BytesIO(data)) as image:
        assert closeness(fit(image, CLIP), pixels) >= 0.9995


@pytest.mark.slow
@pytest.mark.parametrize(("model", "step"), [pytest.param("ViT-B-32", 1, marks=pytest.mark.chaos), ("ViT-S-32", 4)])
@torch.inference_mode()
def test_the_models_vectors_agree_with_the_reference(model, step):
    """The vector of every `step`-th sample and the reference's: cosine at least 0.9995, and 0.99 without their mean."""
    torch.manual_seed(0)
    vit = open_clip.create_model(model, pretrained=None).visual.eval()
    samples = [known(name) for name in [*MAKERS][::step]]
    config = PreprocessCfg()
    transform = image_transform_v2(config, is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    ours = torch.stack([(decode(s.data, CLIP, name=s.name) / 255 - mean) / std for s in samples])
    theirs = torch.stack([transform(s.expected) for s in samples])
    a, b = vit(ours), vit(theirs)
    plain = torch.nn.functional.cosine_similarity(a, b)
    assert float(plain.min()) >= 0.9995, samples[int(plain.argmin())].name
    # The vectors of an untrained model are nearly equal; only the rest tells images apart.
    center = b.mean(dim=0)
    rest = torch.nn.functional.cosine_similarity(a - center, b - center)
    assert float(rest.min()) >= 0.99, samples[int(rest.argmin())].name


@pytest.mark.parametrize(
    ("geometry", "changes"),
    [
        (Geometry(224, 224, "squash"), {"resize_mode": "squash"}),
        (Geometry(224, 224, "longest", fill=0), {"resize_mode": "longest"}),
        (Geometry(224, 224, "longest", fill=128), {"resize_mode": "longest", "fill_color": 128}),
        (Geometry(224, 224, "shortest", "bilinear"), {"interpolation": "bilinear"}),
        (Geometry(336, 336), {"size": 336}),
        (Geometry(240, 120), {"size": (240, 120)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(300, 450), (451, 300), (100, 100), (150, 2000)])
def test_each_way_to_resize_agrees_with_open_clip(geometry, changes, size):
    """`squash`, `longest` with padding, bilinear, other sizes and shapes."""
    image = picture(*size)
    ours = decode(encoded(image, "PNG"), geometry, name="x")
    assert ours.shape == (3, geometry.height, geometry.width)
    assert closeness(ours, reference(image, **changes)) >= 0.9995


def test_transparent_pixels_are_white():
    """Whatever color they hide."""
    hidden = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    for data in (encoded(hidden, "PNG"), encoded(hidden, "WEBP", lossless=True, exact=True)):
        assert decode(data, CLIP, name="x").min() == 255


def test_a_transparent_gray_value_of_16_bits_is_white():
    """A PNG may declare one gray value transparent."""
    values = np.full((40, 40), 40000, np.uint16)
    values[:20] = 0
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", transparency=0)
    pixels = decode(buffer.getvalue(), Geometry(40, 40), name="a.png")
    assert int(pixels[:, 5, 5].min()) == 255
    assert int(pixels[:, 35, 5].max()) == 156


def test_exhausted_memory_is_not_reported_as_a_damaged_poster(monkeypatch):
    """The poster can be sent again."""

    def no_memory(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 100 bytes")

    monkeypatch.setattr("worker.images.decode.resize", no_memory)
    with pytest.raises(UnreadablePoster) as caught:
        decode(encoded(picture(), "JPEG"), Geometry(40, 40), name="a.jpg")
    assert caught.value.word == "internal"
    assert "POSTERS_DECODE_THREADS" in caught.value.reason


def test_16_bits_are_scaled_not_clipped():
    """Half of the 16-bit range is half of the 8-bit range, not white."""
    half = Image.fromarray(np.full((40, 40), 32896, np.uint16))
    assert decode(encoded(half, "PNG"), CLIP, name="x").unique().tolist() == [128]


def test_an_embedded_profile_is_converted_to_srgb():
    """The result equals Little CMS' conversion of the whole picture."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    srgb = encoded(picture(), "PNG", icc_profile=profile.tobytes())
    assert torch.equal(decode(srgb, CLIP, name="x"), decode(encoded(picture(), "PNG"), CLIP, name="x"))
    swapped = swapped_profile()
    data = encoded(picture(), "PNG", icc_profile=swapped)
    meant = ImageCms.profileToProfile(
        picture(), ImageCms.ImageCmsProfile(io.BytesIO(swapped)), profile, renderingIntent=1, outputMode="RGB"
    )
    ours = decode(data, CLIP, name="x")
    assert closeness(ours, reference(meant)) >= 0.9995
    assert closeness(ours, reference(picture())) < 0.9


@pytest.mark.parametrize("profile", [b"x" * 200, b"", b"short"])
def test_a_damaged_profile_is_ignored(profile):
    """As in browsers."""
    data = encoded(picture(), "PNG", icc_profile=profile)
    assert torch.equal(decode(data, CLIP, name="x"), decode(encoded(picture(), "PNG"), CLIP, name="x"))


def failure(data: bytes, limits: Limits | None = None) -> UnreadablePoster:
    with pytest.raises(UnreadablePoster) as caught:
        decode(data, CLIP, name="deep/bad.jpg", limits=limits)
    assert caught.value.path == "deep/bad.jpg"
    assert len(caught.value.reason) > 10
    return caught.value


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_a_failure_and_never_half_gray(format, share):
    """Cut anywhere, no format gives a picture with an invented rest."""
    data = encoded(picture(), format)
    assert failure(data[: int(len(data) * share)]).word in ("truncated", "unreadable")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_the_common_formats_are_reported_as_truncated(format):
    """The word `truncated` suggests to copy the file again."""
    data = encoded(picture(), format)
    assert failure(data[: int(len(data) * 0.6)]).word == "truncated"


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is a text file", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF" * 9]
)
def test_files_that_are_no_images_are_unreadable(data):
    """Empty files, text, and bare signatures."""
    assert failure(data).word in ("unreadable", "truncated")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"8BPS\x00\x01" + bytes(20), "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_unsupported_formats_are_named(head, reason):
    """With what to do; their decoders are never used."""
    error = failure(head + bytes(64))
    assert error.word == "unsupported"
    assert reason in error.reason


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(10001, 10000), (20000, 30000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(size):
    """Before a pixel is decoded: the file has none."""
    assert failure(png_header(*size)).word == "too-large"


def test_the_limit_is_a_setting():
    """One pixel more is refused; the exact number is not."""
    data = encoded(picture(30, 40), "PNG")
    assert failure(data, Limits(max_pixels=1199)).word == "too-large"
    assert decode(data, CLIP, name="x", limits=Limits(max_pixels=1200)).shape == (3, 224, 224)


def png_with(kind: bytes, body: bytes) -> bytes:
    """A valid PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    data = encoded(picture(), "PNG")
    return data[:33] + chunk + data[33:]


@cache
def packed_zeros() -> bytes:
    return zlib.compress(bytes(60_000_000), 9)


@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")]
)
def test_compressed_metadata_is_never_unpacked_as_a_whole(kind, head):
    """60 MB of zeros in a chunk of 60 kB are refused or skipped, within seconds and a few megabytes."""
    data = png_with(kind, head + packed_zeros())
    tracemalloc.start()
    began = time.thread_time()
    with suppress(UnreadablePoster):
        decode(data, CLIP, name="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert time.thread_time() - began < 2


def test_a_file_of_many_frames_costs_its_first_frame():
    """10,000 further frames are not read."""
    frames = [Image.new("P", (2, 2), n % 2) for n in range(10_000)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    single = encoded(frames[0], "GIF")
    began = time.thread_time()
    many = decode(data, CLIP, name="x")
    assert time.thread_time() - began < 1
    assert torch.equal(many, decode(single, CLIP, name="x"))


def scans(count: int, **options: object) -> bytes:
    """A JPEG of 600×900 whose last scan is repeated until there are `count`."""
    data = encoded(picture(600, 900), "JPEG", **options or {"progressive": True})
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * (count - len(starts)) + data[-2:]


def test_a_jpeg_with_too_many_scans_is_refused():
    """A few bytes per scan make the decoder process all pixels; the limit is above what any encoder writes."""
    error = failure(scans(MAX_SCANS + 1))
    assert (error.word, error.reason) == ("too-large", "it has more than 100 scans")
    assert decode(scans(MAX_SCANS), CLIP, name="x").shape == (3, 224, 224)


def test_only_scans_of_the_picture_are_counted():
    """The same bytes in a comment, in a thumbnail or after the picture do not count."""
    plain, noise = encoded(picture(), "JPEG"), b"\xff\xda" * (2 * MAX_SCANS)
    comment = b"\xff\xfe" + struct.pack(">H", len(noise) + 2) + noise
    for data in (plain + noise, plain[:2] + comment + plain[2:]):
        assert torch.equal(decode(data, CLIP, name="x"), decode(plain, CLIP, name="x"))
    began = time.thread_time()
    hidden = scans(MAX_SCANS + 1)
    second = hidden.index(b"\xff\xda", hidden.index(b"\xff\xda") + 2)
    assert "segments" in failure(hidden[:second] + b"\xff\x01" * 10_000_000 + hidden[second:]).reason
    assert time.thread_time() - began < 1


def tiled_tiff(side: int) -> bytes:
    """16×16 pixels in one tile of side × side, deflated."""
    packed = zlib.compress(bytes(side * side * 3), 9)
    behind = 8 + len(packed)
    tags = [(256, 16), (257, 16), (258, behind), (259, 8), (262, 2), (277, 3), (284, 1), (322, side), (323, side)]
    tags += [(324, 8), (325, len(packed))]
    entries = [struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value) for tag, value in tags]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", behind + 6) + packed + struct.pack("<3H", 8, 8, 8) + directory


def test_a_tiff_with_large_tiles_counts_as_a_tile():
    """The decoder holds a whole tile, whatever the size of the picture."""
    assert decode(tiled_tiff(64), CLIP, name="x").shape == (3, 224, 224)
    error = failure(tiled_tiff(1024), Limits(max_pixels=1_000_000))
    assert error.word == "too-large"
    assert "16×16 pixels in tiles of 1,048,576" in error.reason


def test_a_loop_of_tiff_directories_ends():
    """A directory whose successor is itself: one frame, no loop."""
    data = bytearray(encoded(picture(60, 90), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    began = time.thread_time()
    assert decode(bytes(data), CLIP, name="x").shape == (3, 224, 224)
    assert time.thread_time() - began < 2


def test_the_content_decides_the_format():
    """A WebP named .jpg is a WebP."""
    assert decode(encoded(picture(), "WEBP"), CLIP, name="cover.jpg").shape == (3, 224, 224)


def test_floating_point_pixels_are_unsupported():
    """Values without a scale have no defined color."""
    assert failure(encoded(Image.new("F", (20, 20), 0.5), "TIFF")).word == "unsupported"


@pytest.mark.slow
def test_decoding_is_thread_safe():
    """The same files in eight threads, bad ones in between, give the same pixels to the last bit."""
    costly = re.compile("large|huge|x2000|2000x")
    data = [known(name).data for name in MAKERS if not costly.search(name) or name == "png large RGBA"]
    expected = [decode(one, CLIP, name="x") for one in data]
    bad = [known(name).data[: len(known(name).data) // 3] for name in ("jpeg", "png", "webp lossy")]
    barrier = threading.Barrier(8)

    def work(turn: int) -> bool:
        barrier.wait()
        same = True
        for index in range(len(data)):
            place = (index + turn * 5) % len(data)
            same &= torch.equal(decode(data[place], CLIP, name="x"), expected[place])
            if index % 7 == 0:
                assert failure(bad[index % len(bad)]).word == "truncated"
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_pixels_do_not_change_with_the_image():
    """The result does not share Pillow's memory."""
    image = picture(224, 224)
    pixels = fit(image, CLIP)
    before = pixels.clone()
    image.paste((0, 0, 0), (0, 0, 224, 224))
    assert torch.equal(pixels, before)


def test_translucent_images_keep_their_visible_part():
    """The opaque side of a fading picture is unchanged."""
    ours = decode(encoded(translucent(), "PNG"), CLIP, name="x").float()
    plain = decode(encoded(translucent().convert("RGB"), "PNG"), CLIP, name="x").float()
    assert (ours[:, 100:, -3:] - plain[:, 100:, -3:]).abs().mean() < 6


def test_red_ink_is_red():
    """CMYK inverted, as Adobe writes it into JPEG, and not inverted, as in TIFF."""
    red = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    for data in (encoded(red, "JPEG", quality=95), encoded(red, "TIFF")):
        r, g, b = decode(data, CLIP, name="x").float().mean(dim=(1, 2)).tolist()
        assert r > 180
        assert g < 80
        assert b < 80


def test_the_samples_are_what_their_names_say():
    """A sample of another kind would test nothing."""
    assert Image.open(io.BytesIO(known("png interlaced").data)).info.get("interlace") == 1
    assert b"\xff\xc9" in known("jpeg arithmetic").data  # SOF9: extended sequential, arithmetic coding
    assert b"\xff\xc2" in known("jpeg progressive").data  # SOF2
    assert Image.open(io.BytesIO(known("png 16 bit").data)).mode == "I;16"
    assert Image.open(io.BytesIO(known("gif animated").data)).n_frames == 3
    exif = [Image.open(io.BytesIO(known(f"jpeg exif {n}").data)).getexif().values() for n in range(1, 9)]
    assert all(n in values for n, values in enumerate(exif, 1))


@pytest.mark.filterwarnings("ignore")
def test_no_damaged_pixel_of_a_png_passes():
    """Not even one that still decodes, which Pillow lets pass: the checksum of its chunk is wrong."""
    data = encoded(picture(60, 90), "PNG")
    for place in range(60, len(data) - 12, 41):
        damaged = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        with pytest.raises(UnreadablePoster):
            decode(damaged, CLIP, name="x")
