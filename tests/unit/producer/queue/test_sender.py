"""The Celery application: its own settings decide, whatever the host program has set for its own Celery."""

import pickle

import pytest

from producer.queue.messages import BULK, QUEUES
from producer.queue.sender import create_sender
from producer.settings import load_settings
from worker.celery import create_app


@pytest.mark.parametrize("create", [create_sender, create_app])
@pytest.mark.parametrize("pickled", [False, True])
def test_only_our_settings_decide(monkeypatch, create, pickled):
    """Broker, result backend, configuration module, loader, Django; also for the copy that a spawned child gets."""
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(variable, "redis://theirs:1/1")
    for variable in ("CELERY_CONFIG_MODULE", "CELERY_LOADER", "DJANGO_SETTINGS_MODULE"):
        monkeypatch.setenv(variable, "no_module_of_ours")
    app = create(load_settings(redis_url="redis://ours:2/3"))
    if pickled:
        app = pickle.loads(pickle.dumps(app))
    connections = app.connection_for_read(), app.connection_for_write(), app.connection(), app.pool.connection
    assert {(found.hostname, found.port, found.virtual_host) for found in connections} == {("ours", 2, "3")}
    assert type(app.backend).__name__ == "DisabledBackend"
    assert (app.conf.task_default_queue, app.conf.accept_content) == (QUEUES[BULK], ["json"])
