"""MemoryBudget: the sum of reservations stays within the limit, and no thread waits forever."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.image_samples import encoded, picture
from worker.images import decode as decode_module
from worker.images.decode import Geometry, decode
from worker.images.memory_budget import MemoryBudget


def test_reservations_stay_within_the_limit():
    """Thirty reservations of up to half the budget each, in eight threads."""
    budget, reserved, highest, lock = MemoryBudget(100), [0], [0], threading.Lock()

    def work(amount: int) -> None:
        with budget.reserve(amount):
            with lock:
                reserved[0] += amount
                highest[0] = max(highest[0], reserved[0])
            threading.Event().wait(0.005)
            with lock:
                reserved[0] -= amount

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [10, 50, 30, 20, 45] * 6))
    assert 50 < highest[0] <= 100


def test_an_amount_above_the_budget_is_granted_alone():
    """It waits until nothing else is reserved."""
    budget = MemoryBudget(10)
    entered = threading.Event()

    def large() -> None:
        with budget.reserve(1000):
            entered.set()

    with budget.reserve(1):
        thread = threading.Thread(target=large)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(30)
    thread.join()


def test_a_failure_releases_the_reservation():
    """Bad images do not use the budget up."""
    budget = MemoryBudget(10)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), budget.reserve(8):
            1 / 0  # noqa: B018 - raises
    with budget.reserve(10):
        pass


def test_a_budget_of_nothing_is_refused():
    """It would block the first image."""
    with pytest.raises(ValueError, match="at least 1 byte"):
        MemoryBudget(0)


def test_decoding_reserves_the_memory_of_the_image(monkeypatch):
    """Before the pixels are decoded; for a JPEG, the memory of its reduced size."""
    amounts = []

    class Recording(MemoryBudget):
        def reserve(self, amount_bytes):
            amounts.append(amount_bytes)
            return super().reserve(amount_bytes)

    budget = Recording(1 << 30)
    decode(encoded(picture(1000, 1500), "PNG"), Geometry(224, 224), name="x", budget=budget)
    decode(encoded(picture(1000, 1500), "JPEG"), Geometry(224, 224), name="x", budget=budget)
    assert amounts == [pixels * decode_module.DEFAULT_BYTES_PER_PIXEL for pixels in (1_500_000, 375_000)]
