"""Watches a run while it is under way: what a consumer sees and when, which lanes run, and which faults took them away.

All of it is timed by one clock, in seconds since the watch began. The checker judges it (`liveness.py`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaError, TopicPartition

from chaos.verdict.decoding import COMMAND_OFFSET
from chaos.verdict.liveness import Served, Touch, Watched

OUTCOMES: Final = ("events", "rejections", "dead_letters")
SERVED_EVERY_S: Final = 0.5
READ_ON_S: Final = 1.0
"""For how long the watch reads on after the run, so that it sees the last outcomes."""
PASSING: Final = frozenset(
    {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._PARTITION_EOF}
)
"""What a consumer says of brokers that are away; it goes on by itself when they are back."""


class Watch:
    """Two threads, one that consumes and one that asks the workers; both end with the block."""

    def __init__(
        self,
        servers: str,
        topics: Mapping[str, str],
        partitions: Iterable[int],
        ask: Callable[[], Served],
        told: Watched,
    ) -> None:
        self.watched = told
        self.problems: list[str] = []
        self._holdings = {topics[holding]: holding for holding in ("commands", *OUTCOMES)}
        self._places = [TopicPartition(topic, partition, 0) for topic in self._holdings for partition in partitions]
        self._ask = ask
        self._servers = servers
        self._began_at = time.monotonic()
        self._is_over = threading.Event()
        self._read_on_s = READ_ON_S
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._consume, self._ask_workers)]

    def now_s(self) -> float:
        """Return the seconds since the watch began."""
        return time.monotonic() - self._began_at

    def touch(self, what: str, partitions: Iterable[int] | None, *, before_s: float = 0.0, for_s: float = 0.0) -> None:
        """Note that a fault takes partitions away from their workers, or has for `before_s`; None is all of them."""
        places = None if partitions is None else frozenset(partitions)
        now_s = self.now_s()
        self.watched.touches.append(Touch(now_s - before_s, now_s + for_s, places, what))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._read_on_s = 0.0  # callers and workers may go on for ever
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _consume(self) -> None:
        consumer = Consumer(
            {
                "log_level": 0,
                "bootstrap.servers": self._servers,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
                "reconnect.backoff.max.ms": 500,
            }
        )
        try:
            consumer.assign(self._places)
            last_s = 0.0
            while not self._is_over.is_set() or self.now_s() - last_s < self._read_on_s:
                messages: list[Any] = consumer.consume(1_000, 0.1)
                last_s = self.now_s() if messages or not self._is_over.is_set() else last_s
                for message in messages:
                    self._note(message, last_s)
        finally:
            consumer.close()

    def _note(self, message: Any, at_s: float) -> None:
        error = message.error()
        if error is not None:
            if error.code() not in PASSING:
                self.problems.append(f"the watch cannot read a topic: {error}")
            return
        seen = self.watched.seen[message.partition()]
        if self._holdings[message.topic()] == "commands":
            seen.commands[message.offset()] = at_s
        else:
            seen.outcomes.append((at_s, _command_offset(message)))
            if self._holdings[message.topic()] == "events":
                seen.events.add(message.offset())

    def _ask_workers(self) -> None:
        while not self._is_over.wait(SERVED_EVERY_S):
            served = self._ask()
            self.watched.served.append(Served(self.now_s(), served.running, served.parked))


def _command_offset(message: Any) -> int | None:
    value = next((value for name, value in message.headers() or () if name == COMMAND_OFFSET), None)
    return int(value) if value is not None and value.isdigit() else None
