"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil

import pytest
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
