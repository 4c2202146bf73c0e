"""Names and titles are printed fit for the stream that they go to, and a stream that is closed or full does no harm."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.output import EX_IOERR, aligned, emit_json, emit_json_list, printable
from producer.vectors import open_store
from tests.support.filled_store import catalogue_of, fill
from tests.support.project import PROJECT

ODD_TITLE = "千と千尋 \x1b[31mred\x1b]0;owned\x07\r\nnext \u202etxt \udce9 \ud83d"
SHOWN_TITLE = r"千と千尋 \x1b[31mred\x1b]0;owned\x07\r\nnext \u202etxt \xe9 \ud83d"


@pytest.fixture
def variables(tmp_path):
    """A store with two posters of the same content, and a catalogue with a title that no terminal should see."""
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        fill(store, ["a", "b"], contents="xx")
    catalogue_of(
        tmp_path,
        {"id": "a", "file": "a.png", "title": ODD_TITLE, "rating": float("nan"), "about": [float("inf"), {"x": 1}]},
        {"id": "b", "file": "b.png", "title": "plain"},
    )
    return {
        "POSTERS_STORE": f"sqlite:{tmp_path / 'v.db'}",
        "POSTERS_CATALOGUE": str(tmp_path / "posters.json"),
        "POSTERS_ROOT": str(tmp_path),
        "POSTERS_REDIS_URL": "redis://127.0.0.1:1/0",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 千 👩‍👩‍👧 a\u00a0b\u3000c", "Zoë 千 👩‍👩‍👧 a\u00a0b\u3000c"),
        ("C:\\posters", "C:\\posters"),
        ("\x1b[2J\x9b31m\x07\x00\x7f", r"\x1b[2J\x9b31m\x07\x00\x7f"),
        ("a\tb\r\nc\u2028d\x85", r"a\tb\r\nc\u2028d\x85"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("caf\udce9.jpg \ud800", r"caf\xe9.jpg \ud800"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(text, shown):
    """Control characters, line ends, changes of direction, and bytes that are not UTF-8 are written out."""
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("charset", "title"),
    [
        ("utf-8", SHOWN_TITLE),
        ("cp1252", SHOWN_TITLE.replace("千と千尋", r"\u5343\u3068\u5343\u5c0b")),
        ("ascii", SHOWN_TITLE.replace("千と千尋", r"\u5343\u3068\u5343\u5c0b")),
    ],
)
def test_every_stream_takes_every_title(variables, charset, title):
    """Its encoding is strict, as under PYTHONIOENCODING=utf-8:strict; each member stays on one line."""
    done = CliRunner(charset=charset).invoke(main, ["duplicates", "--same-content"], env=variables)
    assert done.exit_code == 0, done.output
    lines = done.stdout_bytes.decode(charset).splitlines()
    assert lines == ["group 1: 2 posters", f"  a.png  first         {title}", "  b.png  same content  plain"]


def test_a_message_is_fit_for_its_stream_as_well(variables):
    """An error that names a file, and click's own about an argument."""
    done = CliRunner().invoke(main, ["prune", "/\x1b[31m\nelsewhere"], env=variables)
    assert (done.exit_code, "\x1b" in done.stderr) == (2, False)
    assert r"error: /\x1b[31m\nelsewhere lies outside" in done.stderr.splitlines()[-1]
    done = CliRunner().invoke(main, ["duplicates", "\x1b[31m"], env=variables)
    assert (done.exit_code, "\x1b" in done.stderr) == (2, False)


def test_json_has_no_number_that_json_does_not_have(variables, capsys):
    """A catalogue may hold NaN, which Python reads; and what JSON escapes comes back as it was."""

    def refuse(name):
        raise AssertionError(name)

    done = CliRunner().invoke(main, ["duplicates", "--same-content", "--json"], env=variables)
    first = json.loads(done.stdout, parse_constant=refuse)["groups"][0][0]
    assert (first["about"]["rating"], first["about"]["about"]) == (None, [None, {"x": 1}])
    assert first["about"]["title"] == ODD_TITLE
    assert done.stdout.isascii()
    emit_json({"speed": float("-inf")})
    emit_json_list([])
    emit_json_list([1, float("nan"), 3])
    assert capsys.readouterr().out == '{"speed": null}\n[]\n[1,\nnull,\n3]\n'


def test_columns_are_aligned_as_a_terminal_shows_them():
    """A Chinese character takes two cells, an accent of its own none."""
    rows = [("千と千尋", "1", "x"), ("Zoe\u0308", "10", "y"), ("plain", "100", "")]
    assert aligned(rows, right=[1]) == ["千と千尋    1  x", "Zoe\u0308        10  y", "plain     100"]
    assert aligned([]) == []


@pytest.mark.skipif(sys.platform == "win32", reason="redirections of a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        ("> /dev/full", EX_IOERR, "error: stdout cannot be written: No space left on device\n"),
        (">&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("| (exec <&-; sleep 0.1)", EX_IOERR, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_ends_in_order(variables, redirection, status, said):
    """No stack trace, a status that says so, and a message that cannot be written does not stop the work."""
    if redirection.endswith("full") and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"set -o pipefail; {sys.executable} -m producer duplicates --same-content {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=PROJECT, env=os.environ | variables, capture_output=True, text=True
    )
    counted = "1 group(s) with 2 of 2 posters"
    assert done.returncode == status, done.stderr
    assert [line for line in done.stderr.splitlines(True) if counted not in line] == ([said] if said else [])
