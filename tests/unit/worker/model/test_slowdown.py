"""Pace: a collapse is told of once, a hitch and a cold start are not."""

from worker.model.inference import SlowdownMonitor


def notes(rates):
    pace = SlowdownMonitor()
    return [said for rate in rates if (said := pace.note(100, 100 / rate))]


def test_a_collapse_is_told_of_once_and_so_is_its_end():
    """With what it was, what it is, and what to do."""
    said = notes([4000] * 20 + [300] * 40 + [3900] * 5)
    assert len(said) == 2
    assert "slowed down to 300 images/s, from 4000" in said[0]
    assert "POSTERS_GPU_MEMORY_FRACTION" in said[0]
    assert "back at 3900" in said[1]


def test_hitches_and_half_the_speed_are_no_collapse():
    """A card that is shared or hot is slower; a single chunk says nothing."""
    assert notes(([4000] * 5 + [200]) * 30) == []
    assert notes([4000] * 20 + [1500] * 200) == []


def test_a_slow_start_is_not_the_measure():
    """The first chunks load kernels; what comes after counts, upwards at once."""
    assert notes([50] * 3 + [4000] * 100) == []


def test_nothing_is_concluded_from_no_time():
    """A clock too coarse for a tiny chunk."""
    assert SlowdownMonitor().note(1, 0.0) is None
