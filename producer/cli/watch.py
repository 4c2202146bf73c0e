"""``index --watch``: one line for each round, until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from producer.cli.main import EX_INTERRUPTED
from producer.client import Producer
from producer.output import ledger_entry, notify
from producer.queue.progress import NOTHING


def watch_and_tell(
    producer: Producer,
    paths: Sequence[str],
    *,
    prune: bool,
    yes: bool,
    settle_s: float,
    search_every_s: float,
    as_json: bool,
) -> NoReturn:
    """Watch, and print a line for each round: on stderr for a person, JSON on stdout for a program."""
    from producer.watch.sync import SyncPass
    from producer.watch.watcher import Watching  # the library for it is asked for by nothing else

    def tell(done: SyncPass) -> None:
        entry: dict[str, Any] = ledger_entry(done.progress or NOTHING)
        if prune:
            entry["pruned"] = done.pruned
        if as_json:
            click.echo(json.dumps(entry))
        else:
            numbers = " ".join(f"{name} {value}" for name, value in entry.items() if value != "")
            notify(f"{time.strftime('%H:%M:%S')} {numbers}")

    try:
        Watching(
            producer, paths, prune=prune, yes=yes, settle_s=settle_s, search_every_s=search_every_s, tell=tell
        ).run()
    except KeyboardInterrupt as interrupt:
        job = interrupt.args[0] if interrupt.args else None
        if job:
            notify(f"interrupted; what was sent of job {job} goes on: `python -m producer status {job}`")
        notify("stopped watching")
    sys.exit(EX_INTERRUPTED)
