"""Errands: what needs torch or Pillow is done by a process of its own, ``python -m worker.local``."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from producer import errors
from producer.errors import ConfigurationError, UnreadablePoster
from producer.settings import Settings
from producer.vectors.tagged import SpacedVectors, spaced

MODULE: Final = "worker.local"
PICTURE_SIDE_PIXELS: Final = 480  # twice what a page shows them at, for screens of high density


def embed_locally(settings: Settings, files: Sequence[Path]) -> list[SpacedVectors | UnreadablePoster]:
    """The vectors of files, wherever they lie, by a model of our own; what failed stands in its place.

    Raises:
        ConfigurationError: the model cannot be loaded here; says why.
    """
    answer = _run(settings, {"errand": "embed", "files": [str(path.absolute()) for path in files]})
    found: list[SpacedVectors | UnreadablePoster] = []
    for path, told in zip(files, answer["vectors"], strict=True):
        if isinstance(told, list):
            found.append(UnreadablePoster(str(path), *told))
        else:
            vector = np.frombuffer(base64.b64decode(told), "<f4").astype(np.float32)
            found.append(spaced(vector, answer["space"]))
    return found


def small_pictures(settings: Settings, files: Sequence[tuple[Path | None, str]]) -> list[bytes | None]:
    """A WebP of at most PICTURE_SIDE_PIXELS for each file, ``(posters root or None, path)``; None where there is none.

    Raises:
        ConfigurationError: torch or Pillow is not installed here.
    """
    told = [[str(root.resolve()) if root else None, path] for root, path in files]
    answer = _run(settings, {"errand": "pictures", "files": told, "side": PICTURE_SIDE_PIXELS}, quiet=True)
    return [base64.b64decode(picture) if isinstance(picture, str) else None for picture in answer["pictures"]]


def _run(settings: Settings, request: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    require_engine()
    chosen = settings.model_dump(mode="json", exclude_none=True)
    command = [sys.executable, "-m", MODULE]
    text = json.dumps({**request, "settings": chosen})
    errors_to = subprocess.PIPE if quiet else None  # a person watches a model load, and not a page being drawn
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=errors_to, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        said = (done.stderr or "what it said stands above").strip().splitlines()[-1]
        raise ConfigurationError(
            f"`{' '.join(command)}` ended with status {done.returncode} ({said}): "
            "it needs what a worker needs, pip install -r requirements.txt"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        name, reason = answer["error"]
        raise getattr(errors, name, ConfigurationError)(reason)
    return answer


def require_engine() -> None:
    """Check that `import worker` would find this project's package.

    Raises:
        ConfigurationError: it is not installed, or another program's module of that name comes first.
    """
    spec = find_spec("worker")
    if spec is None:
        raise ConfigurationError("the engine is not installed here: pip install 'poster-embedding-queue[worker]'")
    folders = list(spec.submodule_search_locations or ())
    if not any(Path(folder, "clip_embedder.py").is_file() for folder in folders):
        found = spec.origin or ", ".join(folders)
        raise ConfigurationError(
            f"the engine cannot be started: `worker` is the module of another program here, {found}. Run this command "
            "in another folder, or rename that module"
        )
