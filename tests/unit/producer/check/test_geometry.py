"""Pictures compared point by point: what passes, what does not, and what it costs."""

import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from examples.draw_posters import draw_one_of_many
from producer.check import geometry
from producer.check.geometry import Query, features
from producer.errors import ConfigurationError


def pixels(image):
    image = image.convert("RGB")
    image.thumbnail((geometry.SIDE, geometry.SIDE))
    return np.asarray(image)


@pytest.fixture(scope="module")
def posters():
    return [draw_one_of_many(number) for number in range(3)]


def compared(query, poster):
    return Query(pixels(query.copy())).compare(features(pixels(poster.copy())))


def test_a_part_of_a_poster_is_the_same_picture(posters):
    """And it is said which part."""
    part = posters[0].crop((80, 60, 320, 420))  # of 400×600
    found = compared(part, posters[0])
    assert found.same
    assert not found.mirrored
    assert found.points >= geometry.MIN_POINTS
    assert found.shown == pytest.approx((0.2, 0.1, 0.8, 0.7), abs=0.02)


def test_a_crop_with_little_to_see_is_the_same_picture():
    """What was cut off finds partners by chance: without asking both sides, more than half of this crop's matches."""
    poster = draw_one_of_many(7, seed=10)
    assert compared(poster.crop((0, 120, 240, 480)), poster).same


def test_a_mirrored_poster_is_the_same_picture(posters):
    """And it is said that it is mirrored."""
    found = compared(ImageOps.mirror(posters[1]), posters[1])
    assert (found.same, found.mirrored) == (True, True)
    assert not compared(posters[1], posters[1]).mirrored


def test_a_photograph_and_a_screenshot_are_the_same_picture(posters):
    """Turned, in perspective, with bars and a caption."""
    seen = posters[2].transform((400, 600), Image.Transform.QUAD, (10, 20, -30, 640, 420, 590, 380, -20))
    assert compared(seen, posters[2]).same
    screen = Image.new("RGB", (400, 866))
    screen.paste(posters[2], (0, 133))
    ImageDraw.Draw(screen).text((20, 760), "which one is this?", font=ImageFont.load_default(26), fill="white")
    found = compared(screen, posters[2])
    assert found.same
    assert found.shown == pytest.approx((0, 0, 1, 1), abs=0.02)


def test_another_poster_is_another_picture(posters):
    """Although both have cogs and rings of the same kind."""
    assert not any(compared(posters[i], posters[j]).same for i in range(3) for j in range(3) if i != j)


@pytest.mark.parametrize("high", [0.3, 0.75])
def test_the_same_lettering_on_another_picture_is_not_the_same(posters, high):
    """At the same place and at another: the letters match, and nothing else does."""

    def lettered(poster, at):
        poster = poster.copy()
        text = ImageDraw.Draw(poster)
        for line, words in enumerate(("THE LAST", "MIDNIGHT", "Orchestra")):
            text.text((200, 600 * at + 62 * line), words, font=ImageFont.load_default(64), fill="white", anchor="mm")
        return poster

    found = compared(lettered(posters[0], 0.75), lettered(posters[1], high))
    assert not found.same
    assert found.points >= geometry.MIN_POINTS, "the letters did not match: this shows nothing"


@pytest.mark.parametrize(("seed", "number", "other"), [(10, 46, 280), (11, 73, 222)])
def test_lettering_seen_in_an_impossible_perspective_is_not_the_same(seed, number, other):
    """Two titles share a word, at the top and at the bottom: a view that folds all the rest into a strip fits them."""
    found = compared(draw_one_of_many(number, seed), draw_one_of_many(other))
    assert not found.same
    assert found.points >= geometry.MIN_POINTS, "the letters did not match: this shows nothing"


def hostile():
    random = np.random.default_rng(0)
    side = geometry.SIDE
    yield random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    squares = ((np.arange(side) // 6)[:, None] + np.arange(side) // 6) % 2 * 255
    yield np.repeat(squares[..., None], 3, axis=2).astype(np.uint8)
    smooth = Image.fromarray(random.integers(0, 256, (side // 3, side // 3, 3), dtype=np.uint8))
    yield np.asarray(smooth.resize((side, side), Image.Resampling.BICUBIC))
    yield np.zeros((side, side, 3), np.uint8)
    yield np.zeros((1, 1, 3), np.uint8)
    yield random.integers(0, 256, (side, 1, 3), dtype=np.uint8)


@pytest.mark.slow
def test_hostile_images_cost_no_more_than_others():
    """Noise, a pattern that repeats, one color, a line: features are capped, and a candidate takes at most 150 ms.

    Of processor time, the best of three; three times as much where others use the same core.
    """
    images = list(hostile())
    queries = [Query(image) for image in images]
    for query in queries:
        query.compare(features(images[0]))  # the features of the query and of its mirror image are made once

    def seconds(image, query):
        began = time.thread_time()
        found = features(image)
        query.compare(found)
        assert len(found.points) <= geometry.MAX_FEATURES
        return time.thread_time() - began

    slowest = max(min(seconds(image, query) for _ in range(3)) for image in images for query in queries)
    assert slowest < 3 * 0.15


def test_without_opencv_it_is_said_what_to_install(monkeypatch):
    """One line."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match="pip install opencv-python-headless"):
        features(np.zeros((9, 9, 3), np.uint8))
