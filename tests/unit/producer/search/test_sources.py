"""Query images as they come: files, addresses, standard input; bounded, and never from inside this network."""

import http.server
import io
import socket
import sys
import threading
import time
import types
import warnings
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from bench.image_samples import encoded, picture
from producer.errors import ConfigurationError, UnreadablePoster
from producer.search import download as downloads
from producer.search.download import download, is_public
from producer.search.sources import open_sources
from producer.settings import load_settings

IMAGE = encoded(picture(60, 90), "PNG")


class Site(http.server.BaseHTTPRequestHandler):
    """A site with one image, and everything that a site may do to whoever asks it."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        name, _, rest = self.path[1:].partition("/")
        if name == "hop":
            left = int(rest)
            self.send_response(302)
            self.send_header("Location", f"/hop/{left - 1}" if left > 1 else "/image.png")
            self.end_headers()
        elif name == "to":
            self.send_response(301)
            self.send_header("Location", rest)
            self.end_headers()
        elif name == "large":
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(b"x" * 2**20)
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            while not self.server.over:
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name in ("image.png", "bild%20%C3%B6.png"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(IMAGE)
        else:
            self.send_error(404)

    def handle(self):
        with suppress(OSError):  # the client had enough
            super().handle()


@pytest.fixture
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.over = False
        server.daemon_threads = True
        Site.asked.clear()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over = True
        server.shutdown()


def test_an_image_is_downloaded(site):
    """Its bytes; blanks and letters beyond ASCII in the address; up to three redirects."""
    assert download(f"{site}/image.png", private=True) == IMAGE
    assert download(f"{site}/bild ö.png", private=True) == IMAGE
    assert download(f"{site}/hop/3", private=True) == IMAGE


@pytest.mark.parametrize(
    ("path", "word", "reason"),
    [
        ("/absent.png", "missing", "status 404"),
        ("/hop/4", "unreadable", "more than 3 other addresses"),
        ("/to/ftp://example.org/a.png", "unsupported", "ftp is not an address of http or https"),
        ("/to/file:///etc/passwd", "unsupported", "file is not"),
        ("/large", "too-large", "more than 33,554,432 bytes"),
    ],
)
def test_what_a_site_may_not_do(site, path, word, reason):
    """A word and a reason for each."""
    with pytest.raises(UnreadablePoster) as caught:
        download(f"{site}{path}", private=True)
    assert (caught.value.path, caught.value.word) == (f"{site}{path}", word)
    assert reason in caught.value.reason


def test_a_site_that_sends_a_byte_now_and_then_is_left(site, monkeypatch):
    """The time is for all of it, not for each byte."""
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UnreadablePoster, match=r"did not come within 0\.5 s"):
        download(f"{site}/slow", private=True)
    assert time.monotonic() - began < 3


def test_a_resolver_that_does_not_answer_is_left(monkeypatch):
    """The system's own timeout may be half a minute."""
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    with pytest.raises(UnreadablePoster, match="did not come within"):
        download("http://example.org/a.png")


def test_addresses_inside_are_refused(site):
    """By default; nothing is asked. A setting allows them."""
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
        with pytest.raises(UnreadablePoster, match="an address inside this network or machine: POSTERS_PRIVATE_URLS"):
            download(site.replace("127.0.0.1", host) + "/image.png")
    assert Site.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::808:808", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
        ("::127.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
        ("192.0.0.192", False),
    ],
)
def test_which_addresses_are_public(address, public):
    """Private, shared, link-local, multicast, reserved, unspecified; and IPv4 inside IPv6, as gateways unpack it."""
    assert is_public(address) is public


def test_a_redirect_to_the_inside_is_refused(site, monkeypatch):
    """Each hop is checked: here the first host counts as public, and the second is not."""
    real = downloads.is_public
    port = site.rpartition(":")[2]
    monkeypatch.setattr(downloads, "is_public", lambda address: address == "127.0.0.1" or real(address))
    with pytest.raises(UnreadablePoster, match=r"127\.0\.0\.2, an address inside"):
        download(f"{site}/to/http://127.0.0.2:{port}/image.png")
    assert not any("image" in path and "to/" not in path for path in Site.asked)


def test_an_address_that_does_not_answer_leaves_time_for_the_next(site, monkeypatch):
    """As IPv6 where a network drops it."""
    connect, waited = downloads.httpcore.SyncBackend.connect_tcp, []

    def connect_tcp(backend, host, port, timeout):
        if host == "127.0.0.9":
            waited.append(timeout)
            raise downloads.httpcore.ConnectTimeout
        return connect(backend, host, port, timeout)

    monkeypatch.setattr(downloads, "_resolve", lambda *_: ["127.0.0.9", "127.0.0.1"])
    monkeypatch.setattr(downloads.httpcore.SyncBackend, "connect_tcp", connect_tcp)
    assert download(f"{site}/image.png", private=True) == IMAGE
    assert 0 < waited[0] <= downloads.MAX_SECONDS / 2


def test_a_name_that_moves_inside_is_refused(site, monkeypatch):
    """The connection goes to the address that was checked; resolved anew the name would be another (rebinding)."""
    port = int(site.rpartition(":")[2])
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    def resolve(host, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    connected = []
    backend = downloads.httpcore.SyncBackend

    class Recorded(backend):
        def connect_tcp(self, host, port, *_, **__):
            connected.append(host)
            raise downloads.httpcore.ConnectError("stop here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(downloads.httpcore, "SyncBackend", Recorded)
    with pytest.raises(UnreadablePoster, match="cannot be downloaded: stop here"):
        download(f"http://moving.example:{port}/image.png")
    assert connected == ["93.184.216.34"]


def test_a_connection_that_ended_inside_is_closed(site, monkeypatch):
    """Checked again at the connection: what the socket says of its other end counts, not what was resolved."""
    port = int(site.rpartition(":")[2])
    monkeypatch.setattr(downloads, "_resolve", lambda *_: ["93.184.216.34"])
    backend = downloads.httpcore.SyncBackend

    class Diverted(backend):
        def connect_tcp(self, host, port, *rest, **more):
            return super().connect_tcp("127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(downloads.httpcore, "SyncBackend", Diverted)
    with pytest.raises(UnreadablePoster, match=r"127\.0\.0\.1, an address inside"):
        download(f"http://example.org:{port}/image.png")
    assert Site.asked == []


@pytest.fixture
def settings():
    return load_settings(private_urls=True)


def test_each_kind_of_query_is_a_file_while_it_is_searched(tmp_path, site, settings, monkeypatch):
    """In the order of the names; what failed says why, under its name; files are gone afterwards."""
    (tmp_path / "a.png").write_bytes(IMAGE)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(IMAGE), fileno=lambda: 0))
    monkeypatch.setattr("os.isatty", lambda _: False)
    names = [str(tmp_path / "a.png"), f"{site}/image.png", "-", f"{site}/absent", str(tmp_path / "no.png")]
    with open_sources(names, settings) as sources:
        assert [source.name for source in sources] == names
        assert [source.path.read_bytes() for source in sources[:3]] == [IMAGE] * 3
        assert [source.failure.word for source in sources[3:]] == ["missing", "missing"]
        assert [source.failure.path for source in sources[3:]] == names[3:]
        copies = [source.path for source in sources[1:3]]
    assert not any(path.exists() for path in copies)


def test_addresses_inside_need_the_setting(site):
    """POSTERS_PRIVATE_URLS."""
    with open_sources([f"{site}/image.png"], load_settings()) as (source,):
        assert source.failure.word == "unsupported"


def test_standard_input_is_bounded_and_read_once(monkeypatch, settings):
    """No terminal, not twice, not empty, not endless."""
    with pytest.raises(ConfigurationError, match="once only"), open_sources(["-", "-"], settings):
        pass
    stream = types.SimpleNamespace(buffer=io.BytesIO(b""), fileno=lambda: 0)
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setattr("os.isatty", lambda _: True)
    with pytest.raises(ConfigurationError, match="a terminal"), open_sources(["-"], settings):
        pass
    monkeypatch.setattr("os.isatty", lambda _: False)
    with open_sources(["-"], settings) as (source,):
        assert source.failure.reason == "nothing came"
    stream.buffer = io.BytesIO(b"x" * 11)
    with open_sources(["-"], settings.model_copy(update={"max_file_bytes": 10})) as (source,):
        assert source.failure.word == "too-large"


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (40, 60, 90)])
def test_bars_are_left_out(tmp_path, settings, color):
    """Above, below and beside the picture, also with a caption. A plain picture has none; nothing but bars is one."""
    screen = Image.new("RGB", (400, 900), color)
    screen.paste(picture(360, 540), (20, 150))
    screen.paste((128, 128, 128), (40, 760, 130, 770))  # a caption
    screen.save(tmp_path / "screen.jpg", quality=90)
    (tmp_path / "plain.png").write_bytes(encoded(picture(360, 540), "PNG"))
    screen.paste((200, 0, 0), (0, 0, 400, 450))
    screen.paste((0, 200, 0), (0, 450, 400, 900))
    screen.save(tmp_path / "bars.png")
    names = [str(tmp_path / name) for name in ("screen.jpg", "plain.png", "bars.png")]
    with warnings.catch_warnings(action="error"), open_sources(names, settings) as (screen, plain, bars):
        found = np.asarray(Image.open(screen.without_bars).convert("RGB")).astype(int)
        assert plain.without_bars is bars.without_bars is None
    assert np.abs(np.array(found.shape[:2]) - (540, 360)).max() <= 4
