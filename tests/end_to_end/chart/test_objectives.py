"""The service objectives of the chart: their rules use what exists, and each alert has a page."""

import re

import promql_parser
import pytest

from order_service.contracts.__main__ import FILES
from order_service.web.api.operations import OPERATIONS
from order_service.worker.metrics import COMMAND_AGE_SECONDS
from tests.support.chart import CHART, of_kind, rendered, values
from tests.support.promql import TARGET_LABELS, exposed, selectors_of
from tests.support.service import ROOT

PAGE = ROOT / "docs" / "operations" / "service-objectives.md"
FOLDER = CHART / "files" / "dashboards"
ON = "serviceObjectives.enabled=true"


def rules(*changes):
    """Return the rules of the objectives, by the name of their record or alert."""
    [rule] = of_kind(rendered("minimal", "--set-json", ",".join([ON, *changes])), "PrometheusRule")
    [group] = rule["spec"]["groups"]
    return {one.get("record") or one["alert"]: one for one in group["rules"]}


def bounds():
    """Return the buckets of the age of commands, without the infinite one."""
    [family] = COMMAND_AGE_SECONDS.collect()
    return [sample.labels["le"] for sample in family.samples if "le" in sample.labels and sample.labels["le"] != "+Inf"]


def test_rules_use_metrics_labels_and_records_that_exist():
    series, known = exposed(), rules()
    for name, rule in known.items():
        selectors = selectors_of(promql_parser.parse(rule["expr"]))
        assert selectors
        for selector in selectors:
            used = {matcher.name for matcher in selector.matchers.matchers}
            if selector.name.startswith("orders:"):
                assert used == set(known[selector.name]["labels"]), name
            else:
                assert used <= series[selector.name] | TARGET_LABELS, name
                assert {"namespace", "job"} <= used, name


def test_each_objective_has_an_alert_for_each_pair_of_windows():
    alerts = {name: rule["expr"] for name, rule in rules().items() if "alert" in rule}
    assert len(alerts) == 6
    for name, expr in alerts.items():
        long, short = re.findall(r"ratio_(\w+)", expr)
        assert (long, short) == (("1h", "5m") if name.endswith("Fast") else ("6h", "30m"))


@pytest.mark.parametrize(("target", "fast", "slow"), [("99.9", "0.0144", "0.006"), ("99", "0.144", "0.06")])
def test_limits_follow_the_targets(target, fast, slow):
    objectives = ",".join(f"serviceObjectives.{name}.target={target}" for name in ("commands", "reads", "views"))
    for name, rule in rules(objectives).items():
        if "alert" in rule:
            limits = re.findall(r"> ([\d.]+)", rule["expr"])
            assert limits == [fast if name.endswith("Fast") else slow] * 2


def test_the_time_for_a_command_is_one_of_the_buckets():
    for bound in bounds():
        rule = rules(f"serviceObjectives.commands.seconds={float(bound):g}")["orders:commands_late:ratio_5m"]
        [bucket] = [one for one in selectors_of(promql_parser.parse(rule["expr"])) if one.name.endswith("_bucket")]
        [pattern] = [matcher.value for matcher in bucket.matchers.matchers if matcher.name == "le"]
        assert [one for one in bounds() if re.fullmatch(pattern, one)] == [bound]


def test_reads_are_the_operations_that_change_nothing():
    expr = rules()["orders:reads_failed:ratio_5m"]["expr"]
    reads = {one.name for one in OPERATIONS if one.method == "GET" and not one.is_stream}
    reads.remove("overview")  # it reads no views: it is shown while these are away
    assert {frozenset(pattern.split("|")) for pattern in re.findall(r'operation=~"([^"]*)"', expr)} == {
        frozenset(reads)
    }


def test_every_alert_links_to_its_part_of_the_page_which_lists_it():
    text = PAGE.read_text(encoding="utf-8")
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    alerts = [rule for rule in rules().values() if "alert" in rule]
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page == f"{values()['prometheusRule']['runbookBaseUrl']}/operations/service-objectives.md"
        assert anchor in headings
    listed = re.findall(r"^\| `(Orders\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert listed == [(alert["alert"], alert["labels"]["severity"]) for alert in alerts]


def test_the_dashboards_are_in_a_config_map_that_the_sidecar_finds():
    [config_map] = of_kind(rendered("minimal", "--set", "dashboards.enabled=true"), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    generated = {file.name: file.read_text(encoding="utf-8") for file in FILES if file.parent == FOLDER}
    assert {file.name for file in FOLDER.iterdir()} == set(generated)
    assert config_map["data"] == generated


def test_the_dashboard_of_the_objectives_shows_records_of_the_chart():
    [config_map] = of_kind(rendered("minimal", "--set", "dashboards.enabled=true"), "ConfigMap")
    shown = set(re.findall(r"orders:\w+:\w+", config_map["data"]["service-objectives.json"]))
    assert shown
    assert shown <= rules().keys()
