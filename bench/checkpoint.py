"""Seeded random weights of ViT-B/32, in the two formats that the entrants load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

SEED = 0
LAYERS = 12

# transformers' names for open_clip's tensors of the image tower
NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # sic
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class Checkpoint:
    """The same weights as a `file` for open_clip, clip-retrieval and ours, and as a `folder` for transformers."""

    file: Path
    folder: Path


def write_checkpoint(folder: Path) -> Checkpoint:
    """Write the weights in both formats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        state = open_clip.create_model("ViT-B-32", pretrained=None).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    file, theirs = folder / "vit-b-32.pt", folder / "transformers"
    torch.save(state, file)
    theirs.mkdir(exist_ok=True)
    save_file(_for_transformers(state), theirs / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "projection_dim": 512,
        "hidden_act": "gelu",
    }
    (theirs / "config.json").write_text(json.dumps(config))
    return Checkpoint(file, theirs)


def _for_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    theirs = {f"vision_model.{name}": state[f"visual.{ours}"] for ours, name in NAMES.items()}
    theirs["visual_projection.weight"] = state["visual.proj"].T
    for layer in range(LAYERS):
        block, target = f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for ours, name in BLOCK_NAMES.items():
                theirs[f"{target}.{name}.{kind}"] = state[f"{block}.{ours}.{kind}"]
            parts = state[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                theirs[f"{target}.self_attn.{letter}_proj.{kind}"] = part
    return {name: tensor.contiguous() for name, tensor in theirs.items()}
