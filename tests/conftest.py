"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support.redis_server import RedisServer
from tests.support.scenario_table import NOT_RUN, Fact, promised, pytest_addoption, pytest_terminal_summary  # noqa: F401 (hooks)


@pytest.fixture(scope="session")
def redis_server():
    """One redis-server for the whole run; a run in CI without redis-server fails."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed, and in CI that is no reason to skip")
        pytest.skip("redis-server is not installed: make setup")
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server):
    """URL of an empty database on the shared server."""
    with redis_server.client as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """A developer's own POSTERS_* variables must not change what a test sees."""
    for name in list(os.environ):
        if name.upper().startswith("POSTERS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def installation(redis_url, redis_server, tmp_path):
    """An installation with nobody at work yet."""
    from tests.support.installation import Installation

    installation = Installation(tmp_path, redis_server)
    yield installation
    installation.close()


# ─── chaos: see tests/support/chaos_installation.py ───


@pytest.fixture
def new_installation(tmp_path):
    """Makes installations of a test's own, with settings of their own."""
    from tests.support.chaos_installation import ChaosInstallation

    installations = []

    def make(**options):
        installations.append(ChaosInstallation(tmp_path / f"installation{len(installations)}", **options))
        return installations[-1]

    yield make
    for installation in installations:
        installation.close()


@pytest.fixture(scope="session")
def _shared_installation(tmp_path_factory):
    from tests.support.chaos_installation import ChaosInstallation

    installation = ChaosInstallation(tmp_path_factory.mktemp("enduring"), pause_s=0.1)
    yield installation
    installation.close()


@pytest.fixture
def shared_installation(_shared_installation):
    """One installation with one worker, for all the faults that a worker lives through.

    That it is the same worker all the time, with whatever earlier faults have left behind in it, is
    part of the proof: the test fails if its main process ended.
    """
    installation = _shared_installation
    installation.recover()
    if not installation.workers or installation.workers[-1].process.poll() is not None:
        installation.worker(f"shared{len(installation.workers)}")
    worker = installation.workers[-1].wait_until_ready()
    yield installation
    assert worker.process.poll() is None, f"the worker ended:\n{worker.said()[-4000:]}"


@pytest.fixture
def measured(request):
    """Note what a scenario has measured, for the table of `make chaos`."""

    def note(recovered_s=None, twice=None, noted=""):
        recovered = NOT_RUN if recovered_s is None else f"{recovered_s:.1f} s"
        fact = Fact(*promised(request.node), recovered, NOT_RUN if twice is None else str(twice), noted)
        request.node.user_properties.append(("fact", tuple(fact)))

    return note
