"""Ctrl-C while a job is being sent: what was sent goes on, and the person is told how to send the rest."""

import os
import signal
import time

import pytest

from bench.image_samples import encoded, picture
from producer import Producer
from producer.errors import LedgerSetBack, RedisUnreachable
from producer.indexing.index_job import index
from producer.settings import load_settings


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # Python runs the handler between two of its steps


@pytest.fixture
def producer(redis_url, tmp_path):
    """Eight posters, one in a message, four messages in flight at most, and nobody at work."""
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(60, 90, seed=number), "JPEG"))
    settings = {"root": tmp_path, "catalogue": "none", "store": f"sqlite:{tmp_path / 'vectors.db'}"}
    producer = Producer(load_settings(redis_url=redis_url, posters_per_batch=1, window=4, **settings))
    yield producer
    producer.close()


def press_after_steps(producer, monkeypatch, *numbers):
    """Ctrl-C in the moment in which these steps have been written down."""
    step = producer.job_store.record_step

    def interrupted(job, number, **about):
        taken = step(job, number, **about)
        if number in numbers:
            press_ctrl_c()
        return taken

    monkeypatch.setattr(producer.job_store, "record_step", interrupted)


def test_a_ctrl_c_leaves_the_job_at_what_was_sent(producer, monkeypatch, capsys):
    """What was written down goes on; the job stands in the ledger as sent, and the person hears how to go on."""
    press_after_steps(producer, monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        index(producer, (), force=False, detach=False, quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted, progress.open_batches) == ("sent", 2, 2)
    assert "not everything was sent: run the same command again for what is left" in capsys.readouterr().err


def test_a_ctrl_c_under_detach_leaves_the_job_at_what_was_sent(producer, monkeypatch):
    """And its id is known, so that it can be followed or cancelled."""
    press_after_steps(producer, monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        index(producer, (), force=False, detach=True, quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted) == ("sent", 3)


def test_what_is_left_of_a_job_that_redis_set_back_is_withdrawn(producer, monkeypatch):
    """The new job finds what is not stored; with the old one's batches, posters would be embedded twice."""
    step, begun = producer.job_store.record_step, []

    def set_back(job, number, **about):
        if job not in begun:
            begun.append(job)
        if len(begun) == 1 and number == 3:
            raise LedgerSetBack("Redis came back without some steps")
        if len(begun) == 2 and number == 3:
            press_ctrl_c()
        return step(job, number, **about)

    monkeypatch.setattr(producer.job_store, "record_step", set_back)
    with pytest.raises(KeyboardInterrupt):
        index(producer, (), force=False, detach=False, quiet=True)
    first, second = (producer.job(job).progress() for job in begun)
    assert (first.submitted, first.cancelled, first.open_batches) == (0, 2, 0)
    assert (second.submitted, second.open_batches) == (2, 2)


def test_a_ctrl_c_while_redis_is_away_leaves_and_says_what_is_missing(producer, monkeypatch, capsys):
    """Waiting for Redis is no reason to hold a person; that the rest was not sent is said."""
    step = producer.job_store.record_step

    def away(job, number, **about):
        if number == 3:
            press_ctrl_c()
            raise RedisUnreachable("Redis is away")
        return step(job, number, **about)

    monkeypatch.setattr(producer.job_store, "record_step", away)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        index(producer, (), force=False, detach=False, quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted) == ("sent", 2)
    assert "run the same command again" in capsys.readouterr().err


def test_a_ctrl_c_leaves_a_redis_that_is_away_wherever_it_is_missed(producer, monkeypatch, capsys):
    """One is enough: the rest is not waited for, either."""

    def away(*arguments, **about):
        raise RedisUnreachable("Redis is away.")

    def progress(job):
        press_ctrl_c()
        away()

    monkeypatch.setattr(producer.job_store, "progress", progress)
    monkeypatch.setattr(producer.job_store, "record_step", away)
    with pytest.raises(KeyboardInterrupt):
        index(producer, (), force=False, detach=False, quiet=True)
    assert "not everything was sent: run the same command again" in capsys.readouterr().err


def test_a_ctrl_c_is_heard_where_redis_came_back_without_the_job(producer, monkeypatch):
    """No new job is begun after somebody asked for the end."""
    begun = []

    def set_back(job, number, **about):
        begun.append(job)
        press_ctrl_c()
        raise LedgerSetBack("Redis came back without some steps")

    monkeypatch.setattr(producer.job_store, "record_step", set_back)
    with pytest.raises(KeyboardInterrupt):
        index(producer, (), force=False, detach=False, quiet=True)
    assert len(begun) == 1


def test_a_redis_that_refuses_a_sign_of_life_does_not_stop_the_job(producer, monkeypatch, capsys):
    """A full one: it is said once, and what the workers do meanwhile is followed."""
    looks = []

    def full(job):
        raise RedisUnreachable("Redis is full.")

    def at_work(look=producer.job_store.progress):
        def progress(job):
            looks.append(job)
            if len(looks) == 6:
                press_ctrl_c()
            return look(job)

        return progress

    monkeypatch.setattr(producer.job_store, "renew_sending", full)
    monkeypatch.setattr(producer.job_store, "progress", at_work())
    with pytest.raises(KeyboardInterrupt):
        index(producer, (), force=False, detach=False, quiet=True)
    assert len(looks) == 6
    assert capsys.readouterr().err.count("Redis is full") == 1
