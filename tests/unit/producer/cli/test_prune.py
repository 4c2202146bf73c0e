"""`prune` asks a person, and refuses where nobody can answer."""

from contextlib import closing

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.vectors import open_store
from tests.support.filled_store import SPACE, fill


@pytest.fixture
def run(tmp_path):
    """`prune` in a store of ten posters, of which six are deleted, with what somebody types."""
    names = [f"{number}.jpg" for number in range(10)]
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        fill(store, names)
    (tmp_path / "posters").mkdir()
    for name in names[6:]:
        (tmp_path / "posters" / name).touch()
    variables = {
        "POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}",
        "POSTERS_ROOT": str(tmp_path / "posters"),
        "POSTERS_CATALOGUE": "none",
    }

    def invoke(typed):
        done = CliRunner().invoke(main, ["prune"], env=variables, input=typed)
        with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
            return done, store.count(SPACE.id)

    return invoke


@pytest.mark.parametrize(("typed", "status", "left"), [("y\n", 0, 4), ("n\n", 2, 10), ("\n", 2, 10), ("", 2, 10)])
def test_a_person_at_a_terminal_is_asked(run, monkeypatch, typed, status, left):
    """No is the default, and the end of the input is no."""
    monkeypatch.setattr("producer.cli.prune._is_terminal", lambda: True)
    done, count = run(typed)
    assert (done.exit_code, count) == (status, left)
    assert "6 of 10 posters in the store no longer have a file (60 %)" in done.stderr
    assert "Prune them?" in done.stderr


def test_nobody_else_is_asked(run):
    """A service has no answer: it is refused, and --yes is named."""
    done, count = run("y\n")
    assert (done.exit_code, count) == (2, 10)
    assert "Prune them?" not in done.stderr
    assert "--yes" in done.stderr
