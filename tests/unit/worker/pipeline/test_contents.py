"""Contents: each is embedded once, however many posters have it, and `verify` compares nothing else."""

import os
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from producer.queue.messages import Poster
from tests.support.fake_embedder import SPACE, ColorEmbedder, batch, color_of, expected, write
from tests.support.memory_store import MemoryStore
from worker.images.decode import decode


def vectors_of(store, names):
    found = store.get(SPACE.id, names)
    return [found[name] for name in names]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_copies_in_one_batch_cost_one_forward_pass(root, make, chunk):
    """In one chunk or several, in any decoding order: each content once, and a row for every poster."""
    posters = [write(root, number % 4, f"{number:02}.png") for number in range(20)]
    embedder, store, reported = ColorEmbedder(chunk), MemoryStore(), []
    outcome = make(embedder, store, decode_threads=4).run(batch(posters), reported.append)
    assert (outcome.embedded, outcome.reused, outcome.unchanged, outcome.failures) == (4, 16, 0, ())
    assert sum(embedder.sizes) == 4
    for number, vector in enumerate(vectors_of(store, [poster.id for poster in posters])):
        assert vector @ expected(number % 4) > 0.99999
    assert store.rows(SPACE.id, ["19.png"])["19.png"].mtime_ns == posters[19].mtime_ns
    assert reported == sorted(reported)
    assert reported[-1] == 20


def test_copies_of_a_bad_file_fail_each_by_name(root, make):
    """Each copy of an unreadable file is reported, and each copy of an image without a vector."""
    (root / "a.png").write_bytes(b"no picture")
    (root / "b.png").write_bytes(b"no picture")
    posters = [Poster("a.png", "a.png"), Poster("b.png", "b.png"), *(write(root, 5, f"{n}.png") for n in range(3))]
    embedder, store = ColorEmbedder(), MemoryStore()
    embedder.refuse = {35}  # the red of color 5
    outcome = make(embedder, store).run(batch(posters))
    assert sorted((failure.id, failure.word) for failure in outcome.failures) == [
        ("0.png", "internal"),
        ("1.png", "internal"),
        ("2.png", "internal"),
        ("a.png", "unreadable"),
        ("b.png", "unreadable"),
    ]
    assert store.count(SPACE.id) == 0


def test_force_embeds_copies_one_by_one(root, make):
    """`force` reuses nothing."""
    embedder = ColorEmbedder()
    outcome = make(embedder).run(batch([write(root, 1, "a.png"), write(root, 1, "b.png")], force=True))
    assert (outcome.embedded, sum(embedder.sizes)) == (2, 2)


def disguised(root, number: int) -> Poster:
    """000.png with another picture, always with the same size and time."""
    poster = write(root, number, "000.png")
    path = root / poster.path
    path.write_bytes(path.read_bytes().ljust(500, b"#"))
    os.utime(path, ns=(5, 5))
    return poster._replace(size=500, mtime_ns=5)


def test_verify_finds_changes_that_size_and_time_hide(root, make, monkeypatch):
    """Only verify notices another picture with the same size and time; equal contents are not decoded."""
    posters = [disguised(root, 0), *(write(root, number) for number in range(1, 6))]
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch(posters))
    assert disguised(root, 99) == posters[0]
    assert pipeline.run(batch(posters)).unchanged == 6
    assert vectors_of(store, ["000.png"])[0] @ expected(0) > 0.99999

    embedder.sizes.clear()
    decoded = []
    monkeypatch.setattr(
        "worker.pipeline.poster_reader.decode", lambda *args, **more: decoded.append(1) or decode(*args, **more)
    )
    outcome = pipeline.run(batch(posters, verify=True))
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (1, 0, 5)
    assert (len(decoded), sum(embedder.sizes)) == (1, 1)
    assert vectors_of(store, ["000.png"])[0] @ expected(99) > 0.99999


def test_verify_counts_a_touched_file_as_unchanged_and_stores_its_time(root, make):
    """Its content is the same; the next run does not have to read it."""
    poster = write(root, 1)
    store = MemoryStore()
    pipeline = make(store=store)
    pipeline.run(batch([poster]))
    os.utime(root / poster.path, ns=(7, 7))
    touched = poster._replace(mtime_ns=7)
    outcome = pipeline.run(batch([touched], verify=True))
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (0, 0, 1)
    assert store.rows(SPACE.id, [poster.id])[poster.id].mtime_ns == 7
    assert pipeline.run(batch([touched])).unchanged == 1


def test_verify_after_an_interruption_counts_stored_rows_as_unchanged(root, make):
    """The second attempt cannot know who stored a row."""
    posters = [write(root, number) for number in range(8)]
    store = MemoryStore()
    make(store=store).run(batch(posters[:5]))
    outcome = make(store=store).run(batch(posters, verify=True), begun_before=True)
    assert (outcome.embedded, outcome.unchanged) == (3, 5)


def coarse(root, posters):
    """As a file system with times of a second shows them."""
    second = 10**9 * (time.time_ns() // 10**9)
    for poster in posters:
        os.utime(root / poster.path, ns=(second, second))
    return [poster._replace(mtime_ns=second) for poster in posters]


def bitmap(root, number, name):
    """Pictures of one size have files of one size."""
    Image.new("RGB", (20, 30), color_of(number)).save(root / name)
    return Poster(name, name, (root / name).stat().st_size)


def test_a_rewrite_within_one_tick_of_the_file_system_is_noticed(root, make, monkeypatch):
    """Same size, same time, other pixels: 40 of 40. Two seconds later the file is proven, and not read again."""
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    posters = coarse(root, [bitmap(root, number, f"{number:03}.bmp") for number in range(40)])
    assert pipeline.run(batch(posters)).embedded == 40
    ids = [poster.id for poster in posters]
    assert not any(row.matches(*posters[0][2:]) for row in store.rows(SPACE.id, ids).values()), "`index` would skip it"

    rewritten = [bitmap(root, number + 50, f"{number:03}.bmp") for number in range(40)]
    for poster in rewritten:
        os.utime(root / poster.path, ns=(posters[0].mtime_ns, posters[0].mtime_ns))
    assert {poster.size for poster in rewritten} == {posters[0].size}
    outcome = pipeline.run(batch(posters))
    assert (outcome.embedded, outcome.unchanged) == (40, 0)
    assert all(v @ expected(number + 50) > 0.99999 for number, v in enumerate(vectors_of(store, ids)))

    later = SimpleNamespace(time_ns=lambda: time.time_ns() + 3 * 10**9)
    monkeypatch.setattr("producer.files.time", later)
    embedder.sizes.clear()
    outcome = pipeline.run(batch(posters))
    assert (outcome.embedded, outcome.reused, outcome.unchanged, embedder.sizes) == (0, 0, 40, [])
    rows = store.rows(SPACE.id, ids)
    assert all(rows[poster.id].matches(poster.size, poster.mtime_ns) for poster in posters)
    monkeypatch.setattr("worker.pipeline.poster_reader.read_file", None)
    assert pipeline.run(batch(posters)).unchanged == 40


@pytest.mark.parametrize("verify", [False, True])
def test_a_file_of_the_future_is_compared_every_time_and_not_embedded(root, make, verify):
    """As on a server whose clock is ahead. Where nothing is new, nothing is written."""
    poster = write(root, 1)
    os.utime(root / poster.path, (time.time() + 3600, time.time() + 3600))
    poster = poster._replace(mtime_ns=(root / poster.path).stat().st_mtime_ns)
    embedder, store = ColorEmbedder(), MemoryStore()
    pipeline = make(embedder, store)
    pipeline.run(batch([poster]))
    version = store.version(SPACE.id)
    assert pipeline.run(batch([poster], verify=verify)).unchanged == 1
    assert (sum(embedder.sizes), store.version(SPACE.id)) == (1, version)
    bytes_on_disk = (root / poster.path).stat().st_size
    assert store.rows(SPACE.id, [poster.id])[poster.id].bytes == bytes_on_disk


def test_what_an_interrupted_attempt_stored_of_new_files_counts_as_embedded(root, make):
    """Files so new that their rows are not proven are read again, and are what this batch has embedded."""
    posters = [write(root, number) for number in range(8)]
    for poster in posters:
        os.utime(root / poster.path)
    store = MemoryStore()
    make(store=store).run(batch(posters[:5]))
    outcome = make(store=store).run(batch(posters), begun_before=True)
    assert (outcome.embedded, outcome.reused, outcome.unchanged) == (8, 0, 0)
