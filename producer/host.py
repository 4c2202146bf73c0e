"""What this host offers: processor cores, forks, how commands are typed, and the engine beside the client library."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from producer.errors import ConfigurationError


def usable_cores() -> int:
    """Cores that this process may use; containers and taskset often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def program() -> str:
    """This command line as it can be typed here: ``posters``, or ``.venv/bin/python -m producer``."""
    if Path(sys.argv[0]).stem == "posters":
        return _typed(sys.argv[0])
    return f"{_typed(sys.executable or 'python')} -m producer"


def worker_command() -> str:
    """The command that starts a worker, as it can be typed here."""
    script = Path(sys.executable).parent / ("celery.exe" if sys.platform == "win32" else "celery")
    return f"{_typed(str(script)) if script.is_file() else 'celery'} -A worker worker"


def _typed(path: str) -> str:
    """The shortest form of a program's path that starts this very program from the current folder."""
    name = Path(path).name
    found = shutil.which(name)
    if found and os.path.abspath(found) == os.path.abspath(path):
        return Path(name).stem if sys.platform == "win32" else name
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the current folder is gone; another drive
        return shlex.quote(path)
    return shlex.quote(path if relative.startswith("..") else relative)


def let_warnings_warn() -> None:
    """Remove filters that turn warnings into errors (PYTHONWARNINGS=error): what a library warns of still works."""
    for entry in [entry for entry in warnings.filters if entry[0] == "error"]:
        warnings.filters.remove(entry)  # type: ignore[attr-defined]


class Forkable(Protocol):
    """Something with threads, locks or files that a forked process must not share with its parent."""

    def after_fork(self) -> None:
        """Called in the child; must take no lock."""


_forkables: WeakSet[Any] = WeakSet()
_inherited: list[object] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [each.after_fork() for each in list(_forkables)])


def renew_after_fork(forkable: Forkable) -> None:
    """Have `after_fork` called in every process that is forked from this one while the object lives."""
    _forkables.add(forkable)


def abandon(inherited: object) -> None:
    """Keep what a forked process inherited without using or closing it: its parent still uses the same file."""
    _inherited.append(inherited)


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
