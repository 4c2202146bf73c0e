"""The station: what is given back, what is counted, what is cut, and what is buried; on a real ledger."""

import json
import os
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from worker.errors import DeviceLost, RedisUnreachable, StoreUnavailable, UnreadablePoster
from worker.ledger import Ledger
from worker.messages import BULK, QUEUES, EmbedBatch, Poster
from worker.pipeline import Timings
from worker.progress import Claim, Outcome
from worker.queries import Answer, Queries
from worker.settings import load_settings
from worker.station import Station, _pin_card
from worker.vectors.memory import MemoryStore


@dataclass
class FakePipeline:
    """Does as it is told."""

    error: Exception | None = None
    runs: int = 0
    begun_before: bool = False
    timings = Timings()

    def run(self, batch, progress, *, begun_before):
        self.runs += 1
        self.begun_before = begun_before
        progress(1)
        if self.error:
            raise self.error
        return Outcome(embedded=len(batch.posters))

    def embed_one(self, data):
        if self.error:
            raise self.error
        return np.full(4, 0.5, np.float32)

    @property
    def embedder(self):
        return SimpleNamespace(space=SimpleNamespace(id="space-1"))

    def close(self):
        pass


@pytest.fixture
def world(redis_url):
    settings = load_settings(redis_url=redis_url, attempts=2, claim_s=3)
    pipeline = FakePipeline()
    station = Station(settings, "w@tests", "me", pipeline, MemoryStore(), {}, solo=False)
    ledger = Ledger(redis_url, claim_s=3)
    ledger.create("J")
    yield station, pipeline, ledger
    station.close()
    ledger.close()


def batch_of(ledger, count, number=1):
    batch = EmbedBatch("J", f"J.{number}", tuple(Poster(f"{n}", f"{n}.png") for n in range(count)))
    ledger.step("J", number, batch=batch)
    return batch


def release(redis_server, batch):
    """As if the pause of a batch that was given back, or a dead worker's claim, were over."""
    with redis_server.client as client:
        client.delete(f"posters:claim:{batch.batch}")


def test_a_batch_is_embedded_and_counted(world):
    """The plain way."""
    station, _, ledger = world
    station.work(batch_of(ledger, 3))
    ledger.sent("J")
    progress = ledger.progress("J")
    assert (progress.submitted, progress.embedded, progress.at_rest) == (3, 3, True)


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), OSError(116, "Stale file handle")])
def test_passing_trouble_costs_no_attempt_and_fails_no_poster(world, redis_server, error):
    """However often it happens, the batch stays whole and open."""
    station, pipeline, ledger = world
    batch = batch_of(ledger, 2)
    pipeline.error = error
    for _ in range(6):
        station.work(batch)
        release(redis_server, batch)
    assert pipeline.runs == 6
    assert list(ledger.unclaimed("J")) == ["J.1"]
    pipeline.error = None
    station.work(batch)
    assert pipeline.begun_before
    assert ledger.progress("J").embedded == 2


def test_a_batch_that_was_given_back_rests_for_a_while(world):
    """Nobody takes it before its pause is over."""
    station, pipeline, ledger = world
    batch = batch_of(ledger, 2)
    pipeline.error = StoreUnavailable("locked")
    station.work(batch)
    assert ledger.claim(batch, "another")[0] is Claim.BUSY


def test_a_defect_of_ours_counts_and_is_closed_in_upon(world, redis_server):
    """After two attempts the batch is cut, and its halves are on the queue."""
    station, pipeline, ledger = world
    batch = batch_of(ledger, 4)
    pipeline.error = ZeroDivisionError("a defect")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            station.work(batch)
        release(redis_server, batch)
    station.work(batch)
    assert pipeline.runs == 2
    assert sorted(ledger.unclaimed("J")) == ["J.1.0", "J.1.1"]
    with redis_server.client as client:
        queued = [json.loads(text)["headers"]["id"] for text in client.lrange(QUEUES[BULK], 0, -1)]
    assert sorted(queued) == ["J.1.0", "J.1.1"]
    assert ledger.progress("J").submitted == 4


def test_the_one_poster_that_is_left_is_buried(world, redis_server):
    """It fails as crashed-worker, with the number of deaths."""
    station, pipeline, ledger = world
    batch = batch_of(ledger, 1)
    for _ in range(2):
        ledger.claim(batch, "one that dies")
        release(redis_server, batch)
    station.work(batch)
    assert pipeline.runs == 0
    (failure,) = ledger.failures("J")
    assert (failure.path, failure.word) == ("0.png", "crashed-worker")
    assert "ended 2 times" in failure.reason


def test_a_batch_that_another_works_on_is_left_alone(world):
    """No poster is embedded twice at once."""
    station, pipeline, ledger = world
    batch = batch_of(ledger, 2)
    ledger.claim(batch, "another")
    station.work(batch)
    assert pipeline.runs == 0


def test_a_redis_that_goes_away_in_the_middle_raises_nothing(world, monkeypatch):
    """The batch stays open in the ledger; the worker lives on."""
    from worker.errors import RedisUnreachable

    station, pipeline, ledger = world
    batch = batch_of(ledger, 2)

    def away(*arguments):
        raise RedisUnreachable("gone")

    monkeypatch.setattr(station._ledger, "finish", away)
    station.work(batch)
    assert pipeline.runs == 1
    assert ledger.progress("J").open_batches == 1


@pytest.mark.parametrize("card", ["1", "GPU-6a1e"])
def test_the_card_is_pinned_in_the_order_of_nvidia_smi(monkeypatch, card):
    """Both variables, before CUDA is looked at; nothing where no card was asked for."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    _pin_card(None)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    _pin_card(card)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == card
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.fixture
def queries(redis_url):
    queries = Queries(redis_url)
    yield queries
    queries.close()


def test_a_query_is_answered_with_vector_and_space(world, queries):
    """Of the worker's own model; the ledger never hears of it."""
    station, pipeline, ledger = world
    token = queries.put(b"image", 5)
    station.answer(token)
    assert queries.wait(token, 5) == Answer("space-1", np.full(4, 0.5, "<f4").tobytes())
    assert pipeline.runs == 0
    assert ledger.progress("J").submitted == 0


def test_a_query_that_was_taken_before_ended_its_worker(world, queries):
    """Whoever still waits is told at once, instead of waiting for nothing."""
    station, _, _ = world
    token = queries.put(b"image", 5)
    queries.take(token)
    station.answer(token)
    with pytest.raises(UnreadablePoster, match="the image: crashed-worker"):
        queries.wait(token, 5)


def test_an_image_without_a_vector_has_its_reason(world, queries):
    """As a poster has."""
    station, pipeline, _ = world
    pipeline.error = UnreadablePoster("the image", "too-large", "it has 9 pixels")
    token = queries.put(b"image", 5)
    station.answer(token)
    with pytest.raises(UnreadablePoster, match="too-large: it has 9 pixels"):
        queries.wait(token, 5)


def test_a_defect_is_told_to_whoever_waits_and_reaches_the_log(world, queries):
    """It is ours, not the image's."""
    station, pipeline, _ = world
    pipeline.error = ZeroDivisionError("oops")
    token = queries.put(b"image", 5)
    with pytest.raises(ZeroDivisionError):
        station.answer(token)
    with pytest.raises(UnreadablePoster, match="internal: ZeroDivisionError: oops"):
        queries.wait(token, 5)


def test_a_lost_device_ends_the_process_in_a_query_too(world, queries, monkeypatch):
    """A fresh process takes over, and tells whoever waits."""
    station, pipeline, _ = world
    ended = []

    def leave(status):
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    pipeline.error = DeviceLost("the context is broken")
    token = queries.put(b"image", 5)
    with pytest.raises(SystemExit):
        station.answer(token)
    assert ended == [70]


def test_a_redis_that_is_away_does_not_end_a_worker(world, monkeypatch):
    """Whoever waits hears nothing in time, and may ask again."""
    station, _, _ = world

    def away(token):
        raise RedisUnreachable("Redis is away")

    monkeypatch.setattr(station._queries, "take", away)
    station.answer("0" * 32)
