"""The posters root during a batch: what lies on a disk that was lost is waited for, and is not missing."""

import os
import subprocess
import sys

import pytest

from tests.support.fake_embedder import SPACE, ColorEmbedder, batch, expected, write
from tests.support.memory_store import MemoryStore


@pytest.fixture
def root(tmp_path):
    (tmp_path / "posters").mkdir()
    return tmp_path / "posters"


def unmount(root):
    """What is left is the mount point."""
    root.rename(root.with_name("disk"))
    root.mkdir()


def mount(root):
    root.rmdir()
    root.with_name("disk").rename(root)


class Unmounting(ColorEmbedder):
    """Unmounts the posters root before its third chunk."""

    def __init__(self, root):
        super().__init__()
        self.root = root

    def submit(self, pixels):
        if len(self.sizes) == 2:
            unmount(self.root)
        return super().submit(pixels)


def test_a_root_that_becomes_empty_is_an_outage(root, make):
    """As long as it lasts nothing is counted; afterwards the batch is done as if nothing had been."""
    posters, store = [write(root, number) for number in range(60)], MemoryStore()
    pipeline = make(Unmounting(root), store, decode_threads=2)
    for _ in range(3):
        with pytest.raises(OSError, match=r"is (empty|gone): is its disk mounted"):
            pipeline.run(batch(posters))
    mount(root)
    outcome = pipeline.run(batch(posters), begun_before=True)
    assert (outcome.embedded, outcome.failures) == (60, ())
    found = store.get(SPACE.id, [poster.id for poster in posters])
    assert all(found[poster.id] @ expected(number) > 0.99999 for number, poster in enumerate(posters))


def test_a_file_that_is_missing_in_a_root_that_is_there_is_missing(root, make):
    """Also the last but one of them."""
    posters = [write(root, 0), write(root, 1)]
    pipeline = make()
    (root / "000.png").unlink()
    outcome = pipeline.run(batch(posters))
    assert [(failure.id, failure.word) for failure in outcome.failures] == [("000.png", "missing")]
    assert outcome.embedded == 1


def test_a_worker_that_starts_on_the_mount_point_waits_for_what_was_seen(root, make):
    """The producer gave a size: the file exists somewhere. A name that nobody saw is missing."""
    poster = write(root, 0)
    unmount(root)
    pipeline = make()
    with pytest.raises(OSError, match="is empty"):
        pipeline.run(batch([poster]))
    assert pipeline.run(batch([poster._replace(size=-1)])).failures[0].word == "missing"
    mount(root)
    assert pipeline.run(batch([poster])).embedded == 1


@pytest.mark.parametrize("at_start", [True, False])
def test_a_root_that_is_another_folder_is_tried_again_and_taken(root, make, at_start):
    """A disk that comes back as another device: what is missing there, the second time, is missing."""
    posters = [write(root, 0), write(root, 1)]
    if not at_start:
        unmount(root)
    pipeline = make()
    if at_start:
        unmount(root)
    write(root, 1)
    if at_start:
        with pytest.raises(OSError, match="another folder than before"):
            pipeline.run(batch(posters))
    outcome = pipeline.run(batch(posters), begun_before=True)
    assert (outcome.embedded, [failure.word for failure in outcome.failures]) == (1, ["missing"])


def test_a_root_that_is_a_link_is_followed_from_batch_to_batch(root, make):
    """As a release that is switched over: the files of the new folder are read, not those of the old one."""
    root.rename(root.with_name("one"))
    root.symlink_to(root.with_name("one"))
    write(root, 0)
    store = MemoryStore()
    pipeline = make(None, store)
    pipeline.run(batch([write(root, 1, "a.png")]))
    root.unlink()
    root.with_name("two").mkdir()
    root.symlink_to(root.with_name("two"))
    assert pipeline.run(batch([write(root, 2, "a.png")])).embedded == 1
    assert store.get(SPACE.id, ["a.png"])["a.png"] @ expected(2) > 0.99999


def test_the_root_is_looked_at_only_when_a_file_is_missing(root, make, monkeypatch):
    """A scan of the root for every poster would cost more than the posters."""
    posters = [write(root, number) for number in range(9)]
    pipeline, scanned, scandir = make(), [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda *path: scanned.append(path) or scandir(*path))
    assert pipeline.run(batch(posters)).embedded == 9
    assert scanned == []


@pytest.fixture
def disk(root):
    """A disk mounted below the root: a function that mounts it, and one that unmounts it, as often as a test likes."""
    point = root / "shelf" / "disk"
    point.mkdir(parents=True)
    image = root.with_name("image")
    image.mkdir()

    def mount():
        # Of a file system in memory, which outlives it.
        subprocess.run(["mount", "--bind", image, point], check=True)

    def unmount():
        subprocess.run(["umount", "--lazy", point], check=True)

    if sys.platform != "linux" or subprocess.run(["mount", "-t", "tmpfs", "none", image], check=False).returncode:
        pytest.skip("mounting takes root's rights")
    mount()
    yield mount, unmount
    subprocess.run(["umount", "--quiet", point], check=False)
    subprocess.run(["umount", image], check=True)


def test_a_disk_below_the_root_that_drops_is_an_outage(root, disk, make):
    """Its mount point is an empty folder then, or none; what lies beside it is done, and missing if it is."""
    mount, unmount = disk
    (root / "shelf" / "disk" / "deep").mkdir()
    on_disk = [write(root, number, f"shelf/disk/deep/{number}.png") for number in range(4)]
    beside = [write(root, number, f"shelf/{number}.png") for number in range(4, 7)]
    pipeline = make(decode_threads=2)
    assert pipeline.run(batch(on_disk[:1] + beside[:1])).embedded == 2
    unmount()
    for _ in range(3):
        with pytest.raises(OSError, match=r"no disk is mounted at .*shelf/disk any more"):
            pipeline.run(batch(on_disk))
    (root / beside[2].path).unlink()
    outcome = pipeline.run(batch(beside[1:]))
    assert (outcome.embedded, [failure.word for failure in outcome.failures]) == (1, ["missing"])
    (root / "shelf" / "disk").rmdir()
    with pytest.raises(OSError, match="no disk is mounted"):
        pipeline.run(batch(on_disk))
    (root / "shelf" / "disk").mkdir()
    mount()
    (root / on_disk[3].path).unlink()
    outcome = pipeline.run(batch(on_disk), begun_before=True)
    assert (outcome.embedded, [failure.word for failure in outcome.failures]) == (3, ["missing"])


def test_another_disk_below_the_root_is_tried_again_and_taken(root, disk, make):
    """As one that comes back with another number: what is missing there, the second time, is missing."""
    _, unmount = disk
    posters = [write(root, number, f"shelf/disk/{number}.png") for number in range(2)]
    pipeline = make()
    assert pipeline.run(batch(posters[:1])).embedded == 1
    unmount()
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "shelf" / "disk"], check=True)
    write(root, 1, "shelf/disk/1.png")
    with pytest.raises(OSError, match="another disk than before is mounted"):
        pipeline.run(batch([posters[0]._replace(id="new")]))
    outcome = pipeline.run(batch([posters[0]._replace(id="new"), posters[1]]), begun_before=True)
    assert (outcome.embedded, [failure.word for failure in outcome.failures]) == (1, ["missing"])


def test_a_file_that_is_back_when_its_disk_is_looked_at_is_read(root, make, monkeypatch):
    """A disk that dropped for a moment: between the try and the look at its mount point it came back."""
    poster, pipeline = write(root, 0), make()
    (root / "000.png").rename(root / "aside.png")
    check = pipeline.reader.root.check

    def come_back(path, **seen):
        (root / "aside.png").rename(root / "000.png")
        check(path, **seen)

    monkeypatch.setattr(pipeline.reader.root, "check", come_back)
    assert pipeline.run(batch([poster])).embedded == 1
