"""Identify by description: texts and weighted sums, beside images, in the order in which they were given."""

import json
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner

from producer.cli import search
from producer.collection.catalogue import Catalogue
from producer.embedding import Space, with_space
from producer.errors import ConfigurationError, UnreadablePoster
from producer.maintenance.spaces import find_space
from producer.search.described import identify_queries
from producer.search.identify import Searched, SearchOptions
from producer.search.query import image_names, parse
from producer.search.sources import open_sources
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row

SPACE = Space("m", "1" * 32, "gelu", "64x64", 3)
AXES = {"rain": (1, 0, 0), "sea": (0, 1, 0), "robot": (0, 0, 1)}


class FakeProducer:
    """Texts and the content of files are names of axes; anything else has no vector."""

    def __init__(self, settings):
        self.settings, self.asked = settings, []

    def space(self):
        return SPACE

    def _vector(self, name):
        self.asked.append(name)
        if name not in AXES:
            raise UnreadablePoster(f"the text {name!r}", "unsupported", "no such axis")
        return with_space(np.array(AXES[name], np.float32), SPACE.id)

    def embed_text(self, text, timeout):
        return self._vector(text)

    def embed_image(self, data, timeout, name):
        return self._vector(data.decode())

    def close(self):
        """Nothing to close."""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A store with a poster on each axis and one between two of them; images in the current folder."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:{tmp_path / 'v.db'}"
    vectors = np.array([*AXES.values(), (0.6, 0.8, 0)], np.float32)
    with closing(open_store(url)) as store:
        store.put(SPACE, [Row(name, name, 1, 1) for name in ("rain.jpg", "sea.jpg", "robot.jpg", "both.jpg")], vectors)
    for name in AXES:
        (tmp_path / f"{name}.png").write_text(name)
    (tmp_path / "bad.png").write_text("bad")
    for name, value in (("STORE", url), ("CATALOGUE", "none"), ("ROOT", str(tmp_path))):
        monkeypatch.setenv(f"POSTERS_{name}", value)
    return load_settings()


@pytest.fixture
def find(settings):
    """The results for arguments and texts; and the producer, which knows what it was asked for."""
    producer = FakeProducer(settings)

    def find(*arguments, texts=(), k=1):
        queries = parse(arguments, texts)
        with closing(open_store(settings.store)) as store, open_sources(image_names(queries), settings) as sources:
            by_name = {source.name: source for source in sources}
            info = find_space(store)
            return identify_queries(
                Searched(producer, store, info, Catalogue(None)), queries, by_name, SearchOptions(k=k)
            )

    find.producer = producer
    return find


def best(results):
    return [result.matches[0].id if result.matches else str(result.failure) for result in results]


def test_a_text_finds_the_posters_that_it_describes(find):
    """Ranked, without a verdict: nobody has measured how far a text can be relied on."""
    (result,) = find(texts=["sea"], k=2)
    assert [match.id for match in result.matches] == ["sea.jpg", "both.jpg"]
    assert (result.image, result.verdict, result.query.terms[0].kind) == ("'sea'", None, "text")


def test_sums_add_and_subtract_with_weights(find):
    """Images and texts; each is embedded once, however often it is named."""
    results = find("3:rain", "+", "4:sea", "sea.png", "+", "rain", "-", "rain", "robot.png", "+", "2:robot")
    assert best(results) == ["both.jpg", "sea.jpg", "robot.jpg"]
    assert results[0].matches[0].score == pytest.approx(1)
    assert results[0].image == "3 × 'rain' + 4 × 'sea'"
    assert sorted(find.producer.asked) == ["rain", "robot", "robot", "sea", "sea"]  # text and image of a name are two


def test_results_are_in_the_order_of_the_queries(find):
    """Images have verdicts, the others have none."""
    results = find("sea.png", "rain", "+", "rain", "robot.png", texts=["sea"])
    assert best(results) == ["sea.jpg", "rain.jpg", "robot.jpg", "sea.jpg"]
    assert [result.verdict is None for result in results] == [False, True, False, True]


def test_a_part_without_a_vector_fails_its_query_alone(find):
    """By the name of the part, whether it is an image, a file that is not there, or a text."""
    results = find("bad.png", "+", "rain", "sea", "+", "fog", "nowhere.png", "+", "sea", "2:sea")
    assert best(results) == [
        "bad.png: unsupported: no such axis",
        "the text 'fog': unsupported: no such axis",
        "nowhere.png: missing: there is no such file",
        "sea.jpg",
    ]


def test_a_sum_of_nothing_is_an_error(find):
    """It would find anything."""
    with pytest.raises(ConfigurationError, match="cancel each other out"):
        find("rain", "-", "rain.png")


def run(settings, monkeypatch, *arguments):
    monkeypatch.setattr(search, "Producer", FakeProducer)
    return CliRunner().invoke(search.identify, [*arguments])


def test_the_command_prints_queries_as_it_understood_them(settings, monkeypatch):
    """A heading for each of several; a table without a verdict; status 0."""
    done = run(settings, monkeypatch, "-k", "1", "3:rain", "+", "sea.png", "--text", "sea")
    assert [" ".join(line.split()) for line in done.output.splitlines()] == [
        "3 × 'rain' + sea.png",
        "1 0.9487 rain.jpg",
        "",
        "'sea'",
        "1 1.0000 sea.jpg",
    ]
    assert done.exit_code == 0


def test_the_command_in_json(settings, monkeypatch, tmp_path):
    """Terms with kind, value and weight; an image has what it had before. A page is written as well."""
    page = tmp_path / "page.html"
    done = run(settings, monkeypatch, "--json", "sea.png", "rain", "-", "0.5:sea", "--html", str(page))
    image, query = json.loads(done.stdout)
    assert image["image"] == "sea.png"
    assert "query" not in image
    assert query["query"] == "'rain' - 0.5 × 'sea'"
    assert query["terms"] == [
        {"kind": "text", "value": "rain", "weight": 1.0},
        {"kind": "text", "value": "sea", "weight": -0.5},
    ]
    assert "your description" in page.read_text(encoding="utf-8")


def test_nothing_to_look_for_is_a_usage_error(settings, monkeypatch):
    """And so is a weight that is none."""
    done = run(settings, monkeypatch)
    assert (done.exit_code, "--text" in done.output) == (2, True)
    with pytest.raises(ConfigurationError, match="a weight is a number"):
        parse(["0:rain"])


def test_the_engine_embeds_images_and_texts_in_this_process(tmp_path):
    """--local: one model for images and texts, in the order of both; a bad one stands in its place."""
    from producer.search.identify import embed_locally
    from tests.support.tiny_model import TEXT, write_tiny_model
    from worker.clip_embedder import CLIPEmbedder

    name = write_tiny_model(tmp_path / "model", text_cfg=TEXT)
    settings = load_settings(model_name=name, device="cpu", precision="fp32")
    missing, rain, empty = embed_locally(settings, [tmp_path / "no.png"], ["rain", ""])
    assert (missing.word, empty.word) == ("missing", "unsupported")
    embedder = CLIPEmbedder(name, "cpu", precision="fp32")
    assert float(rain @ embedder.embed_text("rain")) == pytest.approx(1, abs=1e-5)
    assert rain.space == embedder.space.id
