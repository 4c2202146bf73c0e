"""Exits of a worker process that cannot end normally, because its device or its batch no longer responds."""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

from producer.errors import DeviceLost

EX_DEVICE_LOST: Final = 70  # sysexits.h: internal software error
EX_TEMPFAIL: Final = 75  # sysexits.h: temporary failure, try again
logger = logging.getLogger(__name__)


def exit_now(status: int = EX_TEMPFAIL) -> NoReturn:
    """End the process without the interpreter's shutdown, which would wait for what does not end."""
    logging.shutdown()
    os._exit(status)


def exit_for_device_lost(error: DeviceLost, item: str) -> NoReturn:
    """End a process whose CUDA context is lost; its parent or a service manager starts another."""
    logger.critical("%s: %s; this process exits, a fresh one takes over", item, error)
    exit_now(EX_DEVICE_LOST)
