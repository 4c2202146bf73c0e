"""Pruning of a Redis store: every test of tests/unit/producer/maintenance/test_prune.py again."""

from contextlib import closing

import pytest

from producer.vectors import open_store
from tests.unit.producer.maintenance.test_prune import *  # noqa: F403
from tests.unit.producer.maintenance.test_prune import FILES, NEW, OLD, fill


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        fill(store, OLD, FILES)
        fill(store, NEW, FILES[:5])
        yield store
