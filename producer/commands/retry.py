"""``retry``: failed posters once more."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import click

from producer.client import Producer
from producer.commands.ending import leave_interrupted
from producer.commands.group import EX_OK, EX_SOME_FAILED, as_json, example
from producer.finding import was_sent
from producer.following import follow, progress_bar
from producer.obstacles import Obstacles, patiently
from producer.voice import ledger_entry, ledger_line, say, say_failures
from worker.errors import FAILURE_WORDS
from worker.messages import Poster
from worker.progress import NOTHING, Failure


@example("python -m producer retry last --only crashed-worker")
@click.command()
@click.argument("job")
@click.option("--only", type=click.Choice(FAILURE_WORDS), help="Only failures of this word.")
@as_json
def retry(job: str, only: str | None, as_json: bool) -> None:
    """Send the failed posters of JOB again, as a new job that this command waits for."""
    producer = Producer()
    entry = producer.job(job)
    failed = entry.progress().failed
    ask = partial(patiently, obstacles=Obstacles(producer))
    found = (failure for failure in producer.ledger.failures(entry.id, ask) if only in (None, failure.word))
    first = next(found, None)  # the rest is read while it is sent: a job may have a million
    progress = NOTHING
    if first is None:
        say(f"job {entry.id} has no failures" + (f" of the word {only}" if only else ""))
    else:
        new = producer.begin()
        say(f"sending what failed of job {entry.id} as job {new.id}")
        posters = (_as_sent(failure, producer.settings.catalogue) for failure in chain([first], found))
        try:
            with progress_bar(quiet=as_json, total=None if only else failed) as bar:
                feed = producer.feed(new, posters, patient=True)
                progress = follow(producer, new, feed, bar, again=f"run `python -m producer retry {entry.id}`")
        except KeyboardInterrupt as interrupt:
            leave_interrupted(interrupt)
        say_failures(producer, progress)
    if as_json or progress is not NOTHING:
        click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


def _as_sent(failure: Failure, catalogue: Path | None) -> Poster | Failure:
    """A failed poster as it is sent again; what never was a poster fails again as it did."""
    return Poster(failure.id, failure.path) if was_sent(failure, catalogue) else failure
