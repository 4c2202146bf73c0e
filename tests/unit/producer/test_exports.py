"""What `from producer import …` offers, and what it says where another program's module is in the way."""

import subprocess
import sys

import pytest

import producer
from producer import errors
from tests.support.project import PROJECT


def test_every_public_error_is_exported():
    """A backend catches them by the name under which it imports the rest."""
    public = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert public == set(producer.__all__) - {"AsyncJob", "AsyncProducer", "Index", "Job", "Match", "Producer"}
    for name in producer.__all__:
        assert getattr(producer, name).__name__ == name
    with pytest.raises(AttributeError, match="Consumer"):
        _ = producer.Consumer


def fail(folder, code):
    """What Python prints when it runs `code` in a folder, from which it imports first."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
def test_a_foreign_worker_is_named(tmp_path, name):
    """Module or package: before it is started, or imported."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('not to be run')")
    output = fail(tmp_path, "from producer.host import engine_required\nwith engine_required(): pass")
    assert "ConfigurationError" in output
    assert str(tmp_path / name) in output


def test_a_foreign_producer_is_named(tmp_path):
    """By a worker that starts beside it."""
    (tmp_path / "producer.py").write_text("")
    output = fail(tmp_path, "import worker.celery")
    assert f"`producer` is the module of another program here, {tmp_path / 'producer.py'}" in output
