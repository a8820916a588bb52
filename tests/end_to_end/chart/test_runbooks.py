"""Each alert is fired by a test of its fault and has a runbook, and a runbook names only what exists."""

import re
from importlib import import_module
from shlex import split
from typing import Any

import pytest
from typer.main import get_command

from order_service.cli import app
from order_service.contracts.metrics_page import all_metrics
from order_service.settings import Settings, variable
from tests.support.chart import of_kind, rendered
from tests.support.service import ROOT

RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"
PAGES = sorted(page for page in RUNBOOKS.glob("*.md") if page.name != "README.md")
PARTS = ["Symptom", "Meaning", "Check", "Fix", "Verify"]
LINES_MAX = 60
NOT_FIRED = {"OrdersCommandsLateFast", "OrdersCommandsLateSlow"}
"""Alerts that no test fires by their fault yet; `docs/operations/runbooks/README.md` says so."""
FIRING = ROOT / "tests" / "end_to_end" / "alerts"
SETTINGS = {variable(field) for field in Settings.model_fields}
METRICS = {family.name: family.type for metric in all_metrics() for family in metric.describe()}


def alerts():
    """Return the alerts of all parts of the chart."""
    rules = of_kind(rendered("everything"), "PrometheusRule")
    groups = [group for rule in rules for group in rule["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def alerts_with_runbooks():
    """Return the alerts without those of the objectives, whose runbook is the page of the objectives."""
    return [alert for alert in alerts() if "/service-objectives.md#" not in alert["annotations"]["runbook_url"]]


def names(those):
    return sorted(alert["alert"] for alert in those)


def fired():
    """Return the alerts that tests declare with `fires`, which checks them."""
    modules = [import_module(f"tests.end_to_end.alerts.{file.stem}") for file in FIRING.glob("test_*.py")]
    tests = [test for module in modules for name, test in vars(module).items() if name.startswith("test_")]
    return {alert for test in tests for alert in test.alerts}


def test_every_alert_is_fired_by_a_test_of_its_fault():
    assert fired() | NOT_FIRED == set(names(alerts()))
    assert not fired() & NOT_FIRED


def test_every_alert_has_a_page_and_links_to_it():
    assert [page.stem for page in PAGES] == names(alerts_with_runbooks())
    for alert in alerts_with_runbooks():
        assert alert["annotations"]["runbook_url"].endswith(f"/operations/runbooks/{alert['alert']}.md")


def test_the_index_lists_every_page_with_the_severity_of_its_alert():
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|$", index, re.MULTILINE)
    assert sorted(listed) == sorted((a["alert"], a["alert"], a["labels"]["severity"]) for a in alerts_with_runbooks())


def commands_of(text):
    """Return the words of each call of the command line, and whether it is in a block, and so complete."""
    calls = [(call, True) for call in re.findall(r"^order-service .*$", text, re.MULTILINE)]
    calls += [(call, False) for call in re.findall(r"`(order-service [^`]*)`", text)]
    return [(split(call, comments=True)[1:], is_complete) for call, is_complete in calls]


@pytest.mark.parametrize("page", [*PAGES, RUNBOOKS / "README.md"], ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page):
    text = page.read_text(encoding="utf-8")
    if page in PAGES:
        assert re.findall(r"^# (.*)$", text, re.MULTILINE) == [page.stem]
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
        assert len(text.splitlines()) <= LINES_MAX
    for words, is_complete in commands_of(text):
        command: Any = get_command(app)
        rest = words
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        is_unknown = hasattr(command, "commands") and bool(rest) and not rest[0].startswith("-")
        assert not is_unknown, words
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words
        required = {each.opts[0] for each in command.params if each.required and each.opts[0].startswith("-")}
        assert not is_complete or required <= set(rest), words
    assert set(re.findall(r"\bORDERS_[A-Z_]+\b", text)) <= SETTINGS
    counted = {f"{name}_total" for name, kind in METRICS.items() if kind == "counter"}
    measured = {f"{name}_count" for name, kind in METRICS.items() if kind == "histogram"}
    uncounted = {name for name, kind in METRICS.items() if kind != "counter"}
    assert set(re.findall(r"`(orders_\w+)`", text)) <= counted | measured | uncounted


def test_log_messages_that_a_page_quotes_are_those_of_the_code():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "order_service").rglob("*.py"))
    quoted = {
        sentence for page in PAGES for sentence in re.findall(r'"([A-Z][^"…]*\.)"', page.read_text(encoding="utf-8"))
    }
    assert len(quoted) > 10
    assert {sentence for sentence in quoted if f'"{sentence}"' not in source} == set()
