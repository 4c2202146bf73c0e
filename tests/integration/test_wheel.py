"""The two wheels: a backend installs `producer` alone, and may have a module called `worker` of its own."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, distributions

import pytest
from packaging.requirements import Requirement

from tests.support.project import PROJECT

NO_INDEX = re.compile(r"NewConnectionError|name resolution|ProxyError|timed out|ConnectTimeout")
DATA = {".lua", ".sql", ".html", ".css", ".js", ".typed"}


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Paths of both wheels, built from a copy of the project as README's `pip install` builds them."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels"))
    shutil.copy(PROJECT / "pyproject.toml", source)
    for package in ("producer", "worker"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(PROJECT / package, source / package, ignore=ignore)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(target))
    run(sys.executable, "-m", "pip", "wheel", *options, ".", "./worker", cwd=source)
    (queue,), (engine,) = target.glob("poster_embedding_queue-*"), target.glob("poster_embedding_worker-*")
    return queue, engine


def contents(wheel):
    """Names of the files, without those that describe the wheel."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def files_of(package, *endings):
    paths = (path for path in (PROJECT / package).rglob("*") if path.suffix in endings)
    return {path.relative_to(PROJECT).as_posix() for path in paths if "build" not in path.parts}


def test_the_wheel_for_backends_holds_producer_alone_and_whole(wheels):
    """Every module, and every script, template and style sheet beside them."""
    assert contents(wheels[0]) == files_of("producer", ".py", *DATA)


def test_the_engine_has_a_wheel_of_its_own(wheels):
    """Its packages are listed one by one: a new chapter must be, too."""
    assert contents(wheels[1]) == files_of("worker", ".py", *DATA)


def link_required(site, requirements, seen):
    """Link what a wheel requires, and no more, from this environment into `site`, as pip would install it there."""
    for wanted in map(Requirement, requirements):
        found = distribution(wanted.name)
        assert wanted.specifier.contains(found.version), wanted
        for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(found.locate_file(name))
        if (wanted.name, *wanted.extras) not in seen:
            seen.add((wanted.name, *wanted.extras))
            extras = ("", *wanted.extras)
            needs = [need for need in map(Requirement, found.requires or ()) if is_needed(need, extras)]
            link_required(site, map(str, needs), seen)


def is_needed(requirement, extras):
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


@pytest.mark.slow
@pytest.mark.parametrize("from_index", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_a_backend_with_a_worker_module_of_its_own_can_use_it(wheels, tmp_path, from_index):
    """Half of all Celery projects have a worker.py; the import takes ours for nobody's."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    command += ["--constraint", str(PROJECT / "constraints.txt"), str(wheels[0])]
    done = subprocess.run(command if from_index else [*command, "--no-deps"], capture_output=True, text=True)
    if done.returncode and NO_INDEX.search(done.stderr) and not os.environ.get("CI"):
        pytest.skip("the package index is unreachable")
    assert done.returncode == 0, done.stderr
    if not from_index:
        (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        needs = distributions(path=[str(site)], name="poster-embedding-queue")
        requirements = [text for text in next(iter(needs)).requires if is_needed(Requirement(text), [""])]
        link_required(site, requirements, set())
    backend = tmp_path / "backend"
    backend.mkdir()
    (backend / "worker.py").write_text("NAME = 'the worker of the backend'\n")
    (backend / "app.py").write_text(
        "from importlib.util import find_spec\n"
        "from producer import Index, NoWorker, Producer\n"
        "import worker\n"
        "assert worker.NAME == 'the worker of the backend'\n"
        "assert not any(map(find_spec, ['torch', 'open_clip', 'PIL']))\n"
        "print(Producer.__name__, Index.__name__, NoWorker.__name__)\n"
    )
    assert run(str(python), "app.py", cwd=backend) == "Producer Index NoWorker\n"
    assert "index" in run(str(python), "-m", "producer", "--help", cwd=backend)
