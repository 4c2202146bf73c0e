"""The command line as a whole: its names, its version, and an interrupt before it has begun."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.host import program, worker_command
from tests.support.project import PROJECT

ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_console_script_is_the_command_line():
    """`posters` starts what `python -m producer` starts."""
    module, _, name = ABOUT["scripts"]["posters"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_version_is_printed():
    """Of the code that runs."""
    done = CliRunner().invoke(main, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{ABOUT['version']}\n")


def test_hints_print_a_command_that_works_where_it_is_typed(tmp_path, monkeypatch):
    """A name where the shell finds this very program, else a path; as the program itself was started."""
    folder = tmp_path / "a b" / "bin"
    folder.mkdir(parents=True)
    for name in ("python3", "posters", "celery"):
        (folder / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    monkeypatch.setattr(sys, "argv", [str(PROJECT / "producer" / "__main__.py")])
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    assert (program(), worker_command()) == ("'a b/bin/python3' -m producer", "'a b/bin/celery' -A worker worker")
    monkeypatch.chdir(folder / "..")
    assert (program(), worker_command()) == ("bin/python3 -m producer", "bin/celery -A worker worker")
    monkeypatch.chdir("/")
    assert program() == f"'{folder}/python3' -m producer" or program().startswith("'tmp/")
    monkeypatch.setenv("PATH", str(folder))
    assert (program(), worker_command()) == ("python3 -m producer", "celery -A worker worker")
    monkeypatch.setattr(sys, "argv", [str(folder / "posters")])
    assert program() == "posters"
    monkeypatch.setenv("PATH", os.defpath)
    assert Path(program().strip("'")).name == "posters"


@pytest.mark.parametrize("module", ["celery", "click", "numpy"])
def test_an_interrupt_while_it_starts_ends_without_a_trace(module):
    """The imports take half a second, and Ctrl-C within it is no defect."""
    code = (
        "import runpy, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('producer', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names are always UTF-8 on this system")
def test_ids_do_not_depend_on_the_locale(tmp_path):
    """Under one that is not UTF-8, Python would read another name for the same file."""
    (tmp_path / "\u00e4.jpg").touch()
    found = []
    for locale in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        variables = {"POSTERS_ROOT": str(tmp_path), "POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}"}
        command = [sys.executable, "-m", "producer", "index", "--dry-run", "--force", "--json"]
        environment = os.environ | variables | locale
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0]["id"] == "\u00e4.jpg"
