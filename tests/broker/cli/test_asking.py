"""`show`, `list` and what `timeline` can do with time, on a shop that runs."""

import subprocess
import sys

import pytest

from order_service.local.broker import free_port
from tests.support.command_line import CommandLine
from tests.support.service import ROOT, until
from tests.support.shop import PAYMENT, SHIPMENT


@pytest.fixture(scope="module")
def cli(shop, http):
    return CommandLine(shop.service.environment | {"ORDERS_HTTP_PORT": str(http.port)})


@pytest.fixture(scope="module")
def paid(http):
    """An order that was paid, and when."""
    order = http.create(user_id="henry").body
    answer = http.ask("POST", f"/v1/orders/{order['order_id']}/pay", PAYMENT).body
    http.ask("POST", f"/v1/orders/{order['order_id']}/ship", SHIPMENT)
    return order["order_id"], answer["changed_at"]


def test_an_order_is_shown_as_it_is_and_as_it_was(cli, paid):
    order_id, at = paid
    assert [order["status"] for order in cli.json("show", order_id)] == ["shipped"]
    assert [order["status"] for order in cli.json("show", order_id, "--at", at)] == ["paid"]
    assert [order["status"] for order in cli.json("show", order_id, "--version", "1")] == ["created"]
    assert "total                 2500" in cli("show", order_id).stdout


def test_orders_are_listed_over_several_pages(cli, http):
    placed = [http.create(user_id="ivy").body["order_id"] for _ in range(3)]
    assert [order["order_id"] for order in cli.json("list", "--user", "ivy")] == placed[::-1]
    assert len(cli.json("list", "--user", "ivy", "--limit", "2")) == 2
    assert cli.json("list", "--user", "ivy", "--status", "paid") == []
    assert placed[0] in cli("list", "--user", "ivy").stdout


def test_a_timeline_ends_at_a_time(cli, paid):
    order_id, at = paid
    assert [step["version"] for step in cli.json("timeline", order_id, "--at", at)] == [1, 2]
    assert f"{order_id} is paid, version 2" in cli("timeline", order_id, "--at", at).stdout


def test_a_timeline_goes_on(cli, http, tmp_path):
    here = http.create().headers["location"]
    shown = tmp_path / "shown"
    command = [sys.executable, "-m", "order_service.cli", "timeline", here.rpartition("/")[2], "--follow", "--json"]
    with shown.open("wb") as output:
        following = subprocess.Popen(command, cwd=ROOT, env=cli.environment, stdout=output)
    try:
        until(lambda: shown.read_text().count("\n") == 1, "what was is shown")
        http.ask("POST", f"{here}/pay", PAYMENT)
        until(lambda: '"OrderPaid"' in shown.read_text(), "what comes is shown")
    finally:
        following.kill()
        following.wait()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "no-such-order"], 1, "There is no order with this order_id for this actor."),
        (["show", "../x"], 1, "There is no order with this order_id for this actor."),
        (["show", "x", "--at", "noon"], 2, "a time is written as"),
        (["show", "x", "--at", "2026-11-24T12:00:00Z", "--version", "3"], 2, "exclude each other"),
        (["list", "--status", "absent"], 2, "absent"),
        (["timeline", "x", "--at", "2026-11-24T12:00:00"], 2, "offset from UTC"),
        (["timeline", "x", "--at", "2026-11-24T12:00:00Z", "--follow"], 2, "exclude each other"),
        (["list", "--limit", "0"], 2, "--limit"),
        (["list", "--user", "a\nb"], 1, "/user_id"),
    ],
)
def test_what_cannot_be_shown_is_one_line(cli, arguments, code, said):
    assert said in cli(*arguments, code=code).stderr


def test_a_server_that_is_away_is_one_line(cli):
    url = f"http://127.0.0.1:{free_port()}"
    away = CommandLine(cli.environment | {"ORDERS_URL": url})
    assert f"the HTTP server at {url} does not answer" in away("list", code=1).stderr
