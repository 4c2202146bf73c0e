"""The Lua scripts are files: documented at their head, loaded by name, and part of a wheel."""

import tomllib
from importlib.resources import files

import pytest

from tests.support.project import PROJECT

HOMES = ("producer.queue", "producer.requests", "producer.vectors")
SCRIPTS = [(home, path.name) for home in HOMES[:2] for path in sorted((files(home) / "lua").iterdir())]


@pytest.mark.parametrize(("home", "name"), SCRIPTS)
def test_the_head_of_a_script_says_what_it_takes(home, name):
    """One sentence, then its keys."""
    lines = (files(home) / "lua" / name).read_text("utf-8").splitlines()
    head = [line for line in lines if line.startswith("--")]
    assert lines[: len(head)] == head
    assert any(line.startswith("-- KEYS: ") for line in head)


@pytest.mark.parametrize(("home", "name"), SCRIPTS)
def test_every_script_is_loaded_somewhere(home, name):
    """By its name, in one module of its package."""
    sources = [path.read_text("utf-8") for path in PROJECT.joinpath(*home.split(".")).glob("*.py")]
    assert sum(f'"{name.removesuffix(".lua")}"' in text for text in sources) == 1


@pytest.mark.parametrize("home", HOMES)
def test_a_wheel_holds_the_scripts(home):
    """What setuptools is configured to pack beside the modules."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"][home]
    folder = PROJECT.joinpath(*home.split("."))
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
