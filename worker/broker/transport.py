"""kombu's Redis transport with a door: what is no message of ours goes to the quarantine, and the worker lives on."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import redis
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.messages import QUEUES
from producer.settings import load_settings
from worker.broker.validation import rejection_reason

LANES: Final = frozenset(queue.encode() for queue in QUEUES.values())


class Client(redis.Redis):
    """Answers a BRPOP as if an element that was put aside had never been there."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """As redis-py's; kombu reads the answer to each of its BRPOPs with it."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not answer or answer[0] not in LANES:
            return answer
        reason = rejection_reason(answer[1])
        if reason is None:
            return answer
        text = answer[1].decode(errors="backslashreplace")
        _dead_letters().reject(text, reason, lane=answer[0].decode())
        return None


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """kombu's account of what was taken, which forgets a message whether Redis heard of it or not.

    kombu's own keeps a message whose acknowledgement timed out, Celery logs that and goes on, and with one
    message at a time none would ever be taken again. What Redis did not hear comes back after the visibility
    timeout, and the ledger knows that it is finished.
    """

    def ack(self, delivery_tag: str) -> None:
        """As kombu's."""
        try:
            super().ack(delivery_tag)
        finally:
            self._forget(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """As kombu's."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            self._forget(delivery_tag)

    def _forget(self, delivery_tag: str) -> None:
        if delivery_tag in self._delivered and delivery_tag not in self._dirty:
            virtual.QoS.ack(self, delivery_tag)


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel, with that client and that account."""

    QoS = QoS

    def _get_client(self) -> Any:
        super()._get_client()  # refuses a redis-py that is too old
        return Client


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's transport, with that channel."""

    Channel = Channel


@cache
def _dead_letters() -> DeadLetters:
    return DeadLetters(JobStore(load_settings().redis_url))
