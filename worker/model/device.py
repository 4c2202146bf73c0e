"""Choose device and precision, limit the GPU's memory, and classify the errors of torch and CUDA."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch

from producer.errors import ConfigurationError, DeviceUnavailable
from producer.host import let_warnings_warn
from worker.model.driver import has_driver

logger = logging.getLogger(__name__)
# When a card is full, the Windows driver moves memory into system memory, a hundred times slower, instead of
# failing. A limit that leaves memory for the desktop makes the allocator fail first, and the chunk is halved.
WINDOWS_MEMORY_FRACTION: Final = 0.85
PRECISIONS: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# torch.AcceleratorError, raised for a failed CUDA runtime call, has the runtime's number as `error_code` (torch 2.8
# and later); errors of the driver and of libraries only have a text. Both lists are from driver_types.h of
# CUDA 13: errors documented to require a new process, and those after which a card is gone.
_EXHAUSTED_CODES: Final = frozenset({2})  # cudaErrorMemoryAllocation
_LOST_CODES: Final = frozenset(
    {46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999}
)
# Allocation failures that are not a torch.OutOfMemoryError: of libraries that allocate by themselves, the driver
# (error 2), and the CPU. cuBLAS reports NOT_INITIALIZED when there is no memory for its handle; torch 2.9's
# allocator was seen to fail with the driver's "device not ready" when memory was short.
_EXHAUSTED: Final = re.compile(
    r"CUDA out of memory|CUDA (driver )?error: out of memory|\[CUDA\]: out of memory|cudaErrorMemoryAllocation"
    r"|CUDA driver error: device not ready"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED"
    r"|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED"
    r"|can't allocate memory|not enough memory: you tried to allocate",
    re.IGNORECASE,
)
# Errors after which every call on the CUDA context fails until the process ends: the texts of runtime and driver
# for the numbers above, those of the libraries, and of torch's allocator when its state is inconsistent.
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


def choose_device(requested: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` logs why it falls back to the CPU.

    Raises:
        DeviceUnavailable: a CUDA device was named that does not exist.
        ConfigurationError: any other name.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", requested):
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N, not {requested!r}")
    if requested == "cpu":
        return torch.device("cpu")
    reason = why_no_cuda()
    if requested == "auto":
        if reason is None:
            return torch.device("cuda", 0)
        logger.info("using the CPU: %s", reason)
        return torch.device("cpu")
    if reason is not None:
        raise DeviceUnavailable(f"device {requested!r} is not available: {reason}. Use device `auto` or `cpu`.")
    device = torch.device(requested)
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        names = ", ".join(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(count))
        raise DeviceUnavailable(f"there is no {requested!r} on this machine; available: {names}")
    return torch.device("cuda", index)


def why_no_cuda() -> str | None:
    """The reason why CUDA cannot be used; None where it can."""
    if torch.version.cuda is None:
        return "this torch is a build without CUDA (install one from the index for your driver, see docs/install.md)"
    if torch.cuda.is_available():
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA sees no card with CUDA_VISIBLE_DEVICES={hidden!r} (POSTERS_GPU sets it)"
    if not has_driver():
        return "there is no NVIDIA driver on this machine"
    return "the NVIDIA driver reports no card that this torch can use (is the driver too old? see nvidia-smi)"


def select_gpu(device: torch.device, memory_fraction: float | None) -> None:
    """Make a GPU the current device and limit the share of its memory that torch may take; nothing on a CPU."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    if memory_fraction is None and sys.platform == "win32":
        memory_fraction = WINDOWS_MEMORY_FRACTION
    if memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)


def device_name(device: torch.device) -> str:
    """The device with its product name: ``cuda:0 NVIDIA GeForce RTX 4090``, ``cpu AVX512``."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def choose_precision(requested: str, device: torch.device) -> str:
    """The precision for ``auto``: fp16 on CUDA, bf16 on CPUs with bf16 instructions, else fp32.

    Raises:
        ConfigurationError: an unknown precision, or fp16 on a CPU, which has no fast fp16.
    """
    if requested == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if cpu_computes_bf16() else "fp32"
    if requested not in PRECISIONS:
        raise ConfigurationError(f"precision must be auto, {', '.join(PRECISIONS)}, not {requested!r}")
    if requested == "fp16" and device.type == "cpu":
        raise ConfigurationError("precision fp16 needs a GPU; on a CPU use auto, bf16 or fp32")
    return requested


def cpu_computes_bf16() -> bool:
    """Whether the processor has bf16 instructions (AVX512-BF16 or AMX), as far as this torch can tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))


@contextmanager
def own_torch_defaults() -> Iterator[None]:
    """torch's original defaults while the block runs, whatever the host program has set.

    The default dtype float32, the default device CPU, no autocast; a warning is not an error. The default dtype is
    global: other threads of the program see float32 meanwhile.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            warnings.catch_warnings(),
        ):
            let_warnings_warn()
            yield
    finally:
        torch.set_default_dtype(dtype)


class MemoryWatch:
    """Measures the peak share of a GPU's free memory that the block used; 0 on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """`share_used` is set when the block ends."""
        self._device, self.share_used = device, 0.0

    def __enter__(self) -> MemoryWatch:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._allocated_bytes = torch.cuda.memory_allocated(self._device)
            free, _ = torch.cuda.mem_get_info(self._device)
            self._free_bytes = free + torch.cuda.memory_reserved(self._device) - self._allocated_bytes
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            used_bytes = torch.cuda.max_memory_allocated(self._device) - self._allocated_bytes
            self.share_used = used_bytes / max(1, self._free_bytes)


def memory_bytes(device: torch.device) -> Mapping[str, int]:
    """The memory of a GPU, in bytes, and what this process has of it; empty on a CPU.

    `free` and `total` are the card's, whoever uses it. `allocated` is what tensors take, `used` what torch holds for
    them and `peak` the most that it held.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "free": free,
        "total": total,
        "allocated": torch.cuda.memory_allocated(device),
        "used": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_reserved(device),
    }


def is_exhaustion(error: Exception) -> bool:
    """Whether memory ran out: a smaller batch may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    code = getattr(error, "error_code", None)
    return code in _EXHAUSTED_CODES or (code is None and bool(_EXHAUSTED.search(str(error))))


def is_lost(error: Exception) -> bool:
    """Whether the CUDA context is broken: only a fresh process can go on."""
    if not isinstance(error, RuntimeError) or is_exhaustion(error):
        return False
    return getattr(error, "error_code", None) in _LOST_CODES or bool(_LOST.search(str(error)))


def card_of(device: torch.device) -> str | None:
    """The UUID of a GPU as nvidia-smi shows it; None for the CPU.

    It comes from CUDA, because POSTERS_GPU, CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as numbers or as
    UUIDs, can name one card in many ways. The query takes no GPU memory.
    """
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
