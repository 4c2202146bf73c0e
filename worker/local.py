"""``python -m worker.local``: what a producer needs torch or Pillow for, done in a process of its own.

The producer never imports them; it starts this module, writes a request to its input, and reads an answer
from its output, both one object of JSON (producer/local.py):

    {"errand": "embed", "settings": {…}, "files": [path, …]}
        → {"space": id, "vectors": [base64 of little-endian float32, or [word, reason] …]}
    {"errand": "pictures", "settings": {…}, "files": [[root or null, path] …], "side": pixels}
        → {"pictures": [base64 of a WebP, or [word, reason] …]}
    → {"error": [name of the error, text]} where nothing can be done
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from producer.errors import PosterError
from producer.settings import Settings, load_settings
from worker.images.thumbnails import pictures


def embed(settings: Settings, request: Mapping[str, Any]) -> dict[str, Any]:
    """The vectors of files, wherever they lie; nothing is stored."""
    from worker.clip_embedder import CLIPEmbedder  # pictures do without open_clip, two seconds sooner

    embedder = CLIPEmbedder.from_settings(settings)
    result = embedder.embed_paths(request["files"])
    vectors: list[Any] = [None] * len(request["files"])
    for row, index in enumerate(result.indices):
        vectors[index] = base64.b64encode(result.vectors[row].astype("<f4").tobytes()).decode()
    for index, failure in result.failures.items():
        vectors[index] = [failure.word, failure.reason]
    return {"space": embedder.space.id, "vectors": vectors}


ERRANDS: Final[Mapping[str, Callable[[Settings, Mapping[str, Any]], dict[str, Any]]]] = {
    "embed": embed,
    "pictures": pictures,
}


def main() -> None:
    """Do one errand. What libraries print goes to stderr, and so cannot spoil the answer."""
    answer_to = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("root").setLevel(logging.ERROR)  # open_clip warns there that untrained weights are not trained
    request = json.load(sys.stdin)
    try:
        answer = ERRANDS[request["errand"]](load_settings(**request["settings"]), request)
    except PosterError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    with answer_to:
        json.dump(answer, answer_to)


if __name__ == "__main__":
    main()
