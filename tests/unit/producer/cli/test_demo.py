"""The `demo` command: the samples, whatever is set."""

from contextlib import contextmanager

import pytest

from producer.cli import demo
from producer.errors import NoWorker
from producer.queue.progress import NOTHING
from tests.support.project import PROJECT


def test_the_demo_uses_the_samples_whatever_is_set(tmp_path, monkeypatch):
    """Root and catalogue of somebody's own collection must not be indexed by it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTERS_ROOT", str(tmp_path))
    monkeypatch.setenv("POSTERS_CATALOGUE", "none")
    seen = []

    @contextmanager
    def own_redis(folder):
        yield "redis://127.0.0.1:1/0"

    @contextmanager
    def own_worker(settings, folder):
        seen.append((settings.root, settings.catalogue))
        raise NoWorker("this test starts none")
        yield

    monkeypatch.setattr(demo, "own_redis", own_redis)
    monkeypatch.setattr(demo, "own_worker", own_worker)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    with pytest.raises(NoWorker):
        demo.run_demo()
    assert seen == [(PROJECT / "posters", PROJECT / "data" / "posters.json")]


def test_the_demo_serves_its_pages_before_it_stops_its_worker(tmp_path, monkeypatch):
    """On request, with the demo's own Redis and store."""
    steps = []

    @contextmanager
    def own_redis(folder):
        yield "redis://127.0.0.1:1/0"

    @contextmanager
    def own_worker(settings, folder):
        yield "demo@localhost"
        steps.append("the worker is stopped")

    monkeypatch.setattr(demo, "own_redis", own_redis)
    monkeypatch.setattr(demo, "own_worker", own_worker)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    for name in ("scan", "_show_neighbors"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    monkeypatch.setattr(demo, "send_all", lambda *_: (None, NOTHING))
    monkeypatch.setattr(
        demo, "serve_until_stopped", lambda settings, host, port: steps.append((settings.redis_url, host, port))
    )
    assert demo.run_demo() is NOTHING
    assert steps.pop() == "the worker is stopped"
    demo.run_demo(8123)
    assert steps == [("redis://127.0.0.1:1/0", "127.0.0.1", 8123), "the worker is stopped"]
