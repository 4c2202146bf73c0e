"""`index --watch`: prints a line for each pass, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from producer.cli.main import EX_INTERRUPTED
from producer.client import Producer
from producer.host import program
from producer.output import emit_json, ledger_entry, notify
from producer.queue.progress import NOTHING
from producer.watch.sync import SyncPass, WatchOptions


def run_watch(producer: Producer, paths: Sequence[str], options: WatchOptions, *, as_json: bool) -> NoReturn:
    """Watch, and print a line for each pass: text on stderr, or JSON on stdout."""
    from producer.watch.watcher import Watcher  # imports watchfiles, which no other command needs

    def on_pass(done: SyncPass) -> None:
        entry: dict[str, Any] = ledger_entry(done.progress or NOTHING)
        if options.prune:
            entry["pruned"] = done.pruned
        if as_json:
            emit_json(entry)
        else:
            numbers = " ".join(f"{name} {value}" for name, value in entry.items() if value != "")
            notify(f"{time.strftime('%H:%M:%S')} {numbers}")

    try:
        Watcher(producer, paths, options, on_pass).run()
    except KeyboardInterrupt as interrupt:
        job = interrupt.args[0] if interrupt.args else None
        if job:
            notify(f"interrupted: batches already sent will still be processed: `{program()} status {job}`")
        notify("stopped watching")
    sys.exit(EX_INTERRUPTED)
