"""Exports: what clip-retrieval, autofaiss and FAISS read, whole or not at all, of one space, in constant memory."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.collection.catalogue import Catalogue
from producer.embedding import Space
from producer.errors import ConfigurationError, StoreError
from producer.export import faiss as faiss_export
from producer.export import parquet
from producer.export.atomic import atomic_folder, write_atomically
from producer.export.export import export
from producer.export.source import Source
from producer.maintenance.spaces import find_space
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.filled_store import OTHER, SPACE, catalogue_of, fill, unit
from tests.support.project import PROJECT


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:{tmp_path / 'v.db'}")
    yield store
    store.close()


def source(store, catalogue=None, space=None):
    return Source(store, find_space(store, space), catalogue or Catalogue(None))


def read_as_autofaiss_does(folder):
    """As embedding-reader 1.8.1 does for it: names sorted as text, headers parsed as text, raw bytes behind them."""
    vectors, tables = [], []
    arrays, parquet = sorted(folder.glob("img_emb/*.npy")), sorted(folder.glob("metadata/*.parquet"))
    assert len(arrays) == len(parquet)
    for array, table in zip(arrays, parquet, strict=True):
        raw = array.read_bytes()
        line = raw[:300].split(b"\n")[0]
        rows, width = map(int, re.search(r"'shape': \(([0-9]+), ([0-9]+)\)", str(line)).groups())
        kind = re.search(r"'descr': '([<f0-9]+)'", str(line)).group(1)
        vectors.append(np.frombuffer(raw[len(line) + 1 :], kind).reshape(rows, width))
        tables += pyarrow.parquet.read_table(table).to_pylist()
    return np.concatenate(vectors), tables


@pytest.mark.parametrize("shard_rows", [1_000_000, 100, 9, 1])
def test_npy_has_the_layout_of_clip_retrieval(store, tmp_path, shard_rows):
    """Numbers padded so that names sort as numbers do, shards aligned, float32, image_path in every table."""
    ids = [f"{n:03}.jpg" for n in range(100)]
    vectors = fill(store, ids)
    done = export(source(store), tmp_path / "out", shard_rows=shard_rows)
    found, rows = read_as_autofaiss_does(tmp_path / "out")
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors)
    assert [row["image_path"] for row in rows] == [row["id"] for row in rows] == ids
    assert (done.rows, done.format, done.space) == (100, "npy", SPACE.id)
    first = sorted(name for name in done.files if name.startswith("img_emb"))[0]
    assert first == {1_000_000: "img_emb/img_emb_0.npy", 100: "img_emb/img_emb_0.npy"}.get(
        shard_rows, "img_emb/img_emb_00.npy"
    )
    assert np.array_equal(np.load(tmp_path / "out" / first), vectors[:shard_rows])


def test_metadata_carries_the_catalogue(store, tmp_path):
    """Every key as a column of its own type; what has no one type as JSON; a poster without an entry has nulls."""
    fill(store, ["one", "b.jpg", "c.jpg"])
    catalogue = catalogue_of(
        tmp_path,
        {"file": "sub/a.jpg", "id": "one", "title": "進撃", "year": 1999, "score": 1, "seen": True, "tags": ["x", "ö"]},
        {"file": "b.jpg", "title": "B", "year": 2001, "score": 2.5, "seen": False, "tags": None, "mixed": 1},
        {"file": "elsewhere.jpg", "mixed": "text", "digest": "theirs", "huge": 2**70, "bytes": 7},
    )
    export(source(store, catalogue), tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert [
        str(table.schema.field(name).type) for name in ("title", "year", "score", "seen", "tags", "mixed", "huge")
    ] == [
        "string",
        "int64",
        "double",
        "bool",
        "string",
        "string",
        "string",
    ]
    one, b, c = table.to_pylist()
    assert one["image_path"] == "sub/a.jpg"
    assert {name: one[name] for name in ("id", "title", "year", "score", "seen", "tags", "mixed")} == {
        "id": "one",
        "title": "進撃",
        "year": 1999,
        "score": 1.0,
        "seen": True,
        "tags": '["x", "ö"]',
        "mixed": None,
    }
    assert (b["image_path"], b["tags"], b["mixed"]) == ("b.jpg", None, "1")
    assert (c["image_path"], c["title"], c["year"]) == ("c.jpg", None, None)
    assert (c["digest"], c["bytes"], c["mtime_ns"], c["catalogue_digest"], c["catalogue_bytes"]) == (
        "digest-c.jpg",
        1000,
        5,
        None,
        None,
    )
    assert table.schema.metadata[b"space_id"].decode() == SPACE.id


def test_parquet_is_one_table_with_the_vectors(store, tmp_path):
    """A list of as many float32 as the space has, beside the metadata."""
    vectors = fill(store, ["a", "b", "c"])
    export(source(store, catalogue_of(tmp_path, {"file": "a", "title": "A"})), tmp_path / "out", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "posters.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), vectors)
    assert table["title"].to_pylist() == ["A", None, None]
    assert table["id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["auto", "flat", "ivf", "hnsw"])
def test_faiss_finds_each_poster_by_its_vector(store, tmp_path, kind):
    """Inner product; its numbers are positions in the list of ids, whatever the ids are."""
    ids = [f"{n}\n進.jpg" for n in range(2000)]
    vectors = fill(store, ids)
    export(source(store), tmp_path / "out", "faiss", index=kind)
    index = faiss.read_index(str(tmp_path / "out" / "posters.faiss"))
    listed = json.loads((tmp_path / "out" / "ids.json").read_text(encoding="utf-8"))
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert (index.ntotal, index.d, listed) == (2000, 16, ids)
    scores, numbers = index.search(vectors[:500], 3)
    right = numbers[:, 0] == np.arange(500)
    assert right.all() if kind in ("auto", "flat") else right.mean() > 0.98
    assert np.allclose(scores[right, 0], 1, atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["index"] == {"auto": "flat"}.get(kind, kind)


def test_faiss_goes_over_to_cells_for_large_sets(store, tmp_path, monkeypatch):
    """Above MAX_FLAT_VECTORS; and few vectors for cells are refused with the way out."""
    fill(store, [f"{n}" for n in range(500)])
    monkeypatch.setattr(faiss_export, "MAX_FLAT_VECTORS", 499)
    export(source(store), tmp_path / "out", "faiss")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["index"] == "ivf"
    fill(store, ["a"], space=OTHER)
    with pytest.raises(ConfigurationError, match=r"1 vectors are too few.*--index flat"):
        export(source(store, space=OTHER.id), tmp_path / "few", "faiss", index="ivf")
    assert not (tmp_path / "few").exists()


def test_text_that_is_no_unicode_is_written_all_the_same():
    """JSON may hold half a character; Parquet may not."""
    kind, convert = parquet._type({str})
    assert (kind, convert("a\ud800b")) == ("string", "a?b")


@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_an_empty_space_is_exported_as_empty(store, tmp_path, format):
    """Readers find the shape and no rows."""
    store.put(SPACE, [], unit(0))
    assert export(source(store), tmp_path / "out", format).rows == 0
    if format == "npy":
        assert np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy").shape == (0, 16)
        assert pyarrow.parquet.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").num_rows == 0
    elif format == "parquet":
        assert pyarrow.parquet.read_table(tmp_path / "out" / "posters.parquet").num_rows == 0
    else:
        assert json.loads((tmp_path / "out" / "ids.json").read_text()) == []


def test_an_export_is_of_one_space_and_says_which(store, tmp_path):
    """The current one unless another is named; the manifest has its identity and provenance."""
    fill(store, ["a"])
    fill(store, ["x", "y"], space=OTHER)
    assert export(source(store), tmp_path / "one").rows == 1
    done = export(source(store, space="vit-l"), tmp_path / "two")
    assert (done.rows, done.space) == (2, OTHER.id)
    manifest = json.loads((tmp_path / "two" / "export.json").read_text())
    assert Space(**manifest["model"]) == OTHER
    assert manifest["provenance"]["torch"] == "2.15.0"
    assert manifest["rows"] == 2


def test_an_error_leaves_nothing_under_the_name(store, tmp_path, monkeypatch):
    """Nor beside it; an earlier export stays as it is."""
    fill(store, [f"{n}" for n in range(10)])
    export(source(store), tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_text()

    def broken(space_id):
        yield [Row("a", "d", 1, 1)], unit(1)
        raise StoreError("the disk is gone")

    monkeypatch.setattr(store, "read", broken)
    for name in ("out", "new"):
        with pytest.raises(StoreError, match="the disk is gone"):
            export(source(store), tmp_path / name, replace=True)
    assert (tmp_path / "out" / "export.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir() if "v.db" not in path.name] == ["out"]


def test_only_an_export_is_replaced_and_only_on_request(store, tmp_path):
    """A folder of somebody's own is never touched."""
    fill(store, ["a"])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="is not an export"):
        export(source(store), mine, replace=True)
    assert (mine / "diary.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    export(source(store), tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="add --replace"):
        export(source(store), tmp_path / "empty")
    fill(store, ["b"])
    assert export(source(store), tmp_path / "empty", replace=True).rows == 2
    assert np.load(tmp_path / "empty" / "img_emb" / "img_emb_0.npy").shape == (2, 16)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is not an export"):
        export(source(store), tmp_path / "file")
    with pytest.raises(ConfigurationError, match="cannot be created"):
        export(source(store), tmp_path / "file" / "below")


def documented(word):
    """The block of Python in docs/search.md that holds a word."""
    text = (PROJECT / "docs" / "search.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in block)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the document leaves a file to the garbage collector
def test_the_documented_readers_read(store, tmp_path, monkeypatch):
    """docs/search.md says how an export is read: it is run as it stands there."""
    vectors = fill(store, ["a.jpg", "b.jpg"])
    export(source(store), tmp_path / "vectors")
    export(source(store), tmp_path / "index", "faiss")
    monkeypatch.chdir(tmp_path)
    found = {"queries": vectors[::-1].copy()}
    exec(documented("np.load"), found)
    assert np.array_equal(found["vectors"], vectors)
    assert found["paths"] == ["a.jpg", "b.jpg"]
    exec(documented("faiss.read_index"), found)
    assert found["names"] == [["b.jpg", "a.jpg"], ["a.jpg", "b.jpg"]]


def run(folder, *arguments):
    environment = {"POSTERS_STORE": f"sqlite:{folder / 'v.db'}", "POSTERS_CATALOGUE": "none"}
    return CliRunner().invoke(main, ["export", *arguments], env=environment)


def test_the_command_says_what_it_wrote(store, tmp_path):
    """One line for a person, one object for a program."""
    fill(store, ["a", "b"])
    done = run(tmp_path, str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{tmp_path}/out format npy space {SPACE.id} rows 2 bytes ")
    entry = json.loads(run(tmp_path, str(tmp_path / "table"), "--format", "parquet", "--json").stdout)
    assert (entry["rows"], entry["format"], entry["files"]) == (2, "parquet", ["export.json", "posters.parquet"])
    again = run(tmp_path, str(tmp_path / "out"))
    assert again.exit_code == 2
    assert "--replace" in again.stderr


def test_a_machine_without_the_library_gets_an_error_that_says_what_to_install(store, tmp_path, monkeypatch):
    """One line, status 2, nothing written."""
    fill(store, ["a"])
    for library, format, package in (("pyarrow", "npy", "pyarrow"), ("faiss", "faiss", "faiss-cpu")):
        monkeypatch.setitem(sys.modules, library, None)
        done = run(tmp_path, str(tmp_path / "out"), "--format", format)
        assert done.exit_code == 2
        assert f"pip install {package}" in done.stderr
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_under_its_name(tmp_path):
    """kill -9 in the middle: the name is free, the next export takes it."""
    space = Space("wide", "0" * 32, "gelu", "8x8", 512)
    store = open_store(f"sqlite:{tmp_path / 'v.db'}")
    for start in range(0, 60000, 5000):
        ids = [f"{n:06}" for n in range(start, start + 5000)]
        fill(store, ids, unit(5000, 512, seed=start), space)
    store.close()
    command = [sys.executable, "-m", "producer", "export", str(tmp_path / "out"), "--shard-rows", "10000"]
    environment = os.environ | {"POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}", "POSTERS_CATALOGUE": "none"}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*/img_emb/1.npy")) and time.monotonic() < ends:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".out.partial-*/img_emb/1.npy")), "it was killed too late to show anything"
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, str(tmp_path / "out")).exit_code == 0
    assert np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy", mmap_mode="r").shape == (60000, 512)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no files")
@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, format):
    """Full at once, and full at the last byte, where only closing the file tells: one line, status 2, no remains."""
    store = open_store(f"sqlite:{tmp_path / 'v.db'}")
    fill(store, [f"{n:04}" for n in range(400)], unit(400, 512), Space("wide", "0" * 32, "gelu", "8x8", 512))
    store.close()
    out = tmp_path / "out"
    assert run(tmp_path, str(out), "--format", format).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    largest = max(map(len, before.values()))
    code = (
        "import resource, sys; limit = int(sys.argv.pop(1))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "from producer.__main__ import main; main()"
    )
    environment = os.environ | {"POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}", "POSTERS_CATALOGUE": "none"}
    for limit, name, more in ((100_000, "new", []), (largest - 1, "new", []), (largest - 1, "out", ["--replace"])):
        command = [sys.executable, "-c", code, str(limit), "export", str(tmp_path / name), "--format", format, *more]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert f"error: {tmp_path / name} cannot be written: " in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert {path.name for path in tmp_path.iterdir() if "v.db" not in path.name} == {"out"}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_export_that_cannot_take_the_name_leaves_the_earlier_one(store, tmp_path, monkeypatch):
    """Its name was free for a moment; it has it again."""
    fill(store, ["a"])
    export(source(store), tmp_path / "out")
    rename = os.rename

    def failing(old, new):
        if ".partial-" in str(old) and str(new).endswith("out"):
            raise PermissionError(13, "Permission denied")
        rename(old, new)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(ConfigurationError, match=r"out cannot be written: .*Permission denied"):
        export(source(store), tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "export.json").is_file()
    assert {path.name for path in tmp_path.iterdir() if "v.db" not in path.name} == {"out"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no peak of memory in this way")
@pytest.mark.parametrize("format", ["npy", "parquet"])
@pytest.mark.chaos
def test_memory_does_not_grow_with_the_rows(tmp_path, format):
    """Six times the vectors take no more memory."""
    space = Space("wide", "0" * 32, "gelu", "8x8", 512)
    code = (
        "import resource, sys; from pathlib import Path; from producer.collection.catalogue import Catalogue\n"
        "from producer.export.export import Source, export; from producer.maintenance.spaces import find_space\n"
        "from producer.vectors import open_store\n"
        "store = open_store(sys.argv[1]); source = Source(store, find_space(store), Catalogue(None))\n"
        "export(source, Path(sys.argv[2]), sys.argv[3])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for chunks in (2, 12):
        url = f"sqlite:{tmp_path / f'{chunks}.db'}"
        store = open_store(url)
        for start in range(0, chunks * 10000, 10000):
            fill(store, [f"{n:06}" for n in range(start, start + 10000)], unit(10000, 512), space)
        store.close()
        command = [sys.executable, "-c", code, url, str(tmp_path / f"out{chunks}"), format]
        peaks.append(int(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 60, f"{peaks} MB for 40 and for 240 MB of vectors"


def test_staging_is_invisible_until_it_is_over(tmp_path):
    """While it is written, the name is free."""
    with atomic_folder(tmp_path / "deep" / "out", replace=False) as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A mount point, as a container's volume is: it cannot be renamed or removed, and holds what mkfs made."""
    folder, rename = tmp_path / "volume", os.rename
    (folder / "lost+found").mkdir(parents=True)

    def refuse(path, target):
        if folder in (Path(path), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(path, target)

    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    monkeypatch.setattr(os, "rename", refuse)
    return folder


def test_a_mount_point_takes_an_export(store, volume):
    """Written inside it, the manifest last; again only with --replace; on an error the earlier one stays."""
    fill(store, ["a", "b"])
    assert export(source(store), volume).rows == 2
    names = {"export.json", "img_emb", "lost+found", "metadata"}
    assert {path.name for path in volume.iterdir()} == names
    with pytest.raises(ConfigurationError, match="add --replace"):
        export(source(store), volume)
    (volume / "img_emb" / "of_the_first.npy").touch()
    export(source(store), volume, "parquet", replace=True)
    assert {path.name for path in volume.iterdir()} == {"export.json", "lost+found", "posters.parquet"}


def test_a_mount_point_keeps_its_export_where_a_new_one_cannot_be_moved_in(store, volume, monkeypatch):
    """Whole: with its manifest, and nothing beside it."""
    fill(store, ["a", "b"])
    export(source(store), volume)
    before = sorted(volume.rglob("*"))
    rename = os.rename

    def refuse(path, target):
        if ".partial-" in str(path) and Path(path).name == "export.json":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        export(source(store), volume, "parquet", replace=True)
    assert sorted(volume.rglob("*")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_a_link_stays_and_its_target_is_written(store, tmp_path):
    """One that leads nowhere yet, an empty folder, and an export that is replaced through the link `current`."""
    fill(store, ["a", "b"])
    link, target = tmp_path / "current", tmp_path / "exports" / "v1"
    link.symlink_to(target)
    export(source(store), link)
    assert (link.is_symlink(), (target / "export.json").is_file()) == (True, True)
    with pytest.raises(ConfigurationError, match="add --replace"):
        export(source(store), link)
    export(source(store), link, "parquet", replace=True)
    assert (link.is_symlink(), (target / "posters.parquet").is_file()) == (True, True)
    assert not list(tmp_path.rglob(".*"))
    page = tmp_path / "page.html"
    page.symlink_to(tmp_path / "exports" / "page-1.html")
    write_atomically(page, b"x")
    assert (page.is_symlink(), page.read_bytes()) == (True, b"x")


def test_a_file_is_replaced_whole(tmp_path):
    """And where it cannot be written, that is reported and nothing is left."""
    path = tmp_path / "page.html"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_atomically(tmp_path / "nowhere" / "page.html", b"x")
