"""The budget: what threads hold together stays below it, and nobody waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.image_samples import encoded, picture
from worker.images import decode as decode_module
from worker.images.decode import Geometry, decode
from worker.images.memory_budget import MemoryBudget


def test_what_is_held_together_stays_below_the_limit():
    """Thirty holders of up to half the budget each, in eight threads."""
    budget, held, most, lock = MemoryBudget(100), [0], [0], threading.Lock()

    def work(amount: int) -> None:
        with budget.hold(amount):
            with lock:
                held[0] += amount
                most[0] = max(most[0], held[0])
            threading.Event().wait(0.005)
            with lock:
                held[0] -= amount

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [10, 50, 30, 20, 45] * 6))
    assert 50 < most[0] <= 100


def test_what_is_larger_than_the_budget_goes_alone():
    """It waits until nobody else holds anything, and then goes in."""
    budget = MemoryBudget(10)
    entered = threading.Event()

    def large() -> None:
        with budget.hold(1000):
            entered.set()

    with budget.hold(1):
        thread = threading.Thread(target=large)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(5)
    thread.join()


def test_a_failure_gives_back_what_was_held():
    """Bad images do not use the budget up."""
    budget = MemoryBudget(10)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), budget.hold(8):
            1 / 0  # noqa: B018 - what the statement is for
    with budget.hold(10):
        pass


def test_a_budget_of_nothing_is_refused():
    """It would block the first image."""
    with pytest.raises(ValueError, match="at least 1 byte"):
        MemoryBudget(0)


def test_decoding_holds_the_images_bytes(monkeypatch):
    """Asked for before the pixels are decoded; a JPEG asks for its reduced size."""
    asked = []

    class Asking(MemoryBudget):
        def hold(self, amount_bytes):
            asked.append(amount_bytes)
            return super().hold(amount_bytes)

    budget = Asking(1 << 30)
    decode(encoded(picture(1000, 1500), "PNG"), Geometry(224, 224), name="x", budget=budget)
    decode(encoded(picture(1000, 1500), "JPEG"), Geometry(224, 224), name="x", budget=budget)
    assert asked == [1_500_000 * decode_module.BYTES_PER_PIXEL_OTHERS, 375_000 * decode_module.BYTES_PER_PIXEL_OTHERS]
