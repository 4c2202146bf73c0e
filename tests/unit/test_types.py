"""The public interface is typed, for programs that install it."""

import subprocess
import sys

import pytest

from tests.support.project import PROJECT

CONFIG = """
[mypy]
strict = True
follow_imports = silent

[mypy-torch.*,torchvision.*,open_clip.*]
follow_imports = skip
"""


def test_both_packages_say_that_they_are_typed():
    """PEP 561; tests/integration/test_wheel.py checks that the wheels hold the markers."""
    for package in ("producer", "worker"):
        assert (PROJECT / package / "py.typed").is_file()


@pytest.mark.slow
def test_a_program_that_uses_all_of_it_passes_mypy_strict(tmp_path):
    """Neither an Any that hides a mistake, nor a name that is not exported."""
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    command.append("tests/support/typed_program.py")
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
