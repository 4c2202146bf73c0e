"""A map of a store: what is computed, kept, placed in it later, and written to a file."""

from dataclasses import replace

import numpy as np
import pytest

from producer.maintenance.spaces import find_space
from producer.map import compute
from producer.map.compute import make_map
from producer.map.picture import picture
from producer.map.poster_map import COMPONENTS_ALONE, PACMAP, SIDE, load_map
from producer.vectors.base import Row
from tests.support.filled_store import OTHER, SPACE, fill, unit
from tests.support.memory_store import MemoryStore

IDS = [f"{number:03}.jpg" for number in range(60)]


@pytest.fixture
def store():
    store = MemoryStore()
    fill(store, IDS)
    return store


def map_of(store, before=None):
    return make_map(store, find_space(store), before)


def position(made, name):
    return made.positions[made.ids.index(name)].tolist()


def test_a_map_has_a_position_for_each_poster(store):
    """And tells how far it is, in the order of its stages."""
    stages = []
    made = make_map(store, find_space(store), None, lambda stage, done, total: stages.append(stage))
    assert sorted(made.ids) == IDS
    assert made.positions.shape == (60, 2)
    assert (made.space, made.version, made.method, made.later) == (SPACE.id, store.version(SPACE.id), PACMAP, 0)
    assert list(dict.fromkeys(stages)) == ["reading the vectors", "laying out", "placing the posters"]


def test_the_same_posters_have_the_same_map_in_whatever_order_they_came(store):
    """Positions go by ids and vectors alone."""
    vectors, other = unit(60), MemoryStore()
    fill(other, IDS[::-1], vectors[::-1])
    first, second = map_of(store), map_of(other)
    assert [position(first, name) for name in IDS] == [position(second, name) for name in IDS]


def test_what_comes_later_is_placed_in_the_layout(store):
    """What was there stays where it is; a poster with another content is placed anew; one that went is gone."""
    before = map_of(store)
    fill(store, ["new.jpg"], unit(60)[7:8])
    store.delete(SPACE.id, ["003.jpg"])
    fill(store, ["004.jpg"], unit(60)[9:10], contents="z")
    after = map_of(store, before)
    assert after.laid_out == before.laid_out
    assert after.later == 2
    assert set(after.ids) == {*IDS, "new.jpg"} - {"003.jpg"}
    for name in set(IDS) - {"003.jpg", "004.jpg"}:
        assert position(after, name) == position(before, name)
    assert position(after, "new.jpg") == pytest.approx(position(before, "007.jpg"))
    assert position(after, "004.jpg") == pytest.approx(position(before, "009.jpg"))
    assert after.token != before.token


def test_a_fifth_of_new_posters_or_of_gone_ones_lays_out_anew(store):
    """Counted since the layout, not since the last map."""
    before = after = map_of(store)
    for number in range(12):
        fill(store, [f"new{number}.jpg"], unit(1, seed=number + 1))
        after = map_of(store, after)
    assert (after.laid_out, after.later) == (before.laid_out, 12)
    fill(store, ["one-more.jpg"], unit(1, seed=99))
    again = map_of(store, after)
    assert again.laid_out > before.laid_out
    assert (again.later, again.count_then) == (0, 73)
    store.delete(SPACE.id, again.ids[:20])
    assert map_of(store, again).laid_out > again.laid_out


def test_a_map_of_another_space_is_no_start(store):
    """Its components are of other vectors."""
    before = map_of(store)
    fill(store, IDS, unit(60, seed=5), space=OTHER)
    store.use(OTHER.id)
    assert map_of(store, before).space == OTHER.id


def test_few_posters_lie_by_their_components():
    """Until there are enough."""
    store = MemoryStore()
    fill(store, ["a.jpg", "b.jpg"])
    few = map_of(store)
    assert few.method == COMPONENTS_ALONE
    fill(store, IDS)
    assert map_of(store, few).method == PACMAP


def test_of_many_posters_some_are_laid_out_and_the_others_lie_between_them(store, monkeypatch):
    """Those whose hashes are lowest."""
    monkeypatch.setattr(compute, "LAID_OUT_MOST", 30)
    made = map_of(store)
    assert 15 < len(made.anchors) < 45
    assert sorted(made.ids) == IDS
    low, high = made.anchor_positions.min(0), made.anchor_positions.max(0)
    assert ((made.positions >= low - 1e-4) & (made.positions <= high + 1e-4)).all()


def test_a_map_is_the_same_after_it_was_a_file(store, tmp_path):
    """Whatever the ids hold; what cannot be used is None."""
    store.put(SPACE, [Row("a\n\"b'\u3042.jpg", "d", 1, 1)], unit(1))
    made, path = map_of(store), tmp_path / "map"
    path.write_bytes(made.to_bytes())
    found = load_map(path)
    assert found.ids == made.ids
    assert found.token == made.token
    assert np.array_equal(found.square, made.square)
    assert map_of(store, found).laid_out == made.laid_out
    for content in (b"", b"PK nothing", path.read_bytes()[:-400], replace(made, ids=["too few"]).to_bytes()):
        path.write_bytes(content)
        assert load_map(path) is None
    assert load_map(tmp_path / "none") is None


def test_positions_are_sent_in_a_square(store):
    """Which they fill in one direction at least, without being stretched; and the picture has a dot for each."""
    made = map_of(store)
    low, high = made.square.min(0), made.square.max(0)
    assert {0, SIDE} <= {*low.tolist(), *high.tolist()}
    widths, sent = np.ptp(made.positions, 0), np.ptp(made.square.astype(int), 0)
    assert sent[0] / sent[1] == pytest.approx(widths[0] / widths[1], rel=1e-3)
    data = picture(made, 100)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    pil = pytest.importorskip("PIL.Image")
    import io

    with pil.open(io.BytesIO(data)) as image:
        assert image.size == (100, 100)
        alpha = np.asarray(image)[..., 3]
    for right, down in made.square.astype(int) * 83 // SIDE + 8:
        assert alpha[down, right] > 0
    assert (alpha == 0).mean() > 0.3
