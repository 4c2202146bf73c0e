"""The entrants' protocol: JSON lines. Standard library only, because the peers have their own environment."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

CHECKED = 8  # vectors in each response, to check that all entrants do the same work

Config = dict[str, Any]
# A run returns a function that fetches the vectors, which is not measured.
Run = Callable[[dict[str, Any]], Callable[[], Any]]


def serve(load: Callable[[Config], tuple[Run, dict[str, str]]]) -> None:
    """Load the model, then run jobs until the input ends.

    `load` gets the configuration (checkpoint, batch, cores, device, …) and returns the function that runs
    a job, and versions to report. A job is ``{"folder": …, "paths": […]}``.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def respond(response: dict[str, Any]) -> None:
        out.write(json.dumps(response) + "\n")
        out.flush()

    run, about = load(json.loads(sys.stdin.readline()))
    respond({"about": {"python": sys.version.split()[0], **about}})
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        fetch = run(job)
        seconds = time.perf_counter() - began
        vectors = fetch()
        checked = [] if vectors is None else [[float(number) for number in row] for row in vectors[:CHECKED]]
        respond({"seconds": seconds, "vectors": checked, "gpu_bytes": _gpu_bytes()})


def _gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.max_memory_reserved())
