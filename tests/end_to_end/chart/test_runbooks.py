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
FIRING = ROOT / "tests" / "end_to_end" / "alerts"
SETTINGS = {variable(field) for field in Settings.model_fields}
METRICS = {family.name: family.type for metric in all_metrics() for family in metric.describe()}


def alerts():
    """Return the alerts of all parts of the chart."""
    rules = of_kind(rendered("everything"), "PrometheusRule")
    groups = [group for rule in rules for group in rule["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def names():
    return sorted(alert["alert"] for alert in alerts())


def fired():
    """Return the alerts that tests declare with `fires`, which checks them."""
    modules = [import_module(f"tests.end_to_end.alerts.{file.stem}") for file in FIRING.glob("test_*.py")]
    tests = [test for module in modules for name, test in vars(module).items() if name.startswith("test_")]
    return {alert for test in tests for alert in test.alerts}


def test_every_alert_is_fired_by_a_test_of_its_fault():
    assert sorted(fired()) == names()


def target_of(alert):
    """Return the page that an alert links to and, if it links to a section of it, the anchor."""
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    return ROOT / page, anchor


def test_every_alert_links_to_its_page_or_to_a_section_that_exists():
    own = []
    for alert in alerts():
        page, anchor = target_of(alert)
        if anchor:
            headings = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
        else:
            assert page == RUNBOOKS / f"{alert['alert']}.md"
            own.append(page)
    assert sorted(own) == PAGES


def test_the_index_lists_every_alert_with_its_link_and_severity():
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\(([^)#]+)#?([^)]*)\) \| (\w+) \|$", index, re.MULTILINE)
    found = [(alert, (RUNBOOKS / page).resolve(), anchor, severity) for alert, page, anchor, severity in listed]
    assert sorted(found) == sorted((a["alert"], *target_of(a), a["labels"]["severity"]) for a in alerts())


def commands_of(text):
    """Return the words of each call of the command line, in blocks and in the text."""
    calls = re.findall(r"^(?:\$ )?(order-service .*)$", text, re.MULTILINE) + re.findall(
        r"`(order-service [^`]*)`", text
    )
    return [split(call, comments=True)[1:] for call in calls]


@pytest.mark.parametrize("page", [*PAGES, RUNBOOKS / "README.md"], ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page):
    text = page.read_text(encoding="utf-8")
    if page in PAGES:
        assert re.findall(r"^# (.*)$", text, re.MULTILINE) == [page.stem]
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
        assert len(text.splitlines()) <= LINES_MAX
    for words in commands_of(text):
        command: Any = get_command(app)
        rest = words
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        is_unknown = hasattr(command, "commands") and bool(rest) and not rest[0].startswith("-")
        assert not is_unknown, words
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words
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
