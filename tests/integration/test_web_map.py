"""The map as it is served: computed by a process of its own, kept beside the store, shown until there is the next."""

import struct

from producer.embedding import Space
from producer.map.maker import SUFFIX
from producer.vectors import open_store
from tests.support.filled_store import SPACE, fill, unit
from tests.support.served import HOSTILE, TITLE, serving
from tests.support.wait import wait_for

API = "/api/v1"


def state(client):
    answer = client.get(f"{API}/map")
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(client):
    """The map, when it is computed."""
    return wait_for(lambda: (found := state(client))["map"] and found["work"] is None and found, "the map")


def test_a_map_is_computed_once_for_a_state_of_the_collection(client, settings):
    """In the background; kept beside the store, as private as that; the next server reads it there."""
    begun = state(client)
    assert (begun["map"], begun["current"], begun["space"]) == (None, False, SPACE.id)
    assert begun["work"]["stage"]
    assert "for the first time" in client.get("/map").text
    found = finished(client)
    assert (found["posters"], found["current"], found["later"], found["problem"]) == (3, True, 0, None)
    points = client.get(f"{API}/map/points", params={"map": found["map"]})
    assert "immutable" in points.headers["cache-control"]
    assert len(struct.unpack("<6H", points.content)) == 6
    asked = client.get(f"{API}/map/posters", params={"map": found["map"], "point": [2, 0, 1, 3, -1]}).json()["posters"]
    assert [poster["point"] for poster in asked] == [2, 0, 1]
    assert {poster["id"] for poster in asked} == {"a", HOSTILE, "c"}
    (hostile,) = (poster for poster in asked if poster["id"] == HOSTILE)
    assert hostile["title"] == TITLE
    assert client.get(hostile["picture"]).status_code == 200
    picture = client.get(f"{API}/map/picture", params={"map": found["map"]})
    assert (picture.headers["content-type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    page = client.get("/map").text
    assert f'src="{API}/map/picture?map={found["map"]}"' in page
    assert "Without script" in page
    file = settings.root.with_name("vectors.db" + SUFFIX)
    assert file.stat().st_mode & 0o077 == 0
    with serving(settings) as other:
        again = state(other)
    assert (again["map"], again["current"], again["work"]) == (found["map"], True, None)


def test_the_map_before_is_shown_until_there_is_the_next(client, settings):
    """Points and posters are asked for by the name of a map, so that they belong together."""
    first = finished(client)
    store = open_store(settings.store)
    fill(store, ["later"], unit(1, seed=9))
    store.close()
    changed = state(client)
    assert (changed["map"], changed["current"], changed["posters"]) == (first["map"], False, 3)
    assert "Posters have come or gone since" in client.get("/map").text
    client.app.state.posters.maps._rests_until = 0
    second = wait_for(lambda: (found := state(client))["current"] and found, "the next map")
    assert second["posters"] == 4
    for path in ("points", "posters", "picture"):
        answer = client.get(f"{API}/map/{path}", params={"map": first["map"], "point": 0})
        assert answer.status_code == 404, path


def test_what_prevents_a_map_is_said(client, settings):
    """On the page and to programs; asking goes on, and tries again after a while."""
    file = settings.root.with_name("vectors.db" + SUFFIX)
    file.mkdir()
    state(client)
    failed = wait_for(lambda: (found := state(client))["problem"] and found, "the failure")
    assert (failed["map"], failed["work"]) == (None, None)
    assert "cannot be written" in failed["problem"]
    assert "The map cannot be computed" in client.get("/map").text
    file.rmdir()
    client.app.state.posters.maps._rests_until = 0
    assert finished(client)["problem"] is None


def test_untrained_weights_are_named(client, settings):
    """What lies together means nothing then."""
    store = open_store(settings.store)
    space = Space("ViT-B-32", "untrained-0", "gelu", "224", 16)
    fill(store, ["a"], space=space)
    store.use(space.id)
    store.close()
    assert state(client)["untrained"]
    assert "untrained weights" in client.get("/map").text


def test_the_server_ends_what_it_computes(settings):
    """No process stays behind."""
    with serving(settings) as client:
        state(client)
        process = client.app.state.posters.maps._process
        assert process.poll() is None
    assert process.returncode is not None
