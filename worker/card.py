"""Which card a worker works on, and that it is the only one there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import torch

from worker.announcement import RENEWAL_S
from worker.errors import RedisUnreachable
from worker.keys import card_key
from worker.lease import Lease
from worker.ledger import Ledger

LEASE_S: Final = 15.0  # as long as an announcement: a worker that is silent for so long counts as dead
LOOK_S: Final = 1.0
# A holder that lives renews its lease in less. So a lease that expired because Redis' clock was put forward, or
# because Redis was away, is its holder's again before one that waits takes it.
SETTLE_S: Final = RENEWAL_S + 1.0

logger = logging.getLogger(__name__)


def card_of(device: torch.device) -> str | None:
    """The UUID of the card behind a device, as nvidia-smi shows it; None for the CPU.

    CUDA itself is asked, because POSTERS_GPU, CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as numbers or as
    UUIDs, can name one card in many ways. That takes none of the card's memory.
    """
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def wait_for_card(
    ledger: Ledger, card: str, owner: str, tell: Callable[[str], object], pause: Callable[[float], object] = time.sleep
) -> Lease:
    """The lease of a card, as soon as nobody else has it.

    Args:
        owner: who asks; the child that follows a dead one has its parent's name, and need not wait.
        tell: called with a sentence at every look, so that the worker can announce why it waits.
        pause: waits so many seconds.
    """
    lease = Lease(ledger, card_key(card), owner, LEASE_S)
    said = ""
    while True:
        try:
            holder = lease.held_by()
            if holder in (None, owner):
                if said:
                    pause(SETTLE_S)
                holder = lease.take()
            if holder in (None, owner):
                return lease
            reason = f"{holder} works on the card {card}; this worker waits, and takes over when that one ends"
        except RedisUnreachable as error:
            reason = f"nobody can tell who works on the card {card}: {error}"
        if reason != said:
            logger.warning("%s", reason)
        said = reason
        tell(reason)
        pause(LOOK_S)
