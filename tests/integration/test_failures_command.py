"""What the ledger says of jobs, as the command line tells it."""

import json

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.errors import RedisUnreachable
from producer.queue.jobs import JobStore
from producer.queue.progress import Failure

FAILURES = [Failure(f"{number}", f"{number}.jpg", "missing", 'there is "no" such file') for number in range(1200)]


@pytest.fixture
def run(redis_url):
    """``failures`` of a job that has `count` of them."""

    def invoke(count, *arguments):
        ledger = JobStore(redis_url)
        ledger.create("job")
        ledger.record_step("job", 1, failures=FAILURES[:count])
        ledger.mark_sent("job", 1)
        ledger.close()
        return CliRunner().invoke(main, ["failures", "job", *arguments], env={"POSTERS_REDIS_URL": redis_url})

    return invoke


@pytest.mark.parametrize("count", [0, 1, 1200])
def test_failures_are_one_list_for_a_program(run, count):
    """Whatever their number: valid JSON, each once, an element on each line."""
    done = run(count, "--json")
    assert done.exit_code == 0
    assert sorted(json.loads(done.stdout), key=lambda entry: int(entry["id"])) == [
        failure._asdict() for failure in FAILURES[:count]
    ]
    assert len(done.stdout.splitlines()) == max(count, 1)


@pytest.mark.parametrize("count", [0, 1200])
def test_failures_are_lines_for_a_person(run, count):
    """Path, word, reason; nothing where nothing failed."""
    lines = (f"{failure.path}\tmissing\t{failure.reason}" for failure in FAILURES[:count])
    assert sorted(run(count).stdout.splitlines()) == sorted(lines)


@pytest.mark.parametrize(("arguments", "begin"), [((), "0.jpg\tmissing\t"), (("--json",), '[{"id": "0"')])
def test_failures_are_printed_as_they_come(run, monkeypatch, arguments, begin):
    """A job may have a million of them: none waits for the last one, which never comes here."""

    def failures(ledger, job):
        yield from FAILURES[:3]
        raise RedisUnreachable("Redis went away")

    monkeypatch.setattr(JobStore, "failures", failures)
    done = run(3, *arguments)
    assert done.exit_code == 3
    assert done.stdout.startswith(begin)
    assert done.stdout.count(".jpg") == 3
