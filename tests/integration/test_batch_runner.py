"""BatchRunner on a real ledger: what is released, counted, split, and failed."""

import json
import os
import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from producer.errors import BadMessage, DeviceLost, NewerMessage, RedisUnreachable, StoreUnavailable, WrongVectors
from producer.queue.claims import Claims
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.messages import INTERACTIVE, BatchMessage, EmbedBatch, Poster
from producer.queue.progress import Claim, Outcome
from producer.queue.workers import LOADING, READY, WAITING, WorkerRegistry
from producer.settings import load_settings
from tests.support.ledger_jobs import recorded
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from worker.pipeline.timings import Timings
from worker.runtime.batch_runner import LANE_PAUSE_S, BatchRunner
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.startup import _pin_gpu


@dataclass
class FakePipeline:
    """Embeds every batch, or raises `error`."""

    error: BaseException | None = None
    runs: int = 0
    batch: EmbedBatch | None = None
    begun_before: bool = False
    before: list = field(default_factory=list)  # called with `report` at each run
    timings = Timings()

    def run(self, batch, report, *, begun_before):
        self.runs += 1
        self.batch, self.begun_before = batch, begun_before
        report(1)
        for action in self.before:
            action(report)
        if self.error:
            raise self.error
        return Outcome(embedded=len(batch.posters))

    def close(self):
        pass


class Installation:
    """A BatchRunner without a model, on a real ledger."""

    def __init__(self, url):
        settings = load_settings(redis_url=url, attempts=2, claim_s=3)
        self.pipeline, self.job_store = FakePipeline(), JobStore(url, claim_s=3)
        self.claims = Claims(self.job_store)
        shared = JobStore(url, claim_s=3)
        self.heartbeat = Heartbeat(settings, "w@tests", shared)
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
    """End the pause of a released batch, or the claim of a dead worker."""
    with redis_server.client as client:
        client.delete(f"posters:claim:{batch.batch}")


def test_a_batch_is_embedded_and_counted(installation):
    """The regular case."""
    assert installation.runner.run(installation.batch(3))
    installation.job_store.mark_sent("J")
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.embedded, progress.at_rest) == (3, 3, True)


def test_in_quiet_hours_a_batch_is_left_on_its_lane(installation, monkeypatch):
    """One that was received just as they began; no attempt counts. The other lane is served."""
    bulk, urgent = installation.batch(3), installation.batch(2, 2, lane=INTERACTIVE)
    monkeypatch.setattr("producer.settings.QuietHours.until", lambda hours, now=None: "2026-11-29T23:30+01:00")
    assert not installation.runner.run(bulk)
    assert installation.runner.run(urgent)
    assert installation.open() == ["J.1"]
    with_registry = WorkerRegistry(load_settings().redis_url, installation.job_store.redis)
    assert with_registry.get("w@tests").quiet == "quiet hours until 23:30"
    monkeypatch.undo()
    assert installation.claims.claim(bulk, "w#1")[:3] == (Claim.WORK, 1, False)


def test_a_clock_that_stands_still_costs_no_batch(installation, monkeypatch):
    """As on Windows, where a batch of small posters may be done between two ticks of the clock."""
    monkeypatch.setattr(
        "worker.runtime.batch_runner.time",
        SimpleNamespace(**vars(time) | dict.fromkeys(("monotonic", "perf_counter"), lambda: 5.0)),
    )
    assert installation.runner.run(installation.batch(3))
    assert installation.job_store.progress("J").embedded == 3


def test_a_speed_that_cannot_be_published_costs_no_batch(installation, monkeypatch, caplog):
    """The speed is informative; the count is a promise."""

    def fail(*arguments, **fields):
        raise ValueError("a defect")

    monkeypatch.setattr(installation.heartbeat, "publish", fail)
    assert installation.runner.run(installation.batch(3))
    assert installation.job_store.progress("J").embedded == 3
    assert "its speed could not be published" in caplog.text


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), OSError(116, "Stale file handle")])
def test_a_transient_failure_costs_no_attempt_and_fails_no_poster(installation, redis_server, error):
    """However often it happens, the batch stays complete and open."""
    batch = installation.batch(2)
    installation.pipeline.error = error
    for _ in range(6):
        assert installation.runner.run(batch), "its message is acknowledged: redelivery sends the batch again"
        release(redis_server, batch)
    assert installation.pipeline.runs == 6
    assert installation.open() == ["J.1"]
    assert installation.claims.take_returned() == [("J", "J.1")]
    installation.pipeline.error = None
    installation.runner.run(batch)
    assert installation.pipeline.begun_before
    assert installation.job_store.progress("J").embedded == 2


def test_the_pause_grows_and_has_jitter(installation, monkeypatch):
    """2 s, 4 s … 60 s, a quarter more or less, so that workers with the same failure do not retry together."""
    pauses, release = [], installation.runner._claims.release

    def noted(batch, holder, pause):
        pauses.append(pause)
        return release(batch, holder)

    monkeypatch.setattr(installation.runner._claims, "release", noted)
    installation.pipeline.error = StoreUnavailable("locked")
    batch = installation.batch(1)
    for _ in range(8):
        installation.runner.run(batch)
        installation.runner._backoff._ends_at = 0.0  # as if the pause were over, and the failure were not
    for pause, middle in zip(pauses, (2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    assert len(set(pauses)) == len(pauses)


def test_a_released_batch_has_a_pause(installation):
    """No worker can claim it before the pause is over."""
    batch = installation.batch(2)
    installation.pipeline.error = StoreUnavailable("locked")
    installation.runner.run(batch)
    assert installation.claims.claim(batch, "another#1")[0] is Claim.BUSY


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), MemoryError()])
def test_a_defect_counts_as_an_attempt_and_splits_the_batch(installation, redis_server, error):
    """After two attempts the batch is split, and redelivery sends its halves. Celery does not see the error."""
    batch = installation.batch(4)
    installation.pipeline.error = error
    for _ in range(2):
        assert installation.runner.run(batch)
        release(redis_server, batch)
    installation.runner.run(batch)
    assert installation.pipeline.runs == 2
    assert installation.open() == ["J.1.0", "J.1.1"]
    assert installation.claims.take_returned() == [("J", "J.1.0"), ("J", "J.1.1")]
    assert installation.job_store.progress("J").submitted == 4


def test_a_single_poster_that_crashes_its_worker_fails(installation, redis_server):
    """As crashed-worker, with the number of crashes."""
    batch = installation.batch(1)
    for number in range(2):
        installation.claims.claim(batch, f"worker#{number}")
        assert installation.claims.release_dead(batch, "worker", crashed=True)
    installation.runner.run(batch)
    assert installation.pipeline.runs == 0
    (failure,) = installation.job_store.failures("J")
    assert (failure.path, failure.word) == ("0.png", "crashed-worker")
    assert "died 2 times" in failure.reason
    assert (installation.runner.outcomes["failed"], installation.runner.failures) == (1, {"crashed-worker": 1})


def test_a_kill_from_outside_fails_no_poster(installation, redis_server):
    """Power cuts and `kill -9` hit whatever is in progress; one poster that is hit twice is embedded all the same."""
    batch = installation.batch(1)
    for number in range(4):
        installation.claims.claim(batch, f"worker{number}#x")
        release(redis_server, batch)  # the claim of a worker that died whole
    assert installation.runner.run(batch)
    assert installation.job_store.progress("J").embedded == 1


def test_a_poster_that_always_dies_unexplained_fails_in_the_end(installation, redis_server):
    """The kernel kills what takes all memory as a person would: nobody can tell, but it must not go on forever."""
    batch = installation.batch(1)
    for number in range(5):
        installation.claims.claim(batch, f"worker{number}#x")
        installation.claims.release_dead(batch, f"worker{number}", crashed=False)
    installation.runner.run(batch)
    assert installation.pipeline.runs == 0
    (failure,) = installation.job_store.failures("J")
    assert failure.word == "crashed-worker"
    assert "died 5 times" in failure.reason


def test_a_crashing_poster_is_found_in_log2_crashes(installation, redis_server):
    """Of 256: two crashes of the whole batch, one for each of seven splits, two of the poster alone."""
    crashes, waiting = 0, [installation.batch(256)]
    while waiting:
        batch = waiting.pop()
        crashing = any(poster.id == "200" for poster in batch.posters)
        holder = f"worker#{crashes}"
        verdict, attempt, *_ = installation.claims.claim(batch, holder)
        assert verdict is Claim.WORK
        if crashing and attempt <= 2:
            crashes += 1
            installation.claims.release_dead(batch, "worker", crashed=True)
            waiting.append(batch)
            continue
        installation.claims.release(batch, holder)
        installation.runner.run(batch)
        waiting += [part for part in _parts(batch) if part.batch in installation.open()]
    assert crashes == 2 + 7 + 2
    assert [(failure.id, failure.word) for failure in installation.job_store.failures("J")] == [
        ("200", "crashed-worker")
    ]
    assert installation.job_store.progress("J").embedded == 255


def _parts(batch):
    return batch.halves() if len(batch.posters) > 1 else ()


def test_halves_keep_the_fields_of_the_batch(installation, redis_server):
    """Lane, space and force survive the split."""
    batch = installation.batch(2, force=True, space="mine", lane="interactive")
    for number in range(2):
        installation.claims.claim(batch, f"crashed#{number}")
        release(redis_server, batch)
    installation.runner.run(batch)
    for name in ("J.1.0", "J.1.1"):
        half = recorded(installation.job_store, "J", name)
        assert (half.lane, half.space, half.force) == ("interactive", "mine", True)


def test_a_batch_that_another_worker_has_claimed_is_skipped(installation):
    """No poster is embedded twice at the same time."""
    batch = installation.batch(2)
    installation.claims.claim(batch, "another#1")
    installation.runner.run(batch)
    assert installation.pipeline.runs == 0


def test_a_batch_of_a_cancelled_job_is_withdrawn(installation, redis_server):
    """Its message was on the way when the job was cancelled, or its worker died afterwards."""
    batch = installation.batch(2)
    installation.claims.claim(batch, "crashed#1")
    installation.claims.cancel("J")
    release(redis_server, batch)
    installation.runner.run(batch)
    assert installation.pipeline.runs == 0
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.cancelled, progress.at_rest) == (0, 2, True)


def make_unreachable(installation, monkeypatch, times):
    """Fail the runner's first `times` commands after the batch was embedded."""
    client, left = installation.runner._claims._redis, [times]
    execute = client.translated

    def fail_or_execute(call, *arguments, **options):
        if installation.pipeline.runs and left[0]:
            left[0] -= 1
            raise RedisUnreachable("gone")
        return execute(call, *arguments, **options)

    monkeypatch.setattr(client, "translated", fail_or_execute)


def test_an_unreachable_redis_is_waited_for(installation, monkeypatch, caplog):
    """What was embedded is counted when Redis is back, and not embedded again; the outage is logged once."""
    monkeypatch.setattr("producer.redis_client.RETRY_S", 0.01)
    batch = installation.batch(2)
    make_unreachable(installation, monkeypatch, times=2)
    assert installation.runner.run(batch)
    assert installation.pipeline.runs == 1
    assert (installation.job_store.progress("J").open_batches, installation.job_store.progress("J").embedded) == (0, 2)
    assert caplog.text.count("Waiting for Redis.") == 1


def test_a_worker_that_stops_does_not_wait_for_redis(installation, monkeypatch):
    """The batch stays open; nothing was counted."""
    batch = installation.batch(2)
    make_unreachable(installation, monkeypatch, times=1000)
    threading.Timer(0.3, installation.runner.stop_after_chunk).start()
    assert not installation.runner.run(batch)
    assert installation.job_store.progress("J").open_batches == 1


def test_stops_while_redis_is_unreachable_fail_no_poster(installation, redis_server, monkeypatch):
    """Redis itself stays up, so that it cannot know; more of them than `attempts` fail no poster that did no harm."""
    batch = installation.batch(1)
    for _ in range(3):
        with monkeypatch.context() as patch:
            make_unreachable(installation, patch, times=1000)
            stop = threading.Timer(0.3, installation.runner.stop_after_chunk)
            stop.start()
            assert not installation.runner.run(batch)
            stop.join()
        installation.heartbeat.stopping.clear()
        installation.pipeline.runs = 0
        release(redis_server, batch)
    assert installation.runner.run(batch)
    assert installation.job_store.progress("J").embedded == 1


def test_stops_while_redis_is_down_cost_no_attempt(tmp_path):
    """However many: the poster is tried the last time as it was the first time, and embedded."""
    with RedisServer(["--appendonly", "yes", "--appendfsync", "always"], tmp_path) as server:
        installation = Installation(server.url)
        batch = installation.batch(1)
        installation.pipeline.before = [
            lambda report: server.stop(),
            lambda report: installation.runner.stop_after_chunk(),
        ]
        for _ in range(7):
            assert not installation.runner.run(batch)
            server.start()
            installation.heartbeat.stopping.clear()
            release(server, batch)
        assert installation.claims.claim(batch, "another#1")[:3] == (Claim.WORK, 1, True)
        installation.claims.release(batch, "another#1")
        installation.pipeline.before = []
        assert installation.runner.run(batch)
        assert installation.job_store.progress("J").embedded == 1
        installation.close()


def test_a_worker_that_stops_releases_its_batch_after_the_chunk(installation):
    """The attempt is not counted, the batch is unclaimed at once, and its message returns to its lane."""
    batch = installation.batch(2)
    installation.pipeline.before = [lambda report: installation.runner.stop_after_chunk(), lambda report: report(2)]
    assert not installation.runner.run(batch)
    assert installation.claims.take_returned() == [("J", "J.1")]
    assert installation.claims.claim(batch, "another#1")[:3] == (Claim.WORK, 1, True)


def test_a_signal_that_ends_the_process_costs_the_batch_no_attempt(installation):
    """Celery's parent sends its child SIGTERM when it stops; billiard turns it into SystemExit."""
    batch = installation.batch(2)
    installation.pipeline.error = SystemExit(0)
    with pytest.raises(SystemExit):
        installation.runner.run(batch)
    assert installation.claims.claim(batch, "another#1")[:3] == (Claim.WORK, 1, True)


def test_a_lost_device_keeps_the_claim(installation):
    """The process must exit; its parent releases the batch, and the attempt counts."""
    batch = installation.batch(2)
    installation.pipeline.error = DeviceLost("the context is broken")
    with pytest.raises(DeviceLost):
        installation.runner.run(batch)
    assert installation.claims.claim(batch, "another#1")[0] is Claim.BUSY


def test_a_device_with_wrong_vectors_costs_the_batch_no_attempt(installation):
    """A fresh process takes it at once, however often that happens: the batch is not split."""
    batch = installation.batch(2)
    installation.pipeline.error = WrongVectors("the device lies")
    for _ in range(4):
        with pytest.raises(WrongVectors):
            installation.runner.run(batch)
    assert installation.claims.claim(batch, "another#1")[:2] == (Claim.WORK, 1)
    published = WorkerRegistry(installation.job_store.url).get("w@tests")
    assert published.get("wrong_vectors") == "1", "of this process, whose device it is"


def test_a_signal_that_ends_a_hanging_batch_counts_the_attempt(installation, monkeypatch):
    """Otherwise a batch that always hangs would be retried forever."""
    batch = installation.batch(2)
    monkeypatch.setattr(installation.heartbeat, "is_overdue", lambda: True)
    installation.pipeline.error = SystemExit(0)
    with pytest.raises(SystemExit):
        installation.runner.run(batch)
    assert installation.claims.claim(batch, "another#1")[:3] == (Claim.WORK, 2, True)


def test_a_batch_that_hangs_ends_its_process_and_counts(installation, monkeypatch):
    """In either pool, whatever Celery does: it is free for another worker at once, and this was a crash."""
    ended, seen = threading.Event(), []
    monkeypatch.setattr("worker.runtime.heartbeat.exit_now", lambda status: ended.set())
    limited = installation.heartbeat._settings.model_copy(update={"batch_time_limit_s": 0.2})
    monkeypatch.setattr(installation.heartbeat, "_settings", limited)
    batch = installation.batch(2)

    def hang(report):
        assert ended.wait(10)
        seen.append((installation.claims.crashes(batch), installation.claims.take_returned()))

    installation.pipeline.before = [hang]
    installation.runner.run(batch)
    assert seen == [(1, [("J", "J.1")])]


def test_a_batch_that_was_taken_over_is_interrupted(installation, redis_server):
    """As after a suspension of the whole process: another worker has the batch, and this one must not go on."""
    batch = installation.batch(2)

    def lose(report):
        release(redis_server, batch)
        installation.claims.claim(batch, "another#1")
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            report(1 + int(10 * time.monotonic()))
            time.sleep(0.05)

    installation.pipeline.before = [lose]
    began = time.monotonic()
    assert installation.runner.run(batch), "the message is acknowledged"
    assert time.monotonic() - began < 4
    assert installation.claims.claim(batch, "third#1")[0] is Claim.BUSY, "the other worker's claim is unchanged"


@pytest.mark.parametrize(("state", "space"), [(READY, "theirs"), (LOADING, "")])
def test_a_batch_for_another_workers_space_is_left_to_it(installation, redis_url, state, space):
    """Also while that worker still loads its model, as after a crash."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", state, {"space": space})
    batch = installation.batch(2, space="theirs")
    assert installation.runner.run(batch)
    assert installation.pipeline.runs == 0
    assert installation.open() == ["J.1"]
    assert installation.claims.claim(batch, "other#1")[0] is Claim.BUSY, "it has a pause, so that it does not circulate"
    other.withdraw("other@tests")
    other.close()


def test_no_batch_is_left_to_a_standby_worker(installation, redis_url):
    """It waits for the GPU as long as this worker lives: a batch that was left to it would circulate forever."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", WAITING, {"reason": "GPU 0 is in use by w@tests"})
    assert installation.runner.run(installation.batch(2, space="of the old model"))
    assert installation.pipeline.runs == 1
    other.close()


def test_batches_for_a_loading_worker_delay_no_others(installation, redis_url):
    """It consumes no messages yet, so the lane is not left to it; each of its batches has a pause."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", LOADING, {})
    began = time.monotonic()
    for number in range(1, 5):
        assert installation.runner.run(installation.batch(1, number, space="theirs"))
    assert installation.runner.run(installation.batch(1, 5, space="mine"))
    assert time.monotonic() - began < LANE_PAUSE_S
    assert installation.pipeline.runs == 1
    assert installation.claims.claimed(installation.open()) == set(installation.open()) == {"J.1", "J.2", "J.3", "J.4"}
    assert installation.claims.take_returned() == [], "nothing is sent again before its pause is over"
    other.close()


def test_an_idle_worker_leaves_the_lane_to_the_worker_with_the_right_space(installation, redis_url):
    """It releases the first batch at once; when the next is the other worker's as well, it pauses for a second."""
    other = WorkerRegistry(redis_url)
    other.publish("other@tests", READY, {"space": "theirs"})
    took = []
    for number, space in enumerate(["theirs", "mine", "theirs", "theirs"], 1):
        batch, began = installation.batch(1, number, space=space), time.monotonic()
        assert installation.runner.run(batch)
        took.append(time.monotonic() - began >= LANE_PAUSE_S)
    assert took == [False, False, False, True]
    other.close()


def test_a_batch_for_a_space_that_no_worker_produces_goes_to_the_pipeline(installation):
    """The pipeline fails its posters with a reason: the model was changed."""
    assert installation.runner.run(installation.batch(2, space="of the old model"))
    assert installation.pipeline.runs == 1


def test_what_a_message_says_of_its_batch_is_not_believed(installation):
    """The ledger recorded it: posters, space and flags come from there."""
    batch, ran = installation.batch(3, space="mine", force=True), []
    installation.pipeline.before = [lambda report: ran.append(installation.pipeline.batch)]
    forged = replace(batch, posters=(Poster("0", "other.png"),), space="theirs", force=False)
    assert installation.runner.run(BatchMessage.decode(forged.encode()))
    assert ran == [batch]
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.embedded, progress.open_batches) == (3, 3, 0)


def record(redis_server, text):
    """Replace the record of batch J.1."""
    with redis_server.client as client:
        client.hset("posters:job:J:open", "J.1", text)


def test_a_batch_that_a_newer_version_recorded_is_left_to_a_newer_worker(installation, redis_server):
    """It stays open, costs no attempt, is sent again after a minute, and is a dead letter once."""
    batch = installation.batch(2)
    newer = json.dumps(batch.encode() | {"version": 99})
    record(redis_server, newer)
    for _ in range(2):
        assert installation.runner.run(batch)
        assert installation.claims.claim(batch, "another#1").verdict is Claim.BUSY
        release(redis_server, batch)
    assert installation.pipeline.runs == 0
    assert installation.claims.take_returned() == [("J", "J.1")]
    dead_letters = DeadLetters(installation.job_store)
    assert dead_letters.count() == 1
    assert "version 99 is newer" in dead_letters.newest_reason()
    assert installation.claims.claim(batch, "newer#1") == (Claim.WORK, 1, True, newer, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lane": "sideways"}, "lane must be one of"),
        ({"color": "red"}, "unknown fields 'color'"),
        ({"batch": "J.7"}, "recorded as batch 'J.7' of job 'J'"),
        ({"posters": [["0", "0.png", -1, -1]]}, "it holds 1 posters, and was recorded with 2"),
        (None, "it is not JSON"),
    ],
)
def test_a_batch_that_no_worker_can_read_fails_by_name(installation, redis_server, change, reason):
    """Its job must end: neither this version nor a newer one will ever take it."""
    batch = installation.batch(2)
    record(redis_server, json.dumps(batch.encode() | change) if change else "no JSON")
    assert installation.runner.run(batch)
    assert installation.pipeline.runs == 0
    progress = installation.job_store.progress("J")
    assert (progress.submitted, progress.failed, progress.open_batches) == (2, 2, 0)
    assert installation.runner.outcomes["failed"] == installation.runner.failures["internal"] == 2
    failures = list(installation.job_store.failures("J"))
    assert {failure.word for failure in failures} == {"internal"}
    assert all(reason in failure.reason for failure in failures)
    assert {failure.id for failure in failures} <= {"0", "1"} if change else {"J.1"}


def test_an_outcome_that_does_not_add_up_is_not_counted(installation, redis_server, monkeypatch, caplog):
    """A defect of the pipeline: the batch stays open, and the attempt counts, so that this has an end."""
    batch = installation.batch(3)
    monkeypatch.setattr(installation.pipeline, "run", lambda *_, **__: Outcome(embedded=2))
    assert installation.runner.run(batch)
    progress = installation.job_store.progress("J")
    assert (progress.settled, progress.open_batches) == (0, 1)
    assert "batch J.1 holds 3 posters, its outcome 2" in caplog.text
    release(redis_server, batch)
    assert installation.claims.claim(batch, "another#1")[:2] == (Claim.WORK, 2)


def test_a_message_of_a_newer_version_is_dead_lettered_once_and_deferred(installation, redis_url):
    """The batch stays open for a newer worker; this one neither loses it nor receives it again and again."""
    batch = installation.batch(2)
    for _ in range(2):
        installation.runner.reject({"version": 99}, NewerMessage("version 99 is newer"), batch.batch)
    dead_letters = DeadLetters(installation.job_store)
    assert (dead_letters.count(), dead_letters.newest_reason()) == (1, "version 99 is newer")
    assert installation.claims.claimed(["J.1"]) == {"J.1"}
    assert installation.open() == ["J.1"]


@pytest.mark.parametrize("reason", [BadMessage("it is no batch"), NewerMessage("version 99 is newer")])
def test_a_message_that_cannot_be_dead_lettered_delays_nothing(installation, redis_server, caplog, reason):
    """When Redis is full, finishing other batches frees its memory. The batch, if it is one, stays open."""
    batch = installation.batch(2)
    with redis_server.client as client:
        client.config_set("maxmemory", "1")
        try:
            ended = threading.Timer(
                5, installation.runner.stop_after_chunk
            )  # a worker that waited for Redis would block this test
            ended.start()
            began = time.monotonic()
            installation.runner.reject({"version": 99}, reason, batch.batch)
            assert time.monotonic() - began < 2
        finally:
            ended.cancel()
            client.config_set("maxmemory", "0")
    assert "it could not be stored" in caplog.text
    assert "is full" in caplog.text
    assert DeadLetters(installation.job_store).count() == 0
    assert installation.open() == ["J.1"]


@pytest.mark.parametrize("gpu", ["1", "GPU-6a1e"])
def test_the_gpu_is_pinned_in_the_order_of_nvidia_smi(monkeypatch, gpu):
    """Both variables are set before CUDA is initialized; none where no GPU is configured."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    _pin_gpu(None)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    _pin_gpu(gpu)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_many_batches_in_one_outage_do_not_lengthen_the_pause(installation, monkeypatch):
    """Eight batches that fail on a full disk at once are one outage; an outage that lasts lengthens the pause."""
    pauses, release = [], installation.runner._claims.release

    def noted(batch, holder, after_s=0.0, **options):
        pauses.append(after_s)
        return release(batch, holder, after_s, **options)

    monkeypatch.setattr(installation.runner._claims, "release", noted)
    installation.pipeline.error = StoreUnavailable("the disk is full")
    for number in range(1, 9):
        installation.runner.run(installation.batch(1, number))
    assert max(pauses) <= 1.25 * 2
    installation.runner._backoff._ends_at -= 2  # as if the pause were over
    installation.runner.run(installation.batch(1, 9))
    assert 0.75 * 4 <= pauses[-1] <= 1.25 * 4
