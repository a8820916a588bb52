"""Examples for the OpenAPI document: the sample order, decided by the rules, with responses built as in the routes."""

import json
from collections.abc import Iterator
from typing import Any, Final, cast

from msgspec import structs

from order_service import __version__
from order_service.domain.decision import reject
from order_service.domain.entry import Entry
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Event,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.domain.refusals import RULES, Reason, Refusal, Status
from order_service.kafka.topics import topic_names
from order_service.operations.lanes.lanes import LaneRow
from order_service.operations.overview.history import Point
from order_service.operations.overview.newest_letters import LetterRow
from order_service.operations.overview.overview import Overview, ReasonCount, find
from order_service.operations.overview.processes import ProcessRow
from order_service.operations.overview.waiting_users import WaitingRoom, WaitingUser
from order_service.operations.why.id_search import IdKind
from order_service.operations.why.order_story import (
    CommandState,
    CommandStory,
    FoundCommand,
    FoundOutcome,
    FoundRecord,
    Lane,
    OrderStory,
)
from order_service.operations.why.why import IdMatch, SearchedTopic, Why
from order_service.sdk.testing import samples
from order_service.sdk.testing.samples import BEGIN, DANA, SHOP, USER_ID
from order_service.views import order_view
from order_service.views.order_view import OrderView
from order_service.views.queries import Cursor, StoredEvent
from order_service.views.tables import milliseconds
from order_service.web.api.bodies import AmendBody, Body, CancelBody, CreateBody, DeliverBody, PayBody, ShipBody
from order_service.web.api.operations import OPERATIONS
from order_service.web.http import requests, responses
from order_service.web.http.cursors import write_copy_id, write_cursor
from order_service.web.http.problems import Fault, Kind, Problem, Trouble, refused
from order_service.wire.commands import encode_json_command
from order_service.wire.dead_letters import DeadLetterReason

KEY: Final = "basket-7"
"""The `Idempotency-Key` of the create; other commands use their names as keys, and all ids derive from the keys."""
ORDER_ID: Final = requests.new_id(DANA, KEY, "order")
COMMAND_ID: Final = requests.new_id(DANA, KEY, "command")

_SAMPLES: Final[dict[type[Body], Command]] = {
    CreateBody: samples.CREATE,
    AmendBody: samples.AMEND,
    PayBody: samples.PAY,
    ShipBody: samples.SHIP,
    DeliverBody: samples.DELIVER,
    CancelBody: samples.CANCEL,
}
BODIES: Final[dict[type[Body] | None, dict[str, Any]]] = {
    model: {
        name: value for name, value in json.loads(encode_json_command(sample)).items() if name in model.model_fields
    }
    for model, sample in _SAMPLES.items()
}
"""The body of each command: a sample without the fields that path, headers and token supply."""

REFUSALS: Final = {
    Reason.VERSION_CONFLICT: Refusal(Reason.VERSION_CONFLICT, "expected version 2, the order is at version 1"),
    Reason.INVALID_ORDER: Refusal(
        Reason.INVALID_ORDER, "/currency must be an ISO 4217 currency code", pointer="/currency"
    ),
}
"""The refusals with more than a reason."""
FAULTS: Final[dict[Kind, list[Fault]]] = {
    Trouble.INVALID_BODY: [Fault("/lines/0/quantity", "must be at least 1")],
    Trouble.INVALID_PARAMETER: [Fault("/limit", "must be at most 200")],
}


def command(kind: type[Command], key: str) -> Command:
    """Return a command of this type, built as in its route."""
    actor = DANA if kind in {CreateOrder, AmendOrder, CancelOrder} else SHOP
    head = {"command_id": requests.new_id(actor, key, "command"), "order_id": ORDER_ID, "actor": actor}
    [model, *_] = [operation.body for operation in OPERATIONS if operation.command is kind]
    body: Any = cast("type[Body]", model).model_validate_json(json.dumps(BODIES[model]))
    created: Command = body.command(**head, **({"user_id": USER_ID} if kind is CreateOrder else {}))
    return created


def decided(*kinds: type[Command]) -> Iterator[tuple[Event, Entry, OrderView]]:
    """Decide commands of these types, an hour apart; yield each event with the order after it."""
    view = None
    commands = [command(kind, KEY if kind is CreateOrder else kind.__name__) for kind in kinds]
    for event, entry in samples.decided(*commands):
        view = order_view.after(view, event)
        yield event, entry, view


def successes() -> dict[str, Any]:
    """Return an example of each successful response, by the name of its schema."""
    steps = list(decided(CreateOrder, PayOrder, ShipOrder, DeliverOrder))
    events = [
        responses.event_json(StoredEvent(event, USER_ID, 3, 1840 + 2 * number, 2071 + number))
        for number, (event, _, _) in enumerate(steps)
    ]
    order = steps[0][2]
    responses_by_schema = {
        "Order": order,
        "OrderPage": {"orders": [order], "next": write_cursor(Cursor(milliseconds(order.created_at), ORDER_ID))},
        "History": {"events": events, "next_after_version": None},
        "Outcome": responses.outcome_json(steps[1][0], ""),
        "Undecided": responses.undecided_json(ORDER_ID, COMMAND_ID, write_copy_id(steps[0][0].command_digest, 2071)),
        "Why": _why(steps[0][0]),
        "Overview": _overview(steps[0][0]),
        "OrderEvent": "".join(["retry: 1000\n\n", *map(_frame, events[:2]), ": still here\n\n"]),
    }
    plain: dict[str, Any] = json.loads(responses.encode(responses_by_schema))
    return plain


def rejection(reason: Reason) -> tuple[Rejection, Command]:
    """Return a rejection with this reason, and its command."""
    kind, status = _situation(reason)
    orders: dict[Status, Entry] = {
        entry.order.status: entry
        for kinds in ((CreateOrder, PayOrder, ShipOrder, DeliverOrder), (CreateOrder, CancelOrder))
        for _, entry, _ in decided(*kinds)
    }
    refused_command = command(kind, reason)
    if reason is Reason.VERSION_CONFLICT:
        refused_command = structs.replace(refused_command, expected_version=2)
    refusal = REFUSALS.get(reason, Refusal(reason))
    return reject(refused_command, orders.get(status), BEGIN, refusal), refused_command


def command_problem(kind: Kind) -> Any:
    """Return an example of a problem that a command can cause."""
    return _body(refused(*rejection(kind))) if isinstance(kind, Reason) else problem(kind)


def problem(kind: Kind) -> Any:
    """Return an example of a problem without a command."""
    return _body(Problem(kind, errors=FAULTS.get(kind, ())))


def _why(event: Event) -> Why:
    """Return what is known about the idempotency key of the create."""
    names = topic_names()
    origin: dict[str, Any] = {"partition": 3, "at": event.occurred_at}
    command = FoundCommand(
        topic=names.commands, offset=2071, type="CreateOrder", command_id=event.command_id, actor=event.actor, **origin
    )
    outcome = FoundOutcome(
        topic=names.events,
        offset=1840,
        type="OrderCreated",
        command_offset=command.offset,
        command_id=event.command_id,
        actor=event.actor,
        version=event.version,
        **origin,
    )
    first = FoundRecord(topic=names.commands, offset=command.offset, **origin)
    story = CommandStory(state=CommandState.ACCEPTED, is_before_position=True, command=command, outcome=outcome)
    order = OrderStory(
        order_id=event.order_id,
        status=Status.CREATED,
        version=event.version,
        table=FoundRecord(topic=names.table, offset=3911, **origin),
        table_version=event.version,
        lane=Lane(partition=3, position=2072, position_offset=3912, start=0, end=2072, lag=0),
        commands=[story],
        operations=[],
        omitted=0,
    )
    return Why(
        id=KEY,
        is_known=True,
        all_partitions=True,
        matches=[IdMatch(IdKind.IDEMPOTENCY_KEY, event.order_id, first)],
        orders=[order],
        has_more=False,
        searched=[SearchedTopic(names.commands, 12, None)],
        damaged=[],
    )


def _overview(event: Event) -> Overview:
    """Return the state of a service in which one lane is parked and one order waits for its user."""
    at, worker = event.occurred_at, "worker:9100"
    lanes = [
        LaneRow(0, "running", None, "", worker, "orders-worker-4f0c", 2072, 0, 1, "worker-2 at 10.0.0.12"),
        LaneRow(1, "parked", at, "Kafka refuses a record: it is too large", worker, None, 1840, 12, 0, None),
    ]
    processes = [
        ProcessRow(worker, "worker", [__version__], 1, "not ready", [f"partition 1 is parked: {lanes[1].reason}"]),
        ProcessRow("web:9100", "web", [__version__], 1, "ready", []),
    ]
    dead_letters = [ReasonCount(DeadLetterReason.KEY_MISMATCH, 1)]
    letter = LetterRow(
        "1:0", at, DeadLetterReason.KEY_MISMATCH, "the record's key differs from the command's order_id",
        event.order_id, f"{topic_names().commands} 1:17", "open",
    )  # fmt: skip
    waiting = WaitingRoom(True, 1, 1, [WaitingUser(USER_ID, 1, at, event.order_id)])
    return Overview(
        at=at,
        since=at,
        findings=find(at, lanes, processes, dead_letters, waiting, "https://docs.example"),
        notes=[],
        lanes=lanes,
        processes=processes,
        history=[Point(at, 12, 250.0)],
        refusals=[ReasonCount(Reason.ALREADY_PAID, 3)],
        dead_letter_reasons=dead_letters,
        dead_letters=[letter],
        waiting=waiting,
    )


def _body(error: Problem) -> Any:
    return json.loads(cast("bytes", error.response("").body))


def _situation(reason: Reason) -> tuple[type[Command], Status]:
    """Return a command type and an order status that lead to this reason."""
    for situation, outcome in RULES.items():
        if outcome is reason:
            return situation
    is_about_user = reason in {Reason.USER_NOT_FOUND, Reason.USER_NOT_ACTIVE, Reason.USER_CHECK_TIMED_OUT}
    return (CreateOrder, Status.ABSENT) if is_about_user else (PayOrder, Status.CREATED)


def _frame(event: dict[str, Any]) -> str:
    return f"id: {event['version']}\nevent: {event['type']}\ndata: {responses.encode(event).decode()}\n\n"
