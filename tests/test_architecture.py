"""The walls of the house: what may import what, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
UPPER = {
    "worker.images",
    "worker.bombs",
    "worker.budget",
    "worker.borrowed",
    "worker.resizing",
    "worker.colour",
    "worker.clip_embedder",
    "worker.identity",
    "worker.weights",
    "worker.device",
    "worker.placement",
    "worker.proof",
    "worker.tower",
    "worker.linear",
    "worker.forward",
    "worker.engine",
    "worker.spare",
    "worker.pace",
    "worker.chunk_search",
    "worker.room",
    "worker.threads",
    "worker.embedder",
    "worker.halving",
    "worker.lookahead",
    "worker.errand",
    "worker.reading",
    "worker.pipeline",
    "worker.demonstration",
    "worker.station",
    "worker.pulse",
    "worker.opening",
    "worker.card",
    "worker.tasks",
    "worker.attendant",
}
HEAVY = {"torch", "PIL", "open_clip", "torchvision"}
EXPORTS_ONLY = {"pyarrow", "faiss"}  # a tenth of a second and 50 MB each, for one command
# library → the only modules that may import it
HOMES = {
    "open_clip": {"worker.tower", "worker.weights"},
    "torch": {
        "worker.card",
        "worker.clip_embedder",
        "worker.identity",
        "worker.weights",
        "worker.device",
        "worker.placement",
        "worker.proof",
        "worker.tower",
        "worker.linear",
        "worker.forward",
        "worker.engine",
        "worker.spare",
        "worker.chunk_search",
        "worker.room",
        "worker.threads",
        "worker.embedder",
        "worker.images",
        "worker.borrowed",
        "worker.resizing",
        "worker.reading",
    },
    "torchvision": {"worker.resizing"},
    "PIL": {
        "worker.bombs",
        "worker.borrowed",
        "worker.clip_embedder",
        "worker.colour",
        "worker.errand",
        "worker.images",
        "worker.resizing",
    },
    "redis": {"worker.broker", "worker.redis_client", "worker.vectors.redis"},
    "celery": {"worker.attendant", "worker.celery", "worker.consumer", "worker.tasks"},
    "kombu": {"worker.broker", "worker.celery"},
    "sqlite3": {"producer.spooled", "worker.vectors.sqlite"},
    "pyarrow": {"producer.metadata"},
    "faiss": {"producer.faiss_index"},
    "watchfiles": {"producer.events"},
}


def modules() -> dict[str, ast.Module]:
    """Name → syntax tree of every module of worker and producer."""
    found = {}
    for path in sorted([*(PROJECT / "worker").rglob("*.py"), *(PROJECT / "producer").rglob("*.py")]):
        name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(tree: ast.AST, *, top_only: bool = False) -> set[str]:
    """Names of imported modules; `top_only` leaves out what functions and type checkers import."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                names.add(child.module or "")
                names.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif top_only and (
                isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            ):
                continue
            visit(child)

    visit(tree)
    return names


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name in MODULES}


def test_the_walk_sees_the_modules():
    """A walk over nothing would pass every test below."""
    assert {"worker.pipeline", "worker.vectors.redis", "producer.client"} <= set(MODULES)
    assert set(MODULES) >= UPPER


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("worker")])
def test_worker_never_imports_producer(name):
    """The data goes one way."""
    assert not any(target.split(".")[0] == "producer" for target in imports(MODULES[name]))


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("producer")])
def test_producer_stays_on_the_ground_floor(name):
    """A backend runs where there is neither torch nor Pillow."""
    found = imports(MODULES[name])
    assert not ours(found) & UPPER
    assert not {target.split(".")[0] for target in found} & HEAVY


@pytest.mark.parametrize("name", sorted(set(MODULES) - UPPER))
def test_the_ground_floor_imports_nothing_from_above(name):
    """Nor any heavy library, at any depth of nesting."""
    found = imports(MODULES[name])
    assert not ours(found) & UPPER
    assert not {target.split(".")[0] for target in found} & HEAVY


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_library_has_its_homes(library):
    """Who talks to what is known, and stays so."""
    users = {name for name, tree in MODULES.items() if any(target.split(".")[0] == library for target in imports(tree))}
    assert users, "nobody imports it: the rule is out of date"
    assert users <= HOMES[library]


def test_there_are_no_circles():
    """Every module can be understood after those that it imports."""
    graph = {name: ours(imports(tree, top_only=True)) - {name} for name, tree in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


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
    """As seen by the interpreter, not by reading: a backend, the command line, the worker's parent."""
    assert not loaded_by(statement) & (HEAVY | EXPORTS_ONLY)


def test_importing_producer_takes_less_than_300_milliseconds():
    """The best of five, without the interpreter's own start; a noisy machine must not fail it."""
    times = []
    for _ in range(5):
        code = "import time; t = time.perf_counter(); import producer; print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    assert min(times) < 0.3
