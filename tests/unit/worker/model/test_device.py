"""Devices: `auto` logs its choice, an unavailable device is an error, and errors are classified."""

import logging

import pytest
import torch

from producer.errors import ConfigurationError, DeviceUnavailable
from worker.model import device


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_takes_the_cpu_and_says_why_in_one_line(no_cuda, caplog):
    """A machine without a GPU works, and the log says why it is slow."""
    with caplog.at_level(logging.INFO):
        assert device.choose_device("auto") == torch.device("cpu")
    assert len(caplog.messages) == 1
    assert "using the CPU: " in caplog.messages[0]


@pytest.mark.parametrize(
    ("build", "hidden", "driver", "reason"),
    [
        (None, None, True, "build without CUDA"),
        ("13.0", None, False, "no NVIDIA driver"),
        ("13.0", None, True, "driver too old"),
        ("13.0", "", True, "CUDA_VISIBLE_DEVICES=''"),
    ],
)
def test_the_reason_is_the_right_one(no_cuda, monkeypatch, build, hidden, driver, reason):
    """No CUDA build, no driver, no usable card, a hidden card: four different messages."""
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(device, "has_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert reason in device.why_no_cuda()


@pytest.mark.parametrize("requested", ["cuda", "cuda:0"])
def test_a_requested_gpu_is_never_replaced_silently(no_cuda, requested):
    """A device by name that does not exist is an error that says what to do."""
    with pytest.raises(DeviceUnavailable, match=f"{requested}.*auto"):
        device.choose_device(requested)


def test_a_card_beyond_the_last_lists_those_available(monkeypatch):
    """cuda:7 on a machine with one card names that card."""
    monkeypatch.setattr(device, "why_no_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "RTX")
    with pytest.raises(DeviceUnavailable, match="cuda:0 RTX"):
        device.choose_device("cuda:7")
    assert device.choose_device("cuda") == torch.device("cuda", 0)
    assert device.choose_device("auto") == torch.device("cuda", 0)


def test_an_unknown_device_is_a_configuration_error():
    """The error lists what is accepted."""
    with pytest.raises(ConfigurationError, match="cuda:N"):
        device.choose_device("gpu")


def test_precision_follows_the_hardware(monkeypatch):
    """fp16 on CUDA; on a CPU bf16 where it computes in it, fp32 where it does not; an explicit precision is kept."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(device, "cpu_computes_bf16", lambda: True)
    assert device.choose_precision("auto", cuda) == "fp16"
    assert device.choose_precision("auto", cpu) == "bf16"
    monkeypatch.setattr(device, "cpu_computes_bf16", lambda: False)
    assert device.choose_precision("auto", cpu) == "fp32"
    assert device.choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        device.choose_precision("fp16", cpu)
    with pytest.raises(ConfigurationError, match="fp64"):
        device.choose_precision("fp64", cpu)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_exhaustion_is_recognized(error):
    """Whichever component ran out of memory, a smaller batch may fit; the device is not lost."""
    assert device.is_exhaustion(error)
    assert not device.is_lost(error)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: misaligned address",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: invalid program counter",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    ],
)
def test_a_broken_context_is_recognized(text):
    """These errors persist until the process ends; halving would never end."""
    error = RuntimeError(text)
    assert device.is_lost(error)
    assert not device.is_exhaustion(error)


def test_an_ordinary_error_is_neither():
    """A bug must not be mistaken for a device failure."""
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
    assert not device.is_exhaustion(error)
    assert not device.is_lost(error)


@pytest.mark.parametrize(
    ("platform", "share", "set_to"), [("linux", None, []), ("win32", None, [0.85]), ("win32", 0.5, [0.5])]
)
def test_gpu_memory_is_limited_on_windows_and_on_request(monkeypatch, platform, share, set_to):
    """On Windows a full card slows down instead of failing: the limit makes it fail first."""
    seen = []
    monkeypatch.setattr(device.sys, "platform", platform)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: seen.append(share))
    device.select_gpu(torch.device("cuda", 0), share)
    assert seen == set_to
    device.select_gpu(torch.device("cpu"), 0.5)
    assert seen == set_to


def test_a_cpu_has_no_memory_of_its_own():
    """Metrics of a card are left out there, and so is what the registry entry says of it."""
    assert device.memory_bytes(torch.device("cpu")) == {}
