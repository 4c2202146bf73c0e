"""A tiny CLIP model for tests: real open_clip code and files, but milliseconds instead of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

DIMENSION = 512
SIDE = 64
CONFIG: dict[str, Any] = {
    "embed_dim": DIMENSION,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
# A text tower for open_clip's own tokenizer, whose vocabulary is 6 MB of fp32 at this width.
TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
# CoCa: the text tower appends a token, the image tower returns its tokens as well, and a decoder writes captions.
COCA: dict[str, Any] = {
    "custom_text": True,
    "vision_cfg": CONFIG["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TEXT | {"context_length": 20, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": DIMENSION, "heads": 8, "layers": 1},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)


def make_model(seed: int = 0, **changes: Any) -> Any:
    """The model with seeded random weights, of the class that open_clip chooses for the same configuration."""
    is_custom = changes.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in changes else open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**CONFIG | changes).eval()


def write_tiny_model(folder: Path, seed: int = 0, **changes: Any) -> str:
    """Write a model folder in open_clip's format; returns its ``local-dir:`` name."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": CONFIG | changes, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {name: tensor.contiguous() for name, tensor in make_model(seed, **changes).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
