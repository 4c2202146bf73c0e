"""The identity of an embedding: what a Space records of its model, weights and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch

from producer.errors import ConfigurationError
from worker.images.resize import Geometry
from worker.model.weights import Weights, digest

RESIZE_MODES: Final = ("shortest", "longest", "squash")
INTERPOLATIONS: Final = ("bicubic", "bilinear", "random")  # open_clip takes bicubic for random outside of training


def geometry_of(config: Mapping[str, Any]) -> Geometry:
    """The input geometry; `config` is open_clip's ``preprocess_cfg``.

    Raises:
        ConfigurationError: a resize mode or interpolation that images are not resized with here.
    """
    for key, known in (("resize_mode", RESIZE_MODES), ("interpolation", INTERPOLATIONS)):
        if config[key] not in known:
            listed = ", ".join(known)
            raise ConfigurationError(f"the model's preprocessing has {key} {config[key]!r}, which is none of {listed}")
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    interpolation: Literal["bicubic", "bilinear"] = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return Geometry(height, width, config["resize_mode"], interpolation, int(config.get("fill_color", 0)))


def identify(tower: torch.nn.Module, weights: Weights, config: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the embedding's Space except its dimension; `tower` in fp32, as it was loaded."""
    quick = any(type(module).__name__ == "QuickGELU" for module in tower.modules())
    own = geometry_of(config)
    mean, std = (",".join(f"{value:.6g}" for value in config[name]) for name in ("mean", "std"))
    resized = f"{own.height}x{own.width} {own.resize_mode} {own.interpolation}"
    return {
        "model": weights.name,
        "weights": ("untrained-" if weights.untrained else "") + digest(tower),
        "activation": "quick_gelu" if quick else "gelu",
        "preprocessing": f"{resized} mean {mean} std {std} fill {own.fill}",
    }
