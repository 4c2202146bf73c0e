"""The lean tower: fewer steps, the same vectors, and only where it knows what it does."""

import copy
import platform

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer

from tests.support.tiny_model import CONFIG, MEAN, SIDE, STD, make_model
from worker.images.decode import Geometry
from worker.model.device import PRECISIONS
from worker.model.encoder import FastViT, Linear, OpenClipEncoder, is_supported
from worker.model.parity import PARITY_COSINE, lowest_cosine, probe

CPU = torch.device("cpu")
COLORS = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
# of vectors that have their mean taken away: those of an untrained model all lie close together, and what
# tells images apart is the rest
CENTRED = {"fp32": 0.99999, "bf16": 0.99}


def vectors(kind, tower, precision, images, device=CPU):
    with torch.inference_mode():
        return kind(copy.deepcopy(tower), *COLORS, device, PRECISIONS[precision])(images.to(device)).cpu().numpy()


def centerd(found: np.ndarray, expected: np.ndarray) -> float:
    a, b = found - expected.mean(axis=0), expected - expected.mean(axis=0)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def noise(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
@pytest.mark.parametrize("scale", [None, 0.3], ids=["no layer scale", "layer scale"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_lean_tower_is_the_same_embedding(quick, scale, precision):
    """Every precision against open_clip's own forward pass in fp32, on structured images and on noise."""
    vision = CONFIG["vision_cfg"] | {"ls_init_value": scale}
    tower = make_model(vision_cfg=vision, quick_gelu=quick).visual.eval()
    assert is_supported(tower)
    for images in (probe(Geometry(SIDE, SIDE)), noise(9)):
        expected = vectors(OpenClipEncoder, tower, "fp32", images)
        found = vectors(FastViT, tower, precision, images)
        assert lowest_cosine(found, expected) >= PARITY_COSINE
        # noise is so alike in a tiny model that its centerd vectors are nearly all rounding: open_clip's are the bar
        theirs = centerd(vectors(OpenClipEncoder, tower, precision, images), expected)
        assert 1 - centerd(found, expected) <= 2 * (1 - theirs) + 1e-5


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_the_usual_model_in_each_precision(name):
    """ViT-B/32 itself, with seeded numbers, as worker and bench run it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tower = open_clip.create_model(name, pretrained=None).visual.eval().requires_grad_(False)
    images = probe(Geometry(224, 224))
    expected = vectors(OpenClipEncoder, tower, "fp32", images)
    for precision in ("fp32", "bf16"):
        found = vectors(FastViT, tower, precision, images)
        assert lowest_cosine(found, expected) >= PARITY_COSINE
        assert centerd(found, expected) >= CENTRED[precision]


def test_a_picture_that_the_patches_do_not_cover_loses_the_same_edge():
    """A side that is no multiple of the patch: the convolution leaves the rest out, and so do we."""
    vision = CONFIG["vision_cfg"] | {"image_size": 70, "patch_size": 16}
    tower = make_model(vision_cfg=vision).visual.eval()
    images = noise(3, side=70)
    assert centerd(vectors(FastViT, tower, "fp32", images), vectors(OpenClipEncoder, tower, "fp32", images)) > 0.99999


@pytest.mark.parametrize(
    "change",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {"output_tokens": True},
        {"act_kwargs": {"approximate": "tanh"}},
        {"block_type": "custom"},
        {"qk_norm": True},
    ],
    ids=str,
)
def test_a_tower_of_another_build_is_left_to_open_clip(change):
    """What is not known exactly is not guessed at."""
    tower = make_model(vision_cfg=CONFIG["vision_cfg"] | change).visual
    assert isinstance(tower, VisionTransformer)
    assert not is_supported(tower)


def test_convolutional_towers_run_plainly():
    """ResNets have neither tokens nor blocks."""
    vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 32}
    tower = make_model(vision_cfg=vision).visual.eval()
    assert not is_supported(tower)
    assert vectors(OpenClipEncoder, tower, "fp32", noise(2)).shape == (2, 512)


@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_compute_the_same(monkeypatch, activation, dtype):
    """With oneDNN's order of the weights and without: the last digits at most, for any number of rows."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    packed = Linear(weight, bias, CPU, dtype, activation=activation)
    monkeypatch.setattr("worker.model.encoder._packed", lambda weight, bias: None)
    plain = Linear(weight, bias, CPU, dtype, activation=activation)
    if platform.machine() == "x86_64":
        assert packed._packed is not None
    for rows in (1, 3, 50, 1700):
        x = torch.randn(rows, 32, generator=generator).to(dtype)
        assert torch.allclose(
            packed(x).float(), plain(x).float(), rtol=0.02, atol=1e-5 if dtype == torch.float32 else 0.05
        )
