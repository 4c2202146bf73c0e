"""End to end: ``python -m producer index`` against a plain open_clip loop, on the same files, in the same run.

The loop is what the README of open_clip shows: `create_model_and_transforms`, `preprocess`, `encode_image`,
batches of 32. Ours goes the whole way: Redis, a Celery worker, decoding, the model, the store, the ledger.
Both are run several times in turn; a machine's noise then hits both, and the median of the ratios counts.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import open_clip
import torch
from PIL import Image

from bench.posters import write_jpegs
from producer.demo import own_redis, own_worker
from worker.device import choose_device
from worker.settings import Settings, load_settings
from worker.weights import known_model

LOOP_BATCH = 32


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", default=512, show_default=True, help="JPEG files of 1000×1500.")
@click.option("--rounds", default=3, show_default=True, help="Times that both are run, in turn.")
@click.option("--pretrained", default="untrained", show_default=True, help="Weights do not change the speed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(images: int, rounds: int, pretrained: str, as_json: bool) -> None:
    """Compare images per second with a plain open_clip loop."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that untrained weights are not trained
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
        root = Path(folder, "posters")
        click.echo(f"drawing {images} posters …", err=True)
        paths = write_jpegs(root, images)
        settings = load_settings(pretrained=pretrained, root=root, catalogue="none")
        loop = PlainLoop(settings)
        loop.run(paths[:LOOP_BATCH])  # first-time costs are not measured on either side
        with own_redis(Path(folder)) as url:
            settings = load_settings(
                pretrained=pretrained, root=root, redis_url=url, store=f"sqlite:{Path(folder, 'vectors.db')}"
            )
            os.environ["POSTERS_ROOT"], os.environ["POSTERS_CATALOGUE"] = str(root), "none"
            with own_worker(settings, Path(folder)):
                _index(settings, force=True)
                pairs = []
                for number in range(rounds):
                    plain, ours = loop.run(paths), _index(settings, force=True)
                    pairs.append((plain, ours))
                    click.echo(f"round {number + 1}: loop {plain:.1f}, ours {ours:.1f} images/s", err=True)
                again = _index(settings, force=False)
    plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / plain for plain, ours in pairs)
    result = {
        "images": images,
        "rounds": rounds,
        "loop_images_per_second": round(plain, 1),
        "ours_images_per_second": round(ours, 1),
        "ratio": round(ratio, 2),
        "unchanged_images_per_second": round(again, 1),
        "device": str(loop.device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{images} JPEGs of 1000×1500, {settings.model_name}, {loop.device}, median of {rounds} rounds")
    click.echo(f"  plain open_clip loop      {plain:8.1f} images/s")
    click.echo(f"  python -m producer index  {ours:8.1f} images/s   {ratio:.2f} times the loop")
    click.echo(f"  the same again, unchanged {again:8.1f} images/s")


class PlainLoop:
    """What people write when they have no queue."""

    def __init__(self, settings: Settings) -> None:
        """Load the model as a script does: fp32, default threads."""
        self.device = choose_device(settings.device)
        model, _, self.preprocess = open_clip.create_model_and_transforms(known_model(settings.model_name))
        self.model = model.eval().to(self.device)

    @torch.inference_mode()
    def run(self, paths: Sequence[Path]) -> float:
        """Images per second."""
        began = time.perf_counter()
        for start in range(0, len(paths), LOOP_BATCH):
            images = [self.preprocess(Image.open(path)) for path in paths[start : start + LOOP_BATCH]]
            features = self.model.encode_image(torch.stack(images).to(self.device))
            (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()
        return len(paths) / (time.perf_counter() - began)


def _index(settings: Settings, *, force: bool) -> float:
    """Posters per second of one ``index`` over all of them, as its ledger tells."""
    environment = os.environ | {"POSTERS_REDIS_URL": settings.redis_url, "POSTERS_STORE": settings.store}
    command = [sys.executable, "-m", "producer", "index", "--json", *(["--force"] if force else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"index ended with status {done.returncode}: {done.stderr[-1000:]}")
    ledger = json.loads(done.stdout)
    if ledger["embedded"] + ledger["unchanged"] != ledger["submitted"]:
        raise click.ClickException(f"the ledger does not add up: {ledger}")
    return float(ledger["submitted"] / ledger["seconds"])


if __name__ == "__main__":
    main(prog_name="python -m bench")
