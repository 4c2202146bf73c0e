"""Calibration of a store of drawn vectors, with an embedder that turns each variant's bytes into a vector."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bench.image_samples import encoded, picture
from producer.calibration.calibrate import Queries, as_entry, calibrate, embedded, variant_rows
from producer.calibration.sample import Sample
from producer.cli.calibrate import _by_worker
from producer.collection.catalogue import Catalogue
from producer.embedding import with_space
from producer.errors import ConfigurationError, SpaceMismatch, UnreadablePoster
from producer.files import read_file
from producer.maintenance.spaces import find_space
from producer.report.calibration import calibration_page
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.filled_store import SPACE, fill, unit

NOISE = {"quality 30": 0.05, "240 pixels": 0.05, "crop 40 %": 2.5}


def near(vector, amount, random):
    drawn = vector + amount * random.standard_normal(len(vector)) / len(vector) ** 0.5
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        vectors = unit(60)
        vectors[1] = near(vectors[0], 0.01, np.random.default_rng(5))  # a copy
        fill(store, [f"p{n:02}" for n in range(60)], vectors)
        yield store


def queries(store, ids, seed=0):
    random = np.random.default_rng(seed)
    found = store.get(SPACE.id, ids)
    return [Queries(name, found[name], {v: near(found[name], NOISE[v], random) for v in NOISE}) for name in ids]


def measured(store, ids, **more):
    options = {"rate": 0.05, "seed": 0, "skipped": {}} | more
    return calibrate(store, find_space(store), queries(store, ids), **options)


def test_it_measures_each_variant_with_and_without_the_right_poster(store):
    """Light variants are found and certain; heavy ones less; without their posters, few are certain."""
    found = measured(store, [f"p{n:02}" for n in range(2, 60)])
    rows = {row.variant: row for row in variant_rows(found)}
    assert rows["quality 30"].first == 1
    assert rows["quality 30"].certain > rows["crop 40 %"].certain
    assert rows["quality 30"].score[1] > rows["quality 30"].score_without[1]
    by = found.calibration
    assert (by.posters, by.queries, by.collection) == (58, 174, 60)
    assert by.false / by.queries <= 0.05
    assert by.certain > 100
    assert as_entry(found, find_space(store))["variants"][0]["variant"] == "quality 30"


def test_copies_in_the_collection_count_as_one_poster_and_are_listed(store):
    """The copy of a poster is neither a wrong match nor in the way of its lead, and not sampled twice."""
    found = measured(store, [f"p{n:02}" for n in range(60)])
    assert [pair[:2] for pair in found.copies] == [("p00", "p01")]
    assert found.calibration.posters == 59
    assert found.skipped == {"copy of another in the sample": 1}
    outcome = found.outcomes[found.posters.index("p00")]["quality 30"]
    assert outcome.right
    assert outcome.lead > 0.1
    assert outcome.score_without < 0.9, "the copy was not left out with its poster"


def test_the_worst_confusions_are_the_highest_scores_of_wrong_posters(store):
    """Best matches that are another poster, the most similar first."""
    found = measured(store, [f"p{n:02}" for n in range(2, 60)])
    assert found.confusions
    assert all(one.found != one.poster and one.score > one.own for one in found.confusions)
    assert [one.score for one in found.confusions] == sorted((one.score for one in found.confusions), reverse=True)


def test_the_same_seed_gives_the_same_thresholds(store):
    """But for the date."""
    ids = [f"p{n:02}" for n in range(30)]
    first, second = measured(store, ids), measured(store, ids)
    assert replace(first.calibration, made=0.0) == replace(second.calibration, made=0.0)
    assert first.outcomes == second.outcomes


def test_a_variant_that_fails_is_counted(store):
    """And the others of its poster are used."""
    skipped = Counter()

    def embed(files):
        return [UnreadablePoster("x", "too-large", "x"), store.get(SPACE.id, ["p05"])["p05"]]

    (one,) = embedded(store, find_space(store), [("p05", {"a": b"", "b": b""})], embed, skipped)
    assert (list(one.variants), skipped) == (["b"], {"variant not embedded": 1})
    with pytest.raises(ConfigurationError, match="POSTERS_ROOT"):
        calibrate(store, find_space(store), [], rate=0.05, seed=0, skipped={})


@pytest.fixture
def collection(tmp_path):
    """Files of six pictures, one of which was changed and one deleted after they were stored."""
    root = tmp_path / "posters"
    root.mkdir()
    settings = load_settings(root=root, catalogue="none", store=f"sqlite:{tmp_path / 's.db'}")
    rows = []
    for seed in range(6):
        path = root / f"{seed}.png"
        path.write_bytes(encoded(picture(60, 90, seed=seed), "PNG"))
        rows.append(Row.of(path.name, read_file(path)))
    with closing(open_store(settings.store)) as store:
        store.put(SPACE, rows, unit(6))
        (root / "2.png").write_bytes(encoded(picture(60, 90, seed=9), "PNG"))
        (root / "3.png").unlink()
        yield settings, store


def test_a_sample_holds_files_as_they_were_indexed(collection):
    """In the order of the seed; others are counted by the reason, and replaced."""
    settings, store = collection
    first, again, other = (Sample(settings, Catalogue(None), seed) for seed in (0, 0, 1))
    drawn = list(first.draw(store, SPACE.id, 6))
    assert {name for name, _ in drawn} == {"0.png", "1.png", "4.png", "5.png"}
    assert first.skipped == {"changed since it was indexed": 1, "missing": 1}
    assert drawn == list(again.draw(store, SPACE.id, 6))
    assert len(list(again.draw(store, SPACE.id, 2))) == 2
    assert first.shuffled(store, SPACE.id) != other.shuffled(store, SPACE.id)
    assert first.variants("0.png") != other.variants("0.png")
    assert len(drawn[0][1]) == 15


def test_the_page_has_curves_a_table_and_the_confusions(collection):
    """As SVG and pictures in one file, without a script; hostile ids are text."""
    settings, store = collection
    root = settings.root
    (root / "<b>x").write_bytes(encoded(picture(60, 90, seed=8), "PNG"))
    store.put(SPACE, [Row.of("<b>x", read_file(root / "<b>x"))], unit(1, seed=8))
    info = find_space(store)
    ids = ["0.png", "1.png", "4.png", "5.png", "<b>x"]
    vectors = store.get(SPACE.id, ids)
    random = np.random.default_rng(1)
    mixed = [Queries(n, vectors[n], {v: near(vectors[n], 2.5, random) for v in ("gray", "turned 3°")}) for n in ids]
    sample = Sample(settings, Catalogue(None))
    found = calibrate(store, info, mixed, rate=0.3, seed=0, skipped={"missing": 1})
    assert found.confusions
    page = calibration_page(settings, info, sample, found).decode()
    assert page.count("<svg") == 3
    assert page.count("<polyline") == 5
    assert "<script" not in page
    assert "<b>x" not in page
    assert page.count('src="data:image/jpeg;base64,') == len(found.confusions)
    shown = sum((root / name).exists() for one in found.confusions for name in (one.found, one.poster))
    assert page.count('src="data:image/webp;base64,') == shown
    assert "Left out of the sample: 1 (missing)" in page
    assert "<td>turned 3°</td>" in page


def test_vectors_of_another_model_end_it():
    """A worker may be replaced while it runs: the thresholds would be those of neither."""
    replaced = SimpleNamespace(embed_image=lambda data, timeout: with_space(unit(1)[0], "another"))
    with pytest.raises(SpaceMismatch, match="another"):
        _by_worker(replaced, SPACE.id, 1.0)([b"an image"])
