"""The documentation: links resolve, the index is complete, and what is generated or named is current."""

import re

import pytest

from docs.settings_page import page
from producer.errors import FAILURE_WORDS
from producer.metrics.families import QUEUE, WORKER
from producer.settings import Settings
from tests.support.project import PROJECT

DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = [*(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
README_MAX_LINES = 130
DEMO_MAX_LINES = 12
WRITTEN = {"bench/results/"}  # by a run, and not committed


def prose(path):
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_resolve(path):
    """Files and images exist, and so do the headings that a link jumps to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.is_relative_to(PROJECT), f"{path.name}: {target}"
        assert file.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target}"


def test_every_page_is_in_the_index():
    """docs/index.md lists each page of docs/ with a line."""
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \| .+ \|$", prose(PROJECT / "docs" / "index.md"), re.MULTILINE)
    assert {path.name for path in DOCS} - {"index.md"} <= set(listed)


def test_the_readme_is_one_screen_to_the_first_success():
    """130 lines at most, the demo's output 12 of them at most, and before everything else."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_MAX_LINES
    command, *output = re.findall(r"```console\n(.*?)```", text, re.DOTALL)[0].splitlines()
    assert command == "$ make demo"
    assert 0 < len(output) <= DEMO_MAX_LINES


def test_the_settings_page_is_current():
    """docs/settings.md is what the settings print: ``python -m docs.settings_page > docs/settings.md``."""
    assert (PROJECT / "docs" / "settings.md").read_text(encoding="utf-8") == page()


def test_the_tables_of_metrics_are_current():
    """docs/operating.md has every metric of producer/metrics/families.py, as it is declared there."""
    expected = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
        for name, kind, meaning, labels in (*QUEUE, *WORKER)
    ]
    text = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `posters_.*$", text, re.MULTILINE) == expected


def test_every_setting_is_described():
    """Its meaning stands on the page beside its default."""
    assert not [name for name, field in Settings.model_fields.items() if not field.description]
    assert {f"`POSTERS_{name.upper()}`" for name in Settings.model_fields} <= set(re.findall(r"`\w+`", page()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_files_exist(path):
    """Every path of the code or the tests that a page names in backticks."""
    named = set(re.findall(r"`((?:producer|worker|tests|bench|docs|examples)/[\w./-]*)`", prose(path)))
    assert not {name for name in named - WRITTEN if not (PROJECT / name).exists()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_commands_exist(path):
    """Commands of `python -m producer`, their options, targets of make, and modules of bench."""
    from producer.__main__ import main

    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"python -m producer ([a-z][^`\n]*)", text):
        words = line.split("#")[0].split()
        command = main.commands.get(words[0])
        assert command, f"{path.name}: {line}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"{path.name}: {line}"
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= targets
    for module in re.findall(r"python -m ((?:bench|docs)\b[\w.]*)", text):
        file = PROJECT / module.replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), f"{path.name}: {module}"


def test_every_package_is_in_the_architecture():
    """docs/architecture.md lists each package with its contents."""
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for top in ("producer", "worker") for path in (PROJECT / top).glob("*/__init__.py")}
    assert packages <= set(re.findall(r"`(\w+)`", text))


def test_every_failure_word_is_explained():
    """In docs/images.md what it means, in docs/troubleshooting.md what to do."""
    for name in ("images.md", "troubleshooting.md"):
        rows = re.findall(r"^\| `([a-z-]+)`", prose(PROJECT / "docs" / name), re.MULTILINE)
        assert set(FAILURE_WORDS) <= set(rows), name
