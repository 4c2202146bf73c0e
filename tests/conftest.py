"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil

import pytest
from chaos_table import NOT_RUN, Fact, promised, pytest_addoption, pytest_terminal_summary  # noqa: F401 (hooks)
from redis_server import RedisServer


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
def lonely(redis_url, redis_server, tmp_path):
    """An installation with nobody at work yet."""
    from world import World

    world = World(tmp_path, redis_server)
    yield world
    world.close()


# ─── chaos: see chaos_world.py ───


@pytest.fixture
def fresh(tmp_path):
    """Makes installations of a test's own, with settings of their own."""
    from chaos_world import ChaosWorld

    worlds = []

    def make(**options):
        worlds.append(ChaosWorld(tmp_path / f"world{len(worlds)}", **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(scope="session")
def _enduring(tmp_path_factory):
    from chaos_world import ChaosWorld

    world = ChaosWorld(tmp_path_factory.mktemp("enduring"), pause_s=0.1)
    yield world
    world.close()


@pytest.fixture
def enduring(_enduring):
    """One installation with one worker, for all the faults that a worker lives through.

    That it is the same worker all the time, with whatever earlier faults have left behind in it, is
    part of the proof: the test fails if its main process ended.
    """
    world = _enduring
    world.recover()
    if not world.workers or world.workers[-1].process.poll() is not None:
        world.worker(f"enduring{len(world.workers)}")
    worker = world.workers[-1].wait_until_ready()
    yield world
    assert worker.process.poll() is None, f"the worker ended:\n{worker.said()[-4000:]}"


@pytest.fixture
def measured(request):
    """Note what a scenario has measured, for the table of `make chaos`."""

    def note(recovered_s=None, twice=None, noted=""):
        recovered = NOT_RUN if recovered_s is None else f"{recovered_s:.1f} s"
        fact = Fact(*promised(request.node), recovered, NOT_RUN if twice is None else str(twice), noted)
        request.node.user_properties.append(("fact", tuple(fact)))

    return note
