"""Fixtures of the tests that use a Redis: a ledger, and a served collection without a worker."""

import pytest

from producer.queue.jobs import JobStore
from tests.support.served import serving, write_collection


@pytest.fixture
def ledger(redis_url):
    ledger = JobStore(redis_url)
    yield ledger
    ledger.close()


@pytest.fixture
def settings(redis_url, tmp_path):
    """Of a small collection, whose store holds all of its posters but one."""
    return write_collection(tmp_path, redis_url)


@pytest.fixture
def client(settings):
    """Of the interface that serves that collection."""
    with serving(settings) as client:
        yield client
