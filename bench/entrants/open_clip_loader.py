"""open_clip behind torch's DataLoader: one process per core preprocesses while the model runs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.entrants.open_clip_loop import encode, load_model
from bench.entrants.serve import Config, Run, serve


class _Files(Dataset[torch.Tensor]):
    def __init__(self, paths: list[str], preprocess: Any) -> None:
        self._paths, self._preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image: torch.Tensor = self._preprocess(Image.open(self._paths[index]))
        return image


def _load(config: Config) -> tuple[Run, dict[str, str]]:
    model, preprocess = load_model(config)
    on_card = config["device"].startswith("cuda")

    def run(job: dict[str, Any]) -> Any:
        loader = DataLoader(
            _Files(job["paths"], preprocess),
            batch_size=config["batch"],
            num_workers=config["cores"],
            pin_memory=on_card,
        )
        found = [encode(model, images, config["device"]) for images in loader]
        return lambda: np.concatenate(found)

    return run, {name: version(name) for name in ("torch", "open_clip_torch", "pillow")}


if __name__ == "__main__":
    serve(_load)
