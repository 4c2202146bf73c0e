"""Description of the machine and library versions."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from producer.host import usable_cores

PACKAGES = ("torch", "open_clip_torch", "pillow", "numpy", "celery", "kombu", "redis")


def machine() -> dict[str, object]:
    """Processor, cores, memory, GPU, operating system, load."""
    about: dict[str, object] = {
        "processor": processor(),
        "cores": usable_cores(),
        "cores_in_all": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        about["card"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return about


def versions() -> dict[str, str]:
    """Installed versions of the main dependencies."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name, family and vector instructions."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = re.search(r"model name\s*:\s*(.+)", text)
    model = re.search(r"cpu family\s*:\s*(\d+)\nmodel\s*:\s*(\d+)", text)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    about = f", family {model[1]} model {model[2]}" if model else ""
    return f"{name[1].strip() if name else platform.machine()}{about}, {' '.join(flags)}"


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
