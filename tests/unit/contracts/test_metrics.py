"""The page of metrics: each metric of the code has a row, and says when to alert. Names follow the conventions."""

import re

import pytest
from prometheus_client import Counter

from order_service.contracts.metrics_page import USES, all_metrics, blocks


def test_a_metric_without_a_row_and_a_row_without_a_metric_are_errors():
    metrics = all_metrics()
    assert blocks(metrics)
    with pytest.raises(KeyError, match="orders_new_total"):
        blocks([*metrics, Counter("orders_new", "New ones.", registry=None)])
    with pytest.raises(KeyError, match="orders_"):
        blocks(metrics[1:])


def test_meanings_and_alerts_are_sentences():
    assert [use.alert for use in USES.values() if not use.alert.endswith(".")] == []
    families = [family for metric in all_metrics() for family in metric.describe()]
    assert [family.name for family in families if not family.documentation.endswith(".")] == []


NOT_BASE_UNITS = r"(ms|millis|milliseconds|us|minutes|hours|days|kb|kib|mb|mib|kilobytes|megabytes|percent)"
LABELS = {
    "component",
    "operation",
    "outcome",
    "partition",
    "process",
    "reason",
    "state",
    "status",
    "topic",
    "type",
    "version",
}
"""Labels whose values the code, the topics or HTTP bound. No order, user, command or text is a label."""


def test_names_follow_the_conventions_of_prometheus():
    """Source: https://prometheus.io/docs/practices/naming/."""
    for metric in all_metrics():
        [family] = metric.describe()
        assert re.fullmatch(r"orders(_[a-z]+)+", family.name)
        assert not re.search(rf"_{NOT_BASE_UNITS}(_|$)", family.name), family.name
        assert not re.search(r"_(total|count|sum|bucket|created)$", family.name), family.name  # added by the type
        assert set(metric._labelnames) <= LABELS, family.name


def test_a_name_ends_in_the_unit_of_its_values():
    for metric in all_metrics():
        [family] = metric.describe()
        exposed = f"{family.name}_total" if isinstance(metric, Counter) else family.name
        is_time, is_size = (USES[exposed].unit == unit for unit in ("s", "bytes"))
        assert is_time == family.name.endswith("_seconds"), family.name
        assert is_size == family.name.endswith("_bytes"), family.name
