"""The commands for dead letters: list and show them, plan and apply what their commands result in now, discard them."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.hex_dump import hex_lines
from order_service.cli.options import WAIT_MAX_S, Actor, AsJson, operator_of, time_from
from order_service.cli.run import run_or_exit
from order_service.errors import DecodeError, OrderServiceError
from order_service.kafka.reader import Reader
from order_service.operations.dead_letters import applying
from order_service.operations.dead_letters.applying import Applied, ToSend
from order_service.operations.dead_letters.letter import DeadLetter, LetterId, Selection, name_of
from order_service.operations.dead_letters.past_operations import PastOperations
from order_service.operations.dead_letters.planning import REPEAT, Decision, result_of
from order_service.operations.dead_letters.proposal import Proposal, propose
from order_service.operations.dead_letters.scan import LetterScan, read_operations
from order_service.operations.operator_producer import record_operations
from order_service.sdk.outcomes import Accepted, AwaitingUser, Outcome, Refused, Repeated, Undecided, Unreadable
from order_service.settings import Settings
from order_service.wire.commands import encode_json_command
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.operations import Act, DeadLettersDiscarded, PlannedCommand

HEADER_CHARS = 200
"""How much of a header `show` prints. The headers of a record can have a megabyte."""

dead_letters = typer.Typer(
    no_args_is_help=True,
    help="""List dead letters, send their commands again, or discard them.

    `plan` decides the commands of dead letters against the present state, and `apply` sends exactly those of a plan.

    Each command exits with 1 if it is refused, with 4 if Kafka or the schema registry is away, and with 13 if a topic
    is missing. What `apply` had sent before is recorded.
    """,
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="[PARTITION:OFFSET]...", help="Only these dead letters.")]
Reasons = Annotated[
    list[DeadLetterReason] | None,
    typer.Option("--reason", help="Only dead letters with this reason; can be repeated."),
]
OrderId = Annotated[str | None, typer.Option("--order", metavar="ORDER_ID", help="Only those of this order.")]
Since = Annotated[
    datetime | None, typer.Option("--since", parser=time_from, metavar="TIME", help="Only from this time on.")
]
Until = Annotated[datetime | None, typer.Option("--until", parser=time_from, metavar="TIME", help="Only before it.")]
Limit = Annotated[int, typer.Option(min=1, max=5_000, help="At most so many; the oldest ones come first.")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why you do it: it is recorded.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would happen.")]
HEADS = ("dead letter", "time", "reason", "order", "command", "state")
PLAN_HEADS = ("dead letter", "order", "command", "result")


@dead_letters.command("list")
def list_letters(
    reason: Reasons = None,
    order: OrderId = None,
    since: Since = None,
    until: Until = None,
    with_settled: Annotated[bool, typer.Option("--all", help="Also those that were applied or discarded.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Only the newest ones, at most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest last, without those that were applied or discarded."""
    selection = _selection(None, reason, order, since, until)
    letters, past, count = run_or_exit(_list(read_settings(), selection, limit, with_settled=with_settled))
    if as_json:
        for letter in letters:
            show.json_line(_summary(letter, past))
        return
    if letters:
        show.table(HEADS, [_row(letter, past) for letter in letters])
    else:
        typer.echo("no dead letters")
    if count > len(letters):
        typer.echo(f"{count - len(letters)} older ones are not shown: see --limit")


@dead_letters.command("show")
def show_letter(
    letter: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="The dead letter, as `list` names it.")],
    byte_limit: Annotated[int, typer.Option("--bytes", min=0, help="At most so many bytes of key and value.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: reason, headers, bytes, the command if it can be decoded now, and what was done."""
    letters, past, _ = run_or_exit(
        _list(read_settings(), Selection(ids=_ids([letter])), 1, with_settled=True, with_bytes=True)
    )
    if as_json:
        show.json_line(_as_dict(letters[0], past, byte_limit))
    else:
        _print(letters[0], past, byte_limit)


@dead_letters.command("plan")
def plan(
    why: Why,
    ids: Ids = None,
    reason: Reasons = None,
    order: OrderId = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 1_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and do not record it.")] = False,
    actor: Actor = "",
    as_json: AsJson = False,
) -> None:
    """Decide dead letters against the present state, print the results, and record them as a plan for `apply`.

    Without ids or filters it takes all that were neither applied nor discarded.
    """
    selection, settings = _selection(ids, reason, order, since, until), read_settings()
    act = _act(actor, why)
    proposal = run_or_exit(_propose(settings, selection, limit, act.at))
    records = proposal.records(act.id, act.at, act.actor, act.reason)
    if records and not dry_run:
        run_or_exit(record_operations(settings, records))
    plan_id = act.id if records and not dry_run else None
    if as_json:
        show.json_line({"plan": plan_id, "decisions": list(map(_decision_dict, proposal.decisions))})
    else:
        _print_proposal(proposal, plan_id)


@dead_letters.command("apply")
def apply(
    plan_id: Annotated[str, typer.Argument(metavar="PLAN", help="The id that `plan` has printed.")],
    why: Why,
    per_second: Annotated[int, typer.Option(min=1, help="How many commands to send a second.")] = 50,
    max_age: Annotated[
        float, typer.Option(min=0, max=720, metavar="HOURS", help="Refuse a plan that is older.")
    ] = 24.0,
    wait: Annotated[
        float,
        typer.Option(
            min=0, max=WAIT_MAX_S, metavar="SECONDS", help="How long to wait for outcomes after the last command."
        ),
    ] = 30.0,
    actor: Actor = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send the commands of a plan again, in the sequence of each order, and print their outcomes.

    Sends nothing if an order has changed since the plan, or if the plan is too old or was applied. After an
    interruption, apply the plan again: it continues with the commands that were not sent.
    Exits with 1 also if an outcome is not as planned, or not known in time.
    """
    settings, act, oldest = read_settings(), _act(actor, why), timedelta(hours=max_age)
    if not yes:
        _print_preview(run_or_exit(_prepare(settings, plan_id, oldest, act.at)), as_json=as_json)
        return
    terms = applying.Terms(max_age=oldest, per_second=per_second, wait_s=wait)
    differing = []

    def on_outcome(applied: Applied) -> None:
        result = _outcome_text(applied.outcome)
        if result != applied.sent.planned.result:
            differing.append(applied)
        _print_outcome(applied, result, as_json=as_json)

    count = run_or_exit(applying.apply(settings, act, plan_id, terms, on_outcome))
    if not as_json:
        typer.echo(f"plan {plan_id}: commands sent: {count}; outcomes that differ from the plan: {len(differing)}")
    raise typer.Exit(1 if differing else 0)


@dead_letters.command("discard")
def discard(
    why: Why,
    ids: Ids = None,
    reason: Reasons = None,
    order: OrderId = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 1_000,
    actor: Actor = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Record that dead letters need no further action: `list` no longer shows them. They are not deleted."""
    selection, settings, act = _selection(ids, reason, order, since, until), read_settings(), _act(actor, why)
    if selection == Selection():
        raise typer.BadParameter("name the dead letters, or give a filter")
    letters, past, count = run_or_exit(_list(settings, selection, limit, oldest=True))
    if yes and letters:
        run_or_exit(record_operations(settings, _discarded(letters, act)))
    if as_json:
        for letter in letters:
            show.json_line({"dead_letter": name_of(letter.id), "is_discarded": yes})
        return
    if letters and not yes:
        show.table(HEADS, [_row(letter, past) for letter in letters])
    more = f"; {count - len(letters)} more are selected: see --limit" if count > len(letters) else ""
    typer.echo(f"dead letters {'discarded' if yes else 'that --yes would discard'}: {len(letters)}{more}")


async def _list(
    settings: Settings,
    selection: Selection,
    limit: int,
    *,
    with_settled: bool = False,
    with_bytes: bool = False,
    oldest: bool = False,
) -> tuple[list[DeadLetter], PastOperations, int]:
    """Return the newest dead letters in the sequence of their times, the operations before, and the count of all."""
    async with Reader(settings) as reader:
        past = await read_operations(reader)
        _warn(past.unreadable)
        scan, letters, count = LetterScan(reader, selection), list[DeadLetter](), 0
        async for letter in scan.letters():
            if with_settled or not past.is_settled(letter.id):
                letters.append(letter if with_bytes else letter.without_bytes())
                count += 1
            if len(letters) >= 2 * limit:
                letters = _first(letters, limit, oldest=oldest)
        if scan.registry_error is not None:
            _warn([f"schemas were not looked up: {scan.registry_error}"])
        return _first(letters, limit, oldest=oldest), past, count


def _first(letters: list[DeadLetter], limit: int, *, oldest: bool) -> list[DeadLetter]:
    by_time = sorted(letters, key=lambda letter: (letter.at, letter.id))
    return by_time[:limit] if oldest else by_time[-limit:]


async def _propose(settings: Settings, selection: Selection, limit: int, now: datetime) -> Proposal:
    async with Reader(settings) as reader:
        past = await read_operations(reader)
        _warn(past.unreadable)
        return await propose(reader, settings, past, selection, limit=limit, now=now)


async def _prepare(settings: Settings, plan_id: str, max_age: timedelta, now: datetime) -> list[ToSend]:
    async with Reader(settings) as reader:
        return await applying.prepare(reader, plan_id, max_age, now)


def _discarded(letters: list[DeadLetter], act: Act) -> dict[int, DeadLettersDiscarded]:
    """Return the records of discarded dead letters, by partition."""
    offsets: dict[int, list[int]] = {}
    for letter in letters:
        offsets.setdefault(letter.id[0], []).append(letter.id[1])
    return {
        partition: DeadLettersDiscarded(
            id=act.id, at=act.at, actor=act.actor, reason=act.reason, offsets=tuple(sorted(of_partition))
        )
        for partition, of_partition in offsets.items()
    }


def _warn(lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"order-service: {show.safe(line)}", err=True)


# Arguments


def _selection(
    ids: list[str] | None,
    reasons: list[DeadLetterReason] | None,
    order_id: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Selection:
    filters = Selection(reasons=frozenset(reasons or ()), order_id=order_id, since=since, until=until)
    if not ids:
        return filters
    if filters != Selection():
        raise typer.BadParameter("name the dead letters, or give filters, not both")
    return Selection(ids=_ids(ids))


def _ids(names: list[str]) -> frozenset[LetterId]:
    ids = set()
    for name in names:
        partition, colon, offset = name.partition(":")
        if not (colon and all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (partition, offset))):
            raise typer.BadParameter(f"{name!r} is not PARTITION:OFFSET, as `list` prints it")
        ids.add((int(partition), int(offset)))
    return frozenset(ids)


def _act(actor: str, why: str) -> Act:
    """Return who does something now, and why, with a new id."""
    actor, now = operator_of(actor, why, "--why"), datetime.now(UTC)
    return Act(id=uuid4().hex[:12], at=now.replace(microsecond=now.microsecond // 1000 * 1000), actor=actor, reason=why)


# Output


def _row(letter: DeadLetter, past: PastOperations) -> show.Row:
    topic, partition, offset = letter.origin
    origin = f"{topic} {partition}:{offset}"
    return name_of(letter.id), _time(letter.at), letter.reason, letter.order_id, origin, past.state(letter.id)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _summary(letter: DeadLetter, past: PastOperations) -> dict[str, Any]:
    topic, partition, offset = letter.origin
    return {
        "partition": letter.id[0],
        "offset": letter.id[1],
        "at": letter.at,
        "reason": letter.reason,
        "detail": letter.detail,
        "order_id": letter.order_id,
        "command": {"topic": topic, "partition": partition, "offset": offset},
        "state": past.state(letter.id),
    }


def _as_dict(letter: DeadLetter, past: PastOperations, byte_limit: int) -> dict[str, Any]:
    command = letter.command
    return _summary(letter, past) | {
        "key_hex": None if letter.key is None else letter.key[:byte_limit].hex(),
        "value_hex": None if letter.value is None else letter.value[:byte_limit].hex(),
        "value_bytes": None if letter.value is None else len(letter.value),
        "headers": [(name, _header(value)) for name, value in letter.headers],
        "decoded": None if isinstance(command, DecodeError) else command,
        "decode_error": str(command) if isinstance(command, DecodeError) else None,
        "operations": past.acts.get(letter.id, []),
    }


def _print(letter: DeadLetter, past: PastOperations, byte_limit: int) -> None:
    topic, partition, offset = letter.origin
    command = letter.command
    for name, text in (
        ("dead letter", name_of(letter.id)),
        ("time", _time(letter.at)),
        ("reason", f"{letter.reason}: {letter.detail}"),
        ("order", letter.order_id or "unknown"),
        ("command", f"{topic} {partition}:{offset}"),
        ("state", past.state(letter.id)),
        ("now", f"still cannot be decoded: {command}" if isinstance(command, DecodeError) else "can be decoded"),
    ):
        typer.echo(f"{name:<12}  {show.safe(text)}")
    if not isinstance(command, DecodeError):
        typer.echo(show.safe(encode_json_command(command).decode()))
    for act in past.acts.get(letter.id, []):
        operation = msgspec.to_builtins(act)["operation"]
        typer.echo(show.safe(f"{_time(act.at)}  {operation} {act.id} by {act.actor}: {act.reason}"))
    typer.echo("headers")
    for header, value in letter.headers:
        typer.echo(f"  {show.safe(header[:HEADER_CHARS])}: {show.safe(_header(value))}")
    for part, data in (("key", letter.key), ("value", letter.value)):
        typer.echo(f"{part}: {'null' if data is None else f'{len(data)} bytes'}")
        for line in hex_lines(data or b"", byte_limit):
            typer.echo(f"  {line}")


def _header(value: bytes | None) -> str:
    if value is None:
        return "null"
    more = f" ({len(value)} bytes)" if len(value) > HEADER_CHARS else ""
    return value[:HEADER_CHARS].decode(errors="backslashreplace") + more


def _print_proposal(proposal: Proposal, plan_id: str | None) -> None:
    if proposal.decisions:
        show.table(PLAN_HEADS, map(_decision_row, proposal.decisions))
    else:
        typer.echo("no dead letters to plan")
    if proposal.settled:
        typer.echo(f"{proposal.settled} were left out: they were applied or discarded before")
    if proposal.left:
        typer.echo(f"{proposal.left} later ones were left out: apply this plan first, or see --limit")
    if plan_id is not None:
        typer.echo(f"plan {plan_id}: apply it with `order-service dead-letters apply {plan_id} --why TEXT`")
    elif proposal.decisions:
        typer.echo("no plan was recorded")


def _print_preview(commands: list[ToSend], *, as_json: bool) -> None:
    if as_json:
        for each in commands:
            show.json_line({"dead_letter": name_of(each.letter.id), **msgspec.to_builtins(each.planned)})
        return
    show.table(PLAN_HEADS, map(_planned_row, commands))
    typer.echo(f"commands that --yes would send: {len(commands)}")


def _decision_row(decision: Decision) -> show.Row:
    letter, planned = decision.letter, decision.planned
    if planned is None:
        return name_of(letter.id), letter.order_id, "", decision.why_not
    return name_of(letter.id), planned.order_id, _command(letter), _result(planned)


def _planned_row(each: ToSend) -> show.Row:
    return name_of(each.letter.id), each.planned.order_id, _command(each.letter), _result(each.planned)


def _command(letter: DeadLetter) -> str:
    command = letter.command
    return "" if isinstance(command, DecodeError) else f"{type(command).__name__} {command.command_id}"


def _result(planned: PlannedCommand) -> str:
    return f"{planned.result}, if the User Service finds the user active" if planned.asks_user else planned.result


def _decision_dict(decision: Decision) -> dict[str, Any]:
    partition, offset = decision.letter.id
    planned = decision.planned
    if planned is None:
        return {"partition": partition, "offset": offset, "result": decision.why_not, "is_sent": False}
    return {"partition": partition, **msgspec.to_builtins(planned), "is_sent": True}


def _outcome_text(outcome: Outcome | OrderServiceError) -> str:
    match outcome:
        case Accepted(record=record, repeated=repeated) | Refused(record=record, repeated=repeated):
            return result_of(record.message, is_repeated=repeated)
        case Repeated():
            return REPEAT
        case Unreadable(reason=reason):
            return f"a dead letter again: {reason}"
        case AwaitingUser():
            return "waits for the User Service"
        case Undecided():
            return "no outcome yet: is a worker running?"
        case OrderServiceError():
            return f"unknown: {outcome}"


def _print_outcome(applied: Applied, result: str, *, as_json: bool) -> None:
    planned, is_as_planned = applied.sent.planned, result == applied.sent.planned.result
    if as_json:
        show.json_line(
            {
                "dead_letter": name_of(applied.sent.letter.id),
                "order_id": planned.order_id,
                "command_id": planned.command_id,
                "partition": applied.partition,
                "offset": applied.offset,
                "planned": planned.result,
                "outcome": result,
                "is_as_planned": is_as_planned,
            }
        )
        return
    style = "green" if is_as_planned else "red"
    note = "" if is_as_planned else f"  (planned: {planned.result})"
    show.line((f"{name_of(applied.sent.letter.id)}  {planned.order_id}  ", ""), (result, style), (note, ""))
