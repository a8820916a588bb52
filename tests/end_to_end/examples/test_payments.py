"""What payments.py holds of an order, whatever happens to the order, and whenever the program is killed."""

import asyncio
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_service.sdk import KafkaAwayError, Line, OrderCancelled, OrderPaid
from order_service.sdk.testing import InMemoryOrders
from tests.support.service import ROOT

CHANGES = ["amend", "amend the address", "pay", "cancel", "ship"]
WORK = ["settle", "killed before", "killed after", "again"]


def loaded(name):
    spec = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


payments = loaded("payments")


class Killed:
    """Commands of a sender that is killed: before its command is in Kafka, or after that."""

    def __init__(self, commands, *, is_sent):
        self._commands = commands
        self._is_sent = is_sent

    async def pay(self, *values, **named):
        if self._is_sent:
            await self._commands.pay(*values, **named)
        raise KafkaAwayError


class Life:
    """An order that others change, and a payment service that reads its events, each at least once."""

    def __init__(self):
        self.orders = InMemoryOrders()
        self.ledger = payments.Ledger(":memory:")
        self._others = self.orders.commands("service:others")
        self._paying = self.orders.commands("service:payments")
        self._next = 0
        self._quantity = 1

    async def begin(self):
        await self._others.create("order-1", "dana", "EUR", [mugs(1)])

    async def step(self, name):
        match name:
            case "amend":
                self._quantity += 1
                await self._others.amend("order-1", [mugs(self._quantity)])
            case "amend the address":
                await self._others.amend("order-1", shipping_address_ref="office")
            case "pay":
                await self._others.pay("order-1", "by-hand", mugs(self._quantity).unit_price * self._quantity, "EUR")
            case "cancel":
                await self._others.cancel("order-1", "customer_request")
            case "ship":
                await self._others.ship("order-1", "DHL", "T-1")
            case "settle":
                await self._settle(self._paying)
            case "killed before" | "killed after":
                await self._settle(Killed(self._paying, is_sent=name == "killed after"))
            case "again":
                self._next = 0

    async def end(self):
        while self._next < len(self.orders.events):
            await self._settle(self._paying)

    async def _settle(self, commands):
        for event in self.orders.events[self._next : self._next + 1]:
            try:
                await payments.settle(event, commands, self.ledger)
            except KafkaAwayError:
                return  # and the event comes again
            self._next += 1

    def held(self):
        """Return what was charged and not given back."""
        return self._charges("NOT given_back")

    def charged(self):
        """Return all that was ever charged."""
        return self._charges("TRUE")

    def _charges(self, where):
        question = f"SELECT id, amount FROM charges WHERE {where} ORDER BY version"
        return self.ledger._connection.execute(question).fetchall()


def mugs(quantity):
    return Line(sku="mug-blue", quantity=quantity, unit_price=1250)


async def lived(steps):
    life = Life()
    await life.begin()
    for step in steps:
        await life.step(step)
    await life.end()
    return life


@given(st.lists(st.sampled_from(CHANGES + WORK)))
def test_just_what_an_order_was_paid_with_is_held(steps):
    life = asyncio.run(lived(steps))
    events = life.orders.events
    paid = [(event.fact.payment_id, event.fact.amount) for event in events if isinstance(event.fact, OrderPaid)]
    is_cancelled = isinstance(events[-1].fact, OrderCancelled)
    ours = [payment for payment in paid if payment[0] != "by-hand" and not is_cancelled]
    assert life.held() == ours


@pytest.mark.parametrize(
    ("steps", "charged", "held"),
    [
        pytest.param(["settle"], [1250], [1250], id="an order is charged and paid"),
        pytest.param(["settle", "settle", "cancel"], [1250], [], id="what is cancelled goes back"),
        pytest.param(["cancel"], [1250], [], id="cancelled before it was charged"),
        pytest.param(["pay"], [1250], [], id="paid by somebody else"),
        pytest.param(["pay", "cancel"], [1250], [], id="paid by somebody else, and cancelled"),
        pytest.param(["killed before", "pay", "cancel", "again"], [1250], [], id="all steps after a kill"),
        pytest.param(["killed before", "amend"], [1250, 2500], [2500], id="amended before it was paid"),
        pytest.param(
            ["killed before", "amend the address"], [1250, 1250], [1250], id="amended, and the total is the same"
        ),
        pytest.param(["killed after", "amend"], [1250], [1250], id="paid, and the amendment is too late"),
        pytest.param(["amend", "settle", "settle", "again"], [1250, 2500], [2500], id="everything comes again"),
    ],
)
def test_what_is_charged_and_what_is_held(steps, charged, held):
    life = asyncio.run(lived(steps))
    assert [amount for _, amount in life.charged()] == charged
    assert [amount for _, amount in life.held()] == held


def test_an_older_order_is_held_when_amended_and_not_when_it_was_paid_elsewhere():
    async def from_version_2_on(change):
        life = Life()
        await life.begin()
        await life.step(change)
        life._next = 1
        await life.step("cancel" if change == "pay" else "settle")
        await life.end()
        return life

    assert asyncio.run(from_version_2_on("pay")).charged() == []
    assert [amount for _, amount in asyncio.run(from_version_2_on("amend")).held()] == [2500]
