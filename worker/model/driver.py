"""What a worker says of its card and of NVIDIA's driver, so that `doctor` can tell why a card is not used."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from worker.model.device import choose_device

MODULE: Final = Path("/proc/driver/nvidia/version")  # Linux, in containers too; not in WSL
FIRST_CARD: Final = Path("/dev/nvidia0")
VERSION: Final = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")
ANSWER_S: Final = 10  # nvidia-smi takes seconds where the driver is not loaded


def device_facts() -> dict[str, str]:
    """Which CUDA this torch is built for, which driver there is, and whether there is a card; empty: none."""
    version = driver_version()
    seen = "yes" if version or FIRST_CARD.exists() else ""
    return {"torch_cuda": torch.version.cuda or "", "driver": version, "card_seen": seen}


def driver_version() -> str:
    """The version of NVIDIA's driver, such as ``580.65.06``; empty where there is none."""
    with suppress(OSError):
        if found := VERSION.search(MODULE.read_text(encoding="utf-8", errors="replace")):
            return found[0]
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        question = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(question, capture_output=True, text=True, timeout=ANSWER_S, check=True)
        if found := VERSION.search(done.stdout):
            return found[0]
    return ""


def free_memory(requested: str) -> dict[str, int]:
    """What of the memory of the chosen card is free, and all of it, in bytes; empty on a CPU."""
    device = choose_device(requested)
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_free_bytes": free, "gpu_total_bytes": total}


def taken_memory(device: torch.device) -> dict[str, int]:
    """What the loaded model takes of a card's memory, in bytes, without that of chunks; empty on a CPU."""
    return {"gpu_used_bytes": torch.cuda.memory_allocated(device)} if device.type == "cuda" else {}
