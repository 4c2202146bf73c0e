"""One contract for every store: memory, SQLite and Redis pass the same tests."""

import subprocess
import sys
import time

import numpy as np
import pytest

from producer.embedding import Space
from producer.errors import ConfigurationError, SpaceMismatch, StoreError
from producer.vectors import open_store, store_exists
from producer.vectors.base import Row
from tests.support.filled_store import CALIBRATION
from tests.support.memory_store import open_one

SPACE = Space("ViT-B-32", "w1", "gelu", "224", 16)
OTHER = Space("ViT-B-32", "w2", "gelu", "224", 16)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request, tmp_path):
    store = open_one(request, tmp_path / "deep" / "v.db")
    yield store
    store.close()


def vectors(count, seed=0, dimension=16):
    drawn = np.random.default_rng(seed).standard_normal((count, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def rows(*ids, digest="d"):
    return [Row(name, f"{digest}-{name}", 10, 20) for name in ids]


def scanned(store, space=SPACE, chunk=2):
    ids, parts = [], []
    for found, matrix in store.read(space.id, chunk):
        assert len(found) <= chunk
        assert matrix.dtype == np.float32
        ids += [row.id for row in found]
        parts.append(matrix)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    whole = np.concatenate(parts) if parts else np.zeros((0, space.dimension), np.float32)
    return [ids[index] for index in order], whole[order]


def test_what_is_put_is_read_bit_by_bit(store):
    """get, rows and scan return exactly what put was given, whatever the id holds."""
    ids = ["b.jpg", "a/進撃 の.png", "Ａ\n'\"%;--", "é.webp"]
    given = vectors(4)
    store.put(SPACE, rows(*ids), given)
    found = store.get(SPACE.id, [*ids, "absent"])
    assert found.keys() == set(ids)
    for name, vector in zip(ids, given, strict=True):
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == vector.tobytes()
    assert store.rows(SPACE.id, [*ids, "absent"]) == {row.id: row for row in rows(*ids)}
    assert store.count(SPACE.id) == 4


def test_it_is_known_when_a_row_was_written_last(store):
    """Seconds since 1970; a row that is replaced is new; of that space alone."""
    before = time.time()
    store.put(SPACE, rows("a", "b"), vectors(2))
    first = store.stored(SPACE.id, ["a", "b", "absent"])
    assert first.keys() == {"a", "b"}
    assert before - 0.01 <= first["a"] <= time.time() + 0.01
    time.sleep(0.02)
    store.put(SPACE, rows("a"), vectors(1))
    assert store.stored(SPACE.id, ["a"])["a"] > first["a"]
    assert store.stored(SPACE.id, ["b"]) == {"b": first["b"]}
    store.delete(SPACE.id, ["a"])
    assert store.stored(SPACE.id, ["a"]) == {}
    assert store.stored("unknown", ["b"]) == {}


def test_scan_yields_every_row_once_in_id_order(store):
    """Ids ascend by code point, matrix rows belong to their ids, chunks are as small as asked for."""
    ids = ["z", "a", "é", "Z", "m", "\U0001f600", "\uffee"]
    given = vectors(7)
    store.put(SPACE, rows(*ids), given)
    names, matrix = scanned(store)
    assert names == sorted(ids)
    assert np.array_equal(matrix, given[[ids.index(name) for name in names]])


def test_read_yields_every_row_once_with_its_vector(store):
    """Rows and vectors are aligned bit by bit, in whatever order; chunks are as small as asked for."""
    ids = ["z", "a", "é", "m", "\U0001f600"]
    given = vectors(5)
    store.put(OTHER, rows("z", "other"), vectors(2, 9))
    store.put(SPACE, rows(*ids[:3]), given[:3])
    store.put(SPACE, rows(*ids[3:]), given[3:])
    store.put(SPACE, rows("a", digest="new"), given[1:2])
    found = {}
    for some, matrix in store.read(SPACE.id, 2):
        assert len(some) == len(matrix) <= 2
        assert matrix.dtype == np.float32
        found.update(zip(some, matrix, strict=True))
    assert sorted(row.id for row in found) == sorted(ids)
    for row, vector in found.items():
        assert row == Row(row.id, "new-a" if row.id == "a" else f"d-{row.id}", 10, 20)
        assert vector.tobytes() == given[ids.index(row.id)].tobytes()
    assert list(store.read("unknown")) == []


def test_read_may_be_left_early(store):
    """A reader that has seen enough leaves nothing behind that hinders a writer."""
    store.put(SPACE, rows("a", "b", "c"), vectors(3))
    reading = store.read(SPACE.id, 1)
    next(reading)
    store.put(SPACE, rows("d"), vectors(1))
    reading.close()
    assert store.delete(SPACE.id, ["a"]) == 1


def test_ids_come_in_code_point_order(store):
    """Without vectors; pages as small as asked for; of that space alone; all, or those that begin alike."""
    ids = ["z", "a", "é", "Z", "\uffee", "\U0001f600", "a/1", "a/2", "a/進", "a0", "a.jpg", "A/1"]
    store.put(SPACE, rows(*ids), vectors(12))
    store.put(OTHER, rows("other"), vectors(1))
    pages = list(store.ids(SPACE.id, 5))
    assert [len(page) for page in pages] == [5, 5, 2]
    assert [name for page in pages for name in page] == sorted(ids)
    for chunk in (1, 2, 3, 100):
        found = [name for page in store.ids(SPACE.id, chunk, prefix="a/") for name in page]
        assert found == ["a/1", "a/2", "a/進"]
    assert list(store.ids(SPACE.id, prefix="\U0001f600")) == [["\U0001f600"]]
    assert list(store.ids(SPACE.id, prefix="b")) == []
    for after in ("", "Z", "a/1", "a/15", "nothing", "\U0001f600"):
        assert [name for page in store.ids(SPACE.id, 2, after=after) for name in page] == sorted(
            name for name in ids if name > after
        )
    assert list(store.ids(SPACE.id, prefix="a/", after="a/1")) == [["a/2", "a/進"]]
    assert list(store.ids(SPACE.id, prefix="a/", after="A")) == [["a/1", "a/2", "a/進"]]
    assert list(store.ids("unknown")) == []


def test_the_version_changes_with_the_rows_and_with_nothing_else(store):
    """After put, replacement and delete it is another one; after reading, and after changes elsewhere, the same."""
    seen = [store.version(SPACE.id)]
    assert seen == [""]

    def changed():
        seen.append(store.version(SPACE.id))
        return len(set(seen)) == len(seen)

    store.put(SPACE, rows("a", "b"), vectors(2))
    assert changed()
    store.put(SPACE, rows("a", digest="new"), vectors(1, 3))
    assert changed()
    store.delete(SPACE.id, ["b", "absent"])
    assert changed()
    list(store.read(SPACE.id))
    store.put(OTHER, rows("a"), vectors(1))
    store.delete(SPACE.id, ["absent"])
    store.use(OTHER.id)
    store.put(SPACE, [], vectors(0), {"torch": "2"})
    assert store.version(SPACE.id) == seen[-1]
    store.drop(SPACE.id)
    assert store.version(SPACE.id) == ""


def test_a_space_made_anew_never_has_an_old_version(store):
    """Whoever holds what was there before the drop sees that it is over."""
    seen = set()
    for _ in range(5):
        store.put(SPACE, rows("a"), vectors(1))
        seen.add(store.version(SPACE.id))
        store.drop(SPACE.id)
    assert len(seen) == 5


def test_a_space_tells_when_it_was_made_and_changed(store):
    """Seconds since 1970; a later chunk moves `changed` alone."""
    before = time.time()
    store.put(SPACE, rows("a"), vectors(1))
    first = store.spaces()[0]
    time.sleep(0.02)
    store.put(SPACE, rows("b"), vectors(1))
    second = store.spaces()[0]
    time.sleep(0.02)
    store.delete(SPACE.id, ["a"])
    third = store.spaces()[0]
    assert before - 0.01 <= first.created == second.created == third.created <= first.changed
    assert first.changed < second.changed < third.changed <= time.time() + 0.01


def test_putting_again_replaces(store):
    """An id has one row; the last put wins, also within one chunk."""
    first, second = vectors(3, 1), vectors(3, 2)
    store.put(SPACE, rows("a", "b", "a"), first)
    assert np.array_equal(store.get(SPACE.id, ["a"])["a"], first[2])
    store.put(SPACE, rows("a", digest="new"), second[:1])
    assert store.count(SPACE.id) == 2
    assert np.array_equal(store.get(SPACE.id, ["a"])["a"], second[0])
    assert store.rows(SPACE.id, ["a"])["a"].digest == "new-a"


def test_a_row_that_changed_since_it_was_seen_is_left_alone(store):
    """Replaced, come or gone: whoever saw it before is late, for each row by itself. What is as it was is replaced."""
    store.put(SPACE, rows("same", "replaced", "gone"), vectors(3, 1))
    names = ["same", "replaced", "gone", "come", "absent"]
    seen = store.rows(SPACE.id, names)
    newer = vectors(2, 2)
    store.put(SPACE, rows("replaced", "come", digest="newer"), newer)
    store.delete(SPACE.id, ["gone"])
    late = vectors(5, 3)
    version = store.version(SPACE.id)
    store.put(SPACE, rows(*names, digest="late"), late, seen=seen)
    found, digests = store.get(SPACE.id, names), store.rows(SPACE.id, names)
    assert {name: row.digest.partition("-")[0] for name, row in digests.items()} == {
        "same": "late",
        "replaced": "newer",
        "come": "newer",
        "absent": "late",
    }
    assert np.array_equal(np.stack([found[name] for name in ("same", "absent")]), late[[0, 4]])
    assert np.array_equal(np.stack([found[name] for name in ("replaced", "come")]), newer)
    assert store.count(SPACE.id) == 4
    assert store.version(SPACE.id) != version
    assert store.by_content(SPACE.id, ["d-same", "d-replaced", "late-replaced", "late-come", "late-gone"]) == {}
    assert store.by_content(SPACE.id, ["late-same", "newer-come"]).keys() == {"late-same", "newer-come"}


@pytest.mark.parametrize("field", ["digest", "size", "mtime_ns"])
def test_each_field_of_a_row_tells_that_it_changed(store, field):
    """Also a new time alone: the writer has read the file later."""
    (row,) = rows("a")
    store.put(SPACE, [row._replace(**{field: "other" if field == "digest" else 77})], vectors(1, 1))
    store.put(SPACE, [row._replace(digest="late")], vectors(1, 2), seen={"a": row})
    assert store.rows(SPACE.id, ["a"])["a"].digest != "late"


def test_content_finds_a_vector_and_never_a_stale_one(store):
    """A digest leads to a vector of that content; after replacement or deletion it leads nowhere."""
    given = vectors(2)
    store.put(SPACE, rows("a", "b"), given)
    assert np.array_equal(store.by_content(SPACE.id, ["d-a", "none"])["d-a"], given[0])
    store.put(SPACE, rows("a", digest="new"), vectors(1, 5))
    assert store.by_content(SPACE.id, ["d-a"]) == {}
    store.delete(SPACE.id, ["b"])
    assert store.by_content(SPACE.id, ["d-b", "d-a"]) == {}
    assert store.by_content(SPACE.id, ["new-a"]).keys() == {"new-a"}


def test_content_is_found_as_long_as_one_poster_has_it(store):
    """Copies: when one of them changes or goes, the others still lead to the vector, to the last."""
    one = np.repeat(vectors(1), 3, axis=0)
    copies = [Row(name, "same", 1, 1) for name in ("a", "b:c", "d")]
    for last in range(3):
        store.put(SPACE, copies, one)
        others = [row.id for number, row in enumerate(copies) if number != last]
        store.delete(SPACE.id, others[:1])
        assert np.array_equal(store.by_content(SPACE.id, ["same"])["same"], one[0])
        store.put(SPACE, [Row(others[1], "another", 1, 1)], vectors(1, 7))
        assert np.array_equal(store.by_content(SPACE.id, ["same"])["same"], one[0])
        store.delete(SPACE.id, [copies[last].id])
        assert store.by_content(SPACE.id, ["same"]) == {}
        assert store.by_content(SPACE.id, ["another"]).keys() == {"another"}
        store.drop(SPACE.id)
        assert store.by_content(SPACE.id, ["another"]) == {}


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.full((2, 16), np.nan, np.float32), StoreError),
        (np.zeros((2, 16), np.float32), StoreError),
        (vectors(2) * np.float32(1.01), StoreError),
        (vectors(2).astype(np.float64), StoreError),
        (vectors(3), StoreError),
        (vectors(2, dimension=8), SpaceMismatch),
        (vectors(2)[0], SpaceMismatch),
    ],
)
def test_a_wrong_vector_is_refused_and_the_chunk_with_it(store, bad, error):
    """NaN, zero, unnormalized, misaligned or of another width: an error, and nothing is stored."""
    store.put(SPACE, rows("old"), vectors(1))
    with pytest.raises(error):
        store.put(SPACE, rows("a", "b"), bad)
    assert store.count(SPACE.id) == 1


def test_one_bad_vector_keeps_its_whole_chunk_out(store):
    """All or nothing: the good neighbors are not half-written."""
    mixed = vectors(3)
    mixed[1] = np.nan
    with pytest.raises(StoreError, match="'b'"):
        store.put(SPACE, rows("a", "b", "c"), mixed)
    assert store.count(SPACE.id) == 0


def test_an_id_that_is_no_text_is_refused(store):
    """A lone surrogate cannot be stored as text; the error shows it."""
    with pytest.raises(StoreError, match="udcff"):
        store.put(SPACE, rows("\udcff.jpg"), vectors(1))


def test_spaces_do_not_mix(store):
    """The same id in two spaces is two vectors; an unknown space is empty."""
    one, two = vectors(1, 1), vectors(1, 2)
    store.put(SPACE, rows("a"), one, {"torch": "1"})
    store.put(OTHER, rows("a"), two)
    assert np.array_equal(store.get(SPACE.id, ["a"])["a"], one[0])
    assert np.array_equal(store.get(OTHER.id, ["a"])["a"], two[0])
    assert store.get("unknown", ["a"]) == {}
    assert store.rows("unknown", ["a"]) == {}
    assert store.by_content("unknown", ["d-a"]) == {}
    assert list(store.read("unknown")) == []
    assert store.count("unknown") == 0
    infos = store.spaces()
    assert [(info.space, info.count, info.bytes) for info in infos] == [(SPACE, 1, 64), (OTHER, 1, 64)]
    assert infos[0].provenance == {"torch": "1"}


def test_the_first_space_is_current_until_another_is_chosen(store):
    """Readers follow `use`; a space that is not there cannot be chosen; dropping leaves a current one."""
    assert store.current() is None
    store.put(SPACE, rows("a", "b"), vectors(2))
    store.put(OTHER, rows("a"), vectors(1))
    assert store.current() == SPACE.id
    store.use(OTHER.id)
    assert store.current() == OTHER.id
    with pytest.raises(StoreError, match="unknown"):
        store.use("unknown")
    assert store.drop(OTHER.id) == 1
    assert store.current() == SPACE.id
    assert store.get(OTHER.id, ["a"]) == {}
    assert store.drop(SPACE.id) == 2
    assert store.current() is None
    assert store.spaces() == []
    assert store.drop("unknown") == 0


def test_deleting_counts_what_was_there(store):
    """Absent ids are no error; each row goes once."""
    store.put(SPACE, rows("a", "b", "c"), vectors(3))
    assert store.delete(SPACE.id, ["a", "absent", "a", "c"]) == 2
    assert scanned(store)[0] == ["b"]
    assert store.count(SPACE.id) == 1
    assert store.delete(SPACE.id, []) == 0


def test_many_ids_at_once(store):
    """Chunks far above a database's limit of variables are read whole."""
    ids = [f"{n:05}" for n in range(3000)]
    given = vectors(3000)
    store.put(SPACE, rows(*ids), given)
    assert len(store.rows(SPACE.id, ids)) == 3000
    found = store.get(SPACE.id, ids)
    assert all(np.array_equal(found[name], given[n]) for n, name in enumerate(ids))
    assert len(store.by_content(SPACE.id, [f"d-{name}" for name in ids])) == 3000
    names, matrix = scanned(store, chunk=700)
    assert names == ids
    assert np.array_equal(matrix, given)


def test_a_calibration_is_kept_with_its_space(store):
    """Of that space alone, through later chunks; dropped with None, and with the space."""
    store.put(SPACE, rows("a"), vectors(1))
    store.put(OTHER, rows("a"), vectors(1))
    store.calibrate(SPACE.id, CALIBRATION)
    store.put(SPACE, rows("b"), vectors(1), {"torch": "2.15.0"})
    assert [info.calibration for info in store.spaces()] == [CALIBRATION, None]
    store.calibrate(SPACE.id, None)
    assert store.spaces()[0].calibration is None
    store.calibrate(SPACE.id, CALIBRATION)
    store.drop(SPACE.id)
    store.put(SPACE, rows("a"), vectors(1))
    assert [info.calibration for info in store.spaces()] == [None, None]
    with pytest.raises(StoreError, match="has no space 'unknown'"):
        store.calibrate("unknown", CALIBRATION)


def test_an_empty_chunk_makes_the_space_known(store):
    """Nothing to store is no error."""
    store.put(SPACE, [], vectors(0))
    assert store.count(SPACE.id) == 0


def test_a_store_that_can_be_written_passes_its_check(store):
    """The probe leaves nothing behind."""
    assert store.check() == store.check() != "", "its own id"
    assert store.spaces() == []


@pytest.mark.parametrize("url", ["file:x", "sqlite:", "", "postgres://x"])
def test_an_unknown_store_is_a_configuration_error(url):
    """The error says what is accepted."""
    with pytest.raises(ConfigurationError, match="sqlite:PATH"):
        open_store(url)


WRITER = """
import sys, numpy as np
from producer.embedding import Space
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.memory_store import open_one
url, seed = sys.argv[1], int(sys.argv[2])
store = open_store(url)
space = Space("ViT-B-32", "w1", "gelu", "224", 16)
drawn = np.random.default_rng(seed).standard_normal((50, 16))
made = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
for turn in range(40):
    store.put(space, [Row(f"{n}", f"{seed}", seed, turn) for n in range(50)], made)
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_two_processes_write_and_a_reader_sees_whole_chunks(kind, tmp_path, request):
    """Whoever wrote last, the fifty rows of a chunk are always all from one writer."""
    url = f"sqlite:{tmp_path / 'v.db'}" if kind == "sqlite" else request.getfixturevalue("redis_url")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, str(seed)]) for seed in (1, 2)]
    store = open_store(url)
    seen = 0
    ids = [f"{n}" for n in range(50)]
    while any(writer.poll() is None for writer in writers):
        found = store.rows(SPACE.id, ids)
        if kind == "sqlite":  # one statement is one snapshot; Redis answers row by row
            assert len({(row.digest, row.mtime_ns) for row in found.values()}) <= 1
        seen += bool(found)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen, "the reader never met the writers"
    assert len({row.digest for row in store.rows(SPACE.id, ids).values()}) == 1
    store.close()


def test_a_store_that_opening_would_make_is_known_beforehand(tmp_path):
    """Of a file that does not exist: a reader must not create an empty one. Redis needs no file."""
    url = f"sqlite:{tmp_path / 'v.db'}"
    assert not store_exists(url)
    open_store(url).close()
    assert store_exists(url)
    assert store_exists("redis://127.0.0.1:1/0")
