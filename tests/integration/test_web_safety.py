"""Who may ask the served interface for what, and hostile text on its pages."""

import socket
import threading
import time

import pytest
from click.testing import CliRunner

from producer import Producer
from producer.__main__ import main
from producer.errors import ConfigurationError
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.progress import Failure, Outcome
from producer.queue.workers import LOADING, READY, WorkerRegistry
from producer.settings import load_settings
from producer.web import app as module
from producer.web.guard import HEADERS, GuardedRoute
from tests.support.ledger_jobs import batch, begin
from tests.support.served import HOSTILE, TITLE, jpeg, serving, write_collection

TOKEN = "a-token-of-thirty-two-characters"
PAGES = (
    "/",
    "/find",
    "/failures",
    "/duplicates?same_content=true",
    "/collection",
    "/collection?state=missing",
    "/spaces",
)


@pytest.fixture
def client(redis_url, tmp_path):
    with serving(write_collection(tmp_path, redis_url)) as client:
        yield client


@pytest.fixture
def guarded(redis_url, tmp_path):
    """With a token, a host name and a foreign origin that are known."""
    settings = write_collection(
        tmp_path, redis_url, web_token=TOKEN, web_hosts="posters.example", web_origins="https://app.example"
    )
    with serving(settings) as client:
        yield client


def test_every_route_is_guarded_and_every_answer_has_the_headers(client):
    """Pages, interface, files, problems: a strict policy that loads nothing from elsewhere."""
    routes = [route for route in client.app.routes if hasattr(route, "endpoint")]
    assert all(isinstance(route, GuardedRoute) for route in routes)
    for path in (
        *PAGES,
        "/api/v1/jobs",
        "/api/v1/jobs/x",
        "/static/app.js",
        "/posters/a",
        "/nothing",
        "/api/v1/openapi.json",
    ):
        answer = client.get(path)
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, path
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "http" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "a.localhost"]
)
def test_its_own_names_and_addresses_are_answered(client, host):
    """No page elsewhere can have them as its name."""
    assert client.get("/api/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@localhost", "::1", "localhost/x"],
)
def test_a_foreign_name_is_refused(client, host):
    """What a page that rebinds its own name to this machine would send; also for pages and files."""
    for path in ("/api/v1/jobs", "/", "/static/app.js"):
        assert client.get(path, headers={"Host": host}).status_code == 421


def test_a_supervisor_needs_no_token(guarded, redis_url, monkeypatch):
    """`/healthz`: this process answers. `/readyz`: Redis is reachable, a worker ready; the token gives reasons."""
    known = {"Authorization": f"Bearer {TOKEN}"}

    def is_ready(headers=None):
        answer = guarded.get("/readyz", headers=headers)
        return answer.status_code, answer.json().get("detail")

    hidden = (503, "the reason is for who has the token")
    assert (is_ready(), is_ready(known)) == (hidden, (503, "no worker is alive"))
    registry = WorkerRegistry(redis_url)
    registry.publish("a@h/1/x", READY, {"fault": "the store does not answer"})
    registry.publish("b@h/1/x", LOADING, {"stage": "model"})
    reason = "a@h is ready, but the store does not answer; b@h is loading: model"
    assert (is_ready(), is_ready(known)) == (hidden, (503, reason))
    registry.publish("a@h/2/x", READY, {"fault": ""})
    assert is_ready() == (200, None)
    registry.close()
    monkeypatch.setattr(guarded.app.state.posters, "producer", Producer(load_settings(redis_url="redis://127.0.0.1:1")))
    assert is_ready() == hidden
    assert "does not answer" in is_ready(known)[1]
    assert guarded.get("/healthz").json() == {"status": "ok"}
    assert guarded.get("/readyz", headers={"Host": "evil.example"}).status_code == 421


def test_only_its_own_pages_may_change_something(client, guarded):
    """A browser says where a request comes from; a program that is no browser need not."""
    pause = "/api/v1/lanes/bulk/pause"
    assert client.post(pause).status_code == 200
    assert client.post(pause, headers={"Origin": "http://localhost:8000"}).status_code == 200
    assert (
        client.post(pause, headers={"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"}).status_code
        == 200
    )
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:9000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9000"},
    ):
        assert client.post(pause, headers=headers).status_code == 403, headers
        assert client.post("/jobs/begin", data={"kind": "prune"}, headers=headers).status_code == 403, headers
        assert client.delete("/api/v1/posters/a", headers=headers).status_code == 403
        assert client.put("/api/v1/spaces/current", json={"space": "x"}, headers=headers).status_code == 403
        assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    known = {"Authorization": f"Bearer {TOKEN}", "Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    assert guarded.post(pause, headers=known).status_code == 200


def test_without_the_token_nothing_is_told(guarded):
    """401, also for files of the collection; pages lead to the sign-in; its own name is known."""
    for path in ("/api/v1/jobs", "/api/v1/posters/a/picture", "/api/v1/openapi.json"):
        answer = guarded.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert guarded.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert guarded.get(path, headers={"Cookie": b"posters_session=wrong\xe9"}).status_code == 401
        assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in PAGES:
        assert guarded.get(path).headers["location"] == "/login"
    assert guarded.post("/api/v1/lanes/bulk/pause").status_code == 401
    assert (
        guarded.get("/api/v1/jobs", headers={"Host": "posters.example", "Authorization": f"bearer {TOKEN}"}).status_code
        == 200
    )


def test_a_person_signs_in_with_the_token(guarded):
    """The cookie is not the token, no script reads it, and no other site's page sends it."""
    assert guarded.get("/login").status_code == 200
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 403
    answer = guarded.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/"
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert guarded.get("/").status_code == 200
    assert guarded.get("/api/v1/jobs").status_code == 200
    foreign = {"Origin": "https://evil.example"}
    assert guarded.post("/login", data={"token": TOKEN}, headers=foreign).status_code == 403


def test_another_address_demands_a_token(redis_url, tmp_path, monkeypatch):
    """Unless said otherwise; loopback does not."""
    served = []
    monkeypatch.setattr(module, "_serve", lambda app, listening, **_: served.append(listening.getsockname()[0]))
    settings = write_collection(tmp_path, redis_url)
    for host in ("0.0.0.0", "::", "192.168.1.5", "posters.example"):
        with pytest.raises(ConfigurationError, match="POSTERS_WEB_TOKEN"):
            module.run(settings, host, 0, without_token=False)
    module.run(settings, "127.0.0.1", 0, without_token=False)
    module.run(settings, "localhost", 0, without_token=False)
    module.run(settings, "0.0.0.0", 0, without_token=True)
    module.run(write_collection(tmp_path / "other", redis_url, web_token=TOKEN), "0.0.0.0", 0, without_token=False)
    assert served == ["127.0.0.1", "127.0.0.1", "0.0.0.0", "0.0.0.0"]
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match="choose another --port"),
    ):
        module.run(settings, "127.0.0.1", taken.getsockname()[1], without_token=False)
    done = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0"], env={"POSTERS_REDIS_URL": redis_url})
    assert done.exit_code == 2
    assert "--no-token" in done.stderr


def test_hostile_text_is_text_on_every_page(client, redis_url):
    """Titles, ids, file names and reasons that are markup, in pages, in links and in JSON."""
    ledger = JobStore(redis_url)
    begin(ledger, batch())
    failures = (Failure("1-0", "<img src=x onerror=alert(2)>.jpg", "truncated", "<script>alert(3)</script>"),)
    Claims(ledger).finish(batch(), Outcome(embedded=3, failures=failures))
    ledger.close()
    assert client.get("/failures").text.count("&lt;script&gt;alert(3)") == 1
    assert TITLE.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in client.get("/collection").text
    for path in (
        *PAGES,
        f"/posters/{HOSTILE.replace('/', '%2F')}",
        "/failures?job=<script>alert(4)</script>",
        "/posters/<script>x</script>",
    ):
        text = client.get(path).text
        assert text.count("<script") == 1, path
        assert "<img src=x" not in text
    answer = client.get("/api/v1/posters")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_says_no_length_is_bounded_as_well(client):
    """Chunk by chunk, past a megabyte."""
    parts = (b"x" * 100_000 for _ in range(20))
    answer = client.put("/api/v1/spaces/current", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_nothing_blocks_the_event_loop(client, redis_server):
    """While Redis hangs, requests that need none are answered."""
    redis_server.pause()
    try:
        waiting = threading.Thread(target=client.get, args=("/api/v1/jobs",))
        waiting.start()
        began = time.monotonic()
        assert client.get("/static/app.js").status_code == 200
        assert time.monotonic() - began < 1.5
        waiting.join()
        began, page = time.monotonic(), client.get("/")
        assert time.monotonic() - began < 8, "one time-out, not one for each thing that is shown"
        assert (page.status_code, "does not answer" in page.text) == (200, True)
    finally:
        redis_server.resume()


def test_the_upload_form_takes_images_alone(client):
    """The pages' own forms are under the same limits as the interface."""
    assert client.post("/find", files={"image": ("x.html", b"<script>")}).status_code == 415
    assert client.post("/collection", files={"files": ("x.svg", b"<svg/>")}).status_code == 415
    assert client.post("/find", files={"image": ("x.jpg", b"\xff\xd8\xff" + bytes(33_000_000))}).status_code == 413
    assert client.post("/collection", files={"files": ("x.jpg", jpeg())}).headers["location"] == "/"
