"""Prometheus metrics of a worker. Times are in seconds; every name starts with `orders_`."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.samples import Exemplar

_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TurnHistogram(Histogram):
    """A histogram that takes the values of a whole turn at once: one call for each would be 5 % of a command."""

    def observe_all(self, values: list[float]) -> None:
        """Observe values, and sort them in place."""
        values.sort()
        counted = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            below = bisect_right(values, bound)
            if below > counted:
                bucket.inc(below - counted)
            counted = below
        self._sum.inc(sum(values))

    def add_exemplars(self, exemplars: Iterable[tuple[float, dict[str, str]]]) -> None:
        """Add exemplars to buckets: observed values, and the labels that lead to their spans."""
        for value, labels in exemplars:
            self._buckets[bisect_left(self._upper_bounds, value)].set_exemplar(Exemplar(labels, value, time.time()))


COMMANDS: Final = Counter(
    "orders_commands_total",
    "Commands decided, by type, outcome (accepted, rejected or repeated) and reason.",
    ["type", "outcome", "reason"],
)
DEAD_LETTERS: Final = Counter(
    "orders_dead_letters_total",
    "Records that cannot be decoded, or whose key or partition is not that of their order, by reason.",
    ["reason"],
)
SHORTENED: Final = Counter(
    "orders_entries_shortened_total",
    "Closed orders that have forgotten their commands, because of `ORDERS_REMEMBER_CLOSED_DAYS`.",
)
TURN_SECONDS: Final = Histogram("orders_turn_seconds", "From taking a turn's commands to its commit.", buckets=_FAST)
TURN_COMMANDS: Final = Histogram(
    "orders_turn_commands", "Commands decided in one turn.", buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000)
)
COMMAND_AGE_SECONDS: Final = TurnHistogram(
    "orders_command_age_seconds",
    "Time from the record of a command to the commit of its outcome, also if the command waited for its user.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
LAG: Final = Gauge("orders_lag_commands", "Offsets between the position and the end of the partition.", ["partition"])
FOREIGN_TRANSACTION: Final = Gauge(
    "orders_foreign_transaction_seconds",
    "Seconds for which an open transaction has blocked the commands or a claim; 0 or missing if none is open.",
    ["topic", "partition"],
)
LANES: Final = Gauge(
    "orders_lanes",
    "Partitions this worker holds, by state: running, claiming, unavailable (for Kafka), stalled or parked. "
    "A stalled one is also running.",
    ["state"],
)
NEVER_READ: Final = Counter(
    "orders_never_read_offsets_total",
    "Offsets of the commands topic that were deleted before any worker read their partition.",
    ["partition"],
)
STANDBY_LAG: Final = Gauge(
    "orders_standby_lag_offsets",
    "Offsets of the changelogs of another worker's partition that this worker, which stands by for it, has not read.",
    ["partition"],
)
PARKED: Final = Gauge("orders_lane_parked", "1 for a lane that is parked and needs an operator.", ["partition"])
STRANGERS: Final = Gauge(
    "orders_group_strangers", "Members of the consumer group that are not workers of this service."
)
STRANGER_SECONDS: Final = Gauge(
    "orders_group_stranger_seconds",
    "Time since a member that is not a worker of this service was first seen, by partition that it holds.",
    ["topic", "partition"],
)
TOPIC_FAULTS: Final = Gauge("orders_topic_faults", "Topic settings that are below what is required.")
WAITING: Final = Gauge("orders_waiting_commands", "Commands that are waiting for the User Service.")
WAITING_OLDEST: Final = Gauge("orders_waiting_oldest_seconds", "Age of the oldest waiting command.")
CLOCK_SKEW: Final = Gauge("orders_clock_skew_seconds", "Seconds by which this worker's clock is ahead of Kafka's.")
STORES_DISCARDED: Final = Counter(
    "orders_table_stores_discarded_total",
    "Tables on disk that were thrown away and restored from their changelogs.",
    ["partition"],
)
STORE_FAULTS: Final = Gauge(
    "orders_table_store_fault", "1 for a lane that waits because the disk of its table cannot be used.", ["partition"]
)
CLAIMS: Final = Counter("orders_claims_total", "Claims of a partition, by outcome: restored or parked.", ["outcome"])
CLAIM_SECONDS: Final = Histogram(
    "orders_claim_seconds",
    "Time to claim and restore one partition.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
