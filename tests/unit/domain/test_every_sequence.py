"""Every sequence of commands up to a depth, walked beside a model that knows only the table of rules.

The walk is a tree: sequences share the answers to what they begin with alike.
"""

from typing import NamedTuple

from order_service.domain.decision import Repeat
from order_service.domain.entry import Entry
from order_service.domain.messages import Command, Event, OrderCancelled, Rejection
from tests.support.samples import EVE, SHOP, amend, but, cancel, create, deliver, mugs, pay, ship, take

DEPTH = 5
SEQUENCES = 12 + 12**2 + 12**3 + 12**4 + 12**5

# The table as the design has it, in its own words: what is allowed leads to a status, all else is a reason

STATUSES = ("absent", "created", "paid", "shipped", "delivered", "cancelled")
TABLE = {
    "create":  "-> created     |order_exists|order_exists|order_exists   |order_exists     |order_exists",
    "amend":   "order_not_found|-> created  |already_paid|already_shipped|already_delivered|order_cancelled",
    "pay":     "order_not_found|-> paid     |already_paid|already_paid   |already_paid     |order_cancelled",
    "ship":    "order_not_found|not_paid    |-> shipped  |already_shipped|already_delivered|order_cancelled",
    "deliver": "order_not_found|not_paid    |not_shipped |-> delivered   |already_delivered|order_cancelled",
    "cancel":  "order_not_found|-> cancelled|-> cancelled|already_shipped|already_delivered|order_cancelled",
}  # fmt: skip
CELLS = {
    (wish, status): cell.strip()
    for wish, row in TABLE.items()
    for status, cell in zip(STATUSES, row.split("|"), strict=True)
}


class Wish(NamedTuple):
    """A letter of the alphabet: a command, and what the model knows of it."""

    command: Command
    row: str
    foreign: bool = False
    expected: int | None = None
    valid: bool = True


ALPHABET = (
    Wish(create, "create"),
    Wish(but(create, command_id="create-2", actor=SHOP), "create"),
    Wish(amend, "amend"),
    Wish(but(amend, command_id="amend-at-1", expected_version=1), "amend", expected=1),
    Wish(but(amend, command_id="amend-bad", lines=(but(mugs, quantity=0),)), "amend", valid=False),
    Wish(pay, "pay"),
    Wish(but(pay, command_id="pay-at-2", expected_version=2), "pay", expected=2),
    Wish(ship, "ship"),
    Wish(deliver, "deliver"),
    Wish(cancel, "cancel"),
    Wish(but(cancel, command_id="cancel-by-eve", actor=EVE), "cancel", foreign=True),
    # The id of the payment with another content: refused where the payment is remembered, else a cancellation.
    Wish(but(cancel, command_id=pay.command_id), "cancel"),
)


class Model(NamedTuple):
    """An order as the model sees it: its status, its version, what was paid for, and the wishes it remembers."""

    status: str = "absent"
    version: int = 0
    remembered: tuple[int, ...] = ()
    paid: bool = False


def answer_of(model: Model, letter: int) -> str:
    """Say what the design answers: `repeat`, a reason, or `->` and the next status."""
    wish = ALPHABET[letter]
    if letter in model.remembered:
        return "repeat"
    if any(ALPHABET[known].command.command_id == wish.command.command_id for known in model.remembered):
        return "command_id_reused"
    cell = CELLS[wish.row, model.status]
    if cell in {"order_exists", "order_not_found"}:
        return cell
    if wish.foreign:
        return "order_not_found"
    if wish.expected is not None and wish.expected != model.version:
        return "version_conflict"
    return cell if wish.valid else "invalid_order"


def model_after(model: Model, letter: int, said: str) -> Model:
    if said == "repeat" or (said.startswith("->") is False and model.status == "absent"):
        return model
    remembered = (*model.remembered, letter)
    if not said.startswith("->"):
        return model._replace(remembered=remembered)
    status = said.removeprefix("-> ")
    return Model(status, model.version + 1, remembered, model.paid or status == "paid")


def check(model: Model, said: str, outcome: object, entry: Entry | None) -> None:
    """Compare what the model said and the entry it was said of with what was decided."""
    match outcome:
        case Event(version=version, fact=fact):
            assert said.startswith("->")
            assert version == model.version + 1
            assert not isinstance(fact, OrderCancelled) or fact.refund_due == (3800 if model.paid else 0)
        case Rejection(reason=reason):
            assert reason == said
        case _:
            assert isinstance(outcome, Repeat)
            assert said == "repeat"
    if entry is not None:
        after = model.status if not said.startswith("->") else said.removeprefix("-> ")
        assert entry.order.status == after
        assert entry.version == model.version + said.startswith("->")


def walk(model: Model, entry: Entry | None, depth: int, met: set[str]) -> int:
    """Try every command on this order, and all that can follow; give the number of sequences walked."""
    walked = 0
    for letter, wish in enumerate(ALPHABET):
        outcome, after = take(wish.command, entry)
        said = answer_of(model, letter)
        met.add(said)
        check(model, said, outcome, after)
        walked += 1
        if depth > 1:
            walked += walk(model_after(model, letter, said), after, depth - 1, met)
    return walked


def test_every_sequence_of_commands_gets_the_answers_of_the_design(record_property):
    met: set[str] = set()
    walked = walk(Model(), None, DEPTH, met)
    record_property("sequences", walked)
    print(f"{walked:,} sequences of up to {DEPTH} commands walked")  # noqa: T201
    assert walked == SEQUENCES == 271_452
    assert met == {*CELLS.values(), "repeat", "command_id_reused", "version_conflict", "invalid_order"}
