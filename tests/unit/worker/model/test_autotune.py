"""batch_size=auto: the smallest of the fast sizes, within limits of memory and time."""

import pytest

from worker.model.autotune import find_chunk_size

SIZES = (16, 32, 64, 128, 256)


class Machine:
    """A device with given images per second by size; measuring takes `seconds_each` per image."""

    def __init__(self, rates, seconds_each=0.0):
        self.rates, self.now, self.measured, self.seconds_each = rates, 0.0, [], seconds_each

    def measure(self, size):
        self.measured.append(size)
        self.now += self.seconds_each * size
        return self.rates.get(size)

    def find(self, **options):
        return find_chunk_size(SIZES, self.measure, clock=lambda: self.now, **options)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({16: 100, 32: 190, 64: 300, 128: 302, 256: 303}, 64),  # stops growing
        ({16: 45, 32: 46, 64: 46}, 16),  # a CPU
        ({16: 100, 32: 200, 64: 400, 128: 800, 256: 1600}, 256),  # a card that is never full
        ({16: 100, 32: 200}, 32),  # 64 does not fit
        ({16: 100, 32: 60, 64: 500}, 16),  # slower: no larger size is tried
        ({}, 16),  # not even the first one fits: halving continues from there
    ],
)
def test_the_smallest_of_the_fast_sizes_is_chosen(rates, chosen):
    """Throughput that grows by less than 5 % is not worth memory and latency."""
    assert Machine(rates).find()[0] == chosen


def test_the_search_stops_where_growth_stops():
    """No size is tried after the first one without a gain."""
    machine = Machine({16: 100, 32: 101, 64: 102})
    machine.find()
    assert machine.measured == [16, 32]


def test_the_search_keeps_to_its_time_budget():
    """A size that would exceed the budget is not tried: it takes twice as long as the one before."""
    machine = Machine({size: size for size in SIZES}, seconds_each=0.1)
    chosen, rates = machine.find(budget_s=10)
    assert machine.measured == [16, 32]
    assert machine.now <= 10
    assert (chosen, rates) == (32, {16: 16, 32: 32})
