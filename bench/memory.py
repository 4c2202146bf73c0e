"""Memory growth of a worker over thousands of posters: ``python -m bench.memory`` (Linux).

The same thousand files are sent repeatedly with ``--force``, so that the worker embeds them each time. The
growth after the first thousand counts.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import click

from bench.checkpoint import write_checkpoint
from bench.contest import Job, ThroughQueue, exit_on_sigterm
from bench.posters import KINDS, write_posters
from bench.processes import resident_bytes, tree
from worker.model.device import choose_device

RUN_POSTERS = 1000
MAX_GROWTH_MIB = 30


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: python -m bench.memory --images 20000"
)
@click.option("--images", default=20_000, show_default=True, help="Posters in total.")
@click.option("--posters", type=click.Choice([*KINDS]), default="jpeg", show_default=True, help="Kind of poster.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--precision", default="auto", show_default=True)
@click.option("--model", default="", help="Another model, such as a tiny local-dir: one, to measure all else.")
def main(images: int, posters: str, device: str, precision: str, model: str) -> None:
    """Show the memory of worker and child after each thousand posters; status 1 when it grows by more than 30 MiB."""
    logging.getLogger().setLevel(logging.ERROR)
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
        root = Path(folder, "posters")
        job = Job(root / posters, write_posters(root / posters, KINDS[posters], RUN_POSTERS))
        config = {
            "checkpoint": str(write_checkpoint(Path(folder, "weights")).file),
            "device": str(choose_device(device)),
            "precision": precision,
            "ours_batch": 64,
            "model": model,
        }
        queue = ThroughQueue("worker", root, config, 256)
        seen: list[float] = []
        try:
            queue.start()
            for number in range(max(2, images // RUN_POSTERS)):
                run = queue.run(job)
                seen.append(sum(resident_bytes(pid) for pid in tree(queue.pid())) / 2**20)
                growth = f"{seen[-1] - seen[0]:+6.1f} MiB since the first thousand" if number else ""
                speed = f"{run.images_per_second:7.1f} images/s"
                click.echo(f"{(number + 1) * RUN_POSTERS:7} posters  {seen[-1]:8.1f} MiB  {speed}  {growth}")
        finally:
            queue.stop()
    growth_mib = max(seen[1:]) - seen[0]
    click.echo(f"largest growth after the first thousand: {growth_mib:.1f} MiB")
    sys.exit(growth_mib > MAX_GROWTH_MIB)


if __name__ == "__main__":
    main(prog_name="python -m bench.memory")
