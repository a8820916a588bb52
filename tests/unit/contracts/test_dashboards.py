"""The dashboards: each query is PromQL, and uses metrics and labels that exist."""

import json
import re

import promql_parser
import pytest

from order_service.contracts.dashboards import DASHBOARDS, WIDTH
from tests.support.promql import TARGET_LABELS, exposed, selectors_of


def parsed(expr):
    """Return a query as Prometheus gets it: Grafana replaces its variables before."""
    return promql_parser.parse(expr.replace("$__rate_interval", "1m").replace("$namespace", "shop"))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_queries_and_legends_use_metrics_and_labels_that_exist(name):
    series = exposed()
    for panel in DASHBOARDS[name].panels:
        for query in panel.queries:
            for selector in selectors_of(parsed(query.expr)):
                used = {matcher.name for matcher in selector.matchers.matchers}
                assert "namespace" in used, panel.title
                if selector.name.startswith("orders:"):  # a record of the chart, whose tests compare it
                    assert used == {"namespace"}
                    continue
                grouped = set(re.findall(r"by \((\w+)\)", query.expr)) | set(re.findall(r"{{(\w+)}}", query.legend))
                assert used | grouped <= series[selector.name] | TARGET_LABELS, panel.title


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fill_rows_and_have_a_description(name):
    model = json.loads(DASHBOARDS[name].text())
    cells = [
        (x, panel["gridPos"]["y"])
        for panel in model["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < WIDTH
    assert all(panel["description"].endswith(".") for panel in model["panels"])
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])


def test_each_dashboard_has_its_own_uid():
    assert len({dashboard.uid for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 3
