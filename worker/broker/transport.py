"""kombu's Redis transport, extended: it sees only messages that validation built; the rest become dead letters.

The undocumented parts of kombu that are used are listed in __init__.py.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from queue import Empty
from typing import Any, Final

import redis
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from producer.errors import BadMessage
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, QUEUES
from producer.redis_client import REDIS_ERRORS
from producer.settings import Settings, load_settings
from worker.broker.validation import rebuild

LANES: Final = frozenset(queue.encode() for queue in QUEUES.values())
HOLD: Final = threading.Event()  # while it is set, this process asks for no message: its child is not to get any
logger = logging.getLogger(__name__)


class Client(redis.Redis):
    """A client whose BRPOP returns elements of our lanes rebuilt; None, as after its time-out, for a rejected one."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Validate and rebuild what kombu's BRPOP returns from one of our lanes."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not answer or answer[0] not in LANES:
            return answer
        queue, element = answer
        try:
            return [queue, rebuild(element, queue.decode())]
        except BadMessage as error:
            _dead_letters().reject(element.decode(errors="backslashreplace"), str(error), lane=queue.decode())
            return None


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """kombu's record of unacknowledged messages, which forgets a message even if its acknowledgement failed.

    kombu keeps it, Celery logs the error and continues, and with a prefetch count of one the worker would never
    fetch a message again. A message that Redis did not acknowledge is restored after the visibility timeout, and
    the ledger knows that its batch is finished.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge and forget."""
        try:
            super().ack(delivery_tag)
        finally:
            self._forget(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject, or requeue, and forget."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            self._forget(delivery_tag)

    def _forget(self, delivery_tag: str) -> None:
        if delivery_tag in self._delivered and delivery_tag not in self._dirty:
            virtual.QoS.ack(self, delivery_tag)


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel with these two classes; it asks for no message on HOLD, and in quiet hours for none of bulk."""

    QoS = QoS

    def _brpop_start(self, timeout: int | None = None) -> None:
        """Ask for messages, for a second at most; kombu calls it again after that."""
        rests = _settings().quiet.until()
        lanes = [queue for queue in self.active_queues if not (rests and queue == QUEUES[BULK])]
        self._queue_cycle.update([] if HOLD.is_set() else lanes)
        super()._brpop_start(timeout)

    def _get_client(self) -> Any:
        super()._get_client()  # raises where redis-py is too old
        return Client

    def _receive_one(self, subclient: Any) -> Any:
        """Receive a remote control message; whoever may publish decides what is in it.

        kombu takes a KeyError, which a missing field causes, for a lost connection.
        """
        try:
            return super()._receive_one(subclient)
        except (Empty, *REDIS_ERRORS):
            raise
        except Exception as error:  # kombu's parser raises whatever the content provokes
            logger.warning("a malformed remote control message is ignored: %r", error)
            raise Empty from error


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's transport with this channel."""

    Channel = Channel


@cache
def _settings() -> Settings:
    return load_settings()


@cache
def _dead_letters() -> DeadLetters:
    return DeadLetters(JobStore(_settings().redis_url))
