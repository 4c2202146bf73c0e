"""NVIDIA's driver: whether there is one, its version, and what `doctor` must know to tell why a card is not used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

MODULE: Final = Path("/proc/driver/nvidia/version")  # Linux, in containers too; not in WSL
FIRST_CARD: Final = Path("/dev/nvidia0")
CONTROL: Final = Path("/dev/nvidiactl")
VERSION: Final = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")
ANSWER_S: Final = 10  # nvidia-smi takes seconds where the driver is not loaded


def device_facts() -> dict[str, str]:
    """Which CUDA this torch is built for, which driver there is, and whether there is a card; empty: none."""
    version = driver_version()
    seen = "yes" if version or FIRST_CARD.exists() else ""
    return {"torch_cuda": torch.version.cuda or "", "driver": version, "card_seen": seen}


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed; in WSL, which has other files, False."""
    if os.name == "nt":
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll"))
    return MODULE.exists() or CONTROL.exists()


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
