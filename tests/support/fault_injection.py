"""Fault injection for a real worker (``--include tests.support.fault_injection``), and a journal of its work.

A poster whose bytes end in KILL, ABORT, HANG or FREEZE kills, aborts or stops the process that decodes it, as a
broken decoder would; FREEZE stops all of its threads. The worker sleeps FAULT_SLEEP_S before each forward pass, and
its watchdog waits FAULT_STALL_S, and its health FAULT_PATIENCE_S, if those are set.

If FAULTS names a folder, each forward pass appends a line to its file ``passes`` (monotonic seconds, process id,
images without the known one that checks the device), and a file in it arms a fault that strikes once, when its place in
the code is reached:

    lose-device      the CUDA context is lost (prefork: the process exits)
    lose-idle-device the same, noticed by the probe of an idle worker
    deaf             the consumer takes no messages, until the file is removed
    hold             forward passes wait until the file is removed; the file ``held`` appears when one waits
    run-out          out of memory for more images than the file says, until the file is removed
    hang             the forward pass never returns
    kill-in-write    the process is killed inside the store's transaction, with some of the rows written
    kill-after-pop   the whole worker is killed after it popped a message and before kombu notes it as unacked
"""

import ctypes
import os
import signal
import time
import traceback
from pathlib import Path

from celery import signals
from kombu.transport import redis as kombu_redis

from producer.queue.messages import QUEUES

KILL, ABORT, HANG = b"#kill-this-process", b"#abort-this-process", b"#hang-for-ever"
FREEZE = b"#keep-the-interpreters-lock"
LANES = set(QUEUES.values())
LONG_S = 1e6
EX_SOFTWARE = 70
WRITE_STEPS = 150  # SQLite virtual machine instructions: past BEGIN and the first rows, before COMMIT

FOLDER = Path(os.environ["FAULTS"]) if "FAULTS" in os.environ else None


def _disarm(name: str) -> bool:
    """True for the first process that gets here after the fault was armed."""
    if FOLDER is None:
        return False
    try:
        (FOLDER / name).unlink()
    except FileNotFoundError:
        return False
    return True


def _memory_images() -> int:
    """How many images fit into memory; unlimited unless ``run-out`` is armed."""
    try:
        return int((FOLDER / "run-out").read_text()) if FOLDER else 1 << 30
    except (FileNotFoundError, ValueError):
        return 1 << 30


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_deliver = kombu_redis.Transport._deliver


def _deliver_or_die(self: object, message: object, queue: str) -> None:
    if queue in LANES and _disarm("kill-after-pop"):  # Celery uses queues of its own, too
        os.killpg(os.getpgid(0), signal.SIGKILL)
    _deliver(self, message, queue)


kombu_redis.Transport._deliver = _deliver_or_die
_register_brpop = kombu_redis.MultiChannelPoller._register_BRPOP


def _register_brpop_unless_deaf(self: object, channel: object) -> None:
    if FOLDER is None or not (FOLDER / "deaf").exists():
        _register_brpop(self, channel)


kombu_redis.MultiChannelPoller._register_BRPOP = _register_brpop_unless_deaf


def _lose_device() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    error.error_code = 700
    raise error


@signals.worker_process_init.connect
def _patch_or_exit(**_: object) -> None:
    """Celery only logs what a signal handler raises, and scenarios without their faults would pass."""
    try:
        _patch()
    except (ImportError, AttributeError):
        traceback.print_exc()
        os._exit(EX_SOFTWARE)


def _patch() -> None:
    import torch

    from producer.vectors.sqlite import SQLiteStore
    from worker.model.executors import CpuExecutor
    from worker.pipeline import pipeline, poster_reader
    from worker.pipeline.device_check import DeviceCheck
    from worker.runtime import health, heartbeat

    heartbeat.STALL_S = float(os.environ.get("FAULT_STALL_S", heartbeat.STALL_S))
    for name in ("STEP_S", "UNTAKEN_S", "AWAY_S", "PROBE_S"):
        setattr(health, name, float(os.environ.get("FAULT_PATIENCE_S", getattr(health, name))))
    decode, launch, run_batch = poster_reader.decode, CpuExecutor.launch, pipeline.Pipeline.run
    make_known, due = SQLiteStore._make_known, DeviceCheck.due
    pause_s = float(os.environ.get("FAULT_SLEEP_S", "0"))
    warm, known = False, 0

    def due_and_noted(self: DeviceCheck, images: int) -> object:
        nonlocal known
        canary = due(self, images)
        known = int(canary is not None)
        return canary

    def decode_or_die(data: bytes, *arguments: object, **options: object) -> object:
        if data.endswith(KILL):
            _die()
        if data.endswith(ABORT):
            os.abort()
        if data.endswith(HANG):
            time.sleep(LONG_S)
        if data.endswith(FREEZE):
            ctypes.PyDLL(None).sleep(int(LONG_S))  # unlike CDLL, it keeps the interpreter's lock
        return decode(data, *arguments, **options)

    def launch_or_fail(self: CpuExecutor, pixels: torch.Tensor, **options: object) -> object:
        nonlocal known
        if not warm:
            return launch(self, pixels, **options)
        time.sleep(pause_s)
        while FOLDER is not None and (FOLDER / "hold").exists():
            (FOLDER / "held").touch()
            time.sleep(0.01)
        if _disarm("lose-device"):
            _lose_device()
        if _disarm("hang"):
            time.sleep(LONG_S)
        if len(pixels) > _memory_images():
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to embed {len(pixels)} images")
        if FOLDER is not None:
            with (FOLDER / "passes").open("a") as journal:
                journal.write(f"{time.monotonic()} {os.getpid()} {len(pixels) - known}\n")
                known = 0
        return launch(self, pixels, **options)

    def probe_or_fail(self: CpuExecutor) -> None:
        if _disarm("lose-idle-device"):
            _lose_device()

    def run_batch_after_warm_up(self: pipeline.Pipeline, *arguments: object, **options: object) -> object:
        nonlocal warm
        warm = True  # earlier forward passes warm up the model and are not counted
        return run_batch(self, *arguments, **options)

    def make_known_or_die(self: SQLiteStore, db: object, *arguments: object) -> object:
        if _disarm("kill-in-write"):
            db.set_progress_handler(_die, WRITE_STEPS)
        return make_known(self, db, *arguments)

    poster_reader.decode = decode_or_die
    CpuExecutor.launch, pipeline.Pipeline.run = launch_or_fail, run_batch_after_warm_up
    SQLiteStore._make_known, CpuExecutor.probe = make_known_or_die, probe_or_fail
    DeviceCheck.due = due_and_noted
