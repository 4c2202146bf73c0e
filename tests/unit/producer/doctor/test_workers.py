"""What workers say of their model and device, and what `doctor` makes of it."""

import pytest

from producer.doctor.finding import Status
from producer.doctor.workers import devices, model
from producer.queue.workers import FAILED, LOADING, READY, Announcement
from producer.settings import load_settings

ON_THE_CPU = {"device": "cpu AVX512", "device_setting": "auto", "card_seen": "yes", "driver": "580.65.06"}
ON_A_CARD = {"device": "cuda:0 NVIDIA H200", "gpu_total_bytes": str(24 << 30), "gpu_used_bytes": str(2 << 30)}


def worker(state=READY, **fields):
    return Announcement("w@gpu1/7/aa", state, fields)


def test_a_build_without_cuda_beside_a_card_is_found():
    """The worker runs, ten times slower than it could."""
    found = devices([worker(**ON_THE_CPU, torch_cuda="")])
    assert found.status is Status.MISCONFIGURED
    assert "w@gpu1: its torch is a build without CUDA, beside a card" in found.text
    assert "docs/install.md" in found.way_out


@pytest.mark.parametrize(("cuda", "driver", "least"), [("13.2", "575.51.03", 580), ("12.6", "470.256.02", 525)])
def test_a_driver_older_than_the_build_needs_is_found(cuda, driver, least):
    """Both versions are named, and both ways out."""
    found = devices([worker(**ON_THE_CPU | {"torch_cuda": cuda, "driver": driver})])
    assert found.status is Status.MISCONFIGURED
    assert f"built for CUDA {cuda}, which needs NVIDIA's driver {least} or newer; it is {driver}" in found.text
    assert "update the driver, or install torch" in found.way_out


@pytest.mark.parametrize(
    ("cuda", "driver"), [("13.2", "580.65.06"), ("12.6", "525.60.13"), ("99.0", "470.1"), ("12.6", "")]
)
def test_a_card_that_is_not_used_for_another_reason_is_found(cuda, driver):
    """The driver is new enough, or nobody knows which one it needs: the log of the worker says why."""
    found = devices([worker(**ON_THE_CPU | {"torch_cuda": cuda, "driver": driver})])
    assert found.status is Status.MISCONFIGURED
    assert "uses the CPU beside a card" in found.text
    assert "its log" in found.way_out


def test_a_worker_that_could_not_start_for_its_driver_is_found():
    """With POSTERS_DEVICE=cuda it ends, and is known for a few seconds."""
    facts = {"device_setting": "cuda", "card_seen": "yes", "driver": "535.1", "torch_cuda": "13.2", "reason": "no CUDA"}
    assert "needs NVIDIA's driver 580" in devices([worker(FAILED, **facts)]).text


@pytest.mark.parametrize(
    "fields",
    [
        ON_THE_CPU | {"device_setting": "cpu"},
        ON_THE_CPU | {"card_seen": ""},
        {"device": "cpu AVX512"},  # of an older version
        ON_THE_CPU | {"device": ""},  # still loading
        ON_A_CARD | {"torch_cuda": "13.2", "driver": "580.65.06", "device_setting": "auto", "card_seen": "yes"},
    ],
)
def test_a_device_that_is_meant_is_right(fields):
    """A card in use, a CPU without a card, or by the settings."""
    fields = {"gpu_free_bytes": str(23 << 30), **fields} if "gpu_total_bytes" in fields else fields
    assert devices([worker(LOADING if not fields["device"] else READY, **fields)]).status is Status.OK


def test_a_card_that_other_programs_fill_is_found():
    """The model fits, and a chunk beside it does not: a warning. Nothing fits: the worker could not start."""
    tight = devices([worker(**ON_A_CARD, gpu_free_bytes=str(3 << 30))])
    assert tight.status is Status.WARNING
    assert "3.0 of 24.0 GiB were free when it started, its model takes 2.0" in tight.text
    assert "nvidia-smi" in tight.way_out
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"
    none = devices([worker(FAILED, reason=reason, gpu_free_bytes=str(1 << 29), gpu_total_bytes=str(24 << 30))])
    assert none.status is Status.MISCONFIGURED
    assert "no room on its card" in none.text
    assert "0.5 of 24.0 GiB" in none.text


def test_a_worker_with_another_model_than_was_set_here_is_found(monkeypatch):
    """A backend that sets none takes what the worker has."""
    monkeypatch.setenv("POSTERS_CONFIG", "none")
    made = {"space": "s", "space_json": "{}", "model": "ViT-L-14", "pretrained": "laion2b"}
    ready = [worker(**made)]
    found = model(load_settings(model_name="ViT-B/32"), ready, ready)
    assert found.status is Status.MISCONFIGURED
    assert "w@gpu1 uses ViT-L-14; here, POSTERS_MODEL_NAME is ViT-B/32" in found.text
    assert not model(load_settings(model_name="ViT-L-14", pretrained="openai"), ready, ready).ok
    assert model(load_settings(model_name="ViT-L-14", pretrained="laion2b"), ready, ready).ok
    assert model(load_settings(), ready, ready).ok
