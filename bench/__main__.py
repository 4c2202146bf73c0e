"""Benchmark against peers, with the same posters and the same weights: ``python -m bench --help``.

Each entrant is a process that loads its model once. In a round, each entrant embeds all posters; the next
round has the opposite order, so that a machine that warms up or is disturbed affects all of them.
Ratios are computed within a round; the median of the rounds counts.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench.checkpoint import write_checkpoint
from bench.contest import Entrant, Failed, Job, Measured, Program, ThroughQueue, exit_on_sigterm
from bench.machine import machine, versions
from bench.peers import NoPeers, peers_python
from bench.posters import KINDS, write_posters
from bench.report import DECODE, LOADER, LOOP, MODEL, OURS, QUEUE, RETRIEVAL, TRANSFORMERS, describe, summarize
from producer.errors import PosterError
from producer.host import usable_cores
from worker.model.device import choose_device

RESULTS = Path(__file__).parent / "results"
IMAGES = {"cpu": 256, "cuda": 4096}  # of each kind: half a minute for the slowest entrant; 4096 PNG take 10 GB
WARM_UP_IMAGES = 32
PEER_BATCH = {"cpu": 64, "cuda": 256}  # clip-retrieval's default of 256 is slower on a CPU


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExamples:\n  python -m bench --posters jpeg --rounds 5\n"
    "  python -m bench --images 20000 --batch 4096   on a card",
)
@click.option("--images", default=0, help="Posters of each kind [default: 256, on a card 4096].")
@click.option(
    "--posters",
    type=click.Choice([*KINDS, "all"]),
    default="all",
    show_default=True,
    help="1000×1500 as JPEG or PNG; small: JPEG of 256 pixels.",
)
@click.option("--rounds", default=3, show_default=True, help="Runs of each entrant, in turn.")
@click.option("--batch", default=256, show_default=True, help="Posters per message of the queue.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N; for all entrants.")
@click.option("--precision", default="auto", show_default=True, help="Of ours; the peers use their own.")
@click.option("--batch-size", default="", help="Of ours, images per pass [default: auto on a card, 64 on a CPU].")
@click.option("--only", multiple=True, help="Only entrants whose name contains this; may be repeated.")
@click.option(
    "--peers/--no-peers", default=True, show_default=True, help="Install and run clip-retrieval and transformers."
)
@click.option("--peers-python", type=click.Path(path_type=Path), help="An interpreter in which both are installed.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
def main(
    images: int, posters: str, rounds: int, batch: int, device: str, precision: str, batch_size: str,
    only: tuple[str, ...], peers: bool, peers_python: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Compare with open_clip, clip-retrieval, transformers, and our own upper bounds. Writes bench/results/."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that random weights are not trained
    exit_on_sigterm()
    chosen = choose_device(device)
    images = images or IMAGES[chosen.type]
    kinds = list(KINDS.values()) if posters == "all" else [KINDS[posters]]
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
        root = Path(folder, "posters")
        _notify(f"drawing {images} posters of each kind, and writing random weights …")
        jobs = {kind: Job(root / kind.name, write_posters(root / kind.name, kind, images)) for kind in kinds}
        checkpoint = write_checkpoint(Path(folder, "weights"))
        config = {
            "checkpoint": str(checkpoint.file),
            "transformers_folder": str(checkpoint.folder),
            "device": str(chosen),
            "batch": PEER_BATCH[chosen.type],
            "cores": usable_cores(),
            "precision": precision,
            "ours_batch": batch_size if batch_size == "auto" else int(batch_size or 0) or _batch_size(chosen.type),
        }
        about = machine()  # before the entrants use the machine
        available = _entrants(config, root, batch, peers=peers, python=peers_python)
        entrants = _start([one for one in available if not only or any(word in one.name for word in only)])
        try:
            warm = Job(root / "warm-up", write_posters(root / "warm-up", KINDS["small"], WARM_UP_IMAGES))
            sizes = {kind.name: _median_size(job.paths) for kind, job in jobs.items()}
            measured = _rounds(entrants, warm, list(jobs.values()), rounds)
        finally:
            for entrant in entrants:
                entrant.stop()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about | {"device": str(chosen)},
        "versions": versions(),
        "settings": {"images": images, "rounds": rounds, **{key: config[key] for key in ("batch", "ours_batch")}},
        "entrants": {entrant.name: entrant.about for entrant in entrants},
        "posters": {
            kind.name: {"median_file_bytes": sizes[kind.name]} | summarize(found, shared_cores=chosen.type == "cpu")
            for kind, found in zip(jobs, measured, strict=True)
            if found and found[0]
        },
    }
    for kind in jobs:
        if kind.name in results["posters"] and not as_json:
            click.echo("\n".join(describe(kind.label, images, sizes[kind.name], results["posters"][kind.name])) + "\n")
    if as_json:
        click.echo(json.dumps(results))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{chosen.type}.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _notify(f"written to {os.path.relpath(path)}")


def _median_size(paths: Sequence[Path]) -> float:
    return statistics.median(path.stat().st_size for path in paths)


def _batch_size(device: str) -> int | str:
    return "auto" if device == "cuda" else 64


def _entrants(config: dict[str, Any], root: Path, batch: int, *, peers: bool, python: Path | None) -> list[Entrant]:
    found: list[Entrant] = [
        Program(LOOP, "open_clip_loop", config),
        Program(LOADER, "open_clip_loader", config),
    ]
    if peers:
        try:
            interpreter = peers_python(python)
            found.append(Program(RETRIEVAL, "clip_retrieval", config, python=interpreter))
            found.append(Program(TRANSFORMERS, "transformers_clip", config, python=interpreter))
        except NoPeers as error:
            _notify(f"without clip-retrieval and transformers: {error}")
    found.append(Program(OURS, "ours", config, part="whole"))
    found.append(ThroughQueue(QUEUE, root, config, batch))
    found.append(Program(DECODE, "ours", config, part="decode-only"))
    found.append(Program(MODEL, "ours", config, part="model-only"))
    return found


def _start(entrants: Sequence[Entrant]) -> list[Entrant]:
    started = []
    for entrant in entrants:
        _notify(f"starting {entrant.name} …")
        try:
            entrant.start()
            started.append(entrant)
        except (Failed, PosterError, OSError) as error:
            entrant.stop()
            _notify(f"without {entrant.name}: {error}")
    return started


def _rounds(entrants: list[Entrant], warm: Job, jobs: Sequence[Job], rounds: int) -> list[list[dict[str, Measured]]]:
    """Per job and round: entrant → run. An entrant that fails is left out of the following rounds."""
    for entrant in list(entrants):
        _attempt(entrants, entrant, warm)
    measured: list[list[dict[str, Measured]]] = [[] for _ in jobs]
    for number in range(rounds):
        for job, found in zip(jobs, measured, strict=True):
            runs = {}
            for entrant in list(entrants) if number % 2 == 0 else list(reversed(entrants)):
                run = _attempt(entrants, entrant, job)
                if run is not None:
                    runs[entrant.name] = run
                    _notify(
                        f"round {number + 1}, {job.folder.name}: {entrant.name} {run.images_per_second:.1f} images/s"
                    )
            found.append({entrant.name: runs[entrant.name] for entrant in entrants if entrant.name in runs})
    return measured


def _attempt(entrants: list[Entrant], entrant: Entrant, job: Job) -> Measured | None:
    try:
        return entrant.run(job)
    except Failed as error:
        _notify(f"without {entrant.name} from here on: {error}")
        entrants.remove(entrant)
        entrant.stop()
        return None


def _notify(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
    sys.exit(0)
