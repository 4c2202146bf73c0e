"""Opening files: inside the root, regular, bounded, never blocking; other trouble is not blamed on the poster."""

import errno
import hashlib
import os
import socket
import sys
import threading
import time

import pytest

from producer import files
from producer.errors import UnreadablePoster
from producer.files import OpenFolders

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


@pytest.fixture(autouse=True, params=["by path", "in open folders"])
def way(request):
    """Every claim here holds for both ways to open a file."""
    global _folders
    _folders = request.param == "in open folders"


def read_file(path, *, root=None, **options):
    if root is None or not _folders:
        return files.read_file(path, root=root, **options)
    with OpenFolders(root) as folders:
        return files.read_file(path, root=root, folders=folders, **options)


@pytest.fixture
def root(tmp_path):
    root = tmp_path.resolve() / "posters"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"inside")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return root


def word(path, root, **options):
    with pytest.raises(UnreadablePoster) as caught:
        read_file(path, root=root, **options)
    assert caught.value.path == path
    return caught.value.word


def test_content_comes_with_its_digest_and_stat(root):
    """Bytes, SHA-256, size and time belong to one opening of the file."""
    content = read_file("a.jpg", root=root)
    assert (content.data, content.size) == (b"inside", 6)
    assert content.digest == hashlib.sha256(b"inside").hexdigest()
    assert content.mtime_ns == os.stat(root / "a.jpg").st_mtime_ns
    assert read_file(root / "a.jpg").data == b"inside", "without a root, any path the caller names"


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.jpg", "deep/../../secret.jpg", "/etc/passwd", "//server/x.jpg", ".."),
        pytest.param("\\\\server\\share\\x.jpg", marks=pytest.mark.skipif(os.name != "nt", reason="a usual name")),
    ],
)
def test_what_leaves_the_root_by_its_text_is_refused(root, path):
    """Absolute, dotted and UNC paths are not opened."""
    assert word(path, root) == "outside-root"


@posix
@pytest.mark.parametrize("name", ["\\a.jpg", "\\\\server\\a.jpg", "deep\\b.jpg"])
def test_a_backslash_is_a_letter_like_others(root, name):
    """But on Windows: a file may be called that."""
    (root / name).write_bytes(b"odd")
    assert read_file(name, root=root).data == b"odd"


@posix
def test_links_may_stay_inside_and_not_leave(root):
    """A link within the root is a poster; one that leads out, itself or through a folder, is not."""
    (root / "in.jpg").symlink_to(root / "a.jpg")
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "folder").symlink_to(root.parent, target_is_directory=True)
    (root / "circle").symlink_to(root / "circle")
    assert read_file("in.jpg", root=root).data == b"inside"
    assert word("out.jpg", root) == "outside-root"
    assert word("folder/secret.jpg", root) == "outside-root"
    assert word("circle", root) == "unreadable"


@posix
def test_the_check_is_on_the_opened_file_not_on_its_name(root, monkeypatch):
    """A link that is swapped between looking and opening gains nothing."""
    (root / "swap.jpg").write_bytes(b"harmless")
    real_open = os.open

    def swap_and_open(path, *arguments):
        os.unlink(root / "swap.jpg")
        os.symlink(root.parent / "secret.jpg", root / "swap.jpg")
        return real_open(path, *arguments)

    monkeypatch.setattr(files.os, "open", swap_and_open)
    assert word("swap.jpg", root) == "outside-root"


@posix
def test_pipes_sockets_and_devices_do_not_block(root):
    """A FIFO without a writer would hang an ordinary open for ever."""
    os.mkfifo(root / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "s.jpg"))
    (root / "null.jpg").symlink_to("/dev/null")
    began = time.monotonic()
    assert word("pipe.jpg", root) == "unsupported"
    assert word("s.jpg", root) == "unsupported"
    assert word("null.jpg", root) in ("unsupported", "outside-root")
    assert time.monotonic() - began < 1
    server.close()


def test_folders_and_missing_files_are_named(root):
    """A folder is unsupported; what is not there is missing, whatever is wrong with its path."""
    (root / "folder.jpg").mkdir()
    assert word("folder.jpg", root) == "unsupported"
    assert word("gone.jpg", root) == "missing"
    assert word("a.jpg/x.jpg", root) == "missing"
    assert word("x" * 5000, root) == "missing"
    assert word("nul\0.jpg", root) == "missing"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(root):
    """The reason says to check owner and mode."""
    (root / "a.jpg").chmod(0)
    assert word("a.jpg", root) == "unreadable"


def test_too_many_bytes_are_refused_before_reading(root):
    """The size is looked at first; a file that grows while it is read is stopped, too."""
    with (root / "big.jpg").open("wb") as file:
        file.truncate(10**12)  # a sparse terabyte
    began = time.monotonic()
    assert word("big.jpg", root) == "too-large"
    assert time.monotonic() - began < 1
    assert word("a.jpg", root, max_bytes=5) == "too-large"
    assert read_file("a.jpg", root=root, max_bytes=6).size == 6


def test_a_root_that_is_gone_is_not_the_posters_fault(tmp_path):
    """An unmounted disk must not turn a million posters into `missing`."""
    with pytest.raises(OSError, match="posters root") as caught:
        read_file("a.jpg", root=tmp_path / "unmounted")
    assert not isinstance(caught.value, UnreadablePoster)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_trouble_of_the_machine_reaches_the_caller(root, monkeypatch, number):
    """A dying disk, too many open files, a network path that went: try again later, blame nobody."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "open", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_file("a.jpg", root=root)


@pytest.mark.parametrize("name", ["進撃の巨人 第1巻.jpg", "a b\tc.jpg", "q'\"`$;.jpg", "\U0001f431.webp"])
def test_names_in_any_script_are_read(root, name):
    """Spaces, quotes, other scripts, emoji."""
    (root / name).write_bytes(b"x")
    assert read_file(name, root=root).data == b"x"


@posix
def test_names_with_newlines_and_bytes_that_are_no_unicode(root):
    """Linux allows both, so they are read."""
    for name in ("a\nb.jpg", os.fsdecode(b"caf\xe9.jpg")):
        (root / name).write_bytes(b"x")
        assert read_file(name, root=root).data == b"x"


def test_no_descriptor_is_left_open(root):
    """After successes and failures of all kinds, as many files are open as before."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "d.jpg").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        read_file("a.jpg", root=root)
        for bad in ("out.jpg", "d.jpg", "gone.jpg", "../x"):
            word(bad, root)
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_read_their_own_file(root):
    """No state is shared."""
    for n in range(20):
        (root / f"{n}.jpg").write_bytes(bytes([n]) * 10_000)
    wrong = []

    def work():
        for n in range(20):
            if set(read_file(f"{n}.jpg", root=root).data) != {n}:
                wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_that_changes_while_it_is_read_is_read_again(root, monkeypatch):
    """Half of the old and half of the new is no picture: what is returned is one state of the file, whole."""
    path = root / "growing.jpg"
    path.write_bytes(b"old")
    os.utime(path, ns=(1, 1))
    read_all, reads = files._read_all, []

    def disturbed(*arguments):
        reads.append(read_all(*arguments))
        if len(reads) == 1:
            path.write_bytes(b"new, and longer")
        return reads[-1]

    monkeypatch.setattr(files, "_read_all", disturbed)
    content = read_file("growing.jpg", root=root)
    assert reads == [b"old", b"new, and longer"]
    assert (content.data, content.size) == (b"new, and longer", 15)
    assert content.mtime_ns == path.stat().st_mtime_ns


def test_a_file_that_never_rests_fails_by_name(root, monkeypatch):
    """Somebody writes it all the time: the poster fails for now, and says that it is to be indexed again."""
    path = root / "growing.jpg"
    path.write_bytes(b"x")
    read_all = files._read_all

    def disturbed(*arguments):
        data = read_all(*arguments)
        path.write_bytes(data + b"x")
        return data

    monkeypatch.setattr(files, "_read_all", disturbed)
    with pytest.raises(UnreadablePoster, match=r"growing\.jpg: unreadable: it changed while it was read, 3 times"):
        read_file("growing.jpg", root=root)


@pytest.mark.parametrize(("age_s", "is_racy"), [(-60, True), (0, True), (1.9, True), (2.5, False), (1e6, False)])
def test_a_file_is_racy_when_it_may_be_written_again_within_the_same_time(root, age_s, is_racy):
    """Git's rule: younger than the coarsest resolution when it was read, or from the future."""
    path = root / "a.jpg"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    assert read_file("a.jpg", root=root).is_racy is is_racy


@pytest.mark.skipif(sys.platform != "linux", reason="Linux opens files in folders' descriptors")
def test_files_of_one_folder_are_opened_in_its_descriptor(root, monkeypatch):
    """The folder is checked once; a link in it, and a folder that a link leads out to, are not opened that way."""
    (root / "b.jpg").write_bytes(b"too")
    (root / "in.jpg").symlink_to("a.jpg")
    (root / "out").symlink_to(root.parent)
    (root / "sub").mkdir()
    (root / "sub" / "c.jpg").write_bytes(b"below")
    checks, readlink = [], os.readlink
    monkeypatch.setattr(os, "readlink", lambda path, **more: checks.append(path) or readlink(path, **more))
    with OpenFolders(root) as folders:
        for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
            descriptor = folders.open(name)
            assert os.read(descriptor, 9) == (root / name).read_bytes()
            os.close(descriptor)
        assert len(checks) == 2
        for name in (
            "in.jpg",
            "out/secret.jpg",
            "../secret.jpg",
            "sub/../a.jpg",
            str(root / "a.jpg"),
            "sub",
            "sub/",
            "",
            "none.jpg",
        ):
            assert folders.open(name) is None, name
        for name in ("out/secret.jpg", "../secret.jpg"):
            with pytest.raises(UnreadablePoster) as caught:
                files.read_file(name, root=root, folders=folders)
            assert caught.value.word == "outside-root"
        assert files.read_file("in.jpg", root=root, folders=folders).data == b"inside"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux lists descriptors")
def test_open_folders_leave_no_descriptor(root):
    """Not even of folders that were refused."""
    (root / "out").symlink_to(root.parent)
    before = len(os.listdir("/proc/self/fd"))
    with OpenFolders(root) as folders:
        for name in ("a.jpg", "out/secret.jpg", "none/a.jpg"):
            descriptor = folders.open(name)
            if descriptor is not None:
                os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="Linux opens files in folders' descriptors")
def test_a_folder_that_becomes_a_link_out_of_the_root_is_not_followed(root):
    """What was checked stays what is read: the folder's descriptor, not its name."""
    (root / "sub").mkdir()
    (root / "sub" / "secret.jpg").write_bytes(b"inside")
    with OpenFolders(root) as folders:
        assert files.read_file("sub/secret.jpg", root=root, folders=folders).data == b"inside"
        (root / "sub").rename(root / "moved")
        (root / "sub").symlink_to(root.parent)
        assert files.read_file("sub/secret.jpg", root=root, folders=folders).data == b"inside"
        (root / "moved" / "secret.jpg").unlink()
        with pytest.raises(UnreadablePoster) as caught:
            files.read_file("sub/secret.jpg", root=root, folders=folders)
    assert caught.value.word == "outside-root"
