"""FastViT: fewer operations, the same vectors, and only for towers that it supports."""

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
from worker.model.parity import PARITY_COSINE, lowest_cosine, parity_images

CPU = torch.device("cpu")
COLORS = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
# Cosines after the mean is subtracted: an untrained model's vectors all lie close together, and only the
# remainder tells images apart.
MIN_CENTERED = {"fp32": 0.99999, "bf16": 0.99}


def vectors(kind, tower, precision, images, device=CPU):
    with torch.inference_mode():
        return kind(copy.deepcopy(tower), *COLORS, device, PRECISIONS[precision])(images.to(device)).cpu().numpy()


def centered_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    a, b = found - expected.mean(axis=0), expected - expected.mean(axis=0)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def noise(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
@pytest.mark.parametrize("scale", [None, 0.3], ids=["no layer scale", "layer scale"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_fast_vit_gives_the_vectors_of_open_clip(quick, scale, precision):
    """Every precision against open_clip's own forward pass in fp32, on structured images and on noise."""
    vision = CONFIG["vision_cfg"] | {"ls_init_value": scale}
    tower = make_model(vision_cfg=vision, quick_gelu=quick).visual.eval()
    assert is_supported(tower)
    for images in (parity_images(Geometry(SIDE, SIDE)), noise(9)):
        expected = vectors(OpenClipEncoder, tower, "fp32", images)
        found = vectors(FastViT, tower, precision, images)
        assert lowest_cosine(found, expected) >= PARITY_COSINE
        # A tiny model maps noise to nearly equal vectors, and centered they are mostly rounding: open_clip's in the
        # same precision are the measure.
        reference = centered_cosine(vectors(OpenClipEncoder, tower, precision, images), expected)
        assert 1 - centered_cosine(found, expected) <= 2 * (1 - reference) + 1e-5


@pytest.mark.parametrize("name", [pytest.param("ViT-B-32", marks=pytest.mark.chaos), "ViT-B-32-quickgelu"])
@pytest.mark.slow
def test_the_default_model_in_each_precision(name):
    """ViT-B/32 with seeded random weights, as worker and bench run it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tower = open_clip.create_model(name, pretrained=None).visual.eval().requires_grad_(False)
    images = parity_images(Geometry(224, 224))
    expected = vectors(OpenClipEncoder, tower, "fp32", images)
    for precision in ("fp32", "bf16"):
        found = vectors(FastViT, tower, precision, images)
        assert lowest_cosine(found, expected) >= PARITY_COSINE
        assert centered_cosine(found, expected) >= MIN_CENTERED[precision]


def test_an_edge_that_the_patches_do_not_cover_is_ignored():
    """Where a side is no multiple of the patch size, open_clip's convolution ignores the remainder, too."""
    vision = CONFIG["vision_cfg"] | {"image_size": 70, "patch_size": 16}
    tower = make_model(vision_cfg=vision).visual.eval()
    images = noise(3, side=70)
    found, expected = (vectors(kind, tower, "fp32", images) for kind in (FastViT, OpenClipEncoder))
    assert centered_cosine(found, expected) > 0.99999


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
def test_other_architectures_are_not_supported(change):
    """They run with open_clip's own forward pass."""
    tower = make_model(vision_cfg=CONFIG["vision_cfg"] | change).visual
    assert isinstance(tower, VisionTransformer)
    assert not is_supported(tower)


def test_convolutional_towers_run_with_open_clip():
    """ResNets have neither tokens nor attention blocks."""
    vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 32}
    tower = make_model(vision_cfg=vision).visual.eval()
    assert not is_supported(tower)
    assert vectors(OpenClipEncoder, tower, "fp32", noise(2)).shape == (2, 512)


@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_compute_the_same(monkeypatch, activation, dtype):
    """With oneDNN's weight layout and without, for any number of rows, only the last digits differ."""
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
