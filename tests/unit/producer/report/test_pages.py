"""Pages: they hold what they show, run nothing, load nothing, and a title is a text whatever it says."""

import base64
import re
import sys
from html.parser import HTMLParser

import pytest

from bench.image_samples import encoded, picture
from producer.check.geometry import Comparison
from producer.collection.catalogue import Catalogue
from producer.errors import UnreadablePoster
from producer.maintenance.spaces import find_space
from producer.report import pages, thumbnails
from producer.report.pages import Card, Section, duplicates_page, identified_page, render
from producer.search.duplicates import Duplicates, Member, find_duplicates
from producer.search.identify import Identified
from producer.search.nearest import Match
from producer.search.verdict import Verdict
from producer.settings import load_settings
from tests.support.filled_store import SPACE, catalogue_of, fill, unit
from tests.support.memory_store import MemoryStore

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Seen(HTMLParser):
    """What a browser makes of a page: elements, their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(html.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def sources(self):
        return [found["src"] for tag, found in self.elements if tag == "img"]


@pytest.fixture
def info():
    store = MemoryStore()
    fill(store, ["a"])
    return find_space(store)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "posters").mkdir()
    return load_settings(root=tmp_path / "posters", catalogue="none")


def decoded(url):
    kind, data = re.fullmatch(r"data:([^;]+);base64,(.*)", url).groups()
    return kind, base64.b64decode(data)


def test_everything_that_is_not_ours_is_text(info):
    """Titles, files, notes, tags, headings, problems, space: not one element comes from them."""
    card = Card(EVIL, EVIL, None, EVIL, 0.5, EVIL, [EVIL])
    plain = Card("t", "f", None, "m", 0.5, "g", ["n"])
    evil = render(EVIL, info, [EVIL], [Section(EVIL, EVIL, [card, card], card, EVIL)], EVIL)
    tame = render("t", info, ["f"], [Section("b", "l", [plain, plain], plain, "p")], "n")
    tags = [tag for tag, _ in Seen(evil).elements if tag != "wbr"]
    assert tags == [tag for tag, _ in Seen(tame).elements if tag != "wbr"]
    assert "script" not in tags
    assert Seen(evil).text.count("<script>alert(1)</script>") >= 10


def test_bytes_that_are_no_text_do_not_spoil_a_page(info):
    """A name with a byte that is no UTF-8, or a lone surrogate of JSON, shows a question mark there."""
    card = Card("caf\udce9", "caf\udce9.png", None, tag="\ud800")
    html = render("caf\udce9", info, [], [Section("s", "", [card])])
    assert "caf?.png" in Seen(html).text


def test_a_page_needs_nothing_from_outside_and_runs_nothing(info, settings):
    """No address but data:, no script, no handler; and a policy under which a browser would refuse them."""
    data = encoded(picture(60, 90), "JPEG")
    (settings.root / "a").write_bytes(data)
    html = identified_page(settings, info, Catalogue(None), [Identified("a", [Match("a", 0.9, {"file": "a"})])])
    seen = Seen(html)
    for tag, attributes in seen.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base", "a")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "://" not in (value or "")
            if name in ("src", "href", "srcset"):
                assert value.startswith("data:image/")
    assert "url(" not in html.decode()
    assert "@import" not in html.decode()
    (policy,) = [found["content"] for tag, found in seen.elements if "http-equiv" in found]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_page_suits_phones_and_the_dark(info):
    """A viewport, both color schemes, a narrow layout, a language, a text for every picture."""
    html = render("Title", info, [], [Section("b", "l", [Card("name", "f", "data:image/webp;base64,AA==")])]).decode()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 44rem" in html
    assert '<html lang="en">' in html
    assert 'alt="name"' in html


def test_the_identify_page_shows_query_and_matches(info, settings, tmp_path):
    """Small pictures of both, in the pictures' own shape; rank, score, title, file; what failed has its reason."""
    (settings.root / "deep").mkdir()
    (settings.root / "deep" / "a.png").write_bytes(encoded(picture(1000, 1500), "PNG"))
    query = tmp_path / "shot.png"
    query.write_bytes(encoded(picture(900, 300), "PNG"))
    about = {"file": "deep/a.png", "title": "First & <last>", "year": 1999, "tags": ["x"]}
    catalogue = catalogue_of(tmp_path, {"file": "deep/a.png", "id": "a", "title": "First & <last>"})
    failure = UnreadablePoster("notes.txt", "unreadable", "no image")
    results = [
        Identified(
            str(query),
            [Match("a", 0.98765, about), Match("gone.jpg", 0.5, {"file": "gone.jpg"})],
            verdict=Verdict("perhaps", "they look alike <b>"),
            path=query,
            without_bars=True,
            comparisons={"a": Comparison(True, 41, True, (0.1, 0.2, 0.9, 0.8))},
        ),
        Identified("notes.txt", [], failure),
    ]
    seen = Seen(identified_page(settings, info, catalogue, results))
    kinds, data = zip(*map(decoded, seen.sources()), strict=True)
    assert kinds == ("image/webp", "image/webp")
    import io

    from PIL import Image

    assert [Image.open(io.BytesIO(part)).size for part in data] == [(480, 160), (320, 480)]
    for words in (
        "First & <last>",
        "0.9877",
        "deep/ a.png",
        "year 1999",
        "gone.jpg",
        "unreadable: no image",
        "perhaps",
        "they look alike <b>",
    ):
        assert words in seen.text
    assert "same picture: 41 points match, 10 to 90 % across and 20 to 80 % down, mirrored" in seen.text
    assert "no such image under the posters root" in seen.text
    assert "tags" not in seen.text


def test_pictures_never_leave_the_posters_root(settings, tmp_path):
    """A link out of it, or an id that climbs out, shows no picture."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(60, 90), "PNG"))
    (settings.root / "link.png").symlink_to(secret)
    found = thumbnails.image_urls(settings, [(settings.root, "link.png"), (settings.root, "../secret.png"), None])
    assert found == [None, None, None]
    assert thumbnails.image_urls(settings, [(None, str(secret))])[0].startswith("data:image/webp")


def test_a_machine_without_pillow_shows_the_files_themselves(settings, monkeypatch, caplog):
    """As they are, if a browser knows them and they are small; it says so."""
    monkeypatch.setitem(sys.modules, "worker.renditions.thumbnails", None)  # importing it raises ImportError
    monkeypatch.setattr(thumbnails, "MAX_WHOLE_FILE_BYTES", 50_000)
    samples = {kind: encoded(picture(60, 90), kind) for kind in ("PNG", "JPEG", "WEBP")}
    for kind, data in samples.items():
        (settings.root / kind).write_bytes(data)
    (settings.root / "large").write_bytes(samples["PNG"] + bytes(50_000))
    (settings.root / "page").write_text("<html>")
    names = [*samples, "large", "page", "absent"]
    found = thumbnails.image_urls(settings, [(settings.root, name) for name in names])
    assert [decoded(url) for url in found[:3]] == [(f"image/{kind.lower()}", data) for kind, data in samples.items()]
    assert found[3:] == [None, None, None]
    assert "no thumbnails can be made here" in caplog.text


def test_the_duplicates_page_shows_every_group(settings, tmp_path):
    """Its first stands out; copies and chains are named; sizes and scores are there."""
    store = MemoryStore()
    vectors = unit(3)
    vectors[1] = vectors[0]
    fill(store, ["a.png", "b.png", "other"], vectors, contents="xxy")
    info = find_space(store)
    (settings.root / "a.png").write_bytes(encoded(picture(60, 90), "PNG"))
    found = find_duplicates(store, info, 0.9)
    seen = Seen(
        duplicates_page(settings, info, catalogue_of(tmp_path, {"file": "a.png", "title": "Title A"}), found, 0.9)
    )
    assert len(seen.sources()) == 1
    for words in ("3 posters compared", "1 groups with 2 posters", "first", "Title A", "same content", "1 kB", "b.png"):
        assert words in seen.text
    leads = [attributes for _, attributes in seen.elements if attributes.get("class") == "card lead"]
    assert len(leads) == 1
    chain = [Member("a", 1.0, False, "a", 5), Member("b", 0.9, False, "a", 5), Member("c", 0.8, False, "b", 5)]
    assert "near to b" in Seen(duplicates_page(settings, info, Catalogue(None), Duplicates([chain], 3), 0.9)).text


def test_a_page_stays_of_a_size_that_opens(settings, info, monkeypatch):
    """Thousands of groups are cut, and the page says where the rest is."""
    monkeypatch.setattr(pages, "MAX_PICTURES", 10)
    groups = [[Member(f"{n}-{m}", 1.0, False, f"{n}-0", 5) for m in range(4)] for n in range(50)]
    html = duplicates_page(settings, info, Catalogue(None), Duplicates(groups, 200), 0.9)
    assert html.decode().count('<section class="block">') == 2
    assert "48 more groups are not shown" in Seen(html).text
    large = [[Member(f"{m}", 1.0, False, "0", 5) for m in range(30)]]
    html = duplicates_page(settings, info, Catalogue(None), Duplicates(large, 30), 0.9)
    assert html.decode().count("<li ") == 10
    assert "30 posters" in Seen(html).text


def test_untrained_weights_are_said(settings):
    """A page must not promise what it cannot know."""
    from dataclasses import replace

    store = MemoryStore()
    fill(store, ["a"], space=replace(SPACE, weights="untrained-1"))
    assert "untrained weights" in Seen(render("t", find_space(store), [], [])).text
