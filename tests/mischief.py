"""Loaded into a real worker by tests (``--include mischief``): makes it slow, and lets posters kill it.

A poster whose bytes end in KILL ends the process that decodes it, as a decoder's crash would; one that
ends in HANG never comes back. MISCHIEF_SLEEP_S is slept before each forward pass. MISCHIEF_DEVICE names
a file: while it is there, the next forward pass takes it away and does what it says, `lose` or `hang`.
"""

import os
import signal
import time
from pathlib import Path

from celery import signals

KILL, HANG = b"#kill-this-process", b"#hang-for-ever"


@signals.worker_process_init.connect
def _sabotage(**_: object) -> None:
    from worker import pipeline
    from worker.clip_embedder import CLIPEmbedder
    from worker.forward import CpuForward

    decode, submit = pipeline.decode, CLIPEmbedder.submit
    pause = float(os.environ.get("MISCHIEF_SLEEP_S", "0"))

    def sabotaged(data: bytes, *arguments: object, **options: object) -> object:
        if data.endswith(KILL):
            os.kill(os.getpid(), signal.SIGKILL)
        if data.endswith(HANG):
            time.sleep(1e6)
        return decode(data, *arguments, **options)

    def slow(self: CLIPEmbedder, pixels: object) -> object:
        time.sleep(pause)
        return submit(self, pixels)

    launch = CpuForward.launch
    fate = Path(os.environ.get("MISCHIEF_DEVICE", os.devnull + "/nothing"))

    def fated(self: CpuForward, pixels: object) -> object:
        if fate.exists():
            what = fate.read_text()
            fate.unlink()
            if what == "hang":
                time.sleep(1e6)
            error = RuntimeError("CUDA error: an illegal memory access was encountered")
            error.error_code = 700
            raise error
        return launch(self, pixels)

    CpuForward.launch = fated
    pipeline.decode = sabotaged
    CLIPEmbedder.submit = slow
