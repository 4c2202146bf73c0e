"""Faults for a real worker (``--include tests.support.fault_injection``): slowness, crashes, and a journal.

A poster whose bytes end in KILL, ABORT or HANG kills, aborts or stops the process that decodes it, as a
broken decoder would. FAULT_SLEEP_S is slept before each forward pass.

In the folder FAULTS, if that is set, each forward pass leaves a line in ``passes`` (monotonic seconds,
process id, images), and a file arms a fault that happens once, when its place in the code is reached:

    lose-device      the GPU's context breaks for good (prefork: the process leaves)
    run-out          memory runs out for more images than the file says, until the file is gone
    hang             the model never answers
    kill-in-write    the process dies inside the store's transaction, rows half written
    kill-after-pop   the whole worker dies after Redis gave it a message and before it is noted
"""

import os
import signal
import time
from pathlib import Path

from celery import signals
from kombu.transport import redis as kombu_redis

from producer.queue.messages import QUEUES

KILL, ABORT, HANG = b"#kill-this-process", b"#abort-this-process", b"#hang-for-ever"
LANES = set(QUEUES.values())
LONG_S = 1e6
STEPS_INTO_WRITING = 150  # SQLite's own machine steps: past BEGIN and the first rows, before COMMIT

FOLDER = Path(os.environ["FAULTS"]) if "FAULTS" in os.environ else None


def _armed(name: str) -> bool:
    """True once after the file was made, in whichever process gets there first."""
    if FOLDER is None:
        return False
    try:
        (FOLDER / name).unlink()
    except FileNotFoundError:
        return False
    return True


def _fits() -> int:
    """How many images fit into memory; no limit unless it is armed."""
    try:
        return int((FOLDER / "run-out").read_text()) if FOLDER else 1 << 30
    except (FileNotFoundError, ValueError):
        return 1 << 30


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_deliver = kombu_redis.Transport._deliver


def _popped(self: object, message: object, queue: str) -> None:
    if queue in LANES and _armed("kill-after-pop"):  # Celery sends itself things, too
        os.killpg(os.getpgid(0), signal.SIGKILL)
    _deliver(self, message, queue)


kombu_redis.Transport._deliver = _popped


@signals.worker_process_init.connect
def _sabotage(**_: object) -> None:
    import torch

    from producer.vectors.sqlite import SQLiteStore
    from worker.model.executors import CpuForward
    from worker.pipeline import loader, pipeline

    decode, launch, run_batch = loader.decode, CpuForward.launch, pipeline.Pipeline.run
    make_known = SQLiteStore._make_known
    pause_s = float(os.environ.get("FAULT_SLEEP_S", "0"))
    warm = False

    def decode_or_die(data: bytes, *arguments: object, **options: object) -> object:
        if data.endswith(KILL):
            _die()
        if data.endswith(ABORT):
            os.abort()
        if data.endswith(HANG):
            time.sleep(LONG_S)
        return decode(data, *arguments, **options)

    def launch_or_fail(self: CpuForward, pixels: torch.Tensor) -> object:
        if not warm:
            return launch(self, pixels)
        time.sleep(pause_s)
        if _armed("lose-device"):
            error = RuntimeError("CUDA error: an illegal memory access was encountered")
            error.error_code = 700
            raise error
        if _armed("hang"):
            time.sleep(LONG_S)
        if len(pixels) > _fits():
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to embed {len(pixels)} images")
        if FOLDER is not None:
            with (FOLDER / "passes").open("a") as journal:
                journal.write(f"{time.monotonic()} {os.getpid()} {len(pixels)}\n")
        return launch(self, pixels)

    def run_batch_seen(self: pipeline.Pipeline, *arguments: object, **options: object) -> object:
        nonlocal warm
        warm = True  # from now on forward passes are work, and no warming up
        return run_batch(self, *arguments, **options)

    def make_known_or_die(self: SQLiteStore, db: object, *arguments: object) -> object:
        if _armed("kill-in-write"):
            db.set_progress_handler(_die, STEPS_INTO_WRITING)
        return make_known(self, db, *arguments)

    loader.decode = decode_or_die
    CpuForward.launch, pipeline.Pipeline.run = launch_or_fail, run_batch_seen
    SQLiteStore._make_known = make_known_or_die
