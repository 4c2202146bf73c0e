"""The station: what is given back, what is counted, what is cut, and what is buried; on a real ledger."""

import os
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

import worker.runtime.heartbeat
from producer.errors import BadMessage, DeviceLost, NewerMessage, RedisUnreachable, StoreUnavailable, UnreadablePoster
from producer.queue.claims import Claims
from producer.queue.dead_letters import DeadLetters
from producer.queue.image_requests import Answer, ImageRequests
from producer.queue.jobs import JobStore
from producer.queue.messages import EmbedBatch, Poster
from producer.queue.progress import Claim, Outcome
from producer.queue.workers import LOADING, READY, WAITING, WorkerRegistry
from producer.settings import load_settings
from tests.support.memory_store import MemoryStore
from worker.pipeline.timings import Timings
from worker.runtime.batch_runner import ASK_AGAIN_S, BatchRunner
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.startup import _pin_card


@dataclass
class FakePipeline:
    """Does as it is told."""

    error: BaseException | None = None
    runs: int = 0
    begun_before: bool = False
    before: list = field(default_factory=list)  # called with `progress` at each run
    timings = Timings()

    def run(self, batch, progress, *, begun_before):
        self.runs += 1
        self.begun_before = begun_before
        progress(1)
        for action in self.before:
            action(progress)
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


class Installation:
    """A station without a model, on a real ledger."""

    def __init__(self, url):
        settings = load_settings(redis_url=url, attempts=2, claim_s=3)
        self.pipeline, self.job_store = FakePipeline(), JobStore(url, claim_s=3)
        self.claims = Claims(self.job_store)
        shared = JobStore(url, claim_s=3)
        self.heartbeat = Heartbeat(settings, "w@tests", shared, solo=False)
        self.heartbeat.publish(READY, space="mine")
        self.heartbeat.start()
        self.runner = BatchRunner(settings, "me", self.pipeline, MemoryStore(), shared, self.heartbeat)
        self.job_store.create("J")

    def batch(self, count, number=1, **fields):
        batch = EmbedBatch("J", f"J.{number}", tuple(Poster(f"{n}", f"{n}.png") for n in range(count)), **fields)
        self.job_store.record_step("J", number, batch=batch)
        return batch

    def open(self):
        return sorted(self.claims.open_batches("J"))

    def close(self):
        self.runner.close()
        self.job_store.close()


@pytest.fixture
def installation(redis_url):
    installation = Installation(redis_url)
    yield installation
    installation.close()


def release(redis_server, batch):
    """As if the pause of a batch that was given back, or a dead worker's claim, were over."""
    with redis_server.client as client:
        client.delete(f"posters:claim:{batch.batch}")


def test_a_batch_is_embedded_and_counted(installation):
    """The plain way."""
    assert installation.runner.work(installation.batch(3))
    installation.job_store.mark_sent("J")
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.embedded, progress.at_rest) == (3, 3, True)


def test_a_clock_that_stands_still_costs_no_batch(installation, monkeypatch):
    """As on Windows, where a batch of small posters may be done between two of its ticks."""
    monkeypatch.setattr(
        "worker.runtime.batch_runner.time",
        SimpleNamespace(**vars(time) | dict.fromkeys(("monotonic", "perf_counter"), lambda: 5.0)),
    )
    assert installation.runner.work(installation.batch(3))
    assert installation.job_store.progress("J").embedded == 3


def test_a_pace_that_cannot_be_announced_costs_no_batch(installation, monkeypatch, caplog):
    """It is a nicety; the count is a promise."""

    def fail(*arguments, **fields):
        raise ValueError("a defect")

    monkeypatch.setattr(installation.heartbeat, "publish", fail)
    assert installation.runner.work(installation.batch(3))
    assert installation.job_store.progress("J").embedded == 3
    assert "its pace could not be announced" in caplog.text


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), OSError(116, "Stale file handle")])
def test_passing_trouble_costs_no_attempt_and_fails_no_poster(installation, redis_server, error):
    """However often it happens, the batch stays whole and open."""
    batch = installation.batch(2)
    installation.pipeline.error = error
    for _ in range(6):
        assert installation.runner.work(batch), "its message is done with: the ledger has it sent again"
        release(redis_server, batch)
    assert installation.pipeline.runs == 6
    assert installation.open() == ["J.1"]
    assert installation.claims.take_returned() == [("J", "J.1")]
    installation.pipeline.error = None
    installation.runner.work(batch)
    assert installation.pipeline.begun_before
    assert installation.job_store.progress("J").embedded == 2


def test_the_pause_grows_and_is_never_the_same(installation, monkeypatch):
    """2 s, 4 s … 60 s, a quarter more or less, so that workers that met the same trouble do not come back at once."""
    pauses, release = [], installation.runner._claims.release

    def noted(batch, holder, pause):
        pauses.append(pause)
        return release(batch, holder)

    monkeypatch.setattr(installation.runner._claims, "release", noted)
    installation.pipeline.error = StoreUnavailable("locked")
    batch = installation.batch(1)
    for _ in range(8):
        installation.runner.work(batch)
        installation.runner._backoff._grows_at = 0.0  # as if the pause were over, and the trouble were not
    for pause, middle in zip(pauses, (2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    assert len(set(pauses)) == len(pauses)


def test_a_batch_that_was_given_back_rests_for_a_while(installation):
    """Nobody takes it before its pause is over."""
    batch = installation.batch(2)
    installation.pipeline.error = StoreUnavailable("locked")
    installation.runner.work(batch)
    assert installation.claims.claim(batch, "another#1")[0] is Claim.BUSY


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), MemoryError()])
def test_a_defect_of_ours_counts_and_is_closed_in_upon(installation, redis_server, error):
    """After two attempts the batch is cut, and its halves are to be sent. Celery hears nothing of it."""
    batch = installation.batch(4)
    installation.pipeline.error = error
    for _ in range(2):
        assert installation.runner.work(batch)
        release(redis_server, batch)
    installation.runner.work(batch)
    assert installation.pipeline.runs == 2
    assert installation.open() == ["J.1.0", "J.1.1"]
    assert installation.claims.take_returned() == [("J", "J.1.0"), ("J", "J.1.1")]
    assert installation.job_store.progress("J").submitted == 4


def test_the_one_poster_that_is_left_is_buried(installation, redis_server):
    """It fails as crashed-worker, with the number of deaths."""
    batch = installation.batch(1)
    for number in range(2):
        installation.claims.claim(batch, f"one that dies#{number}")
        release(redis_server, batch)
    installation.runner.work(batch)
    assert installation.pipeline.runs == 0
    (failure,) = installation.job_store.failures("J")
    assert (failure.path, failure.word) == ("0.png", "crashed-worker")
    assert "ended 2 times" in failure.reason


def test_a_poisonous_poster_is_found_in_log2_deaths(installation, redis_server):
    """Of 256: two deaths of the whole, one for each cut of seven, two of the poster alone. Its neighbors are kept."""
    deaths, waiting = 0, [installation.batch(256)]
    while waiting:
        batch = waiting.pop()
        poisonous = any(poster.id == "200" for poster in batch.posters)
        holder = f"worker#{deaths}"
        verdict, attempt, _ = installation.claims.claim(batch, holder)
        assert verdict is Claim.WORK
        if poisonous and attempt <= 2:
            deaths += 1
            waiting.append(batch)
            continue
        installation.claims.release(batch, holder)
        installation.runner.work(batch)
        waiting += [part for part in _parts(batch) if part.batch in installation.open()]
    assert deaths == 2 + 7 + 2
    assert [(failure.id, failure.word) for failure in installation.job_store.failures("J")] == [
        ("200", "crashed-worker")
    ]
    assert installation.job_store.progress("J").embedded == 255


def _parts(batch):
    return batch.halves() if len(batch.posters) > 1 else ()


def test_the_halves_are_what_the_whole_was(installation, redis_server):
    """Lane, space, force and reply survive the cut."""
    batch = installation.batch(2, force=True, reply=True, space="mine", lane="interactive")
    for number in range(2):
        installation.claims.claim(batch, f"one that dies#{number}")
        release(redis_server, batch)
    installation.runner.work(batch)
    for name in ("J.1.0", "J.1.1"):
        half = installation.claims.load("J", name)
        assert (half.lane, half.space, half.force, half.reply) == ("interactive", "mine", True, True)


def test_a_batch_that_another_works_on_is_left_alone(installation):
    """No poster is embedded twice at once."""
    batch = installation.batch(2)
    installation.claims.claim(batch, "another#1")
    installation.runner.work(batch)
    assert installation.pipeline.runs == 0


def test_a_batch_of_a_cancelled_job_is_withdrawn(installation, redis_server):
    """Its message was on the way when the job was cancelled, or its worker died afterwards."""
    batch = installation.batch(2)
    installation.claims.claim(batch, "one that dies#1")
    installation.claims.cancel("J")
    release(redis_server, batch)
    installation.runner.work(batch)
    assert installation.pipeline.runs == 0
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.cancelled, progress.at_rest) == (0, 2, True)


def go_away(installation, monkeypatch, times):
    """Let Redis not answer so many commands of the runner that come after the batch was embedded."""
    client, left = installation.runner._claims._redis, [times]
    execute = client.translated

    def away(call, *arguments, **options):
        if installation.pipeline.runs and left[0]:
            left[0] -= 1
            raise RedisUnreachable("gone")
        return execute(call, *arguments, **options)

    monkeypatch.setattr(client, "translated", away)


def test_a_redis_that_goes_away_in_the_middle_is_waited_for(installation, monkeypatch, caplog):
    """What was embedded is counted when Redis is back, and is not embedded again; one line tells of the outage."""
    monkeypatch.setattr("producer.redis_client.RETRY_S", 0.01)
    batch = installation.batch(2)
    go_away(installation, monkeypatch, times=2)
    assert installation.runner.work(batch)
    assert installation.pipeline.runs == 1
    assert (installation.job_store.progress("J").open_batches, installation.job_store.progress("J").embedded) == (0, 2)
    assert caplog.text.count("waits for it") == 1


def test_a_worker_that_stops_does_not_wait_for_redis(installation, monkeypatch):
    """The batch goes back to its lane; nothing was counted."""
    batch = installation.batch(2)
    go_away(installation, monkeypatch, times=1000)
    threading.Timer(0.3, installation.runner.leave).start()
    assert not installation.runner.work(batch)
    assert installation.job_store.progress("J").open_batches == 1


def test_a_worker_that_stops_gives_its_batch_back_after_the_chunk(installation):
    """Uncounted, free at once, and its message returns to its lane."""
    batch = installation.batch(2)
    installation.pipeline.before = [lambda progress: installation.runner.leave(), lambda progress: progress(2)]
    assert not installation.runner.work(batch)
    assert installation.claims.take_returned() == [("J", "J.1")]
    assert installation.claims.claim(batch, "another#1") == (Claim.WORK, 1, True)


def test_a_signal_that_ends_the_process_costs_the_batch_no_attempt(installation):
    """Celery's parent sends its child SIGTERM when it stops; billiard makes SystemExit of it."""
    batch = installation.batch(2)
    installation.pipeline.error = SystemExit(0)
    with pytest.raises(SystemExit):
        installation.runner.work(batch)
    assert installation.claims.claim(batch, "another#1") == (Claim.WORK, 1, True)


def test_a_signal_that_ends_a_batch_that_hangs_counts(installation, monkeypatch):
    """Or a batch that always hangs would be tried for ever."""
    batch = installation.batch(2)
    monkeypatch.setattr(installation.heartbeat, "overdue", lambda: True)
    installation.pipeline.error = SystemExit(0)
    with pytest.raises(SystemExit):
        installation.runner.work(batch)
    assert installation.claims.claim(batch, "another#1") == (Claim.WORK, 2, True)


def test_a_batch_that_was_taken_over_is_left(installation, redis_server):
    """As after a pause of the whole process: another has the batch, and doing the rest would be doing it twice."""
    batch = installation.batch(2)

    def lose(progress):
        release(redis_server, batch)
        installation.claims.claim(batch, "another#1")
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            progress(1 + int(10 * time.monotonic()))
            time.sleep(0.05)

    installation.pipeline.before = [lose]
    began = time.monotonic()
    assert installation.runner.work(batch), "the message is done with"
    assert time.monotonic() - began < 4
    assert installation.claims.claim(batch, "third#1")[0] is Claim.BUSY, "the other's claim is untouched"


@pytest.mark.parametrize(("state", "space"), [(READY, "theirs"), (LOADING, "")])
def test_a_batch_for_another_workers_space_is_left_to_it(installation, redis_url, state, space):
    """Also while that worker loads its model, as after a crash."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", state, {"space": space})
    batch = installation.batch(2, space="theirs")
    assert installation.runner.work(batch)
    assert installation.pipeline.runs == 0
    assert installation.open() == ["J.1"]
    assert installation.claims.claim(batch, "other#1")[0] is Claim.BUSY, "it rests, so that nobody runs in circles"
    other.withdraw("other@tests")
    other.close()


def test_a_stand_in_for_the_card_makes_nothing(installation, redis_url):
    """It waits for as long as this worker lives: a batch that was left to it would run in circles for ever."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", WAITING, {"reason": "w@tests works on the card"})
    assert installation.runner.work(installation.batch(2, space="of the old model"))
    assert installation.pipeline.runs == 1
    other.close()


def test_batches_for_a_worker_that_loads_hold_up_nothing(installation, redis_url):
    """It takes no messages, so the lane need not be left to it; each of its batches rests, so nobody spins."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", LOADING, {})
    began = time.monotonic()
    for number in range(1, 5):
        assert installation.runner.work(installation.batch(1, number, space="theirs"))
    assert installation.runner.work(installation.batch(1, 5, space="mine"))
    assert time.monotonic() - began < ASK_AGAIN_S
    assert installation.pipeline.runs == 1
    assert installation.claims.claimed(installation.open()) == set(installation.open()) == {"J.1", "J.2", "J.3", "J.4"}
    assert installation.claims.take_returned() == [], "nothing is sent again before its pause is over"
    other.close()


def test_an_idle_worker_leaves_the_lane_to_the_one_whose_batches_they_are(installation, redis_url):
    """The first it passes on at once; when the next is the other's as well, it steps back for a second."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", READY, {"space": "theirs"})
    took = []
    for number, space in enumerate(["theirs", "mine", "theirs", "theirs"], 1):
        batch, began = installation.batch(1, number, space=space), time.monotonic()
        assert installation.runner.work(batch)
        took.append(time.monotonic() - began >= ASK_AGAIN_S)
    assert took == [False, False, False, True]
    other.close()


def test_a_batch_for_a_space_that_nobody_makes_any_more_goes_to_the_pipeline(installation):
    """Which fails its posters with a reason: the model was changed."""
    assert installation.runner.work(installation.batch(2, space="of the old model"))
    assert installation.pipeline.runs == 1


def test_a_message_of_a_newer_version_is_put_aside_once_and_rests(installation, redis_url):
    """The batch stays open for a newer worker; this one neither loses it nor runs in circles."""
    batch = installation.batch(2)
    for _ in range(2):
        installation.runner.dead_letters({"version": 99}, NewerMessage("version 99 is newer"), batch.batch)
    dead_letters = DeadLetters(installation.job_store)
    assert (dead_letters.count(), dead_letters.newest_reason()) == (1, "version 99 is newer")
    assert installation.claims.claimed(["J.1"]) == {"J.1"}
    assert installation.open() == ["J.1"]


@pytest.mark.parametrize("reason", [BadMessage("it is no batch"), NewerMessage("version 99 is newer")])
def test_a_message_that_cannot_be_put_aside_holds_up_nothing(installation, redis_server, caplog, reason):
    """With a Redis that is full, finishing other batches is what frees it. The batch, if it is one, stays open."""
    batch = installation.batch(2)
    with redis_server.client as client:
        client.config_set("maxmemory", "1")
        try:
            ended = threading.Timer(
                5, installation.runner.leave
            )  # or a worker that insists would hold up this test as well
            ended.start()
            began = time.monotonic()
            installation.runner.dead_letters({"version": 99}, reason, batch.batch)
            assert time.monotonic() - began < 2
        finally:
            ended.cancel()
            client.config_set("maxmemory", "0")
    assert "it could not be kept" in caplog.text
    assert "is full" in caplog.text
    assert DeadLetters(installation.job_store).count() == 0
    assert installation.open() == ["J.1"]


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
    queries = ImageRequests(redis_url)
    yield queries
    queries.close()


def test_a_query_is_answered_with_vector_and_space(installation, queries):
    """Of the worker's own model; the ledger never hears of it."""
    token = queries.put(b"image", 5)
    installation.runner.answer(token)
    assert queries.wait(token, 5) == Answer("space-1", np.full(4, 0.5, "<f4").tobytes())
    assert installation.pipeline.runs == 0
    assert installation.job_store.progress("J").submitted == 0


def test_a_query_that_was_taken_before_ended_its_worker(installation, queries):
    """Whoever still waits is told at once, instead of waiting for nothing."""
    token = queries.put(b"image", 5)
    queries.take(token)
    installation.runner.answer(token)
    with pytest.raises(UnreadablePoster, match="the image: crashed-worker"):
        queries.wait(token, 5)


def test_an_image_without_a_vector_has_its_reason(installation, queries):
    """As a poster has."""
    installation.pipeline.error = UnreadablePoster("the image", "too-large", "it has 9 pixels")
    token = queries.put(b"image", 5)
    installation.runner.answer(token)
    with pytest.raises(UnreadablePoster, match="too-large: it has 9 pixels"):
        queries.wait(token, 5)


def test_a_defect_is_told_to_whoever_waits_and_reaches_the_log(installation, queries, caplog):
    """It is ours, not the image's."""
    installation.pipeline.error = ZeroDivisionError("oops")
    token = queries.put(b"image", 5)
    installation.runner.answer(token)
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(UnreadablePoster, match="internal: ZeroDivisionError: oops"):
        queries.wait(token, 5)


def test_a_lost_device_ends_the_process_in_a_query_too(installation, queries, monkeypatch):
    """A fresh process takes over, and tells whoever waits."""
    ended = []

    def leave(status):
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    installation.pipeline.error = DeviceLost("the context is broken")
    token = queries.put(b"image", 5)
    with pytest.raises(SystemExit):
        installation.runner.answer(token)
    assert ended == [70]


def test_a_redis_that_is_away_does_not_end_a_worker(installation, monkeypatch):
    """Whoever waits hears nothing in time, and may ask again."""

    def away(token):
        raise RedisUnreachable("Redis is away")

    monkeypatch.setattr(installation.runner._queries, "take", away)
    installation.runner.answer("0" * 32)


def test_a_query_that_hangs_ends_a_solo_worker(redis_url, monkeypatch):
    """Nobody else would: there is no parent process with a time limit."""
    ended = threading.Event()
    monkeypatch.setattr(worker.runtime.heartbeat, "_exit", ended.set)
    settings = SimpleNamespace(redis_url=redis_url, batch_time_limit_s=0.2, claim_s=3)
    heartbeat = Heartbeat(settings, "solo@tests", JobStore(redis_url, claim_s=3), solo=True)
    heartbeat.start()
    with heartbeat.look():
        assert ended.wait(5)
    heartbeat.stop()


def test_many_batches_in_one_outage_make_no_longer_pause(installation, monkeypatch):
    """Eight batches that meet a full disk within a moment are one outage; one that lasts makes the pause longer."""
    pauses, release = [], installation.runner._claims.release

    def noted(batch, holder, after_s=0.0, **options):
        pauses.append(after_s)
        return release(batch, holder, after_s, **options)

    monkeypatch.setattr(installation.runner._claims, "release", noted)
    installation.pipeline.error = StoreUnavailable("the disk is full")
    for number in range(1, 9):
        installation.runner.work(installation.batch(1, number))
    assert max(pauses) <= 1.25 * 2
    installation.runner._backoff._grows_at -= 2  # as if the pause were over
    installation.runner.work(installation.batch(1, 9))
    assert 0.75 * 4 <= pauses[-1] <= 1.25 * 4
