"""SlowdownMonitor: a collapse is reported once; single slow chunks and a cold start are not."""

from worker.model.inference import SlowdownMonitor


def messages(rates):
    monitor = SlowdownMonitor()
    return [message for rate in rates if (message := monitor.record(100, 100 / rate))]


def test_a_collapse_is_reported_once_and_so_is_its_end():
    """With the rates before and after, and what to do."""
    reported = messages([4000] * 20 + [300] * 40 + [3900] * 5)
    assert len(reported) == 2
    assert "slowed down to 300 images/s, from 4000" in reported[0]
    assert "POSTERS_GPU_MEMORY_FRACTION" in reported[0]
    assert "back at 3900" in reported[1]


def test_single_slow_chunks_and_half_the_speed_are_no_collapse():
    """A shared or hot card is slower; a single chunk means nothing."""
    assert messages(([4000] * 5 + [200]) * 30) == []
    assert messages([4000] * 20 + [1500] * 200) == []


def test_a_slow_start_is_not_the_baseline():
    """The first chunks load kernels; the baseline rises at once."""
    assert messages([50] * 3 + [4000] * 100) == []


def test_a_chunk_without_measured_time_is_ignored():
    """The clock may be too coarse for a tiny chunk."""
    assert SlowdownMonitor().record(1, 0.0) is None
