"""Which device and precision to use, and what its errors mean."""

from __future__ import annotations

import logging
import os
import re
from typing import Final

import torch

from producer.errors import ConfigurationError, DeviceUnavailable

logger = logging.getLogger(__name__)
PRECISIONS: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What torch raises for a failing CUDA call, torch.AcceleratorError, carries the runtime's number as `error_code`
# (torch 2.8 and later). The driver's calls and the libraries' only have a text. Both lists are from NVIDIA's
# driver_types.h of CUDA 13: numbers whose description says that the process must be ended to go on, and
# the ones after which a card is gone.
_EXHAUSTED_CODES: Final = frozenset({2})  # cudaErrorMemoryAllocation
_LOST_CODES: Final = frozenset(
    {46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999}
)
# Allocation failures that are no torch.OutOfMemoryError: libraries that allocate for themselves, the
# driver (error 2), and the CPU. cuBLAS says NOT_INITIALIZED when it finds no memory for its handle; under
# pressure torch 2.9's allocator was seen to end in the driver's "device not ready".
_EXHAUSTED: Final = re.compile(
    r"CUDA out of memory|CUDA (driver )?error: out of memory|\[CUDA\]: out of memory|cudaErrorMemoryAllocation"
    r"|CUDA driver error: device not ready"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED"
    r"|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED"
    r"|can't allocate memory|not enough memory: you tried to allocate",
    re.IGNORECASE,
)
# Errors after which a CUDA context answers nothing but errors until its process ends, in the words of
# runtime and driver (their texts for the numbers above), of the libraries for the same, and of torch's
# own allocator when its books do not match the card any more.
_LOST: Final = re.compile(
    r"illegal memory access|device-side assert|misaligned address|invalid program counter|illegal instruction"
    r"|invalid address space|operation not supported on global/shared address space|hardware stack error"
    r"|unspecified launch failure|the launch timed out and was terminated|context is destroyed"
    r"|uncorrectable (ECC|NVLink) error|ECC error|Invalid access of peer GPU memory over nvlink"
    r"|tensor memory not completely freed|error containment|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|cudaErrorIllegalAddress|cudaErrorAssert|cudaErrorLaunchFailure|cudaErrorECCUncorrectable"
    r"|GPU (is lost|has fallen off)|cudaErrorDeviceUninitialized|CUDA (driver )?error: unknown error"
    r"|CUBLAS_STATUS_EXECUTION_FAILED|CUBLAS_STATUS_MAPPING_ERROR|CUBLAS_STATUS_INTERNAL_ERROR"
    r"|CUDNN_STATUS_EXECUTION_FAILED|CUDNN_STATUS_MAPPING_ERROR"
    r"|INTERNAL ASSERT FAILED at .*CUDACachingAllocator",
    re.IGNORECASE,
)


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` says why when it takes the CPU.

    Raises:
        DeviceUnavailable: a CUDA device was asked for by name and is not there.
        ConfigurationError: the name is none of these.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N, not {wanted!r}")
    if wanted == "cpu":
        return torch.device("cpu")
    reason = why_no_cuda()
    if wanted == "auto":
        if reason is None:
            return torch.device("cuda", 0)
        logger.info("using the CPU: %s", reason)
        return torch.device("cpu")
    if reason is not None:
        raise DeviceUnavailable(f"device {wanted!r} was asked for, but {reason}. Use device `auto` or `cpu` to go on.")
    device = torch.device(wanted)
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        names = ", ".join(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(count))
        raise DeviceUnavailable(f"there is no {wanted!r} here; there is: {names}")
    return torch.device("cuda", index)


def why_no_cuda() -> str | None:
    """Why CUDA cannot be used, in words; None where it can."""
    if torch.version.cuda is None:
        return "this torch is a build without CUDA (install one from the index for your driver, see README)"
    if torch.cuda.is_available():
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA sees no card with CUDA_VISIBLE_DEVICES={hidden!r} (POSTERS_GPU sets it)"
    if not _driver_is_there():
        return "there is no NVIDIA driver on this machine"
    return "the NVIDIA driver shows no card that this torch can use (is the driver too old? see nvidia-smi)"


def _driver_is_there() -> bool:
    if os.name == "nt":
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll"))
    return os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl")


def device_name(device: torch.device) -> str:
    """The device as a person knows it: ``cuda:0 NVIDIA GeForce RTX 4090``, ``cpu AVX512``."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def choose_precision(wanted: str, device: torch.device) -> str:
    """The precision for ``auto``: fp16 on CUDA, bf16 on CPUs that compute in it, else fp32.

    Raises:
        ConfigurationError: an unknown precision, or fp16 on a CPU, which has no fast fp16.
    """
    if wanted == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if cpu_computes_bf16() else "fp32"
    if wanted not in PRECISIONS:
        raise ConfigurationError(f"precision must be auto, {', '.join(PRECISIONS)}, not {wanted!r}")
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigurationError("precision fp16 needs a GPU; on a CPU use auto, bf16 or fp32")
    return wanted


def cpu_computes_bf16() -> bool:
    """True where the processor multiplies bf16 by itself (AVX512-BF16 or AMX), and torch knows how to ask."""
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in asks if hasattr(torch.cpu, name))


class MemoryWatch:
    """How much of the memory that was free on a card the block took, at its peak; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """`share_used` is known after the block."""
        self._device, self.share_used = device, 0.0

    def __enter__(self) -> MemoryWatch:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = torch.cuda.memory_allocated(self._device)
            free, _ = torch.cuda.mem_get_info(self._device)
            self._release_dead = free + torch.cuda.memory_reserved(self._device) - self._held
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.share_used = (torch.cuda.max_memory_allocated(self._device) - self._held) / max(1, self._release_dead)


def is_exhaustion(error: Exception) -> bool:
    """True when memory ran out: try again with less."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    code = getattr(error, "error_code", None)
    return code in _EXHAUSTED_CODES or (code is None and bool(_EXHAUSTED.search(str(error))))


def is_lost(error: Exception) -> bool:
    """True when the CUDA context is broken for good: only a fresh process can go on."""
    if not isinstance(error, RuntimeError) or is_exhaustion(error):
        return False
    return getattr(error, "error_code", None) in _LOST_CODES or bool(_LOST.search(str(error)))


def card_of(device: torch.device) -> str | None:
    """The UUID of the card behind a device, as nvidia-smi shows it; None for the CPU.

    CUDA itself is asked, because POSTERS_GPU, CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as numbers or as
    UUIDs, can name one card in many ways. That takes none of the card's memory.
    """
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
