"""A consumer of our events in another language, as a program that is started and stopped, and what it prints."""

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from confluent_kafka import ConsumerGroupState, Producer

from order_service.wire import avro
from tests.support import samples
from tests.support.samples import but
from tests.support.service import histories, until
from tests.support.shop import Http, Shop

MOST = 2**53
"""The highest amount of money, which JavaScript's numbers do not tell from the next."""


class Running(NamedTuple):
    """A program that runs, and the file that it prints to."""

    process: "subprocess.Popen[bytes]"
    printed: Path

    def wait_for(self, done: Callable[[str], bool], what: str) -> None:
        """Wait until it has printed what it should; fails if it ends before."""
        until(lambda: self.process.poll() is not None or done(self.printed.read_text()), what)
        assert self.process.poll() is None, f"it goes on: {self.printed.read_text()}"

    def stop(self) -> None:
        """Stop it as an operator does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Example(NamedTuple):
    """A program in its folder, and the shop whose events it prints, one a line."""

    command: Sequence[str]
    place: Path
    shop: Shop
    http: Http

    @property
    def group(self) -> str:
        """The group of its consumers."""
        return f"{self.shop.service.app_id}-example"

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Run it for as long as the block does."""
        service = self.shop.service
        registry = f"http://127.0.0.1:{self.http.port}/schema-registry"
        command = [*self.command, service.bootstrap_servers, registry, service.names.events]
        environment = service.environment | {"GROUP": self.group}
        printed = self.place / f"{uuid4()}.out"
        with (
            printed.open("w") as out,
            subprocess.Popen(command, cwd=self.place, stdout=out, env=environment) as process,
        ):
            try:
                yield Running(process, printed)
            finally:
                process.kill()

    def lines_until(self, done: Callable[[str], bool], what: str) -> list[str]:
        """Run it until it has printed what it should, then stop it; give all that it printed."""
        with self.running() as consumer:
            consumer.wait_for(done, what)
            consumer.stop()
        return consumer.printed.read_text().splitlines()

    def wait_members(self, count: int) -> None:
        """Wait until the group has so many members, and all of them know their partitions."""
        until(lambda: self._members() == count, f"{self.group} has {count} members")

    def _members(self) -> int:
        found = self.shop.service.kafka.describe_consumer_groups([self.group])[self.group].result(10)
        return len(found.members) if found.state is ConsumerGroupState.STABLE else 0


def goes_on_where_it_was(example: Example) -> None:
    """Check that it prints the events of an order, and after a restart only what is new."""
    line = {"sku": "castle", "quantity": 2**14, "unit_price": MOST // 2**14}
    here = example.http.create(lines=[line]).headers["location"]
    payment = {"payment_id": "payment-1", "amount": MOST, "currency": "EUR"}
    assert example.http.ask("POST", f"{here}/pay", payment).status == 200
    order_id = _id_of(here)
    first = example.lines_until(lambda out: f"{order_id} 2" in out, "what happened is printed")
    assert first == [f"{order_id} 1 OrderCreated", f"{order_id} 2 OrderPaid"], first
    assert example.http.ask("DELETE", here).status == 200
    other_id = _id_of(example.http.create().headers["location"])
    news = example.lines_until(lambda out: f"{order_id} 3" in out and other_id in out, "what is new is printed")
    assert sorted(news) == sorted([f"{order_id} 3 OrderCancelled", f"{other_id} 1 OrderCreated"]), news


def passes_over_what_was_aborted(example: Example) -> None:
    """Check that it prints no event of two aborted transactions, but the long one behind them."""
    service = example.shop.service
    producer = Producer(
        {"log_level": 0, "bootstrap.servers": service.bootstrap_servers, "transactional.id": f"{service.app_id}-test"}
    )
    producer.init_transactions(30)
    for order_id, end in [
        ("undone-1", producer.abort_transaction),
        ("undone-2", producer.abort_transaction),
        ("long", producer.commit_transaction),
    ]:
        producer.begin_transaction()
        producer.produce(service.names.events, key=order_id, value=_long_event(order_id), partition=0)
        assert producer.flush(30) == 0
        end(30)
    lines = example.lines_until(lambda out: "long" in out, "the long event is printed")
    assert lines == ["long 1 OrderCreated"], lines


def goes_on_where_another_was(example: Example) -> None:
    """Check that it takes no hole for one where another member of its group has read meanwhile."""
    count = 8
    commands = histories(count)
    creates, amendments, payments = (commands[first : first + count] for first in range(0, 3 * count, count))

    def tells(version: int) -> Callable[[str], bool]:
        return lambda out: all(f"{command.order_id} {version} " in out for command in creates)

    def both(one: Running, other: Running) -> Callable[[], bool]:
        return lambda: tells(2)(one.printed.read_text() + other.printed.read_text())

    with example.running() as consumer:
        example.shop.service.send(creates)
        consumer.wait_for(tells(1), "what happened is printed")
        with example.running() as other:
            example.wait_members(2)
            example.shop.service.send(amendments)
            until(both(consumer, other), "what is new is printed, by one of the two")
            assert not tells(2)(consumer.printed.read_text()), "the other one has a part of it"
            other.stop()
        example.wait_members(1)
        example.shop.service.send(payments)
        consumer.wait_for(tells(3), "what is new is printed, also in the partitions that came back")
        consumer.stop()


def _long_event(order_id: str) -> bytes:
    """Encode an event of more than 100 KiB: an order of as many lines as there may be, each with a long name."""
    lines = tuple(but(samples.poster, line_id=str(number), name="ж" * 200) for number in range(1, 501))
    fact: Any = but(samples.created, lines=lines, total=500 * 900 + 400)
    return avro.encode_event(but(samples.order_created, order_id=order_id, fact=fact))


def _id_of(location: str) -> str:
    return location.rpartition("/")[2]
