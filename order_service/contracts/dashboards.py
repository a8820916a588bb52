"""The dashboards of Grafana, generated into the chart: deploy/helm/order-service/files/dashboards."""

import json
from typing import Any, Final

from msgspec import Struct

SCHEMA_VERSION: Final = 39
"""The version of the format, that of Grafana 11. Newer versions of Grafana read it."""
WIDTH: Final = 24
HEIGHT: Final = 8
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Query(Struct, frozen=True):
    """A query of Prometheus, and the legend of its series."""

    expr: str
    legend: str = ""


class Panel(Struct, frozen=True):
    """One graph or number. The unit is one of Grafana's; the description says how to read it."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    type: str = "timeseries"
    width: int = 12


class Dashboard(Struct, frozen=True):
    """A page of panels, in rows from left to right."""

    uid: str
    title: str
    panels: tuple[Panel, ...]

    def text(self) -> str:
        """Return the dashboard as JSON, as Grafana imports it and its sidecar reads it."""
        return json.dumps(self._model(), indent=1) + "\n"

    def _model(self) -> dict[str, Any]:
        placed, x, y = [], 0, 0
        for number, panel in enumerate(self.panels, 1):
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            placed.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": HEIGHT}))
            x += panel.width
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["order-service"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {"list": [_datasource(), _namespace()]},
            "panels": placed,
        }


def _panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _namespace() -> dict[str, Any]:
    query = "label_values(orders_log_lines_dropped_total, namespace)"
    return {
        "name": "namespace",
        "label": "Namespace",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "namespace"},
        "refresh": 2,
        "includeAll": False,
    }


NAMESPACE: Final = 'namespace="$namespace"'
NO_STREAMS: Final = f'{NAMESPACE},operation!~"stream_.*"'


def _each(metric: str, by: str, function: str = "sum") -> Query:
    """Return a gauge by one label."""
    return Query(f"{function} by ({by}) ({metric}{{{NAMESPACE}}})", f"{{{{{by}}}}}")


def _rate(metric: str, by: str) -> Query:
    """Return the rate of a counter by one label."""
    return Query(f"sum by ({by}) (rate({metric}{{{NAMESPACE}}}[$__rate_interval]))", f"{{{{{by}}}}}")


def _total(metric: str, legend: str, function: str = "sum") -> Query:
    return Query(f"{function}({metric}{{{NAMESPACE}}})", legend)


def _quantiles(histogram: str, selector: str = NAMESPACE) -> tuple[Query, ...]:
    """Return the median and the 99th percentile of a histogram."""
    rate = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return tuple(
        Query(f"histogram_quantile({quantile}, {rate})", legend) for quantile, legend in ((0.5, "p50"), (0.99, "p99"))
    )


def _objective(title: str, record: str, description: str) -> tuple[Panel, ...]:
    """Return the error ratio of an objective over 6 hours as a number, and over both short windows as a graph."""
    windows = tuple(Query(f"orders:{record}:ratio_{window}{{{NAMESPACE}}}", window) for window in ("5m", "1h"))
    now = (Query(f"orders:{record}:ratio_6h{{{NAMESPACE}}}", "6h"),)
    return (
        Panel(f"{title}, last 6 hours", "percentunit", description, now, type="stat", width=6),
        Panel(title, "percentunit", description, windows, width=18),
    )


OBJECTIVES: Final = Dashboard(
    "orders-objectives",
    "Orders: service objectives",
    (
        *_objective("Commands decided late", "commands_late", "Share of the commands that were decided too late."),
        *_objective("Reads that fail", "reads_failed", "Share of the reads that were answered with a status 5xx."),
        *_objective("Views behind", "views_behind", "Share of the time in which the views were behind."),
    ),
)
WORKERS: Final = Dashboard(
    "orders-workers",
    "Orders: workers and lanes",
    (
        Panel("Commands decided", "cps", "By outcome.", (_rate("orders_commands_total", "outcome"),)),
        Panel("Refusals", "cps", "Rejected commands, by reason.", (_rate("orders_commands_total", "reason"),)),
        Panel("Lag", "short", "Undecided commands, by partition.", (_each("orders_lag_commands", "partition"),)),
        Panel(
            "Age of commands",
            "s",
            "When their outcome was committed.",
            _quantiles("orders_command_age_seconds"),
        ),
        Panel("Lanes", "short", "Partitions by state.", (_each("orders_lanes", "state"),)),
        Panel("Parked lanes", "short", "Each needs an operator.", (_each("orders_lane_parked", "partition", "max"),)),
        Panel("Turns", "s", "From taking commands to the commit.", _quantiles("orders_turn_seconds")),
        Panel("Claims", "s", "Time to claim and restore a partition.", _quantiles("orders_claim_seconds")),
        Panel(
            "Waiting room",
            "short",
            "Commands that wait for the User Service.",
            (_total("orders_waiting_commands", "commands"),),
        ),
        Panel(
            "Oldest waiting command",
            "s",
            "It is refused at ORDERS_USER_DEADLINE_S.",
            (_total("orders_waiting_oldest_seconds", "age", "max"),),
        ),
        Panel("User lookups", "cps", "By outcome.", (_rate("orders_user_lookups_total", "outcome"),)),
        Panel("Duration of lookups", "s", "With their retries.", _quantiles("orders_user_lookup_seconds")),
        Panel("Dead letters", "cps", "By reason.", (_rate("orders_dead_letters_total", "reason"),)),
        Panel(
            "Lag of the standbys",
            "short",
            "Offsets that a takeover has to read, by partition.",
            (_each("orders_standby_lag_offsets", "partition"),),
        ),
    ),
)
HTTP: Final = Dashboard(
    "orders-http",
    "Orders: HTTP and views",
    (
        Panel("Requests", "reqps", "By operation.", (_rate("orders_http_request_seconds_count", "operation"),)),
        Panel("Responses", "reqps", "By status.", (_rate("orders_http_request_seconds_count", "status"),)),
        Panel("Duration", "s", "Without streams.", _quantiles("orders_http_request_seconds", NO_STREAMS)),
        Panel(
            "Open requests",
            "short",
            "Requests without a response so far, and open streams, by server.",
            (_each("orders_http_requests_open", "pod"),),
        ),
        Panel(
            "Lag of the views",
            "short",
            "Offsets that are not in the views yet.",
            (_total("orders_views_lag_offsets", "offsets"),),
        ),
        Panel(
            "Views that stand still",
            "short",
            "Partitions that no projector reads, and partitions that are stopped at a bad record.",
            (_total("orders_views_unread_partitions", "unread", "max"), _total("orders_views_stopped", "stopped")),
        ),
        Panel("Fetches of keys", "cps", "By outcome.", (_rate("orders_jwks_fetches_total", "outcome"),)),
        Panel("Log lines dropped", "cps", "By pod.", (_rate("orders_log_lines_dropped_total", "pod"),)),
    ),
)
DASHBOARDS: Final = {"service-objectives": OBJECTIVES, "workers-and-lanes": WORKERS, "http-and-views": HTTP}
"""Each dashboard, by the name of its file."""
