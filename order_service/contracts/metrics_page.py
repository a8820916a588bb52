"""The page of all metrics, generated from the code that defines them: docs/reference/metrics.md."""

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Final

from msgspec import Struct
from prometheus_client import REGISTRY, Counter
from prometheus_client.metrics import MetricWrapperBase

import order_service
from order_service.contracts.blocks import Block, Heading, Table, Text, markdown

HEAD: Final = ("Metric", "Type", "Labels", "Unit", "Meaning", "Alert")
ABOUT: Final = (
    "Each process serves its metrics at `/metrics` on `ORDERS_ADMIN_PORT`, in the text format of Prometheus, or in "
    "OpenMetrics if the request accepts it: only that has the exemplars of [tracing](../operations/tracing.md). A "
    "worker reports its own partitions. Over all workers, take the maximum of ages, states, faults, strangers and the "
    "clock skew, and the sum of all others. A worker with several processes adds the label "
    "`process` to all metrics: a number, or `parent`. The metrics of Python and of the process (`python_...` and "
    "`process_...`) are there, too."
)
FORMS: Final = (
    "A histogram has `_bucket`, `_sum` and `_count`; counters and histograms also have `_created`, the time of their "
    "first value. [Reasons](../operations/reasons.md) lists what to do."
)
WORKER: Final = "worker"
PROJECTOR: Final = "projector"
WEB: Final = "HTTP server"
EVERY_PROCESS: Final = "every process"
NO_ALERT: Final = "No alert:"
"""How the text of a metric begins that no alert needs."""
SHOWS_WHY: Final = f"{NO_ALERT} it shows why others rise."


class Use(Struct, frozen=True):
    """The process that has a metric, the unit of its values, and when an operator should be alerted."""

    process: str
    unit: str
    alert: str


USES: Final = {
    "orders_lag_commands": Use(WORKER, "offsets", "It grows for 5 minutes, or stays above your limit."),
    "orders_lanes": Use(
        WORKER,
        "partitions",
        "The sum of `running` stays below the number of partitions for 5 minutes, or `stalled` is above 0.",
    ),
    "orders_standby_lag_offsets": Use(
        WORKER, "offsets", "It grows for minutes: [the standby is behind](../operations/standbys.md)."
    ),
    "orders_lane_parked": Use(WORKER, "0 or 1", "It is 1: [resume the lane](../operations/lanes.md)."),
    "orders_commands_total": Use(
        WORKER, "commands", "Nothing is counted while `orders_lag_commands` grows, or one `reason` grows suddenly."
    ),
    "orders_command_age_seconds": Use(
        WORKER, "s", f"{SHOWS_WHY} It has its [objective](../operations/service-objectives.md)."
    ),
    "orders_dead_letters_total": Use(
        WORKER, "records", "It grows: see the [dead letters](../operations/dead-letters.md)."
    ),
    "orders_turn_seconds": Use(
        WORKER, "s", "The 99th percentile stays above 2.5 s: Kafka is slow. A worker ends if a commit takes over 10 s."
    ),
    "orders_turn_commands": Use(WORKER, "commands", f"{SHOWS_WHY} A turn has 2,000 commands at most."),
    "orders_claims_total": Use(
        WORKER, "claims", "`restored` grows while no worker is started or stopped: the group rebalances."
    ),
    "orders_claim_seconds": Use(WORKER, "s", "The 99th percentile is above 30 s: a restart takes too long."),
    "orders_waiting_commands": Use(
        WORKER, "commands", "It is above half of `ORDERS_WAITING_MAX` times the number of partitions of the worker."
    ),
    "orders_waiting_oldest_seconds": Use(
        WORKER, "s", "It is above 300 s: lookups have no answer. At `ORDERS_USER_DEADLINE_S` the create is refused."
    ),
    "orders_user_lookups_total": Use(WORKER, "lookups", "`no_answer` and `not_asked` grow for 5 minutes."),
    "orders_user_answers_unusable_total": Use(
        WORKER,
        "answers",
        "It grows: the User Service answers about some users as no worker expects. The log has the reasons.",
    ),
    "orders_user_lookup_seconds": Use(WORKER, "s", "The 99th percentile stays above 1 s: creates are late."),
    "orders_user_lookups_in_flight": Use(
        WORKER, "lookups", "It stays at `ORDERS_USER_SERVICE_CONCURRENCY`: creates wait for a slot."
    ),
    "orders_user_breaker_state": Use(WORKER, "0, 1 or 2", "It is 2 for a minute: the User Service is away."),
    "orders_foreign_transaction_seconds": Use(
        WORKER, "s", "It is above 10 s: follow [the runbook](../operations/hanging-transactions.md)."
    ),
    "orders_group_strangers": Use(WORKER, "members", "It is above 0: another program is in the group."),
    "orders_group_stranger_seconds": Use(
        WORKER, "s", f"{SHOWS_WHY} It has the partitions in which nothing is decided."
    ),
    "orders_topic_faults": Use(WORKER, "faults", "It is above 0: `order-service topics check` prints the fix."),
    "orders_clock_skew_seconds": Use(
        WORKER, "s", "It is above half of `ORDERS_CLOCK_SKEW_MAX_S`, or below minus half of it."
    ),
    "orders_table_store_fault": Use(
        WORKER, "0 or 1", "It is 1: free or repair [the disk of the tables](../operations/table-on-disk.md)."
    ),
    "orders_table_stores_discarded_total": Use(
        WORKER, "tables", "It grows often: check [the disk of the tables](../operations/table-on-disk.md)."
    ),
    "orders_entries_shortened_total": Use(
        WORKER,
        "orders",
        f"{NO_ALERT} it shows how many [closed orders have forgotten](../operations/closed-orders.md).",
    ),
    "orders_never_read_offsets_total": Use(
        WORKER, "offsets", "It grows: commands were deleted undecided. Their retention is too short."
    ),
    "orders_worker_process_starts_total": Use(
        WORKER, "starts", "It grows: a process of a worker with several ends again and again. The log has its reason."
    ),
    "orders_views_lag_offsets": Use(PROJECTOR, "offsets", "It grows for 5 minutes: reads are out of date."),
    "orders_views_unread_partitions": Use(
        PROJECTOR, "partitions", "It is above 0 for a minute: start the projectors that its `/health/ready` names."
    ),
    "orders_views_stopped": Use(PROJECTOR, "0 or 1", "It is 1: `order-service views --help` has what to do."),
    "orders_http_request_seconds": Use(
        WEB, "s", "Statuses from 500 on are above 1 % of the requests, or the 99th percentile rises."
    ),
    "orders_http_requests_open": Use(
        WEB, "requests", "It is above 80 % of `ORDERS_WEB_WAITING_MAX` and `ORDERS_WEB_STREAMS_MAX` together."
    ),
    "orders_jwks_fetches_total": Use(
        WEB, "fetches", "Only `failed` grows for an hour. Known keys are accepted for a day."
    ),
    "orders_build_info": Use(EVERY_PROCESS, "1", f"{SHOWS_WHY} It has the version."),
    "orders_log_lines_dropped_total": Use(EVERY_PROCESS, "lines", "It grows: no process reads the log output."),
    "orders_spans_dropped_total": Use(
        EVERY_PROCESS,
        "spans",
        f"{NO_ALERT} no command depends on it. [Tracing](../operations/tracing.md#when-the-collector-is-away) has what "
        "to do.",
    ),
}
"""Each metric, in the sequence of the page."""


def text() -> str:
    """Return the page in Markdown. Raises KeyError for a metric without a row, and for a row without a metric."""
    return f"<!-- Generated by `make contracts` from the metrics in the code. -->\n\n{markdown(blocks(all_metrics()))}"


def blocks(metrics: Iterable[MetricWrapperBase]) -> list[Block]:
    """Return the page: one table for each process."""
    by_name = {_exposed_name(metric): metric for metric in metrics}
    if differing := by_name.keys() ^ USES.keys():
        raise KeyError(f"metrics without a row, or rows without a metric: {sorted(differing)}")
    page: list[Block] = [Heading(1, "Metrics"), Text(ABOUT), Text(FORMS)]
    for process in dict.fromkeys(use.process for use in USES.values()):
        rows = [_row(name, by_name[name], use) for name, use in USES.items() if use.process == process]
        page += [Heading(2, process[0].upper() + process[1:]), Table(HEAD, rows)]
    return page


def all_metrics() -> list[MetricWrapperBase]:
    """Return the metrics that the modules of this service define. It imports all of them."""
    for module in pkgutil.walk_packages(order_service.__path__, "order_service."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    collectors = REGISTRY._collector_to_names.items()  # noqa: SLF001
    # A library adds metrics of its own when it is first used, such as stamina's count of retries.
    return [
        metric
        for metric, names in collectors
        if isinstance(metric, MetricWrapperBase) and any(name.startswith("orders_") for name in names)
    ]


def _exposed_name(metric: MetricWrapperBase) -> str:
    """Return the name at `/metrics`: that of a counter ends in `_total`, however it was defined."""
    [family] = metric.describe()
    return f"{family.name}_total" if isinstance(metric, Counter) else str(family.name)


def _row(name: str, metric: MetricWrapperBase, use: Use) -> list[str]:
    [family] = metric.describe()
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001, it is in no public attribute
    return [f"`{name}`", family.type, labels, use.unit, family.documentation, use.alert]
