"""Parity: the fastest encoder whose vectors match open_clip's is chosen, and fallbacks are logged."""

import numpy as np
import pytest
import torch

from producer.errors import ConfigurationError
from tests.support.tiny_model import MEAN, SIDE, STD, make_model
from worker.images.decode import Geometry
from worker.model import parity
from worker.model.encoder import FastViT
from worker.model.parity import choose_encoder, lowest_cosine, parity_images

GEOMETRY, CPU = Geometry(SIDE, SIDE), torch.device("cpu")


def chosen(precision="bf16", *, forced=False, **changes):
    tower = make_model(**changes).visual.eval().requires_grad_(False)
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    return choose_encoder(tower, mean, std, GEOMETRY, CPU, precision, forced=forced)


class Wrong(FastViT):
    """A fast encoder with a defect: it swaps rows."""

    def __call__(self, pixels):
        return super().__call__(pixels).flip(0)


class Broken(FastViT):
    """A fast encoder that does not run on this machine."""

    def __init__(self, *arguments):
        raise RuntimeError("no kernel image is available")


def test_the_fast_encoder_is_chosen_after_the_parity_check(caplog):
    """bf16, FastViT, and a log line with the cosine."""
    with caplog.at_level("INFO"):
        found = chosen()
    assert (found.precision, found.implementation, found.dimension) == ("bf16", "lean", 512)
    assert "bf16 passed the parity check against fp32: cosine 0.9999" in caplog.text


@pytest.mark.parametrize("kind", [Wrong, Broken])
def test_an_encoder_with_other_vectors_is_not_chosen(monkeypatch, kind):
    """open_clip's own forward pass in the same precision is tried next."""
    monkeypatch.setattr(parity, "FastViT", kind)
    found = chosen()
    assert (found.precision, found.implementation) == ("bf16", "plain")


def test_an_inexact_precision_falls_back_to_fp32(monkeypatch, caplog):
    """With `auto`, and the log says so; a precision set by name is refused, because its vectors differ."""
    monkeypatch.setattr(parity, "PARITY_COSINE", 1.5)
    found = chosen()
    assert (found.precision, found.implementation) == ("fp32", "plain")
    assert "bf16 is inexact here" in caplog.text
    assert "using fp32" in caplog.text
    with pytest.raises(ConfigurationError, match=r"bf16 on cpu does not give this model's vectors.*POSTERS_PRECISION"):
        chosen(forced=True)


def test_the_parity_check_detects_swapped_rows():
    """Of vectors that lie close together, swapped rows still have a cosine of 0.9999 each."""
    generator = np.random.default_rng(0)
    close = 1 + 0.003 * generator.normal(size=(4, 64))
    close = (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float32)
    assert (close * close[::-1]).sum(axis=1).min() > 0.9999
    assert lowest_cosine(close, close) > 0.9999
    assert lowest_cosine(close[::-1], close) == 0
    assert lowest_cosine(np.full_like(close, np.nan), close) == 0


def test_the_parity_images_are_always_the_same():
    """A check with images that change from start to start would not be reproducible."""
    assert torch.equal(parity_images(GEOMETRY), parity_images(GEOMETRY))
    assert parity_images(Geometry(224, 224)).float().std() > 40


def test_the_canary_is_an_image_with_the_vector_that_was_proven():
    """The same encoder gives it again among others; another vector, none, and no number are a problem."""
    found = chosen()
    images = parity.parity_images(GEOMETRY)
    again = found.encoder(torch.cat([images[1:], found.canary.pixels[None]])).numpy()
    assert found.canary.problem(again[-1]) == ""
    for wrong in (again[0], np.zeros_like(again[0]), np.full_like(again[0], np.nan)):
        assert "a known image has a cosine of" in found.canary.problem(wrong)
