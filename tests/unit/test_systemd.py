"""deploy/systemd, as far as systemd itself can check it without being booted."""

import configparser
import shutil
import subprocess

import pytest

from producer.settings import Settings
from tests.support.project import PROJECT
from worker.celery import EX_CONFIG
from worker.runtime.heartbeat import EX_SOFTWARE, EX_TEMPFAIL, FORCE_S

UNITS = sorted((PROJECT / "deploy" / "systemd").glob("*.service"))
EXPOSED_MOST = 20  # of 100, as `systemd-analyze security` counts; 96 without any of it
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt install systemd"
)


def service_of(unit):
    """The section of a unit; of a key that is given twice, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
    parser.optionxform = str
    parser.read(unit, encoding="utf-8")
    return parser["Service"]


def statuses(service, key):
    return {int(word) for word in service.get(key, "").split()}


@pytest.fixture
def installed(tmp_path):
    """Units as they are installed, with commands for which systemd looks; the worker has an instance."""
    names = {unit.name: unit.name.replace("@", "@gpu0") for unit in UNITS}
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name in ("celery", "python"):
        (scripts / name).write_text("#!/bin/sh\n")
        (scripts / name).chmod(0o755)
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/posters/.venv/bin", str(scripts))
        (tmp_path / names[unit.name]).write_text(text, encoding="utf-8")
    return [tmp_path / name for name in names.values()]


@needs_systemd
def test_systemd_knows_every_line(installed):
    """No unknown key, no value out of range, no command that is not there."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, installed)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_a_service_has_no_more_rights_than_it_needs(installed):
    """As systemd counts them; it exits with another status where they are more."""
    for unit in installed:
        command = [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--no-pager",
            f"--threshold={EXPOSED_MOST}",
            str(unit),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_ends_in_the_same_way_again_is_not_restarted(unit):
    """Wrong settings end a worker with 78, and a command with 2. What a fresh process may mend is restarted."""
    service = service_of(unit)
    final = statuses(service, "RestartPreventExitStatus")
    assert service["Restart"] == "always"
    assert (EX_CONFIG if "worker" in unit.name else 2) in final
    assert not final & {0, 1, 3, EX_SOFTWARE, EX_TEMPFAIL}


def test_a_worker_may_finish_its_batch():
    """Only the parent gets SIGTERM, and has longer than the worker takes; a killed child does not end its parent."""
    service = service_of(next(unit for unit in UNITS if "worker" in unit.name))
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > Settings().stop_s + FORCE_S + 5
    assert service["OOMPolicy"] == "continue"


def test_the_commands_are_ours():
    """Options included: a misspelled one would end the service at its start."""
    from producer.__main__ import main

    commands = [service_of(unit)["ExecStart"] for unit in UNITS]
    assert [command for command in commands if "celery" in command] == [
        "/opt/posters/.venv/bin/celery -A worker worker --hostname %i@%%h"
    ]
    for command in commands:
        if "-m producer" in command:
            name, *options = command.partition("-m producer ")[2].split()
            known = {option for parameter in main.commands[name].params for option in parameter.opts}
            assert set(options) <= known
