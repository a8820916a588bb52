"""The examples in Python, as programs beside a running shop, and what they print."""

import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from tests.support.service import ROOT, until
from tests.support.shop import MUG, PAYMENT


class Program:
    """An example that runs; what it prints is a file."""

    def __init__(self, process, printed):
        self.process = process
        self.printed = printed

    def wait_for(self, words):
        until(lambda: words in self.printed.read_text(), f"it says {words}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Stop it as a person does: it leaves its group."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


@pytest.fixture
def group(shop, tmp_path):
    """Return the name of a group that no other test has."""
    return f"{shop.service.app_id}-{tmp_path.name}"


@pytest.fixture
def run(shop, group, tmp_path):
    @contextmanager
    def run(name, *arguments):
        program = ROOT / "examples" / name  # or the name itself, if it is a whole path
        printed = tmp_path / f"{program.name}.out"
        command = [sys.executable, str(program), *arguments]
        environment = shop.service.environment | {"PYTHONUNBUFFERED": "1", "GROUP": group}
        with printed.open("a") as out, subprocess.Popen(command, env=environment, stdout=out) as process:
            try:
                yield Program(process, printed)
            finally:
                process.kill()

    return run


def places_of(shop, group):
    """Return the next offset of each partition of a group that has begun."""
    asked = shop.service.kafka.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    places = asked[group].result(10).topic_partitions
    return {one.partition: one.offset for one in places if one.topic == shop.service.names.events and one.offset >= 0}


def wait_begun(shop, group):
    """Wait until a group has begun: from then on it misses nothing."""
    until(lambda: len(places_of(shop, group)) == shop.service.partitions, f"{group} has begun")


def is_all_read(shop, group):
    """Return whether a group is done with all events."""
    ends = {message.partition(): message.offset() + 1 for message in shop.service.read(shop.service.names.events)}
    places = places_of(shop, group)
    return all(places[partition] >= end for partition, end in ends.items())


def order_id_of(location):
    return location.rpartition("/")[2]


def test_notifications_are_about_what_is_new_alone(run, shop, http, group):
    old = http.create().headers["location"]
    with run("notifications.py") as mails:
        wait_begun(shop, group)
        assert http.ask("POST", f"{old}/pay", PAYMENT).status == 200
        new = http.create().headers["location"]
        assert http.ask("DELETE", old).status == 200
        for words in ("thank you for your order, dana", "cancelled, 2500 minor units come back"):
            mails.wait_for(words)
        lines = [line.partition(" ")[2] for line in mails.printed.read_text().splitlines()]
    assert [line for line in lines if order_id_of(old) in line] == [
        f"about {order_id_of(old)}: we have received 2500 minor units of EUR",
        f"about {order_id_of(old)}: it is cancelled, 2500 minor units come back to you",
    ]
    assert [line for line in lines if order_id_of(new) in line] == [
        f"about {order_id_of(new)}: thank you for your order, dana"
    ]


def test_analytics_counts_each_event_once_whatever_is_killed(run, http, tmp_path):
    file = str(tmp_path / "payments.db")

    def paid(count):
        for _ in range(count):
            here = http.create(currency="CHF").headers["location"]
            assert http.ask("POST", f"{here}/pay", {**PAYMENT, "currency": "CHF"}).status == 200
        return here

    last = paid(2)
    with run("analytics.py", file) as sums:
        until(lambda: ("CHF", 5000, 0) in totals(file), "history is read")
        paid(1)
        sums.wait_for("('CHF', 7500, 0)")
        sums.kill()
    assert http.ask("DELETE", last).status == 200
    with run("analytics.py", file):
        until(lambda: ("CHF", 7500, 2500) in totals(file), "what was given back is counted")


def totals(file):
    try:
        return ledger(f"file:{file}?mode=ro", "SELECT currency, sum(amount), sum(refunded) FROM payments GROUP BY 1")
    except sqlite3.OperationalError:  # it has not begun
        return []


def test_payments_killed_in_the_middle_keep_what_the_orders_were_paid_with(run, shop, http, group, tmp_path):
    file = str(tmp_path / "ledger.db")
    with run("payments.py", file) as payments:
        wait_begun(shop, group)
        payments.stop()
    cancelled, amended, kept = (http.create().headers["location"] for _ in range(3))
    shop.worker.end()
    with run("payments.py", file) as payments:
        payments.wait_for("charged")  # and nothing that it asks for is decided
        payments.kill()
    assert http.ask("DELETE", cancelled, Prefer="wait=0").status == 202
    assert http.ask("PATCH", amended, THREE, Prefer="wait=0").status == 202
    shop.worker = shop.service.start_worker()
    with run("payments.py", file):
        for here, status in ((cancelled, "cancelled"), (amended, "paid"), (kept, "paid")):
            wait_settled(file, http, here, status)
    assert ledger(file, "SELECT count(*) FROM charges GROUP BY order_id, version HAVING count(*) > 1") == []


def test_payments_give_back_what_is_not_owed_and_nothing_else(run, shop, http, group, tmp_path):
    file = str(tmp_path / "ledger.db")
    paid_before, placed_before = placed(http, paid=True), placed(http)
    with run("payments.py", file) as payments:
        wait_begun(shop, group)
        payments.stop()
    assert http.ask("DELETE", paid_before).body["cancellation"]["refund_due"] == 2500
    assert http.ask("PATCH", placed_before, THREE).status == 200
    paid_by_hand, amended, cancelled = placed(http, paid=True), placed(http), placed(http)
    assert http.ask("DELETE", paid_by_hand).body["cancellation"]["refund_due"] == 2500
    assert http.ask("PATCH", amended, THREE).status == 200
    with run("payments.py", file):
        for here in (placed_before, amended, cancelled):
            wait_settled(file, http, here, "paid")
        assert http.ask("DELETE", cancelled).status == 200
        until(lambda: is_all_read(shop, group), "nothing is left to settle")
    charged = {order_id_of(here): charges(file, here) for here in (paid_before, placed_before, paid_by_hand, amended)}
    assert list(charged.values()) == [[], [(3750, 0)], [(2500, 1)], [(2500, 1), (3750, 0)]], charged
    assert charges(file, cancelled) == [(2500, 1)]


THREE = {"lines": [{**MUG, "quantity": 3}]}


def placed(http, *, paid=False):
    """Place an order, and have it paid by somebody if you wish."""
    here = http.create().headers["location"]
    assert not paid or http.ask("POST", f"{here}/pay", PAYMENT).status == 200
    return here


def wait_settled(file, http, here, status):
    """Wait until an order is so far, and the ledger holds the total of it if it is paid, and else nothing."""
    question = f"SELECT total(amount) FROM charges WHERE NOT given_back AND order_id = '{order_id_of(here)}'"

    def is_settled():
        order = http.get(here).body
        return order["status"] == status and ledger(file, question) == [(order["total"] if status == "paid" else 0,)]

    until(is_settled, f"{here} is {status}, and settled")


def charges(file, here):
    """Return what was charged for an order, and whether it was given back."""
    where = f"WHERE order_id = '{order_id_of(here)}'"
    return ledger(file, f"SELECT amount, given_back FROM charges {where} ORDER BY version")


def ledger(file, question):
    with closing(sqlite3.connect(file, uri=file.startswith("file:"))) as database:
        return database.execute(question).fetchall()


def guide_s(name):
    """Return a program of the guide for subscribers."""
    guide = (ROOT / "docs/guide/subscribe.md").read_text()
    [program] = re.findall(rf"`{name}`:\n```python\n(.*?)```", guide, re.DOTALL)
    return program


def test_the_guide_s_subscriber_prints_what_happened(run, shop, http, tmp_path):
    here = http.create().headers["location"]
    assert http.ask("POST", f"{here}/pay", PAYMENT).status == 200
    (tmp_path / "events.py").write_text(guide_s("events.py").replace("127.0.0.1:9092", shop.service.bootstrap_servers))
    with run(tmp_path / "events.py") as events:
        events.wait_for(f"{order_id_of(here)} 1 OrderCreated\n{order_id_of(here)} 2 OrderPaid\n")


def test_the_guide_s_tests_pass(tmp_path):
    (tmp_path / "test_events.py").write_text(guide_s("test_events.py"))
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "2 passed" in done.stdout.splitlines()[-1], done.stdout


@pytest.mark.parametrize("name", ["notifications.py", "analytics.py"])
def test_a_consumer_takes_thirty_lines(name):
    assert len(Path(ROOT, "examples", name).read_text().splitlines()) <= 30


def test_the_examples_are_all_tried():
    assert sorted(file.name for file in Path(ROOT, "examples").glob("*.py")) == [
        "analytics.py",
        "notifications.py",
        "payments.py",
    ]
