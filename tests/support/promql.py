"""PromQL expressions, and the series that the processes expose."""

import promql_parser

from order_service.contracts.metrics_page import all_metrics


def selectors_of(node):
    """Return the selectors of a PromQL expression."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    children = []
    for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        child = getattr(node, name, None)
        children += child if isinstance(child, list) else [child] if child is not None else []
    return [selector for child in children for selector in selectors_of(child)]


def exposed():
    """Return the labels of each series that the processes expose."""
    series: dict[str, set[str]] = {"up": set()}
    for metric in all_metrics():
        [family] = metric.describe()
        labels = set(metric._labelnames)
        match family.type:
            case "counter":
                series[f"{family.name}_total"] = labels
            case "histogram":
                series |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
                series[f"{family.name}_bucket"] = labels | {"le"}
            case _:
                series[family.name] = labels
    return series


TARGET_LABELS = {"namespace", "job", "pod", "service", "instance"}
"""What Prometheus Operator adds to each series."""
