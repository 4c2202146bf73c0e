"""A virtual environment for the peers: clip-retrieval needs old versions of setuptools, NumPy and open_clip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import click
import torch

REQUIREMENTS = Path(__file__).with_name("peers.txt")
# clip-anytorch imports `packaging` from pkg_resources, which setuptools 70 removed
SETUPTOOLS = "setuptools<70"
PIP_LIMITS = ["--retries", "1", "--timeout", "20"]  # fail early without a network


class NoPeers(Exception):
    """The peers cannot be installed; the text says why, in one sentence."""


def peers_python(given: Path | None) -> Path:
    """The interpreter of the peers' environment, which is created on first use: 6 GB in the user's cache folder.

    Raises:
        NoPeers: no network, or a Python for which the peers have no packages.
    """
    if given is not None:
        _check(given)
        return given
    if sys.version_info >= (3, 13):
        raise NoPeers("clip-retrieval needs a NumPy below 2, which has no wheels for Python 3.13: use 3.11 or 3.12")
    wanted = f"{REQUIREMENTS.read_text()} torch {torch.__version__}"
    name = (
        f"peers-py{sys.version_info.major}.{sys.version_info.minor}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posters-bench" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / ".complete").exists():
        click.echo(f"installing the peers into {folder} (once; several gigabytes) …", err=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PIP_LIMITS]
        _call([*pip, SETUPTOOLS, "wheel"])
        same_torch = f"torch=={torch.__version__.split('+')[0]}"
        _call([*pip, "--no-build-isolation", "--requirement", str(REQUIREMENTS), same_torch])
        _call([*pip, "--no-deps", SETUPTOOLS])  # torch requires a newer one, but needs it only to compile
        (folder / ".complete").touch()
    _check(python)
    return python


def _check(python: Path) -> None:
    _call([str(python), "-c", "import clip_retrieval.clip_inference.worker, transformers"])


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoPeers(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NoPeers(f"`{' '.join(command[:5])} …` failed: {lines[-1][:300] if lines else done.returncode}")
