"""Catalogue files: three formats, any encoding that says so, and the place of everything that is wrong."""

import codecs
import json

import pytest

from producer.collection.catalogue import read_catalogue
from producer.collection.json_stream import BLOCK_CHARACTERS
from producer.errors import ConfigurationError


@pytest.fixture
def write(tmp_path):
    def write(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def facts(catalogue):
    return [(entry.number, entry.id, entry.file, dict(entry.about)) for entry in catalogue.entries()]


def ids_of(catalogue):
    return [entry.id for entry in catalogue.entries()]


SAME = [
    ("posters.json", '[{"file": "a.jpg", "id": "a", "title": "A; or, the \\"first\\""},\n {"file": "b/c.png"}]'),
    (
        "posters.json",
        '{"made": [1, {"x": 2}], "posters": [{"file": "a.jpg", "id": "a", "title": "A; or, the \\"first\\""}, '
        '{"file": "b/c.png"}], "n": null}',
    ),
    ("posters.jsonl", '{"file": "a.jpg", "id": "a", "title": "A; or, the \\"first\\""}\n\n{"file": "b/c.png"}'),
    ("posters.ndjson", '{"file": "a.jpg", "id": "a", "title": "A; or, the \\"first\\""}\r\n{"file": "b/c.png"}\r\n'),
    ("posters.csv", 'file,id,title\na.jpg,a,"A; or, the ""first"""\nb/c.png,,\n'),
    ("posters.CSV", 'title;file;id\r\n"A; or, the ""first""";a.jpg;a\r\n;b/c.png;\r\n'),
    ("posters.tsv", 'file\tid\ttitle\na.jpg\ta\t"A; or, the ""first"""\nb/c.png\n'),
    ("posters", '[{"file": "a.jpg", "id": "a", "title": "A; or, the \\"first\\""}, {"file": "b/c.png"}]'),
]


@pytest.mark.parametrize(("name", "text"), SAME)
def test_every_format_says_the_same(write, name, text):
    """A list, an object with `posters`, a line each, or a table: ids, files and titles come out alike."""
    catalogue = read_catalogue(write(name, text))
    assert not list(catalogue.problems())
    assert [(entry.id, entry.file) for entry in catalogue.entries()] == [("a", "a.jpg"), ("b/c.png", "b/c.png")]
    assert catalogue.by_id(["a"])["a"].about["title"] == 'A; or, the "first"'
    assert catalogue.by_id(["b/c.png"])["b/c.png"].about.get("title", "") == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["posters.json", "posters.jsonl", "posters.csv"])
def test_a_byte_order_mark_tells_the_encoding(write, name, encoding):
    """What Windows programs write is read: UTF-8 with a mark, UTF-16; without a mark it is UTF-8."""
    entry = '{"file": "進撃.jpg", "title": "é"}'
    text = {"json": f"[{entry}]", "jsonl": entry, "csv": "file,title\n進撃.jpg,é\n"}[name.rpartition(".")[2]]
    catalogue = read_catalogue(write(name, text, encoding))
    assert catalogue.by_id(["進撃.jpg"])["進撃.jpg"].about["title"] == "é"


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_big_endian_marks_are_distinguished(write, mark):
    """UTF-32's mark begins with UTF-16's, and is not taken for it."""
    encoding = "utf-16-be" if mark == codecs.BOM_UTF16_BE else "utf-32-be"
    assert len(read_catalogue(write("p.json", mark + '[{"file": "ä"}]'.encode(encoding)))) == 1


@pytest.mark.parametrize("name", ["posters.json", "posters.jsonl", "posters.csv"])
def test_another_encoding_is_refused_with_its_line(write, name):
    """No letter is guessed: the error names the first line that is no UTF-8, and what to do."""
    lines = ["file,title", "a.jpg,x", "b.jpg,é"] if name.endswith("csv") else ["[", '{"file": "a"},', '{"file": "é"}]']
    with pytest.raises(ConfigurationError, match=r"not UTF-8, line 3 .*save it as UTF-8"):
        read_catalogue(write(name, "\n".join(lines), "cp1252"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"file": "a"},\n {"file": }]', "line 2, column 11"),
        ('[{"file": "a"}', "line 1, column 15: expected"),
        ('[{"file": "a"} {"file": "b"}]', "line 1, column 16: expected , or ]"),
        ('[{"file": "a"},]', "Expecting value"),
        ('[{"file": "a"}] x', "after its end"),
        ('{"posters": []}}', "after its end"),
        ('{"posters": [], }', "Expecting value"),
        ('{"posters": [], "posters": []}', "occurs twice"),
        ('{"posters": {"a": 1}}', "must be a list"),
        ('{"poster": [{"file": "a"}]}', "object with `posters`"),
        ("{1: 2}", "key must be text"),
        ("7", "must be a list"),
        ("", "must be a list"),
        ('[{"file": "a}]', "Unterminated string"),
        ("[" * 100_000, "recursion"),
        ("[" + "1" * 10_000 + "]", "digits"),
    ],
)
def test_a_catalogue_that_is_not_json_is_refused_with_line_and_column(write, text, expected):
    """As a whole, before anything is sent: what follows the fault could mean anything."""
    with pytest.raises(ConfigurationError, match=r"posters\.json is not readable JSON: line \d+, column \d+") as error:
        read_catalogue(write("posters.json", text))
    assert expected in str(error.value)


def test_a_fault_far_behind_has_its_line_and_column(write):
    """Also after many blocks were read and forgotten, on many lines or on one."""
    entries = [json.dumps({"file": f"{number}.jpg", "title": "x" * 50}) for number in range(20_000)]
    text = ",\n".join(entries)
    assert len(text) > 3 * BLOCK_CHARACTERS
    with pytest.raises(ConfigurationError, match="line 20001, column 1: "):
        read_catalogue(write("posters.json", f"[{text},\n?]"))
    text = ",".join(entries)
    with pytest.raises(ConfigurationError, match=f"line 1, column {len(text) + 3}: "):
        read_catalogue(write("posters.json", f"[{text},?]"))


def test_entries_are_whole_wherever_a_block_ends(write, monkeypatch):
    """Strings, escapes, numbers and brackets may be cut by the end of what was read: nothing changes."""
    entries = [
        {"file": f'{number} ü\U0001f600\\"[]{{}}.jpg', "n": number * 1.5e-7, "deep": [[number], {"a": None}]}
        for number in range(40)
    ]
    path = write("posters.json", json.dumps({"first": 12345, "posters": entries, "last": True}, indent=1))
    whole = facts(read_catalogue(path))
    assert len(whole) == 40
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr("producer.collection.json_stream.BLOCK_CHARACTERS", size)
        assert facts(read_catalogue(path)) == whole


def test_a_bad_line_is_a_failure_of_its_own(write):
    """JSON Lines: what is no JSON or no object spoils no other line, and is named by its own."""
    text = '{"file": "a.jpg"}\n{"file": \n\n[1, 2]\n{"title": "no file"}\n{"file": "b.jpg"}\n'
    catalogue = read_catalogue(write("posters.jsonl", text))
    assert ids_of(catalogue) == ["a.jpg", "b.jpg"]
    failures = list(catalogue.problems())
    assert [failure.id for failure in failures] == ["posters.jsonl#2", "posters.jsonl#4", "posters.jsonl#5"]
    assert [failure.reason.split(" of ")[0] for failure in failures] == ["line 2", "line 4", "line 5"]
    assert "is not JSON" in failures[0].reason
    assert "has no `file`" in failures[2].reason


def test_a_list_that_is_called_lines_is_noticed(write):
    """One clear error instead of a failure per line."""
    with pytest.raises(ConfigurationError, match=r"call it \.json"):
        read_catalogue(write("posters.jsonl", '[\n{"file": "a"}\n]'))


def test_csv_entries_have_the_line_that_they_begin_in(write):
    """Also behind cells that run over several lines, and behind empty ones."""
    text = 'file,title\na.jpg,"one\ntwo\nthree"\n\n,nothing\nb.jpg,x,y\nc.jpg,z\n'
    catalogue = read_catalogue(write("posters.csv", text))
    assert [(entry.number, entry.file) for entry in catalogue.entries()] == [(2, "a.jpg"), (8, "c.jpg")]
    assert [failure.reason.split(" of ")[0] for failure in catalogue.problems()] == ["line 6", "line 7"]
    assert [failure.word for failure in catalogue.problems()] == ["unsupported"] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,title\na.jpg,x\n", "name every column once, `file` among them"),
        ("file,title,title\n", "once"),
        ("file,,title\n", "once"),
        ("", "first line"),
        ('file,title\na.jpg,x\nb.jpg,"never closed\nc.jpg,y\n', "line 3: unexpected end"),
        ('file,title\na.jpg,"x"y\n', "line 2: "),
    ],
)
def test_a_csv_that_cannot_be_trusted_is_refused(write, text, expected):
    """No header, or a quotation mark that would silently swallow the rest."""
    with pytest.raises(ConfigurationError, match=r"posters\.csv is not readable CSV") as error:
        read_catalogue(write("posters.csv", text))
    assert expected in str(error.value)


def test_numbers_may_be_ids_and_text_keeps_its_zeros(write):
    """7 in JSON is the id 7; 007 in a table stays 007."""
    assert ids_of(read_catalogue(write("p.json", '[{"file": "a", "id": 7}]'))) == ["7"]
    assert ids_of(read_catalogue(write("p.csv", "file,id\na,007\n"))) == ["007"]


def test_an_id_of_null_is_none(write):
    """As a program writes it that has no id for a poster: its path is its id."""
    assert ids_of(read_catalogue(write("p.json", '[{"file": "a", "id": null}]'))) == ["a"]


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_list_of_plain_names_is_a_catalogue(write, name):
    """The shortest way to say which posters there are."""
    text = '["a.jpg", "b/ä.png"]' if name == "p.json" else '"a.jpg"\n"b/ä.png"\n'
    catalogue = read_catalogue(write(name, text))
    assert [(entry.id, entry.about) for entry in catalogue.entries()] == [
        ("a.jpg", {"file": "a.jpg"}),
        ("b/ä.png", {"file": "b/ä.png"}),
    ]


def test_blanks_around_the_values_of_a_table_are_none_of_them(write):
    """Before, behind, and in a cell that is empty but for them."""
    catalogue = read_catalogue(write("p.csv", "file , id,title\n a.jpg , one , A B \nb.jpg ,  ,\n"))
    assert [(entry.id, entry.file, entry.about.get("title")) for entry in catalogue.entries()] == [
        ("one", "a.jpg", "A B"),
        ("b.jpg", "b.jpg", ""),
    ]


def test_the_name_of_a_table_says_that_tabs_separate(write):
    """Also where its header has a comma: it belongs to a column's name."""
    catalogue = read_catalogue(write("p.tsv", "file\ttitle, original\na.jpg\tX, Y\n"))
    assert [entry.about for entry in catalogue.entries()] == [{"file": "a.jpg", "title, original": "X, Y"}]


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({}, "unsupported"),
        ({"file": ""}, "unsupported"),
        ({"file": 7}, "unsupported"),
        ({"file": "."}, "unsupported"),
        ({"file": "a\0.jpg"}, "unsupported"),
        ({"file": "\ud800.jpg"}, "unsupported"),
        ({"file": "x" * 9000}, "unsupported"),
        ({"file": "../a.jpg"}, "outside-root"),
        ({"file": "a/../../b.jpg"}, "outside-root"),
        ({"file": "/srv/a.jpg"}, "outside-root"),
        ({"file": "C:\\posters\\a.jpg"}, "outside-root"),
        ({"file": "\\\\server\\a.jpg"}, "outside-root"),
        ({"file": "a.jpg", "id": ""}, "unsupported"),
        (7, "unsupported"),
        ("../a.jpg", "outside-root"),
        ({"file": "a.jpg", "id": True}, "unsupported"),
        ({"file": "a.jpg", "id": 1.5}, "unsupported"),
        ({"file": "a.jpg", "id": "a\0b"}, "unsupported"),
        ({"file": "a.jpg", "id": "\ud800"}, "unsupported"),
        ({"file": "a.jpg", "id": "x" * 9000}, "unsupported"),
    ],
)
def test_an_entry_that_no_worker_could_use_fails_by_number(write, entry, word):
    """Here, and not in the worker, where it would spoil the message that it travels in."""
    catalogue = read_catalogue(write("posters.json", json.dumps([{"file": "good.jpg"}, entry])))
    assert ids_of(catalogue) == ["good.jpg"]
    (failure,) = catalogue.problems()
    assert (failure.id, failure.word) == ("posters.json#2", word)
    assert failure.reason.startswith("entry 2 of ")
    assert len(failure.reason) < 500


@pytest.mark.parametrize("file", ["deep\\er\\a.jpg", "./deep/er/a.jpg", "deep//er/x/../a.jpg", "deep/er/a.jpg"])
def test_separators_of_windows_are_separators_everywhere(write, file):
    """A catalogue made on Windows names the same files on Linux."""
    assert ids_of(read_catalogue(write("p.json", json.dumps([{"file": file}])))) == ["deep/er/a.jpg"]


def test_the_first_of_two_keeps_file_and_id(write):
    """An entry that is refused takes nothing from those behind it; each names the one that was first."""
    entries = [
        {"file": "a.jpg", "id": "x"},
        {"file": "a.jpg", "id": "y"},  # the file is taken
        {"file": "b.jpg", "id": "x"},  # the id is taken
        {"file": "b.jpg", "id": "y"},  # free: both who had these were refused
        {"file": "e\u0301.jpg"},
        {"file": "\u00e9.jpg", "id": "z"},  # the same name, typed on another system
        {"file": "c.jpg", "id": "a.jpg"},
    ]
    catalogue = read_catalogue(write("posters.json", json.dumps(entries)))
    assert [(entry.number, entry.id) for entry in catalogue.entries()] == [
        (1, "x"),
        (4, "y"),
        (5, "\u00e9.jpg"),
        (7, "a.jpg"),
    ]
    reasons = {failure.id: failure.reason for failure in catalogue.problems()}
    assert list(reasons) == ["posters.json#2", "posters.json#3", "posters.json#6"]
    assert "names the file 'a.jpg', which entry 1 already has" in reasons["posters.json#2"]
    assert "has the id 'x', which entry 1 already has" in reasons["posters.json#3"]
    assert catalogue.ids_of_problems(["x", "z", "nobody"]) == {"x", "z"}


def test_a_text_file_is_a_list_of_names(write):
    """Blanks belong to a name. Empty lines are counted, so that the number of a bad line is right."""
    catalogue = read_catalogue(write("p.txt", "a.jpg\r\n\r\n b, c.png \n../out.jpg\n2024"))
    assert [(entry.id, entry.file) for entry in catalogue.entries()] == [
        ("a.jpg", "a.jpg"),
        (" b, c.png ", " b, c.png "),
        ("2024", "2024"),
    ]
    (problem,) = catalogue.problems()
    assert problem.path.endswith("p.txt#4")
    assert problem.word == "outside-root"
