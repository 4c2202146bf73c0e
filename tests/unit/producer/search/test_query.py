"""Queries of `identify`: images, texts and weighted sums, whatever the arguments look like."""

import numpy as np
import pytest

from producer.embedding import with_space
from producer.errors import ConfigurationError, SpaceMismatch
from producer.search.query import Query, Term, combine, parse


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current folder with images of odd names."""
    for name in ("2:x.png", "robot", "+", "my shot.png", "text:sea", "2:noir", "x.png"):
        (tmp_path / name).touch()
    (tmp_path / "posters").mkdir()
    monkeypatch.chdir(tmp_path)


def terms(*arguments):
    """The terms of each query, as (kind, value, weight)."""
    return [[(term.kind, term.value, term.weight) for term in query.terms] for query in parse(arguments)]


def image(value, weight=1):
    return ("image", value, weight)


def text(value, weight=1):
    return ("text", value, weight)


def test_images_are_queries_of_their_own_as_ever():
    """Also those that do not exist, have no ending, or look like a text: they fail by name."""
    arguments = ["a.jpg", "robot", "/x/y z.png", "no such thing", r"C:\x.png", "https://example.org/a"]
    assert terms(*arguments) == [[image(name)] for name in arguments]


def test_the_sum_of_the_documentation():
    """Weight, subtraction, addition; text and image."""
    assert terms("2:girl with umbrella", "-", "text", "+", "sketch.png") == [
        [text("girl with umbrella", 2), text("text", -1), image("sketch.png")]
    ]


@pytest.mark.parametrize(
    ("argument", "term"),
    [
        ("2:x.png", image("2:x.png")),  # a file of that name
        ("2:noir", image("2:noir")),
        ("3:x.png", image("x.png", 3)),
        ("0.5:robot", image("robot", 0.5)),  # a text that is also a file's name
        ("2:posters", text("posters", 2)),  # a folder is no image
        ("0.5:text:robot", text("robot", 0.5)),
        ("text:robot", text("robot")),
        ("text:sea", image("text:sea")),  # a file of that name
        ("2:text:sea", image("text:sea", 2)),
        ("2:./robots", image("./robots", 2)),
        ("2:missing.jpeg", image("missing.jpeg", 2)),  # a typing error must not become a text
        ("2:pictures/unknown", image("pictures/unknown", 2)),
        ("2:black and/or white", text("black and/or white", 2)),
        ("2:my shot.png", image("my shot.png", 2)),
        ("2:https://example.org/a?b=1", image("https://example.org/a?b=1", 2)),
        ("2:-", image("-", 2)),
        ("1e-1:sea", text("sea", 0.1)),
        (".5:sea", text("sea", 0.5)),
        ("+2:sea", text("sea", 2)),
        ("2:3:sea", text("3:sea", 2)),
        ("text:2:sea", text("2:sea")),
        ("text:", text("")),
        ("2001: a space odyssey", image("2001: a space odyssey")),  # a blank follows: no weight
        ("2:", image("2:")),
        (":sea", image(":sea")),
        (r"C:\x.png", image(r"C:\x.png")),
        ("x:y", image("x:y")),
        ("a\0b", image("a\0b")),
        ("", image("")),
    ],
)
def test_one_argument(argument, term):
    """Weight, kind and value of a term by itself."""
    assert terms(argument) == [[term]]


@pytest.mark.parametrize("weight", ["0", "-2", "nan", "NaN", "inf", "-inf", "1e9", "0.0", "1001"])
def test_a_weight_that_cannot_be_is_refused(weight):
    """And how to write the same as a text."""
    with pytest.raises(ConfigurationError, match=rf"weight is a number above 0.*text:{weight}:sea"):
        parse([f"{weight}:sea"])
    assert terms(f"text:{weight}:sea") == [[text(f"{weight}:sea")]]


@pytest.mark.parametrize(
    ("arguments", "queries"),
    [
        (["-"], [[image("-")]]),
        (["-", "a.png"], [[image("-")], [image("a.png")]]),
        (["a.png", "-"], [[image("a.png")], [image("-")]]),
        (["-", "+", "sea"], [[image("-"), text("sea")]]),
        (["sea", "-", "-"], [[text("sea"), image("-", -1)]]),
        (["-", "-", "-"], [[image("-"), image("-", -1)]]),
        (["+"], [[image("+")]]),
        (["a.png", "+"], [[image("a.png")], [image("+")]]),
        (["sea", "+", "+"], [[text("sea"), image("+")]]),
        (["sea", "-", "2:rain", "b.png"], [[text("sea"), text("rain", -2)], [image("b.png")]]),
        (["b.png", "sea", "+", "rain"], [[image("b.png")], [text("sea"), text("rain")]]),
        (["a.png", "+", "b.png", "-", "c.png", "+", "rain"],
         [[image("a.png"), image("b.png"), image("c.png", -1), text("rain")]]),
    ],
)  # fmt: skip
def test_the_place_says_what_a_sign_means(arguments, queries):
    """Between two terms an operator; anywhere else `-` is standard input, and `+` a name."""
    assert terms(*arguments) == queries


def test_texts_are_taken_as_they_are():
    """No weight, no file: what `--text` has."""
    found = parse(["a.png"], ["2:sea", "robot", "-", "x.png"])
    assert [query.terms for query in found] == [
        (Term("image", "a.png"),),
        *((Term("text", value),) for value in ("2:sea", "robot", "-", "x.png")),
    ]


def test_a_label_says_how_it_was_understood():
    """So that a misread weight shows."""
    [query] = parse(["16:9 format", "-", "2:x.png", "-", "0.5:rain"])
    assert query.label == "16 × '9 format' - 2:x.png - 0.5 × 'rain'"
    assert parse([], ["girl"])[0].label == "'girl'"
    assert parse(["a.png"])[0].label == "a.png"


def unit(*numbers, space="s"):
    vector = np.array(numbers, np.float32)
    return with_space(vector / np.linalg.norm(vector), space)


def test_a_sum_is_a_unit_vector_of_the_same_space():
    """Weights count; the order is that of the terms."""
    query = Query((Term("text", "a", 2), Term("text", "b", -1)))
    vector = combine(query, [unit(1, 0, 0), unit(0, 1, 0)])
    np.testing.assert_allclose(vector, np.array([2, -1, 0]) / np.sqrt(5), rtol=1e-6)
    assert vector.dtype == np.float32
    assert vector.space == "s"
    alone = unit(1, 2, 3)
    assert combine(Query((Term("image", "a", 7),)), [alone]) is alone
    np.testing.assert_allclose(combine(Query((Term("text", "a", -2),)), [alone]), -alone, rtol=1e-6)


def test_parts_that_cancel_each_other_out_are_refused():
    """What rounding leaves of them would find anything."""
    query = parse(["sea", "+", "rain", "-", "2:sea"])[0]
    with pytest.raises(ConfigurationError, match=r"'sea' \+ 'rain' - 2 × 'sea': nothing is left"):
        combine(query, [unit(1, 0.00001), unit(1, 0), unit(1, 0)])


def test_parts_of_two_spaces_are_refused():
    """They cannot be added."""
    with pytest.raises(SpaceMismatch, match="several spaces: s, t"):
        combine(parse(["sea", "+", "rain"])[0], [unit(1, 0), unit(0, 1, space="t")])


def test_a_sum_with_not_a_number_is_refused():
    """Instead of a vector that is none."""
    with pytest.raises(ConfigurationError, match="nothing is left"):
        combine(parse(["sea", "+", "rain"])[0], [unit(1, 0), with_space(np.full(2, np.nan, np.float32), "s")])
