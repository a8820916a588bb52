"""What Prometheus would make of a service: real scrapes of its processes, and the chart's alerts evaluated by promtool.

A test brings a service through three phases and scrapes it in each: before a fault, during it, and after the repair.
The scrapes become series on a longer time axis, because many alerts look at minutes or an hour: those of a phase are
spread evenly over its minutes, gauges keep their value until the next scrape, and counters grow evenly up to it.
"""

import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.chart import of_kind, process_of, rendered, tool
from tests.support.runbooks import Sightings
from tests.support.service import Service, WorkerProcess

NAMESPACE = "shop"
BEFORE, FAULT, AFTER = "before", "fault", "after"
MINUTES = {BEFORE: 70, FAULT: 30, AFTER: 130}
"""The length of each phase: an alert may look back for an hour, and must have resolved after it."""
LIMITS = {
    "ORDERS_PARTITIONS": "4",
    "ORDERS_WAITING_MAX": "4",
    "ORDERS_USER_SERVICE_CONCURRENCY": "2",
    "ORDERS_CLOCK_SKEW_MAX_S": "600",
    "ORDERS_WEB_WAITING_MAX": "1",
    "ORDERS_WEB_STREAMS_MAX": "8",
}
"""Settings that the limits of alerts follow. The processes and the rules of a test have the same ones."""
VALUES = {
    "prometheusRule.enabled": "true",
    "prometheusRule.lagCommands": "5",
    "prometheusRule.viewsLagOffsets": "5",
    "prometheusRule.standbysLagOffsets": "50",
    "serviceObjectives.enabled": "true",
    "serviceObjectives.views.lagOffsets": "5",
}

Scrape = dict[str, float]


def fires(*alerts: str, **settings: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare which alerts a test fires: each must fire during the fault, but not before it or after the repair.

    What their runbooks show must be seen during the fault.
    """

    def declare(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(watch: "Watch", **arguments: Any) -> None:
            watch.sightings = Sightings(alerts)
            test(watch, **arguments)
            watch.sightings.check(watch.service)
            watch.check(alerts)

        run.alerts = alerts  # type: ignore[attr-defined]
        run.settings = LIMITS | settings  # type: ignore[attr-defined]
        return run

    return declare


@cache
def alert_groups(settings: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    """Return the groups of rules that the chart renders with these settings."""
    values = VALUES | {f"settings.{name}": value for name, value in settings}
    options = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return [
        group for rule in of_kind(rendered("minimal", *options), "PrometheusRule") for group in rule["spec"]["groups"]
    ]


@cache
def jobs() -> dict[str, str]:
    """Return the job of each process: its Service in front of the admin ports."""
    services = of_kind(rendered("minimal"), "Service")
    return {
        process_of(service): service["metadata"]["name"]
        for service in services
        if service["metadata"]["labels"].get("order-service/port") == "admin"
    }


class Watch:
    """Scrapes the processes of a service as Prometheus does, and evaluates the alerts of the chart on that."""

    def __init__(self, service: Service, settings: Mapping[str, str], directory: Path) -> None:
        self.service = service
        self.sightings = Sightings(())
        self._groups = alert_groups(tuple(settings.items()))
        self._metrics = set(re.findall(r"\b(?:orders_\w+|up)\b", yaml.safe_dump(self._groups)))
        self._directory = directory
        self._targets: dict[tuple[str, str], WorkerProcess] = {}
        self._phases: dict[str, list[Scrape]] = {phase: [] for phase in MINUTES}
        self._counters: set[str] = set()

    def target(self, process: WorkerProcess, kind: str = "worker", pod: str = "") -> WorkerProcess:
        """Scrape a process from now on; one with the pod of another replaces it."""
        self._targets[kind, pod or kind] = process
        return process

    def before(self) -> None:
        """Scrape while the service is healthy."""
        self._phases[BEFORE].append(self._scrape())

    def fault(self) -> None:
        """Scrape while the fault lasts, and look at what the runbooks show of it."""
        self._phases[FAULT].append(self._scrape())
        self.sightings.look(self.service, [process for (kind, _), process in self._targets.items() if kind == "worker"])

    def after(self) -> None:
        """Scrape after the repair."""
        self._phases[AFTER].append(self._scrape())

    def value(self, metric: str, **labels: str) -> float:
        """Return the sum of the series of a metric with these labels, now."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        scraped = self._scrape()
        return sum(
            value
            for series, value in scraped.items()
            if series.partition("{")[0] == metric and all(each in series for each in wanted)
        )

    def check(self, alerts: tuple[str, ...]) -> None:
        """Check by promtool when these alerts fire."""
        assert all(self._phases.values()), "a test scrapes in each phase"
        at = {BEFORE: MINUTES[BEFORE] - 1, FAULT: MINUTES[BEFORE] + MINUTES[FAULT] - 1, AFTER: sum(MINUTES.values())}
        windows = {BEFORE: MINUTES[BEFORE], FAULT: MINUTES[FAULT], AFTER: 1}
        tests = [
            {
                "expr": f'count(count_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[{window}m])) > bool 0'
                " or vector(0)",
                "eval_time": f"{at[phase]}m",
                "exp_samples": [{"labels": "{}", "value": int(phase == FAULT)}],
            }
            for alert in alerts
            for phase, window in windows.items()
        ]
        series = [{"series": name, "values": " ".join(values)} for name, values in self._series().items()]
        rules, unit = self._directory / "rules.yaml", self._directory / "alerts.yaml"
        rules.write_text(yaml.safe_dump({"groups": self._groups}))
        unit.write_text(
            yaml.safe_dump(
                {
                    "rule_files": [rules.name],
                    "evaluation_interval": "1m",
                    "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
                }
            )
        )
        command = [tool("promtool"), "test", "rules", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self._phases}"

    def _scrape(self) -> Scrape:
        scraped = {}
        for (kind, pod), process in self._targets.items():
            status, text = process.admin("/metrics")
            labels = {"namespace": NAMESPACE, "job": jobs()[kind], "pod": pod}
            scraped[_named("up", labels)] = float(status == 200)
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name in self._metrics:
                        name = _named(sample.name, sample.labels | labels)
                        scraped[name] = sample.value
                        if family.type in {"counter", "histogram"}:
                            self._counters.add(name)
        return scraped

    def _series(self) -> dict[str, list[str]]:
        """Return the value of each series in each minute, in the notation of promtool."""
        scrapes = [scrape for phase in self._phases.values() for scrape in phase]
        return {name: self._values(name) for name in sorted(set().union(*scrapes))}

    def _values(self, name: str) -> list[str]:
        minutes: list[str] = []
        for phase, scrapes in self._phases.items():
            begins = [number * MINUTES[phase] // len(scrapes) for number in range(len(scrapes))]
            for (scrape, begin), (following, end) in pairwise(
                [*zip(scrapes, begins, strict=True), (scrapes[-1], MINUTES[phase])]
            ):
                minutes += _between(scrape.get(name), following.get(name), end - begin, name in self._counters)
        return ["stale" if now == "_" and last != "_" else now for last, now in pairwise(["_", *minutes])]


def _between(first: float | None, second: float | None, minutes: int, is_counter: bool) -> list[str]:
    """Return the values from one scrape to before the next one; `_` if the series was missing."""
    if first is None:
        return ["_"] * minutes
    grows = is_counter and second is not None and second > first
    step = (second - first) / minutes if grows and second is not None else 0.0
    return [f"{first + step * minute:.6f}" for minute in range(minutes)]


def _named(metric: str, labels: Mapping[str, str]) -> str:
    shown = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{metric}{{{shown}}}"
