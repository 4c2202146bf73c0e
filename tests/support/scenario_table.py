"""The table of docs/reliability.md: what each scenario promises, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BEGIN, END = "<!-- measured: written by `make chaos WRITE=1` -->", "<!-- end -->"
HEAD = "| fault | promised | recovered in | done twice | noted |\n|---|---|---|---|---|"
NOT_RUN = "–"


class Fact(NamedTuple):
    """One scenario: the fault, the promise, and the measurements."""

    fault: str
    promise: str
    recovered: str = NOT_RUN
    twice: str = NOT_RUN
    noted: str = ""

    def row(self) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in self)} |"


def scenario(fault: str, promise: str) -> Callable[[Any], Any]:
    """Mark a test as a scenario: the fault that is injected, and what the system promises all the same."""
    return pytest.mark.scenario(fault, promise)


def promised(item: pytest.Item) -> tuple[str, str] | None:
    """Fault and promise of a test, with its parameters filled in for ``{pool}`` and the like; None: not a scenario."""
    mark = item.get_closest_marker("scenario")
    if mark is None:
        return None
    values = getattr(item, "callspec", None)
    fault, promise = (text.format(**(values.params if values else {})) for text in mark.args)
    return fault, promise


def facts(reports: Iterable[pytest.TestReport]) -> list[Fact]:
    """The facts that the fixture `measured` (conftest.py) added to the reports, in the order of the run."""
    return [Fact(*value) for report in reports for name, value in report.user_properties if name == "fact"]


def replaced(text: str, rows: Iterable[Fact]) -> str:
    """The document with the rows of this run replaced; the other rows stay as they are."""
    new = {fact.fault: fact.row() for fact in rows}
    before, table, after = re.split(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", text, maxsplit=1, flags=re.DOTALL)
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    lines = [HEAD, *(kept | new).values()]
    return before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", action="store_true", help="Print the measurements of the scenarios as a table.")
    parser.addoption("--write-table", metavar="FILE", type=Path, help="Replace the rows of this run in FILE.")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    passed = list({fact.fault: fact for fact in facts(terminalreporter.getreports("passed"))}.values())
    if passed and config.getoption("--table"):
        terminalreporter.section("measured")
        terminalreporter.write_line(HEAD)
        for fact in passed:
            terminalreporter.write_line(fact.row())
    target = config.getoption("--write-table")
    if passed and target:
        target.write_text(replaced(target.read_text(), passed))
        terminalreporter.write_line(f"written to {target}")
