"""The architecture: what may import what, how large a chapter may grow, and what an import may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
MODULES_MOST = 12  # in a folder: what a reader takes in at a glance
FUNCTION_MOST_LINES = 60
# From the ground up, a floor a line. A module imports from its own folder and from the floors below it, never from
# above, and never from a neighbor on its own floor. Folders and top-level modules stand here by name.
FLOORS = [
    ("producer.errors",),
    ("producer.settings", "producer.files", "producer.embedding", "producer.host"),
    ("producer.redis_client", "producer.logs"),
    ("producer.queue", "producer.vectors"),
    ("producer.requests",),
    ("producer.collection",),
    ("producer.queue_client",),
    ("producer.job", "producer.output"),
    ("producer.on_demand",),
    ("producer.client",),
    ("producer.aio", "producer.metrics"),
    ("producer.indexing", "producer.maintenance", "producer.check"),
    ("producer.search", "producer.export", "producer.watch"),
    ("producer.calibration", "producer.map"),
    ("producer.report",),
    ("producer.web", "producer.doctor"),
    ("producer.cli",),
    ("producer.__main__", "producer"),
    ("worker", "worker.settings", "worker.errors", "worker.broker", "worker.images"),
    ("worker.model", "worker.renditions"),
    ("worker.pipeline",),
    ("worker.demo",),
    ("worker.clip_embedder", "worker.celery"),
    ("worker.runtime",),
    ("worker.tasks",),
]
# Library → the folders, or modules, that may import it. `producer` has none of what the first four need.
HOMES = {
    "torch": ("worker.images", "worker.model", "worker.pipeline", "worker.clip_embedder"),
    "torchvision": ("worker.images",),
    "open_clip": ("worker.model",),
    "PIL": ("worker.images", "worker.renditions", "worker.clip_embedder"),
    "simplejpeg": ("worker.images",),
    "celery": ("producer.queue.sender", "worker.broker", "worker.celery", "worker.runtime.supervisor", "worker.tasks"),
    "kombu": ("producer.queue.sender", "worker.broker", "worker.celery"),
    "redis": ("producer.redis_client", "producer.aio.connections", "producer.vectors.redis", "worker.broker"),
    "sqlite3": ("producer.vectors.sqlite", "producer.collection"),
    "pyarrow": ("producer.export",),
    "faiss": ("producer.export",),
    "watchfiles": ("producer.watch",),
    "jinja2": ("producer.report", "producer.web"),
    "fastapi": ("producer.web",),
    "starlette": ("producer.web",),
    "anyio": ("producer.web",),
    "uvicorn": ("producer.web",),
    "prometheus_client": ("producer.metrics", "worker.runtime.metrics"),
    "cv2": ("producer.check",),
    "httpcore2": ("producer.search.download",),
}
HEAVY = {"torch", "torchvision", "open_clip", "PIL", "simplejpeg"}
# For one command: a tenth of a second each, the first two also 50 MB.
FOR_ONE_COMMAND = {
    "pyarrow",
    "faiss",
    "jinja2",
    "fastapi",
    "starlette",
    "uvicorn",
    "cv2",
    "httpcore2",
    "prometheus_client",
}
# The only modules of `producer` that reach `worker`, inside a function, where the engine is installed as well.
MAY_REACH_THE_ENGINE = {
    "producer.search.identify",
    "producer.search.sources",
    "producer.calibration.sample",
    "producer.check.pictures",
    "producer.report.thumbnails",
}


def _modules() -> dict[str, Path]:
    paths = sorted([*(PROJECT / "worker").rglob("*.py"), *(PROJECT / "producer").rglob("*.py")])
    names = (".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return dict(zip(names, paths, strict=True))


PATHS = _modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imported(tree: ast.AST) -> set[str]:
    """Every module that is named in an import, at any depth: at the top, in a function, for type checkers."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            taken = {f"{module}.{alias.name}" for alias in node.names}
            names |= taken & set(PATHS) or {module}
    return names


IMPORTS = {name: (imported(tree) & set(PATHS)) - {name} for name, tree in TREES.items()}


def folder_of(name: str) -> str:
    """The folder of a module; for what lies directly in `producer` or `worker`, the module itself."""
    return ".".join(name.split(".")[:2])


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if folder_of(name) in floor)


def is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_every_module_has_a_floor():
    """Neither a folder that FLOORS does not name, nor a floor for a folder that is gone."""
    assert {folder_of(name) for name in PATHS} == {folder for floor in FLOORS for folder in floor}


def test_imports_fall_from_floor_to_floor():
    """Lazy and type-only imports counted."""
    upward = [
        f"{name} → {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if folder_of(name) != folder_of(target)
        and floor_of(target) >= floor_of(name)
        and not (name in MAY_REACH_THE_ENGINE and target.startswith("worker."))
    ]
    assert not upward


def test_there_are_no_circles():
    """Every module can be understood after those that it imports."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for target in IMPORTS[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in IMPORTS:
        visit(name, ())


def test_producer_imports_no_worker():
    """A backend installs `producer` alone. The exceptions need the engine, and import it when they are called."""
    reaching = {
        name for name in PATHS if is_below(name, ("producer",)) and any(is_below(t, ("worker",)) for t in IMPORTS[name])
    }
    assert reaching == MAY_REACH_THE_ENGINE
    for name in reaching:
        at_the_top = ast.Module(
            [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        assert not any(is_below(target, ("worker",)) for target in imported(at_the_top))


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_library_has_its_homes(library):
    """Who talks to what is known, and stays so."""
    users = {name for name, tree in TREES.items() if library in {target.split(".")[0] for target in imported(tree)}}
    assert users, "nobody imports it: the rule is out of date"
    assert not {name for name in users if not is_below(name, HOMES[library])}


def test_a_folder_holds_at_most_twelve_modules():
    """A folder is a chapter."""
    count = Counter(path.parent for path in PATHS.values() if path.name != "__init__.py")
    assert not {str(folder): number for folder, number in count.items() if number > MODULES_MOST}


def test_a_module_with_one_importer_lives_beside_it():
    """Unless it is the face of its own chapter (it uses modules of its own folder), or an entry point uses it."""
    importers = defaultdict(set)
    for name, targets in IMPORTS.items():
        for target in targets:
            importers[target].add(name)
    astray = [
        f"{name}, imported by {one} alone"
        for name in PATHS
        if len(importers[name]) == 1
        for one in importers[name]
        if PATHS[one].parent not in (PATHS[name].parent, PATHS[name].parent.parent)
        and PATHS[name].name != "__init__.py"
        and not any(PATHS[target].parent == PATHS[name].parent for target in IMPORTS[name])
    ]
    assert not astray


def test_no_function_is_longer_than_a_screen():
    """60 lines; what is longer does two things."""
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_MOST_LINES
    ]
    assert not long


def test_every_folder_says_what_it_is_in_contributing():
    """One line each."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {str(path.parent.relative_to(PROJECT)) for path in PATHS.values()} - {"producer", "worker"}
    assert not {folder for folder in folders if f"{folder}/" not in text}


def test_the_wheel_holds_every_file_of_the_packages():
    """setuptools takes modules by itself, and other files only by the patterns of package-data."""
    projects = [PROJECT / name for name in ("pyproject.toml", "worker/pyproject.toml")]
    settings = [tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["setuptools"] for path in projects]
    declared = {
        path
        for setting in settings
        for package, globs in setting["package-data"].items()
        for pattern in globs
        for path in PROJECT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {
        path
        for package in ("producer", "worker")
        for path in (PROJECT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "pyproject.toml"
    }
    assert files == declared


def test_producer_prints_through_one_module():
    """producer/output.py makes names and titles fit for the stream; nothing goes past it."""
    printing = re.compile(r"\bprint\(|\bclick\.echo\(|\bsys\.std(out|err)\.write\(|\btqdm\.write\(")
    found = {name for name, path in PATHS.items() if printing.search(path.read_text(encoding="utf-8"))}
    assert {name for name in found if is_below(name, ("producer",))} == {"producer.output"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import producer",
        "from producer import Producer; Producer()",
        "from producer import Index",
        "import producer.__main__",
        "import worker.tasks",
        "import worker.celery; worker.celery.app",
    ],
)
def test_light_imports_load_nothing_heavy(statement):
    """As seen by the interpreter, not by reading: a backend, the command line, the worker's parent process."""
    loaded = loaded_by(statement)
    assert not loaded & (HEAVY | FOR_ONE_COMMAND)
    assert "worker" in statement or "worker" not in loaded


def test_importing_producer_takes_less_than_300_milliseconds():
    """The best of five, without the interpreter's own start; a noisy machine must not fail it."""
    times = []
    for _ in range(5):
        code = "import time; t = time.perf_counter(); import producer; print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    assert min(times) < 0.3
