"""The checks can fail: wrong vectors are noticed, and the table lists every scenario."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from producer.files import read_file
from producer.vectors.base import Row
from tests.support.project import PROJECT
from tests.support.reference_vectors import TOLERANCE
from tests.support.scenario_table import BEGIN, END, HEAD, Fact, replaced
from worker.clip_embedder import CLIPEmbedder

DOCUMENT = PROJECT / "docs" / "reliability.md"


@pytest.fixture
def stored(new_installation):
    """An installation without a worker, whose store holds six posters correctly."""
    installation = new_installation()
    names = installation.draw(6)
    embedder = CLIPEmbedder(installation.model, "cpu", precision="fp32")
    vectors = embedder.embed_batch([installation.root / name for name in names])
    rows = []
    for name in names:
        content = read_file(name, root=installation.root.resolve())
        rows.append(Row(name, content.digest, content.size, content.mtime_ns))
    store = installation.producer.store()
    store.put(embedder.space, rows, vectors)
    yield installation, names, rows, vectors, lambda rows, vectors: store.put(embedder.space, rows, vectors)
    store.close()


def test_a_correct_store_passes(stored):
    """All six vectors match their files."""
    installation, names, *_ = stored
    assert installation.check_store() == set(names)


def test_swapped_vectors_are_noticed(stored):
    """Two vectors under each other's ids: the worst bug there could be."""
    installation, _, rows, vectors, put = stored
    put(rows[:2], vectors[[1, 0]])
    with pytest.raises(AssertionError, match=r"p0000\.jpg in .* from its reference"):
        installation.check_store()


def test_swapped_rows_are_noticed(stored):
    """Vector and digest agree but belong to another poster."""
    installation, _, rows, vectors, put = stored
    put([rows[0]._replace(id=rows[1].id), rows[1]._replace(id=rows[0].id)], vectors[:2])
    with pytest.raises(AssertionError, match="another digest"):
        installation.check_store()


def test_an_old_vector_of_a_changed_file_is_noticed(stored):
    """Unless the scenario allows it; and even then if `index` would not see the change."""
    installation, names, rows, vectors, put = stored
    installation.references.remember(names)
    installation.paint(names[3])
    with pytest.raises(AssertionError, match="another digest"):
        installation.check_store()
    assert installation.check_store(replaced=names) == set(names)
    stat = (installation.root / names[3]).stat()
    put([rows[3]._replace(size=stat.st_size, mtime_ns=stat.st_mtime_ns)], vectors[3:4])
    with pytest.raises(AssertionError, match=names[3]):
        installation.check_store(replaced=names)


def test_a_vector_of_bytes_that_the_file_never_had_is_noticed(stored):
    """Even where files change while they are read, only bytes that this very file has held are accepted."""
    installation, names, rows, vectors, put = stored
    installation.references.remember(names)
    installation.paint(names[3])
    put([rows[2]._replace(id=names[3])], vectors[2:3])
    with pytest.raises(AssertionError, match="never had"):
        installation.check_store(replaced=names)


def test_posters_are_far_enough_apart_to_be_distinguished(stored):
    """The nearest two differ by more than a hundred times the tolerance."""
    _, _, _, vectors, _ = stored
    apart = [np.abs(a - b).max() for a, b in itertools.combinations(vectors, 2)]
    assert min(apart) > 100 * TOLERANCE


def scenarios():
    """Fault and promise of every scenario, with its parameters filled in."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for test in vars(importlib.import_module(f"tests.chaos.{path.stem}")).values():
            marks = {mark.name: mark for mark in reversed(getattr(test, "pytestmark", []))}
            if "scenario" not in marks:
                continue
            choices = []
            for mark in (mark for mark in test.pytestmark if mark.name == "parametrize"):
                names = [mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0]
                values = [getattr(value, "values", value) for value in mark.args[1]]
                choices.append([dict(zip(names, v if isinstance(v, tuple) else (v,), strict=True)) for v in values])
            for chosen in itertools.product(*choices):
                parameters = {name: value for part in chosen for name, value in part.items()}
                yield tuple(text.format(**parameters) for text in marks["scenario"].args)


def test_the_table_lists_every_scenario_and_nothing_else():
    """docs/reliability.md has the texts of the scenarios, word for word."""
    table = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip().removeprefix(HEAD).splitlines()
    listed = [tuple(line.split(" | ")[:2]) for line in table if line]
    assert {(fault.removeprefix("| "), promise) for fault, promise in listed} == set(scenarios())


def test_a_run_replaces_its_rows_and_keeps_the_others():
    """`make chaos WRITE=1` after a run of one scenario does not empty the table."""
    text = f"before\n{BEGIN}\n{HEAD}\n| a | x | 1 s | 0 |  |\n| b | y | 2 s | 0 |  |\n{END}\nafter\n"
    new = replaced(text, [Fact("b", "y", "3 s", "1"), Fact("c", "z")])
    assert new == text.replace("| b | y | 2 s | 0 |  |", "| b | y | 3 s | 1 |  |\n| c | z | – | – |  |")
