"""`index --dry-run`: lists what would be sent, and sends nothing."""

from __future__ import annotations

from itertools import islice

from producer.client import Producer
from producer.collection.scan import PosterScan, ScanNote
from producer.indexing.freshness import UpToDateFilter
from producer.indexing.index_job import notify_summary, scan
from producer.output import emit, emit_json, notify
from producer.queue.messages import Poster
from producer.queue.progress import Failure


def preview(producer: Producer, paths: tuple[str, ...], *, force: bool, as_json: bool) -> PosterScan:
    """List what would be sent, on stdout; what would fail and what is in no entry, on stderr; or all as JSON lines."""

    def on_note(note: ScanNote, path: str) -> None:
        if note is not ScanNote.NO_ENTRY:
            return  # a failure reports it, with the number of the entry
        if as_json:
            emit_json({"note": note.value, "path": path})
        else:
            notify(f"{note.value}: {path}")

    found = scan(producer, paths, on_note)
    up_to_date = UpToDateFilter(producer, notify)
    to_send = unchanged = broken = 0
    while block := list(islice(found, producer.settings.posters_per_batch)):
        posters = [item for item in block if isinstance(item, Poster)]
        current = up_to_date(posters) if posters and not force else set()
        unchanged += len(current)
        for item in block:
            if isinstance(item, Failure):
                broken += 1
                if as_json:
                    emit_json({"would": "fail", **item._asdict()})
                else:
                    notify(f"cannot be sent: {item.path}: {item.word}: {item.reason}")
            elif item.id not in current:
                to_send += 1
                if as_json:
                    emit_json({"would": "send", **item._asdict()})
                else:
                    emit(item.path)
    up_to_date.close()
    notify_summary(found, producer.settings)
    notify(f"{to_send} poster(s) to send, {unchanged} unchanged, {broken} that cannot be sent; nothing was sent")
    return found
