"""What this project changes in celery, kombu, billiard and redis-py, and every undocumented part of them that it uses.

tests/unit/worker/test_private_parts.py fails, with this list, when one of them has another version than the one that
was read, or has no such part any more: read its source again, then change the version here.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Part(NamedTuple):
    """An undocumented part of a library.

    Attributes:
        owner: ``module:class`` or ``module`` in whose source it is found.
        name: as it stands there.
        user: our module.
        use: what for.
    """

    owner: str
    name: str
    user: str
    use: str


READ_IN: Final = {"celery": "5.7", "kombu": "5.7", "billiard": "4.3", "redis": "8.1"}
_EVENTS: Final = "worker.broker.events"
_CONSUMER, _TRANSPORT, _SUPERVISOR = "worker.broker.consumer", "worker.broker.transport", "worker.runtime.supervisor"
_CHILD = "worker.broker.child"
PARTS: Final = tuple(
    Part(*part)
    for part in (
        ("celery.worker.consumer.consumer:Consumer", "default_steps", _CONSUMER, "our Control in place of Celery's"),
        ("celery.worker.consumer.consumer:Consumer", "worker_options", _CONSUMER, "gossip and mingle off"),
        ("celery.worker.consumer.gossip", "without_gossip", _CONSUMER, "off"),
        ("celery.worker.consumer.mingle", "without_mingle", _CONSUMER, "off"),
        ("celery.worker.consumer.heart", "without_heartbeat", _CONSUMER, "off"),
        ("celery.worker.consumer.consumer:Consumer", "on_connection_error_before_connected", _CONSUMER, "a pause"),
        ("celery.worker.consumer.consumer:Consumer", "on_connection_error_after_connected", _CONSUMER, "no warning"),
        ("celery.events.dispatcher:EventDispatcher", "_publish", _EVENTS, "says once that publishing failed"),
        ("celery.events.dispatcher:EventDispatcher", "_outbound_buffer", _EVENTS, "emptied: it has no limit"),
        ("celery.app.events:Events", "dispatcher_cls", "worker.celery", "our dispatcher in place of Celery's"),
        ("celery.worker.consumer.control", "self.box", _CONSUMER, "our mailbox in place of Celery's"),
        ("celery.worker.pidbox:Pidbox", "on_message", _CONSUMER, "only inspections are answered"),
        ("celery.concurrency.base:BasePool", "_pool", _CONSUMER, "behind it is the prefork pool"),
        ("celery.concurrency.asynpool:AsynPool", "_fileno_to_inq", _CONSUMER, "which children are up"),
        ("kombu.transport.virtual.base:QoS", "can_consume", _CONSUMER, "replaced while no child is up"),
        ("kombu.transport.redis:Channel", "_get_client", _TRANSPORT, "our class of clients"),
        ("kombu.transport.redis:Channel", "_receive_one", _TRANSPORT, "no published message ends a worker"),
        ("kombu.transport.virtual.base:QoS", "_delivered", _TRANSPORT, "forget a message whose acknowledgement failed"),
        ("kombu.transport.virtual.base:QoS", "_dirty", _TRANSPORT, "the same"),
        ("kombu.transport.redis:Channel", "_brpop_start", _TRANSPORT, "leaves the bulk lane out in quiet hours"),
        ("kombu.transport.redis:Channel", "_queue_cycle", _TRANSPORT, "the lanes that BRPOP names"),
        ("kombu.transport.redis:Channel", "parse_response(self.client.connection", _TRANSPORT, "BRPOP is read by it"),
        ("kombu.transport.virtual.base:Channel", "delivery_tag", "worker.broker.validation", "the form of an element"),
        ("celery.app.amqp:AMQP", "argsrepr", "worker.broker.validation", "the form of a task's message"),
        ("kombu.transport", "TRANSPORT_ALIASES", "worker.celery", "our transport's name"),
        ("celery.concurrency", "ALIASES", "worker.celery", "our solo pool's name"),
        ("billiard.process", "'MainProcess'", "worker.tasks", "the solo process is the main one"),
        ("celery.concurrency.base:BasePool", "terminate_job", "worker.celery", "does nothing in our solo pool"),
        ("celery.apps.worker", "self.quiet = quiet", "worker.broker.log", "no banner"),
        ("celery.apps.worker", "safe_say", "worker.broker.log", "JSON in place of text"),
        ("celery.utils.log", "get_multiprocessing_logger", "worker.broker.log", "JSON"),
        ("billiard.spawn", "_MP_FORK_LOGLEVEL_", "worker.broker.log", "no text at the start of a child"),
        ("celery.worker.state", "should_stop", "worker.tasks", "end the worker with a status"),
        ("celery.worker.state", "active_requests", _SUPERVISOR, "whether a batch is in progress"),
        ("billiard.pool:Pool", "_state", _SUPERVISOR, "0 while the pool runs"),
        ("billiard.pool:Pool", "_pool", _CHILD, "its children"),
        ("billiard.pool:Pool", "worker.terminate_controlled()", _CHILD, "how `shrink` ends a child"),
        ("billiard.pool:Pool", "range(self._processes - len(self._pool))", _CHILD, "who shrank gets no new child"),
        ("celery.concurrency.prefork:TaskPool", "self.shrink = P.shrink", _CHILD, "end the child"),
        ("celery.concurrency.prefork:TaskPool", "self.grow = P.grow", _CHILD, "start it again"),
        ("celery.concurrency.prefork:TaskPool", "self.maintain_pool = P.maintain_pool", _CHILD, "at once"),
        ("celery.concurrency.prefork:TaskPool", "num_processes", _CHILD, "whether the pool has shrunk"),
        ("kombu.asynchronous.hub:Hub", "_wake_pending", _CHILD, "`call_soon` may be called in any thread"),
        ("kombu.transport.redis:Channel", "_in_poll", _CHILD, "whether Redis may still answer with a message"),
        ("celery.worker.state", "reserved_requests", _CHILD, "messages that Celery holds"),
        ("billiard.pool:Pool", "'Worker exited prematurely: {0} Job: {1}.'", _SUPERVISOR, "how a child died"),
        ("billiard.common", "'signal {0} ({1})'", _SUPERVISOR, "how a child died"),
        ("billiard.common", "'exitcode {0}'", _SUPERVISOR, "how a child died"),
        ("redis.client:Redis", "parse_response", _TRANSPORT, "validates what BRPOP returns"),
        ("redis.client:Pipeline", "immediate_execute_command", "producer.redis_client", "translates errors"),
        ("redis.connection", "parse_url", "producer.redis_client", "kombu reads less of a URL"),
    )
)
