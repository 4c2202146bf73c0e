"""The command `serve`, where its packages are missing or its settings are wrong."""

import importlib.util

import pytest
from click.testing import CliRunner

from producer.__main__ import main


def test_without_fastapi_it_says_what_to_install(monkeypatch):
    """The client library alone does not bring it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    done = CliRunner().invoke(main, ["serve", "--port", "0"], env={"POSTERS_CATALOGUE": "none"})
    assert done.exit_code == 2
    assert "poster-embedding-queue[web]" in done.stderr


@pytest.mark.parametrize("token", ["short", "x" * 15])
def test_a_short_token_is_refused_and_not_shown(token):
    """It could be guessed."""
    done = CliRunner().invoke(main, ["serve"], env={"POSTERS_WEB_TOKEN": token})
    assert done.exit_code == 2
    assert "web_token" in done.stderr
    assert f"'{token}'" not in done.stderr
