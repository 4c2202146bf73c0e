"""What this host offers: processor cores, and the engine beside the client library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from producer.errors import ConfigurationError


def usable_cores() -> int:
    """Cores that this process may use; containers and taskset often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def engine_required() -> Iterator[None]:
    """Check that `worker` is this project's package, and turn a failed import of the engine into an instruction.

    Raises:
        ConfigurationError: the engine is not installed, or another program's module named `worker` comes first.
    """
    spec = find_spec("worker")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if spec and not any(Path(folder, "clip_embedder.py").is_file() for folder in folders):
        found = spec.origin or ", ".join(folders)
        raise ConfigurationError(
            f"the engine cannot be started: `worker` is the module of another program here, {found}. Run this command "
            "in another folder, or rename that module"
        )
    try:
        if spec is None:
            raise ModuleNotFoundError("No module named 'worker'")
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"the engine is not installed here ({error}). In the project's folder, run: pip install . ./worker"
        ) from error
