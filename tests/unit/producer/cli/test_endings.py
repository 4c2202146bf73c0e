"""How `index` ends: with the ledger as its last line, whatever goes wrong once the job is over."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.client import Producer
from producer.errors import (
    CommandForbidden,
    PruneRefused,
    RedisUnreachable,
    SpaceMismatch,
    StoreError,
    StoreUnavailable,
)
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.progress import NOTHING
from producer.queue.workers import READY, Announcement
from tests.support.filled_store import OTHER, SPACE

DONE = replace(NOTHING, job="j", submitted=3, embedded=3)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``index`` of a job that is over, as this process sees it; nobody works, and Redis is away."""
    (tmp_path / "posters").mkdir()
    variables = {
        "POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}",
        "POSTERS_ROOT": str(tmp_path / "posters"),
        "POSTERS_REDIS_URL": "redis://127.0.0.1:1/0",
        "POSTERS_CATALOGUE": "none",
    }

    def invoke(*arguments, progress=DONE, command=None):
        monkeypatch.setattr("producer.cli.index.send_all", lambda *_, **__: (SimpleNamespace(id="j"), progress))
        return CliRunner().invoke(main, command or ["index", *arguments], env=variables)

    return invoke


def ledger_of(done):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("failed", [0, 1])
def test_a_redis_that_goes_away_in_the_end_keeps_no_ledger_back(run, failed):
    """Neither failures nor notes can be asked for; the counts are known, and the status is theirs."""
    done = run("--json", progress=replace(DONE, embedded=3 - failed, failed=failed))
    assert done.exit_code == failed, done.output
    assert (ledger_of(done)["submitted"], ledger_of(done)["failed"]) == (3, failed)
    assert run().stdout.startswith("job j submitted 3 embedded 3 ")


def test_counts_that_do_not_add_up_are_no_success(run):
    """Something else changed the ledger: what was sent and is not counted may not be stored."""
    done = run("--json", progress=replace(DONE, embedded=2))
    assert done.exit_code == 1
    assert "the counts of job j do not add up: 3 posters were recorded, and 2 are counted" in done.stderr
    assert ledger_of(done)["submitted"] == 3
    assert run(progress=replace(DONE, embedded=2, open_batches=1)).exit_code == 0, "it is not at rest yet"


@pytest.mark.parametrize("arguments", [["status"], ["status", "j"], ["status", "--json"]])
@pytest.mark.parametrize("embedded", [2, 3])
def test_status_reports_counts_that_do_not_add_up(run, monkeypatch, arguments, embedded):
    """Of the job that was asked for, or of any that is listed."""
    monkeypatch.setattr(JobStore, "list_jobs", lambda store: ["j"])
    monkeypatch.setattr(JobStore, "progress", lambda store, job: replace(DONE, embedded=embedded))
    monkeypatch.setattr(Producer, "workers", lambda producer: [])
    monkeypatch.setattr(Claims, "paused_since", lambda claims: None)
    done = run(command=arguments)
    assert done.exit_code == (0 if embedded == 3 else 1), done.output
    assert ("do not add up" in done.stderr) == (embedded == 2)


def test_workers_of_two_models_keep_no_ledger_back(run, monkeypatch):
    """The model was changed while the job ended: its space is unknown, its counts are known."""
    workers = [
        Announcement(space.id, READY, {"space": space.id, "space_json": space.to_json(), "bottleneck": "bound"})
        for space in (SPACE, OTHER)
    ]
    asked = []
    monkeypatch.setattr(Producer, "workers", lambda producer: asked.append(1) or workers)
    done = run()
    assert (done.exit_code, len(asked)) == (0, 1)
    assert done.stdout.startswith("job j submitted 3 ")
    assert done.stderr.count("bound") == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailable("the store is locked"), 3),
        (RedisUnreachable("Redis is away"), 3),
        (CommandForbidden("Redis forbids a command"), 2),
        (StoreError("the store is no SQLite file"), 2),
        (SpaceMismatch("two spaces"), 2),
        (PruneRefused("more than half"), 2),
    ],
)
def test_a_prune_that_fails_after_the_job_says_so_by_its_status(run, monkeypatch, error, status):
    """As the same error of any command; the ledger comes last all the same."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("producer.cli.index.prune_and_notify", fail)
    done = run("--prune", "--json")
    assert done.exit_code == status
    assert f"error: {error}" in done.stderr
    assert ledger_of(done)["job"] == "j"
