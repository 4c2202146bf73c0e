"""deploy/: rules that Prometheus takes, that fire when they must; a board; and both name only what is exported."""

import json
import re
from itertools import combinations

import pytest
import yaml

from producer.metrics.families import BY_NAME
from tests.support.project import PROJECT
from tests.support.prometheus import NEEDS_PROMTOOL, promtool

FOLDER = PROJECT / "deploy" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
TESTS = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
BOARD = json.loads((PROJECT / "deploy" / "grafana" / "posters.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "5m", "$instance": "all"}  # of Grafana, and of the board
COLUMNS = 24  # of Grafana's grid
OF_A_TARGET = {"job", "instance"}  # labels that Prometheus adds
OTHERS = {"up", "ALERTS"}  # metrics of Prometheus itself


def check_expression(text: str) -> None:
    """Every metric in a PromQL expression is exported, or recorded by a rule, with the labels that are asked for."""
    plain = re.sub(r'"[^"]*"', '""', text)
    for name, matchers in re.findall(r"\b((?:posters|process)[a-z_0-9:]*)(?:\{([^}]*)\})?", plain):
        if name in RECORDED or name.startswith("process_"):
            continue
        metric = BY_NAME.get(name) or BY_NAME.get(re.sub(r"_(bucket|count|sum)$", "", name))
        assert metric is not None, f"{name} is not exported: {text}"
        assert (metric.kind == "histogram") == (name not in BY_NAME), name
        labels = {label.strip() for label in re.findall(r"([a-z_]+)\s*(?:=|!=|=~|!~)", matchers)}
        assert labels <= {*metric.labels, *OF_A_TARGET, "le"}, f"{name} has no such label: {text}"


@NEEDS_PROMTOOL
def test_prometheus_takes_its_configuration():
    """With the rules that it names."""
    promtool("check", "config", "--syntax-only", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", str(FOLDER / "rules.yml"))


@pytest.mark.slow
@NEEDS_PROMTOOL
def test_each_alert_fires_when_it_must_and_only_then():
    """As written in rules_test.yml."""
    promtool("test", "rules", str(FOLDER / "rules_test.yml"))


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_for_and_a_case_against(alert):
    """A rule that always fires, or never, would pass a test with one of them."""
    cases = [case for test in TESTS for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_only_what_is_exported(rule):
    """A misspelled metric would be an alert that never fires."""
    check_expression(rule["expr"])


def test_a_misspelled_metric_or_label_is_found():
    """The check above can fail."""
    for wrong in ("posters_image_total", 'posters_workers{states="ready"}', "posters_request_seconds"):
        with pytest.raises(AssertionError):
            check_expression(f"sum(rate({wrong}[5m]))")


@pytest.mark.parametrize("series", sorted({series["series"] for test in TESTS for series in test["input_series"]}))
def test_the_cases_are_made_of_what_is_exported(series):
    """Otherwise they would prove nothing of a real exporter."""
    if series.partition("{")[0] not in OTHERS:
        check_expression(series)


def test_every_alert_is_documented():
    """docs/operating.md lists each with its severity."""
    text = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(Posters\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == {name: rule["labels"]["severity"] for name, rule in ALERTS.items()}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_to_do(alert):
    """In a sentence for a person, and its commands exist."""
    from producer.__main__ import main

    annotations = ALERTS[alert]["annotations"]
    assert annotations["summary"]
    assert len(annotations["description"].split()) >= 6
    for command in re.findall(r"python -m producer ([a-z]+)", annotations["description"]):
        assert command in main.commands


def expressions(panel):
    """The expressions of a panel, as Grafana sends them."""
    for target in panel["targets"]:
        text = target["expr"]
        for name, value in VARIABLES.items():
            text = text.replace(name, value)
        yield text


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_panels_show_what_is_exported(panel):
    """Each says what it shows, in a unit, and asks the source that the reader has chosen."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert {source["uid"] for source in (panel["datasource"], *(t["datasource"] for t in panel["targets"]))} == {
        "${datasource}"
    }
    for text in expressions(panel):
        assert "$" not in text
        check_expression(text)


def test_legends_name_labels_that_are_there():
    """A misspelled one would be an empty legend."""
    known = {label for metric in BY_NAME.values() for label in metric.labels} | OF_A_TARGET
    legends = [target["legendFormat"] for panel in PANELS for target in panel["targets"]]
    assert {label for legend in legends for label in re.findall(r"\{\{(\w+)\}\}", legend)} <= known


@NEEDS_PROMTOOL
def test_prometheus_takes_the_boards_expressions(tmp_path):
    """All of them, as rules."""
    rules = [
        {"record": f"board:panel{panel['id']}:part{number}", "expr": text}
        for panel in PANELS
        for number, text in enumerate(expressions(panel))
    ]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "board.yml"))


def test_panels_lie_side_by_side():
    """No two overlap, and each has an id of its own."""
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_every_metric_is_on_the_board_or_in_a_rule():
    """What nobody looks at need not be exported."""
    shown = " ".join([*(text for panel in PANELS for text in expressions(panel)), *(rule["expr"] for rule in RULES)])
    unseen = {name for name in BY_NAME if not re.search(rf"\b{name}(_bucket)?\b", shown)}
    assert not unseen
