"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import signal
from itertools import chain, groupby

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of OpenMP that wait for a core keep it busy; set before torch loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
from tests.support.clock import Clock
from tests.support.fast_imports import sitecustomize  # noqa: F401 (before any test imports open_clip)
from tests.support.redis_server import RedisServer, find_redis_program
from tests.support.scenario_table import NOT_RUN, Fact, promised, pytest_addoption, pytest_terminal_summary  # noqa: F401 (hooks)

# A shell without job control starts what runs in the background with these ignored, and so would be the processes to
# which tests send them.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)


def pytest_collection_finish():
    """Leave what the imports made out of every later garbage collection: the engine collects on each recovery."""
    gc.collect()
    gc.freeze()


# Files that take long beside others, the longest first.
LONGEST = (
    "test_end_to_end.py",
    "test_watch.py",
    "test_search_commands.py",
    "test_memory_budget.py",
    "test_export.py",
    "test_decode.py",
    "test_card_lock.py",
    "test_text.py",
    "test_bench.py",
    "test_shutdown.py",
    "test_reindexing.py",
    "test_samples.py",
    "test_unloading.py",
    "test_types.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(items):
    """Bring long files first: pytest-xdist hands out whole files in this order, and its processes are to end together.

    Whole, because the tests of a file share a worker; within a file their order is left alone.
    """
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]

    def rank(tests):
        name, slow = tests[0].path.name, sum(bool(test.get_closest_marker("slow")) for test in tests)
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), -slow, "unit" in tests[0].path.parts

    items[:] = chain.from_iterable(sorted(files, key=rank))


@pytest.fixture
def clock():
    """A clock on which time passes when the test says so."""
    return Clock()


@pytest.fixture(scope="session")
def redis_program():
    """Path of the Redis server to test with; without one, a run in CI fails and any other run skips."""
    program = find_redis_program()
    if program is None and os.environ.get("CI"):
        pytest.fail("no Redis server is installed, and CI must not skip these tests")
    if program is None:
        pytest.skip("no Redis server is installed: make setup")
    return program


@pytest.fixture(scope="session")
def redis_server(redis_program):
    """One server for the whole run, and one for each process of pytest-xdist."""
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
    """Remove a developer's own POSTERS_* variables."""
    for name in list(os.environ):
        if name.upper().startswith("POSTERS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def installation(own_installation):
    """An installation without a worker; a file whose tests share one with a worker overrides this."""
    return own_installation


@pytest.fixture
def own_installation(redis_url, redis_server, tmp_path):
    """An installation without a worker, for one test alone."""
    from tests.support.installation import Installation

    installation = Installation(tmp_path, redis_server)
    yield installation
    installation.close()


# ─── chaos: see tests/support/chaos_installation.py ───


@pytest.fixture
def new_installation(tmp_path):
    """A factory of chaos installations with settings of their own, closed after the test."""
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
    """One installation with one worker, shared by all faults that a worker must survive.

    It is the same worker all the time, with whatever earlier faults have left behind in it: a test
    fails if the worker's main process ended.
    """
    installation = _shared_installation
    installation.recover()
    if not installation.workers or installation.workers[-1].process.poll() is not None:
        installation.worker(f"shared{len(installation.workers)}").wait_until_ready()
        # its first chunk holds an image more, with which it checks the device: tests count images
        assert installation.producer.enqueue(installation.draw(1, "first/"), force=True).wait(60).embedded == 1
    worker = installation.workers[-1].wait_until_ready()
    yield installation
    assert worker.process.poll() is None, f"the worker exited; its log:\n{worker.log_text()[-4000:]}"


@pytest.fixture
def measured(request):
    """A function that records the measurements of a scenario for the table of `make chaos`."""

    def note(recovered_s=None, twice=None, noted=""):
        recovered = NOT_RUN if recovered_s is None else f"{recovered_s:.1f} s"
        fact = Fact(*promised(request.node), recovered, NOT_RUN if twice is None else str(twice), noted)
        request.node.user_properties.append(("fact", tuple(fact)))

    return note
