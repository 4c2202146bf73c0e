"""The pipeline, without GPU and Redis: every poster is counted once and stored in its own row."""

import errno
import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

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
from worker.pipeline.loader import next_chunk_size
from worker.pipeline.poster_reader import BatchState, ReadPoster


def test_each_poster_gets_its_own_vector(root, make):
    """With more posters than chunks and threads, every row belongs to its picture."""
    posters = [write(root, number) for number in range(61)]
    embedder, store = ColorEmbedder(chunk=8), MemoryStore()
    outcome = make(embedder, store, decode_threads=4).run(batch(posters))
    assert (outcome.embedded, outcome.reused, outcome.unchanged, outcome.failures) == (61, 0, 0, ())
    found = store.get(SPACE.id, [poster.id for poster in posters])
    for number, poster in enumerate(posters):
        assert found[poster.id] @ expected(number) > 0.99999
    assert sum(embedder.sizes) == 61
    assert max(embedder.sizes) <= 8


def test_bad_posters_fail_by_name_and_do_not_affect_others(root, make):
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
    """If size and time are as stored, the file is not even read."""
    posters = [write(root, number) for number in range(10)]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    embedder.sizes.clear()
    for path in root.iterdir():
        path.chmod(0)  # root can read it all the same; nothing should try
    reported = []
    outcome = pipeline.run(batch(posters), reported.append)
    assert (outcome.embedded, outcome.unchanged) == (0, 10)
    assert embedder.sizes == []
    assert reported[-1] == 10


def test_a_touched_file_is_reused_and_a_changed_one_embedded(root, make):
    """The content decides: a new time costs a read, a new picture an embedding."""
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
    """Equal contents need no second forward pass."""
    store, pipeline = MemoryStore(), None
    pipeline = make(store=store)
    pipeline.run(batch([write(root, 3)]))
    outcome = pipeline.run(batch([write(root, 3, "copy.png")]))
    assert (outcome.embedded, outcome.reused) == (0, 1)
    assert np.array_equal(*store.get(SPACE.id, ["003.png", "copy.png"]).values())


def test_force_embeds_everything_again(root, make):
    """Neither the stored row nor the content is reused."""
    posters = [write(root, number) for number in range(5)]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    outcome = pipeline.run(batch(posters, force=True))
    assert (outcome.embedded, outcome.unchanged) == (5, 0)
    assert sum(embedder.sizes) == 10


def test_what_an_interrupted_attempt_stored_counts_as_embedded(root, make):
    """Rows that a first attempt stored were embedded by this batch; they are not unchanged."""
    posters = [write(root, number) for number in range(8)]
    store = MemoryStore()
    make(store=store).run(batch(posters[:5]))
    outcome = make(store=store).run(batch(posters), begun_before=True)
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (8, 0, 0)


def test_a_batch_for_another_space_is_not_stored_in_this_one(root, make):
    """Its posters fail with a reason that says what to do."""
    store = MemoryStore()
    outcome = make(store=store).run(batch([write(root, 1), write(root, 2)], space="vit-l-14.123"))
    assert [failure.word for failure in outcome.failures] == ["internal", "internal"]
    assert "vit-l-14.123" in outcome.failures[0].reason
    assert store.count(SPACE.id) == 0


class BrokenStore(MemoryStore):
    """A store that fails after `good` puts, as on a full disk."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.left = good

    def put(self, *arguments, **options):
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("the disk is full")
        super().put(*arguments, **options)


def test_a_failing_store_ends_the_batch_and_keeps_what_was_stored(root, make):
    """Nothing is counted that was not stored; the next run processes only the rest."""
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
    """DeviceLost reaches the worker, which exits."""
    embedder = ColorEmbedder()
    embedder.error = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        make(embedder).run(batch([write(root, 1)]))


def test_a_failing_disk_is_not_blamed_on_the_poster(root, make, monkeypatch):
    """It is not an `unreadable` poster: the batch is tried again."""

    def failing(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("worker.pipeline.poster_reader.read_file", failing)
    with pytest.raises(OSError, match="Input/output"):
        make().run(batch([write(root, 1)]))


def test_a_file_on_a_bad_sector_fails_by_name_in_the_end(root, make, monkeypatch):
    """Not at once, because disks recover; but other posters and the job must not wait forever."""
    now = [0.0]
    posters = [write(root, 1), write(root, 2)]

    def bad_sector(path, **options):
        if path == posters[0].path:
            raise OSError(errno.EIO, "Input/output error", path)
        return read_file(path, **options)

    monkeypatch.setattr("worker.pipeline.poster_reader.read_file", bad_sector)
    pipeline = make(clock=lambda: now[0])
    for _ in range(6):
        with pytest.raises(OSError, match=r"Input/output error: '001\.png'"):
            pipeline.run(batch(posters))
        now[0] += 10
    outcome = pipeline.run(batch(posters))
    assert outcome.embedded + outcome.unchanged == 1
    assert [(failure.word, failure.path) for failure in outcome.failures] == [("unreadable", posters[0].path)]
    assert "the disk failed to deliver it in 7 tries" in outcome.failures[0].reason


def test_the_files_of_a_bad_region_fail_together(root, make, monkeypatch):
    """Not one a minute, which would take a batch hours."""
    now = [0.0]
    posters = [write(root, number) for number in range(12)]

    def bad_sector(path, **options):
        if path != posters[5].path:
            raise OSError(errno.EIO, "Input/output error", path)
        return read_file(path, **options)

    monkeypatch.setattr("worker.pipeline.poster_reader.read_file", bad_sector)
    reader = make(clock=lambda: now[0]).reader
    state = BatchState(batch(posters), {}, {}, root.resolve())
    pixels = torch.empty((12, 3, 16, 16), dtype=torch.uint8)
    for _ in range(6):
        with pytest.raises(OSError, match=r"Input/output error: '000\.png'"):
            reader.read(posters, pixels, state)
        now[0] += 10
    found = reader.read(posters, pixels, state)
    assert [index for index, read in enumerate(found) if isinstance(read, ReadPoster)] == [5]
    assert {read.word for index, read in enumerate(found) if index != 5} == {"unreadable"}


def test_a_file_from_before_1970_is_a_poster_like_any_other(root, make):
    """Windows times begin in 1601; a message that cannot represent one would block its whole batch."""
    poster = write(root, 1)
    os.utime(root / poster.path, ns=(-(10**18), -(10**18)))
    status = os.stat(root / poster.path)
    old = poster._replace(size=status.st_size, mtime_ns=modified_ns(status))
    assert old.mtime_ns == -(10**18)
    decoded = EmbedBatch.decode(json.loads(json.dumps(batch([old]).encode())))
    pipeline = make()
    assert pipeline.run(decoded).embedded == 1
    assert pipeline.run(decoded).unchanged == 1


def test_progress_never_decreases(root, make):
    """It counts stored posters and ends with all of them."""
    posters = [write(root, number) for number in range(20)]
    reported: list[int] = []
    make().run(batch(posters), reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == 20


def test_decoding_runs_ahead_of_the_device_within_a_bound(root, make):
    """While the device is busy, the next chunks are decoded; never more than the limit."""
    posters = [write(root, number) for number in range(60)]
    ahead, highest = [0], [0]
    changed = threading.Condition()

    class Busy(ColorEmbedder):
        def submit(self, pixels):
            with changed:  # the device is busy until the threads have read ahead, or everything is read
                left = len(posters) - sum(self.sizes)
                assert changed.wait_for(lambda: ahead[0] >= min(8, left), 30)
                ahead[0] -= len(pixels)
            return super().submit(pixels)

    pipeline = make(Busy(chunk=4), decode_threads=4, look_ahead_images=12)
    read = pipeline.reader.read

    def counted(posters, *arguments, **options):
        with changed:
            ahead[0] += len(posters)
            highest[0] = max(highest[0], ahead[0])
            changed.notify_all()
        return read(posters, *arguments, **options)

    pipeline.reader.read = counted
    pipeline.run(batch(posters))
    assert 8 <= highest[0] <= 12 + 4 + 4  # the limit, the chunk that exceeds it, and the one on the device


def test_device_and_decoders_work_at_the_same_time(root, make):
    """Posters are decoded while the device works on a chunk, and its seconds are added up."""
    posters = [write(root, number) for number in range(24)]
    working, overlapped = threading.Event(), threading.Event()

    class Busy(ColorEmbedder):
        def submit(self, pixels):
            if sum(self.sizes) + len(pixels) < len(posters):
                working.set()
                assert overlapped.wait(30)
            chunk = super().submit(pixels)
            return replace(chunk, seconds=0.25)

    embedder = Busy(chunk=4)
    pipeline = make(embedder, decode_threads=2)
    read = pipeline.reader.read

    def watched(*arguments, **options):
        if working.is_set():
            overlapped.set()
        return read(*arguments, **options)

    # posters of later chunks are not read before the first chunk is on the device
    first = next_chunk_size(0, 4, len(posters))
    late = {poster.id for poster in posters[first + 4 :]}

    def delayed(posters, *arguments, **options):
        if any(poster.id in late for poster in posters):
            assert working.wait(30)
        return watched(posters, *arguments, **options)

    pipeline.reader.read = delayed
    assert pipeline.run(batch(posters)).embedded == len(posters)
    assert overlapped.is_set()
    assert pipeline.timings.on_device == 0.25 * len(embedder.sizes)
