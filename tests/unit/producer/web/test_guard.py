"""Pages and interface in applications of several kinds, without Redis: limits, host names, sign-in."""

from contextlib import contextmanager

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

from producer.settings import load_settings
from producer.web import lifespan, page_router, router
from producer.web.service import Service

TOKEN = "a token of sixteen characters"


@pytest.fixture
def settings(tmp_path):
    root, store = tmp_path / "posters", f"sqlite:{tmp_path / 'v.db'}"
    root.mkdir()
    return load_settings(redis_url="redis://127.0.0.1:1/0", root=root, store=store, web_token=TOKEN)


@contextmanager
def application(settings, pages="", interface="", **more):
    """A client of an application that has the pages and the interface under these prefixes."""
    app = FastAPI(lifespan=lifespan)
    app.state.posters = Service(settings)
    app.get("/shop/jobs", name="list_jobs")(lambda: "an endpoint of the application, of a name that is not rare")
    app.include_router(router, prefix=interface, **more)
    app.include_router(page_router, prefix=pages, **more)
    with TestClient(app, base_url="http://localhost:8000", follow_redirects=False) as client:
        yield client


def test_posters_of_several_megabytes_can_be_added_by_page_and_interface(settings):
    """Refused for what they are, not for their size."""
    large = {"files": ("a.jpg", b"no image" * 500_000)}
    with application(settings.model_copy(update={"web_token": None})) as client:
        assert client.post("/collection", files=large).status_code == 415
        assert client.post("/api/v1/posters", files=large).status_code == 415


def test_a_login_of_the_application_is_not_taken_for_ours(settings):
    """Its 401 is shown; it does not lead to our page for the token, which asks for that login again."""

    def refuse():
        raise HTTPException(401, "who are you?")

    with application(settings.model_copy(update={"web_token": None}), dependencies=[Depends(refuse)]) as client:
        for path in ("/", "/login"):
            answer = client.get(path)
            assert (answer.status_code, "who are you?" in answer.text) == (401, True)


@pytest.mark.parametrize(
    ("pages", "interface", "path"), [("", "", "/"), ("/a", "/a", "/a"), ("/a/p", "/a/i", "/a"), ("/a", "", "/")]
)
def test_the_session_reaches_pages_and_pictures(settings, pages, interface, path):
    """Pictures are part of the interface, which may be elsewhere."""
    with application(settings, pages, interface) as client:
        answer = client.post(f"{pages}/login", data={"token": TOKEN})
        assert f"Path={path};" in f"{answer.headers['set-cookie']};"
        assert client.get(f"{interface}/api/v1/openapi.json").status_code == 200


def test_names_of_hosts_and_origins_may_be_written_with_capitals(settings):
    """Browsers send them without."""
    made = settings.model_copy(update={"web_hosts": ("Posters.Example",), "web_origins": ("https://App.example",)})
    with application(made) as client:
        headers = {"Host": "posters.example", "Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        assert client.post("/login", data={"token": TOKEN}, headers=headers).status_code == 303
