"""clip-retrieval's ``inference``: its own reader, mapper and writer, in its own environment.

Not measured, in its favor: loading the model, which is kept between runs, and the processes that write
statistics, which would import torch again on each run.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from clip_retrieval.clip_inference import worker as inference

from bench.entrants.serve import Config, Run, serve


class _NoStatistics:
    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def end(self) -> None:
        pass

    def __call__(self, stats: object) -> None:
        pass


def _load(config: Config) -> tuple[Run, dict[str, str]]:
    inference.LoggerWriter = _NoStatistics

    def run(job: dict[str, Any]) -> Any:
        output = tempfile.TemporaryDirectory(prefix="posters-bench-")
        inference.worker(
            tasks=[0],
            input_dataset=job["folder"],
            output_folder=output.name,
            output_partition_count=1,
            batch_size=config["batch"],
            num_prepro_workers=config["cores"],
            enable_text=False,
            clip_model=f"open_clip:ViT-B-32/{config['checkpoint']}",
            use_jit=False,
        )

        def fetch() -> np.ndarray:
            with output:
                found: np.ndarray = np.load(next(Path(output.name, "img_emb").glob("*.npy")))
            return found

        return fetch

    names = ("clip_retrieval", "torch", "open_clip_torch", "pillow", "numpy")
    return run, {name: version(name) for name in names}


if __name__ == "__main__":
    serve(_load)
