"""Looking ahead: in order, bounded, and one bad item never ends its neighbors."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.pipeline.loader import look_ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_come_in_order(pool, depth, count):
    """Whatever the depth, item i comes with its own result."""
    pairs = [(item, future.result()) for item, future in look_ahead(lambda n: n * n, range(count), pool, depth)]
    assert pairs == [(n, n * n) for n in range(count)]


def test_an_exception_stays_with_its_item(pool):
    """The future carries it; the rest goes on."""
    futures = [future for _, future in look_ahead(lambda n: 1 / n, [1, 0, 2], pool, 2)]
    assert futures[0].result() == 1
    assert isinstance(futures[1].exception(), ZeroDivisionError)
    assert futures[2].result() == 0.5


def test_no_more_than_the_depth_is_taken_ahead(pool):
    """Memory is bounded by depth, not by the length of the source."""
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    results = look_ahead(lambda n: n, source(), pool, 5)
    for expected in range(20):
        item, _ = next(results)
        assert item == expected
        assert len(taken) <= expected + 1 + 5
    results.close()
    assert len(taken) <= 25


def test_leaving_early_cancels_what_has_not_begun():
    """A consumer that stops does not pay for the rest."""
    gate, done = threading.Event(), []

    def work(number):
        gate.wait(5)
        done.append(number)

    with ThreadPoolExecutor(1) as pool:
        results = look_ahead(lambda n: n if n == 0 else work(n), range(50), pool, 10)
        next(results)
        results.close()
        gate.set()
    assert len(done) <= 1


def test_a_depth_of_nothing_is_refused(pool):
    """A bound of zero would wait for ever."""
    with pytest.raises(ValueError, match="depth must be at least 1"):
        next(look_ahead(lambda n: n, [1], pool, 0))
