"""The examples in Python, as programs beside a running shop, and what they print."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from tests.service import ROOT, until
from tests.web.shop import PAYMENT


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


@pytest.fixture
def run(shop, tmp_path):
    @contextmanager
    def run(name, *arguments):
        program = ROOT / "examples" / name  # or the name itself, if it is a whole path
        printed = tmp_path / f"{program.name}.out"
        command = [sys.executable, str(program), *arguments]
        environment = shop.service.environment | {"PYTHONUNBUFFERED": "1"}
        with printed.open("a") as out, subprocess.Popen(command, env=environment, stdout=out) as process:
            try:
                yield Program(process, printed)
            finally:
                process.kill()

    return run


def wait_begun(shop, group):
    """Wait until a group has begun: from then on it misses nothing."""
    topic = shop.service.names.events

    def places():
        asked = shop.service.kafka.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        return [one for one in asked[group].result(10).topic_partitions if one.topic == topic and one.offset >= 0]

    until(lambda: len(places()) == shop.service.partitions, f"{group} has begun")


def order_id_of(location):
    return location.rpartition("/")[2]


def test_notifications_are_about_what_is_new_alone(run, shop, http):
    old = http.create().headers["location"]
    with run("notifications.py") as mails:
        wait_begun(shop, "notifications")
        assert http.ask("POST", f"{old}/pay", PAYMENT).status == 200
        new = http.create().headers["location"]
        assert http.ask("DELETE", old).status == 200
        for words in ("thank you for your order, dana", "cancelled, 25.00 come back"):
            mails.wait_for(words)
        lines = [line.partition(" ")[2] for line in mails.printed.read_text().splitlines()]
    assert [line for line in lines if order_id_of(old) in line] == [
        f"about {order_id_of(old)}: we have received 25.00 EUR",
        f"about {order_id_of(old)}: it is cancelled, 25.00 come back to you",
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


def test_payments_charges_once_and_gives_back_what_is_not_owed(run, shop, http, tmp_path):
    file = str(tmp_path / "ledger.db")
    with run("payments.py", file) as payments:
        wait_begun(shop, "payments")
        here = http.create().headers["location"]
        payments.wait_for("charges")
        payments.kill()  # perhaps before it has paid
    with run("payments.py", file):
        until(lambda: http.get(here).body["status"] == "paid", "the order is paid")
        payment_id = http.get(here).body["payment"]["payment_id"]
        assert ledger(file, "SELECT id, amount FROM charges") == [(payment_id, 2500)]
        assert http.ask("DELETE", here).status == 200
        until(lambda: ledger(file, "SELECT amount FROM refunds") == [(2500,)], "the money goes back")
        other = http.create().headers["location"]
        until(lambda: http.get(other).body["status"] == "paid", "the next one is paid")
    assert len(ledger(file, "SELECT id FROM charges")) == 2
    assert len(ledger(file, "SELECT id FROM refunds")) == 1


def ledger(file, question):
    with closing(sqlite3.connect(file, uri=file.startswith("file:"))) as database:
        return database.execute(question).fetchall()


def guide_s(name):
    """Give a program of the guide for subscribers."""
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
    assert done.stdout.splitlines()[-1].startswith("2 passed"), done.stdout


@pytest.mark.parametrize("name", ["notifications.py", "analytics.py"])
def test_a_consumer_takes_thirty_lines(name):
    assert len(Path(ROOT, "examples", name).read_text().splitlines()) <= 30


def test_the_examples_are_all_tried():
    assert sorted(file.name for file in Path(ROOT, "examples").glob("*.py")) == [
        "analytics.py",
        "notifications.py",
        "payments.py",
    ]
