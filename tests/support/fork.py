"""Run something in a forked process, as a server with preload does."""

from __future__ import annotations

import json
import os
import select
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_a_fork(action: Callable[[], Any]) -> Any:
    """What `action` returns in a forked process, as JSON; fails where that hangs."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads: that is the case
        child = os.fork()
    if not child:
        try:
            os.write(writes, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with open(reads, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], 20)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    os.waitpid(child, 0)
    assert text, "the forked process hung, or failed"
    return json.loads(text)
