"""Ctrl-C while a job is being sent: what was sent is done, and the message says how to send the rest."""

import os
import signal
import time

import pytest

from bench.image_samples import encoded, picture
from producer import Producer
from producer.errors import LedgerSetBack, RedisUnreachable
from producer.indexing.index_job import scan, send_all
from producer.settings import load_settings


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # Python runs the handler between two bytecode instructions


@pytest.fixture
def producer(redis_url, tmp_path):
    """Eight posters, one per message, at most four open batches, and no worker."""
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(60, 90, seed=number), "JPEG"))
    settings = {"root": tmp_path, "catalogue": "none", "store": f"sqlite:{tmp_path / 'vectors.db'}"}
    producer = Producer(load_settings(redis_url=redis_url, posters_per_batch=1, window=4, **settings))
    yield producer
    producer.close()


def press_after_steps(producer, monkeypatch, *numbers):
    """Press Ctrl-C right after these steps were recorded."""
    step = producer.job_store.record_step

    def interrupted(job, number, **about):
        taken = step(job, number, **about)
        if number in numbers:
            press_ctrl_c()
        return taken

    monkeypatch.setattr(producer.job_store, "record_step", interrupted)


def test_a_ctrl_c_ends_the_sending(producer, monkeypatch, capsys):
    """Recorded batches stay open; the job is `sent` in the ledger, and the message says how to send the rest."""
    press_after_steps(producer, monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        send_all(producer, scan(producer, ()), quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted, progress.open_batches) == ("sent", 2, 2)
    assert "not everything was sent: run the same command again for what is left" in capsys.readouterr().err


def test_a_ctrl_c_ends_the_sending_with_detach(producer, monkeypatch):
    """The exception carries the job's id, so that the job can be followed or cancelled."""
    press_after_steps(producer, monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        send_all(producer, scan(producer, ()), detach=True, quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted) == ("sent", 3)


def test_open_batches_of_a_job_that_redis_lost_in_part_are_withdrawn(producer, monkeypatch):
    """A new job covers what is not stored; with the old job's batches, posters would be embedded twice."""
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
        send_all(producer, scan(producer, ()), quiet=True)
    first, second = (producer.job(job).progress() for job in begun)
    assert (first.submitted, first.cancelled, first.open_batches) == (0, 2, 0)
    assert (second.submitted, second.open_batches) == (2, 2)


@pytest.mark.parametrize("call", ["create", "record_step", "mark_sent", "progress", "mark_cancelled"])
def test_an_outage_is_waited_for_whatever_is_called(producer, monkeypatch, call):
    """Also after a set-back, when a new job is begun: Redis refuses each call of the ledger twice."""
    store, refused, set_back = producer.job_store, [], []
    real, step = getattr(store, call), store.record_step

    def refuse(*arguments, **options):
        if set_back and len(refused) < 2:
            refused.append(call)
            raise RedisUnreachable("Redis refuses.")
        return real(*arguments, **options)

    def lose(job, number, **about):
        if number == 3 and not set_back:
            set_back.append(job)
            raise LedgerSetBack("Redis came back without some steps")
        return step(job, number, **about) if call != "record_step" else refuse(job, number, **about)

    monkeypatch.setattr(store, call, refuse)
    monkeypatch.setattr(store, "record_step", lose)
    job, progress = send_all(producer, scan(producer, ()), quiet=True, detach=True)
    assert (len(refused), progress.submitted, progress.state) == (2, 8, "sent")
    assert producer.job(set_back[0]).progress().cancelled == 2
    assert job.id != set_back[0]


def test_a_ctrl_c_while_redis_is_unreachable_ends_the_sending(producer, monkeypatch, capsys):
    """The command does not wait for Redis, and says that the rest was not sent."""
    step = producer.job_store.record_step

    def fail(job, number, **about):
        if number == 3:
            press_ctrl_c()
            raise RedisUnreachable("Redis does not answer")
        return step(job, number, **about)

    monkeypatch.setattr(producer.job_store, "record_step", fail)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        send_all(producer, scan(producer, ()), quiet=True)
    progress = producer.job(interrupt.value.args[0]).progress()
    assert (progress.state, progress.submitted) == ("sent", 2)
    assert "run the same command again" in capsys.readouterr().err


def test_a_ctrl_c_ends_every_wait_for_redis(producer, monkeypatch, capsys):
    """A single Ctrl-C is enough, wherever the command waits."""

    def fail(*arguments, **about):
        raise RedisUnreachable("Redis does not answer.")

    def progress(job):
        press_ctrl_c()
        fail()

    monkeypatch.setattr(producer.job_store, "progress", progress)
    monkeypatch.setattr(producer.job_store, "record_step", fail)
    with pytest.raises(KeyboardInterrupt):
        send_all(producer, scan(producer, ()), quiet=True)
    assert "not everything was sent: run the same command again" in capsys.readouterr().err


def test_no_new_job_is_begun_after_a_ctrl_c(producer, monkeypatch):
    """Where Redis came back without the job, `index` begins another; not after Ctrl-C."""
    begun = []

    def set_back(job, number, **about):
        begun.append(job)
        press_ctrl_c()
        raise LedgerSetBack("Redis came back without some steps")

    monkeypatch.setattr(producer.job_store, "record_step", set_back)
    with pytest.raises(KeyboardInterrupt):
        send_all(producer, scan(producer, ()), quiet=True)
    assert len(begun) == 1


def test_a_full_redis_does_not_stop_the_job(producer, monkeypatch, capsys):
    """It refuses the renewal of the sender's lease: that is reported once, and the job is still followed."""
    polls = []

    def full(job):
        raise RedisUnreachable("Redis is full.")

    def interrupt_at_sixth_poll(progress_of=producer.job_store.progress):
        def progress(job):
            polls.append(job)
            if len(polls) == 6:
                press_ctrl_c()
            return progress_of(job)

        return progress

    monkeypatch.setattr(producer.job_store, "renew_sending", full)
    monkeypatch.setattr(producer.job_store, "progress", interrupt_at_sixth_poll())
    with pytest.raises(KeyboardInterrupt):
        send_all(producer, scan(producer, ()), quiet=True)
    assert len(polls) == 6
    assert capsys.readouterr().err.count("Redis is full") == 1
