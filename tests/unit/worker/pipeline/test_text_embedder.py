"""TextEmbedder: texts that have gathered go through the text tower together; it is loaded when the first one comes."""

from types import SimpleNamespace

import numpy as np
import pytest

from producer.errors import BadMessage, DeviceLost, TextUnavailable, UnreadablePoster
from producer.requests.codec import TEXT, Answer, Refusal, Request
from worker.model.text import EmbeddedTexts
from worker.pipeline.text_embedder import TextEmbedder

VECTOR = np.full(4, 0.5, np.float32)


class FakeTower:
    """Embeds every text as the same vector, except one that is empty; `error` is raised instead."""

    space = SimpleNamespace(id="space-1")

    def __init__(self):
        self.has_text, self.error, self.groups, self.loads = False, None, [], 0

    def load_text(self):
        self.loads += 1
        if self.error:
            raise self.error
        self.has_text = True

    def embed_texts(self, texts):
        if self.error:
            raise self.error
        self.groups.append(list(texts))
        failures = {
            row: UnreadablePoster("t", "unsupported", "it is empty") for row, text in enumerate(texts) if not text
        }
        return EmbeddedTexts(np.stack([VECTOR] * len(texts)), failures, 0.25)


@pytest.fixture
def tower():
    return FakeTower()


@pytest.fixture
def loading():
    """What was said about loading."""
    return []


@pytest.fixture
def texts(tower, loading):
    seconds = []
    texts = TextEmbedder(SimpleNamespace(answered=seconds.append, seconds=seconds), tower, loading.append)
    yield texts
    texts.close()


def test_the_tower_is_loaded_once_before_the_first_text(texts, tower, loading):
    """In the embedder's own thread; callers can be told meanwhile."""
    assert texts.kinds == (TEXT,)
    for _ in range(2):
        assert texts.submit(lambda: texts.prepare(Request(TEXT, "雨".encode()))).result() == "雨"
    assert (tower.loads, loading) == (1, [True, False])


def test_texts_go_through_the_tower_together(texts, tower):
    """Each answer belongs to its text; one without a vector fails alone. The device's time is accounted."""
    answer = Answer("space-1", VECTOR.tobytes())
    assert texts.embed(["a", "", "b"]) == [answer, Refusal("unsupported", "it is empty"), answer]
    assert tower.groups == [["a", "", "b"]]
    assert texts.share.seconds == [0.25]


def test_a_model_without_text_refuses_each(texts, tower, loading):
    """Whether that shows when it is loaded, or when a text is embedded."""
    tower.error = TextUnavailable("no tokenizer")
    refusal = Refusal("unsupported", "no tokenizer", no_text=True)
    assert texts.prepare(Request(TEXT, b"a")) == refusal
    assert loading == [True, False]
    assert texts.embed(["a", "b"]) == [refusal, refusal]


def test_what_is_no_text_and_a_lost_device_are_raised(texts, tower):
    """The runner knows what to do."""
    with pytest.raises(BadMessage, match="UTF-8"):
        texts.prepare(Request(TEXT, b"\xff"))
    tower.error = DeviceLost("the context is broken")
    with pytest.raises(DeviceLost):
        texts.embed(["a"])
