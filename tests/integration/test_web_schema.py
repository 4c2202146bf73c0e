"""The served interface against its own description: schemathesis sends what that allows, and what it does not."""

from contextlib import nullcontext, suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.served import serving, write_collection

EXAMPLES = 2  # of each operation, valid and invalid ones each
UNREACHABLE = {503, 504}  # no worker, no Redis: not a defect of the server
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def client(redis_url, tmp_path):
    with serving(write_collection(tmp_path, redis_url, web_hosts="testserver")) as client:
        yield client


def run(client, modes):
    """Try every operation but the endless one; the statuses of each."""
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", client.app)
    statuses = {}
    for result in schema.exclude(path_regex="/events$").get_all_operations():
        operation = result.ok()
        seen = statuses[operation.label] = set()
        for mode in modes:
            with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():  # any request is valid
                send(operation.as_strategy(generation_mode=mode), seen)
    return statuses


def send(strategy, seen):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def check(case):
        answer = case.call()
        seen.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in UNREACHABLE, answer.text
        case.validate_response(answer, checks=CHECKS)

    check()


def test_every_answer_is_as_described(client):
    """No request brings out a defect, and none is answered with what the description lacks."""
    statuses = run(client, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
    assert len(statuses) >= 18
    assert all(statuses.values())
    assert statuses["GET /api/v1/jobs"] >= {200}


def test_every_answer_is_as_described_while_redis_is_unreachable(client, redis_server):
    """Within its own time-outs; what needs no Redis is answered."""
    redis_server.stop()
    try:
        statuses = run(client, (GenerationMode.POSITIVE,))
    finally:
        redis_server.start()
    assert 503 in statuses["GET /api/v1/jobs"]
    assert statuses["GET /api/v1/spaces"] == {200}
