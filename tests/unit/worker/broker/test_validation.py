"""Whatever lies on a lane, kombu and Celery get a message that they can read, or nothing."""

import pytest
from hypothesis import HealthCheck, given, settings

from producer.errors import BadMessage, NewerMessage
from producer.queue.messages import EMBED_TASK, QUERY_TASK, BatchMessage, decode_query
from tests.support.lane_elements import QUEUE, came_back, elements, received
from worker.broker.validation import rebuild

CASES = 100


def rebuilt_or_rejected(element: bytes) -> str:
    """`rejected`, or the task that a rebuilt message arrives at with nothing but what was checked."""
    try:
        built = rebuild(element, QUEUE)
    except BadMessage as reason:
        return "rejected" if 0 < len(str(reason)) < 1000 else "rejected with half the message as its reason"
    task, name, argument = received(built)
    if task == QUERY_TASK:
        assert decode_query(argument) == name
        return task
    try:
        assert BatchMessage.decode(argument).batch == name
    except NewerMessage:
        assert set(argument) == {"version"}
    return task


@pytest.mark.parametrize("what", came_back())
def test_what_ended_every_worker_does_so_no_more(what):
    """It is rejected, or its batch is done, as the odd part was no part of it."""
    harmless = what in ("a type of kombu's", "stamped headers that are a number", "a nest of 900")
    assert rebuilt_or_rejected(came_back()[what]) == (EMBED_TASK if harmless else "rejected")


@given(elements())
@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_an_element_is_rebuilt_or_rejected(element):
    """By one exception, whatever lies on the lane; `make chaos` sends 10,000 to a worker."""
    assert rebuilt_or_rejected(element) in ("rejected", EMBED_TASK, QUERY_TASK)
