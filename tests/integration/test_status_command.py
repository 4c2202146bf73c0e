"""`status`: jobs as they are, with per cent, speed and time left, on stdout."""

import json
import threading

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.host import program
from producer.queue.claims import Claims
from producer.queue.progress import Outcome
from producer.queue.workers import LOADING, READY, WorkerRegistry
from tests.support.ledger_jobs import batch, begin


@pytest.fixture
def run(redis_url, tmp_path):
    """The command line with that Redis."""

    def invoke(*arguments):
        variables = {"POSTERS_REDIS_URL": redis_url, "POSTERS_ROOT": str(tmp_path), "POSTERS_CATALOGUE": "none"}
        return CliRunner().invoke(main, arguments, env=variables)

    return invoke


def test_what_is_done_within_the_batch_in_work_counts(run, ledger):
    """One of two batches is finished, a quarter of the other is stored: five of eight."""
    claims = Claims(ledger)
    first, second = batch(1), batch(2)
    begin(ledger, first, second)
    claims.finish(first, Outcome(embedded=3, reused=1))
    claims.claim(second, "w#1")
    claims.renew(second, "w#1", 1)
    job = json.loads(run("status", "--json").stdout)["jobs"][0]
    assert (job["state"], job["done"], job["total"], job["percent"]) == ("sent", 5, 8, 62.5)
    assert job["seconds_left"] >= 0 < job["posters_per_second"]
    row = run("status", "job").stdout.splitlines()[-1].split()
    assert row[:7] == ["job", "sent", "62", "%", "5", "of", "8"]


def test_a_job_that_is_being_sent_has_a_total_once_its_producer_has_counted(run, ledger):
    """Within the window, what was submitted says nothing about the whole."""
    ledger.create("job")
    ledger.record_step("job", 1, batch=batch(1))
    job = json.loads(run("status", "job", "--json").stdout)["jobs"][0]
    assert (job["state"], job["total"], job["percent"], job["seconds_left"]) == ("sending", None, None, None)
    assert " 0 of 4+ " in run("status", "job").stdout
    ledger.note_expected("job", 400)
    Claims(ledger).finish(batch(1), Outcome(embedded=4))
    job = json.loads(run("status", "job", "--json").stdout)["jobs"][0]
    assert (job["total"], job["percent"]) == (400, 1.0)
    assert job["seconds_left"] >= 0
    ledger.note_expected("gone", 1)
    assert not ledger.redis.exists("posters:job:gone")


def test_states_are_what_they_are(run, ledger):
    """A finished job is not `sent`, and an empty one is done."""
    begin(ledger, batch(1, job="a"), job="a")
    Claims(ledger).finish(batch(1, job="a"), Outcome(embedded=4))
    begin(ledger, batch(1, job="b"), job="b")
    begin(ledger, job="c")
    begin(ledger, batch(1, job="d"), job="d")
    Claims(ledger).cancel("d")
    jobs = json.loads(run("status", "--json").stdout)["jobs"]
    assert {job["job"]: job["state"] for job in jobs} == {
        "a": "finished",
        "b": "sent",
        "c": "finished",
        "d": "cancelled",
    }
    assert {job["job"]: job["percent"] for job in jobs} == {"a": 100, "b": 0, "c": 100, "d": 100}


def test_everything_is_on_stdout_and_numbers_are_numbers(run, ledger, redis_url):
    """Also without a worker or a job."""
    done = run("status")
    assert done.stderr == ""
    assert "no worker is alive" in done.stdout
    assert "no jobs yet" in done.stdout
    registry = WorkerRegistry(redis_url)
    registry.publish("w@h/7/x", READY, {"pid": 7, "batch_size": "auto", "images_per_second": "81.5", "bottleneck": "b"})
    registry.close()
    worker = json.loads(run("status", "--json").stdout)["workers"][0]
    assert (worker["pid"], worker["batch_size"], worker["images_per_second"]) == (7, "auto", 81.5)
    assert isinstance(worker["at"], float)
    assert "w@h     ready" in run("status").stdout


def test_a_pause_is_shown_until_it_is_ended(run):
    """As text and as a number; both commands may be repeated."""
    assert json.loads(run("status", "--json").stdout)["paused_since"] is None
    since = run("pause").stdout
    assert since.startswith("the bulk lane is paused since 20")
    assert run("pause").stdout == since
    shown, moment = run("status"), since.removeprefix("the bulk lane is ").strip()
    assert shown.stdout.startswith(f"the bulk lane rests: {moment}; `{program()} resume` ends it\n")
    state = json.loads(run("status", "--json").stdout)
    assert state["paused_since"] > 1e9
    assert state["bulk_rests"] == moment
    assert run("resume").stdout == "the bulk lane goes on; 0 batch(es) rested\n"
    assert "is not paused" in run("resume").stderr
    assert "rests" not in run("status").stdout


def test_quiet_hours_are_shown_where_no_worker_begins_bulk_work(run, redis_url):
    """The lane rests when all workers that are ready do; the one that does is marked either way."""
    registry = WorkerRegistry(redis_url)
    quiet = {"quiet_until": "2026-11-29T23:30+01:00", "bottleneck": "device-bound"}
    registry.publish("a@h/7/x", READY, quiet)
    registry.publish("b@h/8/x", LOADING, {})
    assert run("status").stdout.startswith("the bulk lane rests: quiet hours until 23:30\n")
    assert "quiet hours until 23:30; device-bound\n" in run("status").stdout
    assert json.loads(run("status", "--json").stdout)["bulk_rests"] == "quiet hours until 23:30"
    registry.publish("b@h/8/x", READY, quiet | {"quiet_until": "2026-11-29T22:45+01:00"})
    assert run("status").stdout.startswith("the bulk lane rests: quiet hours until 22:45\n")
    registry.publish("b@h/8/x", READY, {})
    assert "rests" not in run("status").stdout
    assert "quiet hours until 23:30; device-bound\n" in run("status").stdout
    assert json.loads(run("status", "--json").stdout)["bulk_rests"] is None
    registry.close()


def test_follow_ends_with_the_job(run, ledger):
    """An object for each change; status 1 where a poster failed, as `index`."""
    begin(ledger, batch(1))
    timer = threading.Timer(0.5, Claims(ledger).finish, [batch(1), Outcome(embedded=4)])
    timer.start()
    done = run("status", "--follow", "--json")
    timer.join()
    assert done.exit_code == 0
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["sent", "finished"]
    rows = run("status", "job", "--follow").stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["job", "state"], ["job", "finished"]]


def test_indexing_a_path_that_does_not_exist_is_wrong_usage(run):
    """A misspelled folder is no poster that failed."""
    done = run("index", "no-such-folder")
    assert done.exit_code == 2
    assert "no-such-folder does not exist" in done.stderr
