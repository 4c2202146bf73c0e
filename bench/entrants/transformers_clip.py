"""transformers' CLIP with the fast image processor, one batch after the other."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorFast, CLIPVisionModelWithProjection

from bench.entrants.serve import Config, Run, serve


def _load(config: Config) -> tuple[Run, dict[str, str]]:
    device = config["device"]
    model = CLIPVisionModelWithProjection.from_pretrained(config["transformers_folder"]).eval().to(device)
    processor = CLIPImageProcessorFast()

    @torch.inference_mode()
    def embed(paths: list[str]) -> np.ndarray:
        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.autocast("cuda", enabled=device.startswith("cuda")):
            features = model(pixel_values=pixels.to(device)).image_embeds
        found: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
        return found

    def run(job: dict[str, Any]) -> Any:
        paths, batch = job["paths"], config["batch"]
        found = [embed(paths[start : start + batch]) for start in range(0, len(paths), batch)]
        return lambda: np.concatenate(found)

    return run, {name: version(name) for name in ("transformers", "torch", "pillow")}


if __name__ == "__main__":
    serve(_load)
