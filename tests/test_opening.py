"""How a station opens: whatever stands in its way is said, and leaves no worker behind that has no model."""

import os
import signal
from pathlib import Path

import pytest
from world import World

from worker import opening
from worker.announcement import FAILED, Announcements
from worker.errors import ConfigurationError
from worker.keys import card_key
from worker.lease import Lease
from worker.ledger import Ledger

NAME, CARD = "w@tests", "GPU-6a1e0000-0000-0000-0000-000000000000"


@pytest.fixture
def announcements(redis_url, monkeypatch):
    monkeypatch.setenv("POSTERS_REDIS_URL", redis_url)
    announcements = Announcements(redis_url)
    yield announcements
    announcements.close()


@pytest.fixture
def pulses(monkeypatch):
    """The pulses that were started; the process that they beat in would have ended with them."""
    started = []

    class Noted(opening.Pulse):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr(opening, "Pulse", Noted)
    yield started
    for pulse in started:
        pulse.stop()


@pytest.mark.parametrize("error", [MemoryError("no memory left"), ZeroDivisionError("a defect of ours")])
def test_no_exception_leaves_a_worker_that_loads_for_ever(announcements, pulses, monkeypatch, redis_url, caplog, error):
    """Celery would swallow it: FAILED is said, with a traceback for us in the log, and the card is left to others."""
    ledger = Ledger(redis_url)

    def fail(settings, owner, ledger, pulse):
        pulse.card = Lease(ledger, card_key(CARD), owner, 15)
        pulse.card.take()
        raise error

    monkeypatch.setattr(opening, "_open", fail)
    assert opening.start_station(f"{NAME}/1/a", solo=True) is None
    heard = announcements.hear(NAME)
    assert heard.state == FAILED
    assert heard.get("reason") == f"{type(error).__name__}: {error}"
    assert "Traceback" in caplog.text
    assert Lease(ledger, card_key(CARD), "another", 15).take() is None
    assert pulses[0].card is None, "nor does its pulse take the card again"
    ledger.close()


def test_settings_that_a_new_child_cannot_read_end_the_worker(announcements, monkeypatch):
    """As when config.json was edited: nobody knows in which Redis to say so, and the parent is asked to end."""
    asked = []

    def refuse():
        raise ConfigurationError("config.json is not readable JSON")

    monkeypatch.setattr(opening, "load_settings", refuse)
    monkeypatch.setattr(os, "kill", lambda pid, number: asked.append((pid, number)))
    assert opening.start_station(f"{NAME}/1/a", solo=False) is None
    assert asked == [(os.getppid(), signal.SIGTERM)]


@pytest.fixture
def world(redis_url, redis_server, tmp_path):
    world = World(tmp_path, redis_server)
    yield world
    world.close()


def test_a_worker_whose_weights_are_cut_short_says_so_and_leaves(world):
    """As after a download that broke off: it is no worker that loads for ever and eats messages meanwhile."""
    path = Path(world.model.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    worker = world.worker("w")
    assert worker.process.wait(90) == 78
    assert "the file is damaged" in worker.said()
    assert "Traceback" not in worker.said()
