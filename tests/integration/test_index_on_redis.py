"""Index on a Redis store: every test of tests/unit/producer/search/test_index.py again."""

import pytest

from tests.unit.producer.search.test_index import *  # noqa: F403


@pytest.fixture
def url(redis_url):
    return redis_url
