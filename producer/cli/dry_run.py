"""``index --dry-run``: what would be sent, and nothing is."""

from __future__ import annotations

import json
from itertools import islice

import click

from producer.client import Producer
from producer.collection.scan import Note, Search
from producer.indexing.freshness import Currency
from producer.indexing.index_job import search, summarise
from producer.output import say
from producer.queue.messages import Poster
from producer.queue.progress import Failure


def preview(producer: Producer, paths: tuple[str, ...], *, force: bool, as_json: bool) -> Search:
    """List what would be sent, on stdout; what would fail and what is in no entry, on stderr; or all as JSON lines."""

    def tell(note: Note, path: str) -> None:
        if note is not Note.NO_ENTRY:
            return  # a failure tells it, with the number of the entry
        if as_json:
            click.echo(json.dumps({"note": note.value, "path": path}))
        else:
            say(f"{note.value}: {path}")

    found = search(producer, paths, tell)
    is_current = Currency(producer, say)
    todo = unchanged = broken = 0
    while block := list(islice(found, producer.settings.posters_per_batch)):
        posters = [item for item in block if isinstance(item, Poster)]
        current = is_current(posters) if posters and not force else set()
        unchanged += len(current)
        for item in block:
            if isinstance(item, Failure):
                broken += 1
                if as_json:
                    click.echo(json.dumps({"would": "fail", **item._asdict()}))
                else:
                    say(f"cannot be sent: {item.path}: {item.word}: {item.reason}")
            elif item.id not in current:
                todo += 1
                click.echo(json.dumps({"would": "send", **item._asdict()}) if as_json else item.path)
    is_current.close()
    summarise(found, producer.settings)
    say(f"{todo} poster(s) to send, {unchanged} unchanged, {broken} that cannot be sent; nothing was sent")
    return found
