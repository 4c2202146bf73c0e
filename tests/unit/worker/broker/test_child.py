"""The child of Celery's pool: it is ended and started in the thread of Celery's event loop, or not at all."""

import threading
from types import SimpleNamespace

import pytest
from kombu.asynchronous import Hub

from worker.broker import child as module
from worker.broker.child import Child


class FakePool:
    """A pool that notes in which thread it is changed."""

    def __init__(self):
        self.num_processes, self.calls = 1, []

    def _note(self, name, change):
        self.calls.append((name, threading.current_thread().name))
        self.num_processes += change

    def shrink(self, count):
        self._note("shrink", -count)

    def grow(self, count):
        self._note("grow", count)

    def maintain_pool(self):
        self._note("maintain", 0)


@pytest.fixture
def consumer(monkeypatch):
    """Celery's consumer, as far as it is used; its event loop does not run yet."""
    monkeypatch.setattr(module.celery_state, "reserved_requests", set())
    channel = SimpleNamespace(_in_poll=None)
    made = SimpleNamespace(hub=Hub(), pool=FakePool(), task_consumer=SimpleNamespace(channel=channel))
    made.hub.call_repeatedly(0.01, lambda: None)  # as Celery's timers, by which it comes round
    thread = threading.Thread(target=made.hub.run_forever, name="event loop")
    made.run = thread.start
    yield made
    if thread.is_alive():
        made.hub.stop()
        thread.join()
    made.hub.close()


def test_it_ends_and_starts_in_the_thread_of_the_event_loop(consumer):
    """Repeating either changes nothing: the pool never has two."""
    consumer.run()
    child = Child(consumer)
    assert child.end()
    assert child.end()
    assert child.start()
    assert child.start()
    names = [name for name, _ in consumer.pool.calls]
    assert names == ["shrink", "grow", "maintain", "maintain"]
    assert {thread for _, thread in consumer.pool.calls} == {"event loop"}


@pytest.mark.parametrize("on_its_way", ["asked", "reserved", "no connection"])
def test_it_does_not_end_while_a_message_may_be_on_its_way(consumer, on_its_way):
    """Redis may have answered with one, Celery may hold one; nobody knows while the connection is made anew."""
    consumer.run()
    if on_its_way == "asked":
        consumer.task_consumer.channel._in_poll = object()
    elif on_its_way == "reserved":
        module.celery_state.reserved_requests.add("a message")
    else:
        consumer.task_consumer = None
    assert not Child(consumer).end()
    assert consumer.pool.calls == []


def test_a_busy_event_loop_changes_nothing_later(consumer, monkeypatch):
    """Who asked was told that it did not happen."""
    monkeypatch.setattr(module, "LOOP_S", 0.05)
    assert not Child(consumer).end()
    came_round = threading.Event()
    consumer.run()
    consumer.hub.call_soon(came_round.set)
    assert came_round.wait(5)
    assert consumer.pool.calls == []
    monkeypatch.setattr(module, "LOOP_S", 5)
    assert Child(consumer).end()


def test_an_error_is_that_of_whoever_asked(consumer, monkeypatch):
    """In the event loop it would end the consumer."""
    consumer.run()

    def fail(count):
        raise ValueError("Can't shrink pool. All processes busy!")

    monkeypatch.setattr(consumer.pool, "shrink", fail)
    with pytest.raises(ValueError, match="busy"):
        Child(consumer).end()
    assert Child(consumer).start(), "the loop goes on"
