"""Maps for a server: the latest one, and the process that computes the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from producer.map.poster_map import PosterMap, load_map
from producer.settings import Settings
from producer.vectors.base import VectorStore

REST_SHARE: Final = 10  # while posters are being indexed, a map is computed a tenth of the time at most
REST_LEAST_S: Final = 10.0
END_S: Final = 5.0
SUFFIX: Final = ".map"


class MapProgress(NamedTuple):
    """What the process that computes a map does."""

    stage: str = "starting"
    done: int = 0
    total: int = 0


class MapMaker:
    """Computes maps in a process of its own, one at a time, with one core and low priority; threads share it.

    The map is kept beside a store that is a file; that of a Redis store, or of a folder that cannot be written, until
    the server ends.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._is_closed = False
        self._rests_until = 0.0
        self.newest: PosterMap | None = None  # of whatever space
        self.progress: MapProgress | None = None
        self.problem: str | None = None

    def latest(self, store: VectorStore, space: str) -> tuple[PosterMap | None, bool]:
        """The newest map of a space, and whether it shows what the store holds; where not, the next is begun."""
        version = store.version(space)
        with self._lock:
            if self._path is None:
                self._path = self._place()
                self.newest = load_map(self._path)
            found = self.newest if self.newest and self.newest.space == space else None
            is_current = found is not None and found.version == version
            is_due = self.progress is None and not self._is_closed and time.monotonic() >= self._rests_until
            if not is_current and is_due:
                self._begin(self._path)
            return found, is_current

    def close(self) -> None:
        """End the process; what it has not finished is computed another time."""
        with self._lock:
            self._is_closed, process, thread = True, self._process, self._thread
        if process is not None:
            with suppress(OSError):
                process.kill()  # it writes its file atomically, and holds nothing else
        if thread is not None:
            thread.join(END_S)
        if self._folder is not None:
            self._folder.cleanup()

    def _place(self) -> Path:
        scheme, _, path = self._settings.store.partition(":")
        if scheme == "sqlite" and os.access(Path(path).absolute().parent, os.W_OK):
            return Path(path + SUFFIX)
        self._folder = tempfile.TemporaryDirectory(prefix="posters-map-")
        return Path(self._folder.name, "map")

    def _begin(self, path: Path) -> None:
        package = str(Path(__file__).resolve().parents[2])  # wherever the server was started
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "producer.map.compute"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)},
            text=True,
            encoding="utf-8",
        )
        self.progress = MapProgress()
        self._thread = threading.Thread(target=self._follow, args=(self._process, path), name="map", daemon=True)
        self._thread.start()

    def _follow(self, process: subprocess.Popen[str], path: Path) -> None:
        began, made = time.monotonic(), None
        problem = "the process that computes the map has ended; the server's log may say why"
        try:
            with process:
                problem = self._read(process, path) or problem
            made = load_map(path) if process.returncode == 0 else None
        finally:
            with self._lock:
                self.newest = made or self.newest
                self.problem = None if made else problem
                self._process = self._thread = self.progress = None
                self._rests_until = time.monotonic() + max(REST_LEAST_S, REST_SHARE * (time.monotonic() - began))

    def _read(self, process: subprocess.Popen[str], path: Path) -> str | None:
        """Tell the process what to do, and note what it says until it ends; why it failed, if it says so."""
        assert process.stdin is not None
        assert process.stdout is not None
        asked = {"store": self._settings.store, "store_mode": self._settings.store_mode, "path": str(path)}
        with suppress(OSError):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.close()
        problem = None
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                problem = said["error"]
            else:
                self.progress = MapProgress(**said)
        return problem
