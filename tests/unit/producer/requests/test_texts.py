"""Texts as requests carry them."""

import pytest

from producer.errors import UnreadablePoster
from producer.requests.texts import as_texts, text_bytes, text_name


@pytest.mark.parametrize(
    ("given", "texts"), [("a girl", ["a girl"]), ("", [""]), (["a", "b"], ["a", "b"]), (iter(("a",)), ["a"]), ([], [])]
)
def test_one_text_or_several(given, texts):
    """In any iterable that has an order."""
    assert as_texts(given) == texts


@pytest.mark.parametrize("given", [b"a", bytearray(b"a"), None, 5, {"a"}, {"a": 1}, ["a", None], [b"a"]])
def test_what_is_no_text_is_a_type_error(given):
    """Bytes are not guessed at, and a set has no order."""
    with pytest.raises(TypeError, match=r"text must be str|not a text"):
        as_texts(given)


def test_a_text_is_sent_as_utf_8():
    """Whatever its script."""
    assert text_bytes("雨 café 🌂") == "雨 café 🌂".encode()


def test_half_of_a_character_is_refused():
    """By name, before it is sent."""
    with pytest.raises(UnreadablePoster, match=r"the text 'a \\ud800': unsupported: it holds half of a character"):
        text_bytes("a \ud800")


def test_errors_show_the_beginning_of_a_text():
    """On one line."""
    assert text_name("a\nb") == r"the text 'a\nb'"
    assert len(text_name("x" * 1000)) == len("the text ''") + 60
    assert text_name("x" * 1000).endswith("…'")
