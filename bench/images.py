"""Fidelity and speed of image decoding: ``python -m bench.images``.

Fidelity: each sample against open_clip's transform of the fully decoded picture, as pictures (cosine around
mid-gray) and as vectors of a seeded ViT-B/32 (cosine, and cosine after the mean of all vectors is subtracted,
because the vectors of an untrained model are nearly equal, and only the rest tells images apart).

Speed: one core, from the file's bytes to the model's size as uint8, beside open_clip's transform and the bare
decoder, the lower bound for a full decode. All three run in turn within one run.
"""

from __future__ import annotations

import io
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from bench.image_samples import MAKERS, encoded, picture, sample
from bench.posters import drawing
from producer.host import usable_cores
from worker.images.decode import Geometry, decode

CLIP = Geometry(224, 224)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=15, show_default=True, help="Times that each file is decoded by each program.")
@click.option("--fidelity/--no-fidelity", default=True, help="Compare pictures and vectors as well.")
@click.option("--memory", is_flag=True, help="Only measure the memory for images of 100 megapixels.")
def main(rounds: int, fidelity: bool, memory: bool) -> None:
    """Compare decoding with open_clip's transform."""
    if memory:
        _show_memory()
        return
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the model is not trained
    if fidelity:
        _show_fidelity()
    _show_speed(rounds)
    _show_scaling()


@torch.inference_mode()
def _show_fidelity() -> None:
    torch.manual_seed(0)
    tower = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval()
    config = PreprocessCfg()
    transform = image_transform_v2(config, is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    known = [sample(name) for name in MAKERS]
    ours = torch.stack([decode(one.data, CLIP, name=one.name) / 255 for one in known])
    theirs = torch.stack([transform(one.expected) * std + mean for one in known])
    pictures = torch.cosine_similarity(ours.flatten(1).double() - 0.5, theirs.flatten(1).double() - 0.5)
    a, b = tower((ours - mean) / std), tower((theirs - mean) / std)
    vectors = torch.cosine_similarity(a, b)
    centered = torch.cosine_similarity(a - b.mean(dim=0), b - b.mean(dim=0))
    click.echo(f"{'file':24} {'picture':>9} {'vector':>9} {'centered':>9}    cosine to the reference")
    for one, *values in zip(known, pictures, vectors, centered, strict=True):
        click.echo(f"{one.name:24} " + " ".join(f"{float(value):9.6f}" for value in values))
    for label, column in (("picture", pictures), ("vector", vectors), ("centered", centered)):
        worst = int(column.argmin())
        click.echo(f"lowest {label}: {float(column[worst]):.6f} ({known[worst].name})")
    click.echo("")


def _files() -> dict[str, bytes]:
    large, small = drawing(1000, 1500, 0), drawing(450, 675, 1)
    return {
        "JPEG 1000×1500": encoded(picture(1000, 1500), "JPEG", quality=88),
        "JPEG with grain": encoded(large, "JPEG", quality=88),
        "JPEG progressive": encoded(large, "JPEG", quality=88, progressive=True),
        "JPEG 450×675": encoded(small, "JPEG", quality=88),
        "JPEG 4000×6000": encoded(picture(4000, 6000), "JPEG", quality=88),
        "PNG 1000×1500": encoded(large, "PNG"),
        "PNG palette": encoded(large.quantize(256), "PNG"),
        "PNG transparent": encoded(_fading(large), "PNG"),
        "WebP lossy": encoded(large, "WEBP", quality=85),
        "WebP lossless": encoded(large, "WEBP", lossless=True, method=0),
        "AVIF": encoded(large, "AVIF", quality=70, speed=9),
        "GIF": encoded(large.quantize(256), "GIF"),
        "TIFF LZW": encoded(large, "TIFF", compression="tiff_lzw"),
        "BMP": encoded(large, "BMP"),
    }


def _fading(image: Image.Image) -> Image.Image:
    faded = image.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(image.size))
    return faded


def _show_speed(rounds: int) -> None:
    transform = image_transform_v2(PreprocessCfg(), is_train=False)
    head = f"{'file, one core':18} {'size':>8} {'ours':>9} {'open_clip':>10} {'decoder':>9}"
    click.echo(f"{head}   open_clip/ours  ours/decoder")
    for name, data in _files().items():
        programs: list[Callable[[], object]] = [
            lambda data=data, name=name: decode(data, CLIP, name=name),  # type: ignore[misc]
            lambda data=data: transform(Image.open(io.BytesIO(data))),  # type: ignore[misc]
            lambda data=data: Image.open(io.BytesIO(data)).load(),  # type: ignore[misc]
        ]
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            for program, taken in zip(programs, times, strict=True):
                began = time.perf_counter()
                program()
                taken.append(time.perf_counter() - began)
        ours, theirs, alone = (statistics.median(taken) * 1000 for taken in times)
        faster = statistics.median(b / a for a, b in zip(times[0], times[1], strict=True))
        over = statistics.median(a / c for a, c in zip(times[0], times[2], strict=True))
        head = f"{name:18} {len(data) / 1000:5.0f} kB {ours:6.1f} ms {theirs:7.1f} ms {alone:6.1f} ms"
        click.echo(f"{head}   {faster:10.2f} ×    {over:10.2f} ×")
    click.echo("")


def _show_scaling() -> None:
    data = encoded(drawing(1000, 1500, 2), "JPEG", quality=88)
    cores = usable_cores()
    rates: dict[int, list[float]] = {}
    counts = sorted({1, 2, cores} & set(range(1, cores + 1)))
    for _ in range(5):
        for threads in counts:
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                for future in [pool.submit(decode, data, CLIP, name="x") for _ in range(100 * threads)]:
                    future.result()
                rates.setdefault(threads, []).append(100 * threads / (time.perf_counter() - began))
    for threads in counts:
        ratio = statistics.median(many / one for many, one in zip(rates[threads], rates[1], strict=True))
        rate = statistics.median(rates[threads])
        click.echo(
            f"{threads} decode thread(s): {rate:7.1f} images/s, {ratio:5.2f} times one thread "
            f"({ratio / threads:.2f} of perfect)"
        )
    click.echo(f"cores usable here: {cores} of {os.cpu_count()}")


def _large_files() -> dict[str, bytes]:
    tile = picture(1000, 1250)
    large = Image.new("RGB", (8000, 12500))
    for left in range(0, 8000, 1000):
        for top in range(0, 12500, 1250):
            large.paste(tile, (left, top))
    files = {
        "JPEG": encoded(large, "JPEG", quality=80),
        "JPEG progressive": encoded(large, "JPEG", quality=80, progressive=True),
        "PNG RGB": encoded(large, "PNG", compress_level=1),
        "PNG palette": encoded(large.quantize(64), "PNG", compress_level=1),
        "WebP lossy": encoded(large, "WEBP", quality=50, method=0),
        "WebP lossless": encoded(large, "WEBP", lossless=True, quality=0, method=0),
        "AVIF": encoded(large, "AVIF", quality=40, speed=10),
        "TIFF": encoded(large, "TIFF"),
        "TIFF LZW": encoded(large, "TIFF", compression="tiff_lzw"),
    }
    large.putalpha(128)
    files["PNG RGBA"] = encoded(large, "PNG", compress_level=1)
    gray = large.convert("L")
    files["PNG 16 bit"] = encoded(gray.convert("I;16"), "PNG", compress_level=1)
    return files


_MEASURE = """
import re, sys, time
from pathlib import Path
from worker.images.decode import Geometry, decode
data = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which is inherited from the parent
peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
began = time.perf_counter()
decode(data, Geometry(224, 224), name="x")
print((peak_kib() - before) / 1024, time.perf_counter() - began)
"""


def _show_memory() -> None:
    """Decode each file in a process of its own; the peak is relative to the memory with the file read (Linux)."""
    click.echo(f"{'100 megapixels':18} {'file':>9} {'peak':>9} {'time':>8}")
    for name, data in _large_files().items():
        done = subprocess.run([sys.executable, "-c", _MEASURE], input=data, capture_output=True, check=True)
        peak_mib, seconds = map(float, done.stdout.split())
        click.echo(f"{name:18} {len(data) / 1e6:6.1f} MB {peak_mib:5.0f} MiB {seconds:6.2f} s")


if __name__ == "__main__":
    main(prog_name="python -m bench.images")
