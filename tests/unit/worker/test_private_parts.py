"""The undocumented parts of celery, kombu, billiard and redis-py that this project uses are those of PARTS."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version

import pytest

from tests.support.project import PROJECT
from worker.broker import PARTS, READ_IN

# Of named tuples, of the standard library, and of torch, whose operators the parity check watches.
OTHERS = {"_asdict", "_make", "_replace", "_fields", "_fields_", "_exit", "_reorder_linear_weight", "_linear_pointwise"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PRIVATE = re.compile(r"_[a-z]\w*")
SOURCES = [*(PROJECT / "worker").rglob("*.py"), *(PROJECT / "producer").rglob("*.py")]


def parts_of(library):
    shown = [f"{part.owner} {part.name}: {part.user}, {part.use}" for part in PARTS if part.owner.startswith(library)]
    return "\n".join(shown)


@pytest.mark.parametrize("library", READ_IN)
def test_the_installed_version_is_the_one_that_was_read(library):
    """Another may have changed what only its source shows."""
    installed = ".".join(version(library).split(".")[:2])
    assert installed == READ_IN[library], (
        f"{library} {installed} is installed, {READ_IN[library]} was read; read these again:\n{parts_of(library)}"
    )


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.owner} {part.name}")
def test_each_part_is_there_and_used(part):
    """In the source of its owner, and in ours."""
    module, _, name = part.owner.partition(":")
    owner = importlib.import_module(module)
    assert part.name in inspect.getsource(getattr(owner, name) if name else owner), (
        f"{part.owner} has no {part.name} any more, which {part.user} needs ({part.use}):\n{parts_of(module[:5])}"
    )
    assert importlib.import_module(part.user)


def test_no_other_part_is_used():
    """Every private name that our code reads of an object that is not its own, or defines on a foreign class."""
    used = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}
        ours |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_assigned(node)}
        ours |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and is_name(node.target)}
        for name in foreign_names(tree, ours):
            used.setdefault(name, path.name)
    assert used.keys() >= {"_fileno_to_inq", "_state", "_pool", "_delivered", "_dirty", "_receive_one"}
    unlisted = {name: where for name, where in used.items() if name not in OTHERS | {part.name for part in PARTS}}
    assert not unlisted, "add them to PARTS in worker/broker/__init__.py"


def is_name(node):
    return isinstance(node, ast.Name)


def is_assigned(node):
    """Whether the attribute is one of our own objects, because we assign it."""
    return isinstance(node.ctx, ast.Store) and is_name(node.value)


def foreign_names(tree, ours):
    """Private names that are read as attributes or with getattr, or called on super()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            is_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if is_super or node.attr not in ours:
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and PRIVATE.fullmatch(str(name.value)):
                yield name.value
