"""A thread of the worker's main process: sends lost batches again, and ends a worker without a model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from celery import Celery

from worker.announcement import FAILED, LOADING, READY, Announcements
from worker.celery import create_app, send
from worker.errors import PosterError
from worker.ledger import Ledger
from worker.repair import Repair
from worker.settings import Settings

LOOK_S: Final = 1.0  # how soon a failed start ends the worker
REPAIR_EVERY: Final = 5  # looks

logger = logging.getLogger(__name__)


class Attendant(threading.Thread):
    """Watches while the worker works; ends with `stop`, or with the process."""

    def __init__(self, settings: Settings, name: str, app: Celery, *, give_up: Callable[[], None], solo: bool) -> None:
        """`name` is the worker's node name; `give_up` is called when its model could not be loaded."""
        super().__init__(name="attendant", daemon=True)
        self._settings, self._node, self._give_up, self._solo = settings, name, give_up, solo
        self._ended = threading.Event()
        self._announcements = Announcements(settings.redis_url)

    def run(self) -> None:
        """Look every second until `stop` is called."""
        app = create_app(self._settings)  # a producer's: bounded waiting, its own connections
        ledger = Ledger(self._settings.redis_url, claim_s=self._settings.claim_s)
        repair = Repair(self._settings.redis_url, ledger, lambda batch: send(app, batch))
        looks, silent = 0, False
        while not self._ended.wait(LOOK_S):
            looks += 1
            try:
                heard = self._announcements.hear(self._node)
                if heard is not None and heard.state == FAILED:
                    self._give_up()
                    break
                if heard is None and not self._solo and looks == 1:
                    self._announcements.say(self._node, LOADING, {})
                if looks % REPAIR_EVERY == 0 and (heard is None or heard.state == READY):
                    again = repair.run()
                    if again:
                        logger.warning("%d lost batch(es) sent again", again)
                silent = False
            except PosterError as error:
                if not silent:  # once per outage, not once per second
                    logger.warning("looking after lost batches has to wait: %s", error)
                silent = True
        repair.close()
        ledger.close()
        self._announcements.close()

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        self._ended.set()
