"""identify: stdout belongs to the result."""

import json
from contextlib import closing

from click.testing import CliRunner

from producer.cli import search
from producer.search.identify import Identified
from producer.vectors import open_store
from tests.support.filled_store import fill


def test_what_libraries_print_is_kept_out_of_the_result(tmp_path, monkeypatch):
    """open_clip, torch and download bars may print: on stderr."""
    monkeypatch.setenv("POSTERS_STORE", f"sqlite:{tmp_path / 'v.db'}")
    monkeypatch.setenv("POSTERS_CATALOGUE", "none")
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        fill(store, ["a"])

    def noisy(searched, queries, sources, options):
        print("loading the model")
        return [Identified(name, []) for name in sources]

    monkeypatch.setattr(search, "identify_queries", noisy)
    done = CliRunner().invoke(search.identify, ["x.png", "--json"])
    assert [entry["image"] for entry in json.loads(done.stdout)] == ["x.png"]
    assert "loading the model" in done.stderr
