"""open_clip as in its README: preprocess and encode_image, one batch after the other."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from bench.entrants.serve import Config, Run, serve


def load_model(config: Config) -> tuple[Any, Any]:
    """The model on its device and its transform; fp32, on CUDA with autocast, as in the README."""
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=config["checkpoint"])
    return model.eval().to(config["device"]), preprocess


def encode(model: Any, images: torch.Tensor, device: str) -> np.ndarray:
    """Unit vectors of preprocessed images."""
    with torch.no_grad(), torch.autocast("cuda", enabled=device.startswith("cuda")):
        features = model.encode_image(images.to(device, non_blocking=True))
        features /= features.norm(dim=-1, keepdim=True)
    found: np.ndarray = features.float().cpu().numpy()
    return found


def _load(config: Config) -> tuple[Run, dict[str, str]]:
    model, preprocess = load_model(config)

    def run(job: dict[str, Any]) -> Any:
        found = []
        for start in range(0, len(job["paths"]), config["batch"]):
            images = [preprocess(Image.open(path)) for path in job["paths"][start : start + config["batch"]]]
            found.append(encode(model, torch.stack(images), config["device"]))
        return lambda: np.concatenate(found)

    return run, {name: version(name) for name in ("torch", "open_clip_torch", "pillow")}


if __name__ == "__main__":
    serve(_load)
