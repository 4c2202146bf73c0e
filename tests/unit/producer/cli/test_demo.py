"""The `demo` command: the samples, whatever is set."""

from contextlib import contextmanager

import pytest

from producer.cli import demo
from producer.errors import NoWorker
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
