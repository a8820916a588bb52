"""The page of metrics: each metric of the code has a row, and says when to alert."""

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
