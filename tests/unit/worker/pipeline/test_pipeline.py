"""The pipeline, with neither GPU nor Redis: every poster ends in exactly one count, and in its own row."""

import errno
import json
import os
import threading
import time

import numpy as np
import pytest

from bench.image_samples import encoded, picture
from producer.errors import DeviceLost, StoreUnavailable
from producer.files import modified_ns, read_file
from producer.queue.messages import EmbedBatch, Poster
from tests.support.fake_embedder import (
    SPACE,
    ColorEmbedder,
    batch,
    color_of,
    expected,
    write,
)
from tests.support.memory_store import MemoryStore
from worker.pipeline.loader import next_size


def test_each_poster_gets_its_own_vector(root, make):
    """More posters than chunks and threads: every row is that of its picture."""
    posters = [write(root, number) for number in range(61)]
    embedder, store = ColorEmbedder(chunk=8), MemoryStore()
    outcome = make(embedder, store, threads=4).run(batch(posters))
    assert (outcome.embedded, outcome.reused, outcome.unchanged, outcome.failures) == (61, 0, 0, ())
    found = store.get(SPACE.id, [poster.id for poster in posters])
    for number, poster in enumerate(posters):
        assert found[poster.id] @ expected(number) > 0.99999
    assert sum(embedder.sizes) == 61
    assert max(embedder.sizes) <= 8


def test_bad_posters_fail_by_name_and_spoil_no_neighbor(root, make):
    """Truncated, text, empty, missing, outside, refused by the model: each with its word, the rest embedded."""
    good = [write(root, number) for number in range(20)]
    (root / "cut.jpg").write_bytes(encoded(picture(400, 300), "JPEG")[:3000])
    (root / "text.png").write_text("hello")
    (root / "empty.gif").write_bytes(b"")
    names = ["cut.jpg", "text.png", "empty.gif", "missing.png", "../outside.png"]
    mixed = list(good)
    for index, name in enumerate(names):
        mixed.insert(3 * index + 1, Poster(name, name))
    embedder, store = ColorEmbedder(), MemoryStore()
    embedder.refuse = {color_of(5)[0]}
    outcome = make(embedder, store).run(batch(mixed))
    words = {failure.id: failure.word for failure in outcome.failures}
    assert words == {
        "cut.jpg": "truncated",
        "text.png": "unreadable",
        "empty.gif": "unreadable",
        "missing.png": "missing",
        "../outside.png": "outside-root",
        "005.png": "internal",
    }
    assert outcome.embedded == 19
    found = store.get(SPACE.id, [poster.id for poster in mixed])
    assert set(found) == {poster.id for poster in good} - {"005.png"}
    for number in set(range(20)) - {5}:
        assert found[f"{number:03}.png"] @ expected(number) > 0.99999


def test_a_second_run_finds_everything_unchanged(root, make):
    """Size and time of the file as stored: no work at all, not even a read."""
    posters = [write(root, number) for number in range(10)]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    embedder.sizes.clear()
    for path in root.iterdir():
        path.chmod(0)  # root may read it all the same; nobody should try
    seen = []
    outcome = pipeline.run(batch(posters), seen.append)
    assert (outcome.embedded, outcome.unchanged) == (0, 10)
    assert embedder.sizes == []
    assert seen[-1] == 10


def test_a_touched_file_is_reused_and_a_changed_one_embedded(root, make):
    """The content decides: a new date costs a read, a new picture an embedding."""
    posters = [write(root, number) for number in range(6)]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    os.utime(root / "000.png", ns=(1, 1))
    changed = [Poster("000.png", "000.png", posters[0].size, 1), write(root, 99, "001.png"), *posters[2:]]
    outcome = pipeline.run(batch(changed))
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (1, 1, 4)
    found = store.get(SPACE.id, ["000.png", "001.png"])
    assert found["000.png"] @ expected(0) > 0.99999
    assert found["001.png"] @ expected(99) > 0.99999
    assert store.rows(SPACE.id, ["000.png"])["000.png"].mtime_ns == 1


def test_a_copy_under_another_name_is_reused(root, make):
    """The same bytes need no second forward pass."""
    store, pipeline = MemoryStore(), None
    pipeline = make(store=store)
    pipeline.run(batch([write(root, 3)]))
    outcome = pipeline.run(batch([write(root, 3, "copy.png")]))
    assert (outcome.embedded, outcome.reused) == (0, 1)
    assert np.array_equal(*store.get(SPACE.id, ["003.png", "copy.png"]).values())


def test_force_embeds_all_the_same(root, make):
    """Nothing is trusted: not the row, not the content."""
    posters = [write(root, number) for number in range(5)]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    outcome = pipeline.run(batch(posters, force=True))
    assert (outcome.embedded, outcome.unchanged) == (5, 0)
    assert sum(embedder.sizes) == 10


def test_what_an_interrupted_attempt_stored_counts_as_embedded(root, make):
    """The second attempt finds rows of the first: they were embedded by this batch, not unchanged."""
    posters = [write(root, number) for number in range(8)]
    store = MemoryStore()
    make(store=store).run(batch(posters[:5]))
    outcome = make(store=store).run(batch(posters), begun_before=True)
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (8, 0, 0)


def test_a_batch_for_another_space_never_lands_in_this_one(root, make):
    """Its posters fail with the way out, and nothing is stored."""
    store = MemoryStore()
    outcome = make(store=store).run(batch([write(root, 1), write(root, 2)], space="vit-l-14.123"))
    assert [failure.word for failure in outcome.failures] == ["internal", "internal"]
    assert "vit-l-14.123" in outcome.failures[0].reason
    assert store.count(SPACE.id) == 0


def test_a_reply_carries_every_vector_that_there_is(root, make):
    """Embedded, reused and unchanged ones alike; as little-endian float32."""
    first, copy, second = write(root, 1), write(root, 1, "copy.png"), write(root, 2)
    pipeline = make()
    pipeline.run(batch([first]))
    outcome = pipeline.run(batch([first, copy, second, Poster("gone", "gone")], reply=True))
    assert set(outcome.vectors) == {"001.png", "copy.png", "002.png"}
    for name, number in (("001.png", 1), ("copy.png", 1), ("002.png", 2)):
        assert np.frombuffer(outcome.vectors[name], "<f4") @ expected(number) > 0.99999


class BrokenStore(MemoryStore):
    """Fails at the n-th put, as a full disk does."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.left = good

    def put(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("the disk is full")
        super().put(*arguments)


def test_a_store_that_fails_ends_the_batch_and_keeps_what_it_took(root, make):
    """No count is reported for what was not stored; running it again does only the rest."""
    posters = [write(root, number) for number in range(30)]
    store, embedder = BrokenStore(2), ColorEmbedder()
    pipeline = make(embedder, store)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        pipeline.run(batch(posters))
    stored = store.count(SPACE.id)
    assert 0 < stored < 30
    store.left = 1000
    embedder.sizes.clear()
    outcome = pipeline.run(batch(posters), begun_before=True)
    assert outcome.embedded == 30
    assert sum(embedder.sizes) == 30 - stored


def test_a_lost_device_ends_the_batch(root, make):
    """The worker leaves; nothing is swallowed."""
    embedder = ColorEmbedder()
    embedder.error = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        make(embedder).run(batch([write(root, 1)]))


def test_trouble_that_is_not_the_posters_is_not_blamed_on_it(root, make, monkeypatch):
    """A disk that fails is no `unreadable` poster: the batch is tried again."""

    def failing(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("worker.pipeline.loader.read_file", failing)
    with pytest.raises(OSError, match="Input/output"):
        make().run(batch([write(root, 1)]))


def test_a_file_that_its_disk_never_gives_fails_by_name_in_the_end(root, make, monkeypatch):
    """Not at once, for disks come back; but its neighbors and its job must not wait for ever."""
    now = [0.0]
    posters = [write(root, 1), write(root, 2)]

    def bad_sector(path, **options):
        if path == posters[0].path:
            raise OSError(errno.EIO, "Input/output error", path)
        return read_file(path, **options)

    monkeypatch.setattr("worker.pipeline.loader.read_file", bad_sector)
    pipeline = make(clock=lambda: now[0])
    for _ in range(6):
        with pytest.raises(OSError, match=r"Input/output error: '001\.png'"):
            pipeline.run(batch(posters))
        now[0] += 10
    outcome = pipeline.run(batch(posters))
    assert outcome.embedded + outcome.unchanged == 1
    assert [(failure.word, failure.path) for failure in outcome.failures] == [("unreadable", posters[0].path)]
    assert "the disk did not give it in 7 tries" in outcome.failures[0].reason


def test_a_file_from_before_1970_is_a_poster_like_any_other(root, make):
    """Windows' dates begin with 1601; a message that cannot say one would leave its whole batch behind."""
    poster = write(root, 1)
    os.utime(root / poster.path, ns=(-(10**18), -(10**18)))
    status = os.stat(root / poster.path)
    old = poster._replace(size=status.st_size, mtime_ns=modified_ns(status))
    assert old.mtime_ns == -(10**18)
    travelled = EmbedBatch.decode(json.loads(json.dumps(batch([old]).encode())))
    pipeline = make()
    assert pipeline.run(travelled).embedded == 1
    assert pipeline.run(travelled).unchanged == 1


def test_progress_is_told_and_never_runs_backwards(root, make):
    """The bar counts stored posters, and ends at all of them."""
    posters = [write(root, number) for number in range(20)]
    seen: list[int] = []
    make().run(batch(posters), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 20


@pytest.mark.parametrize("chunk", [1, 3, 8, 64, 256])
def test_a_batch_begins_and_ends_in_small_chunks(chunk):
    """So the device starts soon, and has little left when the last poster is decoded; nothing is cut finer."""
    least = max(1, chunk // 8)
    for count in [*range(1, 300), 4096]:
        sizes: list[int] = []
        while sum(sizes) < count:
            sizes.append(next_size(sizes[-1] if sizes else 0, chunk, count - sum(sizes)))
        assert sum(sizes) == count
        assert max(sizes) <= max(chunk, 2 * least - 1)
        assert min(sizes) >= min(least, count)
        if count > 4 * chunk:
            assert chunk in sizes
            assert max(sizes[0], sizes[-1]) <= 2 * least


def test_decoding_runs_ahead_of_the_device_but_not_without_bound(root, make):
    """While the device is busy, the next chunks are decoded; never more than the limit."""
    posters = [write(root, number) for number in range(60)]
    reading, most = [0], [0]
    lock = threading.Lock()

    class Slow(ColorEmbedder):
        def submit(self, pixels):
            time.sleep(0.02)
            with lock:
                reading[0] -= len(pixels)
            return super().submit(pixels)

    pipeline = make(Slow(chunk=4), threads=4, look_ahead_images=12)
    read = pipeline._reading._read

    def counted(*arguments):
        with lock:
            reading[0] += 1
            most[0] = max(most[0], reading[0])
        return read(*arguments)

    pipeline._reading._read = counted
    pipeline.run(batch(posters))
    assert 8 <= most[0] <= 12 + 4 + 4  # the limit, the chunk that tops it up, and the one on the device


def test_device_and_decoders_work_at_the_same_time(root, make, monkeypatch):
    """Where each takes a while, together they take little more than the slower one."""
    posters = [write(root, number) for number in range(48)]

    class Slow(ColorEmbedder):
        def submit(self, pixels):
            time.sleep(0.01 * len(pixels))
            chunk = super().submit(pixels)
            chunk.seconds = 0.01 * len(pixels)
            return chunk

    pipeline = make(Slow(chunk=8), threads=2)
    read = pipeline._reading._read

    def slow(*arguments):
        time.sleep(0.02)  # two threads: 0.01 s per poster, as the device
        return read(*arguments)

    pipeline._reading._read = slow
    began = time.perf_counter()
    pipeline.run(batch(posters))
    seconds = time.perf_counter() - began
    assert seconds < 0.8 * (48 * 0.01 + 48 * 0.01)
    assert pipeline.timings.on_device >= 0.45
