"""`index`, `retry` and a pass of `index --watch` report failures the same way."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from producer.client import Producer
from producer.errors import RedisUnreachable
from producer.host import program
from producer.output import SHOWN_FAILURES, notify_failures
from producer.queue.progress import NOTHING, Failure
from producer.queue.workers import READY, Announcement
from producer.settings import load_settings
from producer.watch.sync import Sync, WatchOptions

FAILED = [
    Failure(f"{number:02}.jpg", f"{number:02}.jpg", "missing", "no such file") for number in range(SHOWN_FAILURES + 3)
]
PROGRESS = replace(NOTHING, job="j", submitted=len(FAILED), failed=len(FAILED))


@pytest.fixture
def producer(tmp_path, monkeypatch):
    """A producer whose worker reads another root and found none of the files; Redis is not used."""
    (tmp_path / "00.jpg").touch()
    monkeypatch.setattr(Producer, "workers", lambda producer: [Announcement("w", READY, {"root": "/elsewhere"})])
    producer = Producer(load_settings(root=tmp_path, catalogue="none", redis_url="redis://127.0.0.1:1/0"))
    monkeypatch.setattr(producer.job_store, "failures", lambda job: iter(FAILED[::-1]))
    yield producer
    producer.close()


def test_the_first_failures_are_listed_and_the_rest_counted(producer, capsys):
    """Failures in order, and a hint where the worker reads another folder."""
    notify_failures(producer, PROGRESS)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:SHOWN_FAILURES] == [
        f"failed: {failure.path}: missing: no such file" for failure in FAILED[:SHOWN_FAILURES]
    ]
    assert lines[SHOWN_FAILURES] == f"… and 3 more: `{program()} failures j`"
    assert lines[SHOWN_FAILURES + 1].startswith("the worker misses files that are here: it reads /elsewhere")
    notify_failures(producer, NOTHING)
    assert capsys.readouterr().err == ""


def test_a_round_of_a_watch_hints_at_another_root_too(producer, capsys, monkeypatch):
    """After its job has ended."""
    monkeypatch.setattr("producer.watch.sync.follow", lambda *_, **__: PROGRESS)
    monkeypatch.setattr(producer, "begin", lambda: SimpleNamespace(id="j"))
    sync = Sync(
        producer,
        Path(producer.settings.root),
        WatchOptions(prune=False, yes=False, settle_s=1, scan_every_s=1),
        hold_back=lambda path: None,
        notify_once=lambda text: None,
        on_pass=lambda done: None,
    )
    sync.run(iter(()), [""], None, always=True)
    output = capsys.readouterr().err
    assert f"… and 3 more: `{program()} failures j`" in output
    assert "it reads /elsewhere" in output


def test_a_hint_that_cannot_be_made_is_left_out(producer, capsys, monkeypatch):
    """Redis became unreachable meanwhile: the failures are listed all the same."""

    def away(producer):
        raise RedisUnreachable("Redis does not answer")

    monkeypatch.setattr(Producer, "workers", away)
    notify_failures(producer, PROGRESS, FAILED)
    assert len(capsys.readouterr().err.splitlines()) == SHOWN_FAILURES + 1
