"""Placement: the first way that proves to be the same embedding, and a line that says so when it is not the first."""

import numpy as np
import pytest
import torch

from producer.errors import ConfigurationError
from tests.support.tiny_model import MEAN, SIDE, STD, make_model
from worker.images.decode import Geometry
from worker.model import parity
from worker.model.encoder import FastViT
from worker.model.parity import lowest_cosine, place, probe, use_card

GEOMETRY, CPU = Geometry(SIDE, SIDE), torch.device("cpu")


def placed(precision="bf16", *, forced=False, **changes):
    tower = make_model(**changes).visual.eval().requires_grad_(False)
    return place(tower, torch.tensor(MEAN) * 255, torch.tensor(STD) * 255, GEOMETRY, CPU, precision, forced=forced)


class Wrong(FastViT):
    """A fast way with a defect: rows change places."""

    def __call__(self, pixels):
        return super().__call__(pixels).flip(0)


class Broken(FastViT):
    """A fast way that this machine cannot go."""

    def __init__(self, *arguments):
        raise RuntimeError("no kernel image is available")


def test_the_fast_way_is_taken_and_proven(caplog):
    """bf16, lean, and the line that says how near it is."""
    with caplog.at_level("INFO"):
        found = placed()
    assert (found.precision, found.way, found.dimension) == ("bf16", "lean", 512)
    assert found.cosine > 0.999
    assert "bf16 proven against fp32 on a fixed probe: cosine 0.9999" in caplog.text


@pytest.mark.parametrize("kind", [Wrong, Broken])
def test_a_way_that_is_not_the_same_embedding_is_left_for_the_next(monkeypatch, kind):
    """open_clip's own forward pass in the same precision follows."""
    monkeypatch.setattr(parity, "FastViT", kind)
    found = placed()
    assert (found.precision, found.way) == ("bf16", "plain")
    assert found.cosine > 0.999


def test_a_precision_that_is_inexact_is_given_up(monkeypatch, caplog):
    """auto falls back to fp32 with a line that says so; a precision by name is refused: its vectors are others."""
    monkeypatch.setattr(parity, "PARITY_COSINE", 1.5)
    found = placed()
    assert (found.precision, found.way) == ("fp32", "plain")
    assert "bf16 is inexact here" in caplog.text
    assert "using fp32" in caplog.text
    with pytest.raises(ConfigurationError, match=r"bf16 on cpu does not give this model's vectors.*POSTERS_PRECISION"):
        placed(forced=True)


def test_the_proof_sees_what_a_high_cosine_would_hide():
    """Vectors that all lie close together: rows that changed places still have a cosine of 0.9999 each."""
    generator = np.random.default_rng(0)
    close = 1 + 0.003 * generator.normal(size=(4, 64))
    close = (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float32)
    assert (close * close[::-1]).sum(axis=1).min() > 0.9999
    assert lowest_cosine(close, close) > 0.9999
    assert lowest_cosine(close[::-1], close) == 0
    assert lowest_cosine(np.full_like(close, np.nan), close) == 0


def test_the_probe_is_always_the_same():
    """A proof that changes from start to start would prove nothing."""
    assert torch.equal(probe(GEOMETRY), probe(GEOMETRY))
    assert probe(Geometry(224, 224)).float().std() > 40


@pytest.mark.parametrize(
    ("platform", "share", "set_to"), [("linux", None, []), ("win32", None, [0.85]), ("win32", 0.5, [0.5])]
)
def test_the_card_is_capped_on_windows_and_where_it_is_asked_for(monkeypatch, platform, share, set_to):
    """There, a full card is not an error but a collapse: the cap makes it an error in time."""
    seen = []
    monkeypatch.setattr(parity.sys, "platform", platform)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: seen.append(share))
    use_card(torch.device("cuda", 0), share)
    assert seen == set_to
    use_card(CPU, 0.5)
    assert seen == set_to
