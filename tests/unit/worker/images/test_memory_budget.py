"""MemoryBudget: the sum of reservations stays within the limit, and no thread waits forever."""

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from bench.image_samples import encoded, picture
from tests.support.plugin_images import heic, jxl
from tests.support.project import PROJECT
from worker.images.decode import Geometry, decode
from worker.images.memory_budget import MemoryBudget


def test_reservations_stay_within_the_limit():
    """Thirty reservations of up to half the budget each, in eight threads."""
    budget, reserved, highest, lock = MemoryBudget(100), [0], [0], threading.Lock()

    def work(amount: int) -> None:
        with budget.reserve(amount):
            with lock:
                reserved[0] += amount
                highest[0] = max(highest[0], reserved[0])
            threading.Event().wait(0.005)
            with lock:
                reserved[0] -= amount

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [10, 50, 30, 20, 45] * 6))
    assert 50 < highest[0] <= 100


def test_an_amount_above_the_budget_is_granted_alone():
    """It waits until nothing else is reserved."""
    budget = MemoryBudget(10)
    entered = threading.Event()

    def large() -> None:
        with budget.reserve(1000):
            entered.set()

    with budget.reserve(1):
        thread = threading.Thread(target=large)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(30)
    thread.join()


def test_a_large_amount_is_not_overtaken_for_ever_by_small_ones():
    """A large upload beside a batch, whose threads reserve small amounts without a pause."""
    budget, served, over = MemoryBudget(10), threading.Event(), threading.Event()

    def small() -> None:
        while not over.is_set():
            with budget.reserve(2):
                over.wait(0.01)

    def large() -> None:
        with budget.reserve(1000):
            served.set()

    with ThreadPoolExecutor(4) as pool:
        for call in (small, small, small, large):
            pool.submit(call)
        try:
            assert served.wait(5)
        finally:
            over.set()


def test_a_failure_releases_the_reservation():
    """Bad images do not use the budget up."""
    budget = MemoryBudget(10)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), budget.reserve(8):
            1 / 0  # noqa: B018 - raises
    with budget.reserve(10):
        pass


def test_a_budget_of_nothing_is_refused():
    """It would block the first image."""
    with pytest.raises(ValueError, match="at least 1 byte"):
        MemoryBudget(0)


MEASURE = """
import os, pickle, re, sys
from pathlib import Path
from worker.images.decode import Geometry, Limits, decode
from worker.images.memory_budget import MemoryBudget
class Recording(MemoryBudget):
    def reserve(self, amount_bytes):
        self.amount_bytes = amount_bytes
        return super().reserve(amount_bytes)
import torch, torchvision.io
torch.set_num_threads(1)  # a process that was forked beside threads of OpenMP would hang
files = pickle.load(sys.stdin.buffer)
first = files.pop("first")
in_use = lambda kind: 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for name, data in files.items():
    if os.fork():  # a process for each, so that none uses memory that another left
        os.wait()
        continue
    for loaded in first:
        decode(loaded, Geometry(224, 224), name="x")  # what is loaded once is not an image's
    Path("/proc/self/clear_refs").write_text("5")
    before, budget = in_use("VmRSS"), Recording(1 << 40)
    decode(data, Geometry(224, 224), name="x", budget=budget)
    print(in_use("VmHWM") - before, budget.amount_bytes, name, flush=True)
    os._exit(0)
"""


def tiled(mode: str, width: int, height: int) -> Image.Image:
    """Noise, repeated: quick to encode, and no decoder's shortcut for a single color."""
    noise = Image.effect_noise((64, 64), 60)
    bands = Image.merge(mode, [noise] * len(mode)) if len(mode) > 1 else noise
    return bands.resize((width, height), Image.Resampling.NEAREST)


SHAPES = {
    "png of one column": lambda: encoded(Image.new("RGB", (1, 5_000_000)), "PNG", compress_level=1),
    "png, transparent, of few columns": lambda: encoded(Image.new("RGBA", (3, 2_000_000)), "PNG", compress_level=1),
    "png, transparent": lambda: encoded(tiled("RGBA", 4000, 4000), "PNG", compress_level=1),
    "png, transparent, below the size of bands": lambda: encoded(tiled("RGBA", 2400, 2400), "PNG", compress_level=1),
    "jpeg": lambda: encoded(tiled("RGB", 6000, 6000), "JPEG"),
    "jpeg, progressive": lambda: encoded(tiled("RGB", 3000, 3000), "JPEG", progressive=True),
    "jpeg, progressive, CMYK": lambda: encoded(tiled("CMYK", 3000, 3000), "JPEG", progressive=True),
    "webp, transparent": lambda: encoded(tiled("RGBA", 3000, 3000), "WEBP", method=0),
    "webp, transparent, lossless": lambda: encoded(tiled("RGBA", 3000, 3000), "WEBP", lossless=True, method=0),
    "webp": lambda: encoded(tiled("RGB", 3000, 3000), "WEBP", method=0),
    "avif": lambda: encoded(tiled("RGB", 3000, 3000), "AVIF", speed=10),
    "heic": lambda: heic(tiled("RGB", 3000, 3000)),
    "heic, transparent": lambda: heic(tiled("RGBA", 3000, 3000)),
    "jpeg xl": lambda: jxl(tiled("RGB", 3000, 3000), effort=3),
    "jpeg xl, transparent, lossless": lambda: jxl(tiled("RGBA", 3000, 3000), lossless=True, effort=3),
    "tiff in one strip": lambda: encoded(
        tiled("RGB", 4000, 4000), "TIFF", compression="tiff_lzw", tiffinfo={278: 4000}
    ),
    "tiff, turned": lambda: encoded(tiled("RGB", 4000, 4000), "TIFF", tiffinfo={274: 6}),
    "gif": lambda: encoded(tiled("L", 64, 64).quantize(16).resize((5000, 5000)), "GIF"),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_what_is_reserved_is_what_decoding_takes():
    """At least the growth of a process, and at most about one and a half times as much."""
    first = [encoded(picture(), "PNG"), heic(picture()), jxl(picture())]
    files = pickle.dumps({"first": first} | {name: make() for name, make in SHAPES.items()})
    done = subprocess.run([sys.executable, "-c", MEASURE], input=files, capture_output=True, check=True, cwd=PROJECT)
    measured = [line.split(maxsplit=2) for line in done.stdout.decode().splitlines()]
    assert [name for *_, name in measured] == list(SHAPES)
    wrong = [
        f"{name}: reserved {reserved}, took {taken}"
        for taken, reserved, name in measured
        if not int(taken) - 4_000_000 <= int(reserved) <= 1.6 * int(taken) + 8_000_000
    ]
    assert not wrong, done.stdout.decode()


def test_a_jpeg_reserves_its_reduced_size_and_a_png_all_of_its_pixels():
    """Before the pixels are decoded."""
    amounts = []

    class Recording(MemoryBudget):
        def reserve(self, amount_bytes):
            amounts.append(amount_bytes)
            return super().reserve(amount_bytes)

    budget = Recording(1 << 30)
    for format in ("PNG", "JPEG"):
        decode(encoded(picture(1000, 1500), format), Geometry(224, 224), name="x", budget=budget)
    assert amounts[0] > 4 * 1_500_000 > amounts[1]
