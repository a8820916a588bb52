"""What the six commands share: the order, the envelope, the wait, and the report of the outcome."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import log_index_of, read_settings
from order_service.cli.options import WAIT_MAX_S, AsJson
from order_service.domain.messages import Command, Rejection
from order_service.domain.refusals import MEANINGS, Reason
from order_service.errors import DecodeError
from order_service.kafka.reader import OutcomeRecord
from order_service.sdk.outcomes import Accepted, AwaitingUser, Refused, Repeated, Undecided, Unreadable
from order_service.sdk.sending import Sender, Sent
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.commands import decode_command, encode_json_command

Fields = dict[str, object]

OrderId = Annotated[str, typer.Argument(metavar="ORDER_ID", help="1 to 128 characters of A-Z a-z 0-9 . _ -")]
CommandId = Annotated[
    str | None, typer.Option(help="Id of the command; sending the same id again is safe. [a new UUID]")
]
Actor = Annotated[str, typer.Option(help="Who sends it: user:<id> or service:<id>.")]
ExpectedVersion = Annotated[
    int | None, typer.Option(help="Refuse it unless the order is at this version; 0: the order must not exist.")
]
DecideBy = Annotated[str | None, typer.Option(metavar="TIME", help="Refuse it after this time (RFC 3339).")]
CorrelationId = Annotated[str | None, typer.Option(help="Copied unchanged into the event or the rejection.")]
Wait = Annotated[
    float,
    typer.Option(min=0, max=WAIT_MAX_S, metavar="SECONDS", help="How long to wait for the outcome; 0: no wait."),
]
AsAvro = Annotated[bool, typer.Option("--avro", help="Send it as Avro instead of JSON.")]


def sends(kind: type[Command]) -> Callable[[Callable[..., Fields]], Callable[..., None]]:
    """Turn a function that returns the fields of a `kind` into a CLI command that sends one.

    What all six share (the order, the envelope, the wait) is written once, in `run`. Typer reads the parameters from
    the signature, so both lists are joined there.
    """

    def decorate(own_fields: Callable[..., Fields]) -> Callable[..., None]:
        def run(
            order_id: OrderId,
            command_id: CommandId = None,
            actor: Actor = "service:cli",
            expected_version: ExpectedVersion = None,
            decide_by: DecideBy = None,
            correlation_id: CorrelationId = None,
            wait: Wait = 10.0,
            avro: AsAvro = False,
            as_json: AsJson = False,
            **own: Any,
        ) -> None:
            envelope = {
                "command_id": command_id,
                "actor": actor,
                "expected_version": expected_version,
                "decide_by": decide_by,
                "correlation_id": correlation_id,
            }
            command = build_command(kind, order_id, own_fields(**own), envelope)
            encode = encode_command if avro else encode_json_command
            sent = asyncio.run(_send(read_settings(), command, encode, wait_s=wait))
            report(command, sent, wait_s=wait, as_json=as_json)

        joined = _joined(inspect.signature(run), inspect.signature(own_fields))
        run.__doc__, run.__name__ = own_fields.__doc__, own_fields.__name__
        run.__annotations__ = {name: parameter.annotation for name, parameter in joined.parameters.items()}
        run.__signature__ = joined  # type: ignore[attr-defined]
        return run

    return decorate


def build_command(
    kind: type[Command], order_id: str, fields: Mapping[str, object], envelope: Mapping[str, object]
) -> Command:
    """Return a command. Raises typer.BadParameter if it has the wrong shape; the worker checks the ranges of values."""
    fixed = {"type": kind.__name__, "order_id": order_id}
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            raise typer.BadParameter(f"{name} differs between file and command line")
    every_field = {"command_id": str(uuid4()), **fields, **without_none(**envelope), **fixed}
    try:
        return decode_command(msgspec.json.encode(every_field))
    except DecodeError as error:
        raise typer.BadParameter(f"not a valid {kind.__name__}: {error.detail}") from error


async def _send(settings: Settings, command: Command, encode: Callable[[Command], bytes], *, wait_s: float) -> Sent:
    async with Sender(settings, encode=encode, index=log_index_of(settings)) as sender:
        return await sender.send(command, wait_s)


def report(command: Command, sent: Sent, *, wait_s: float, as_json: bool) -> None:
    """Print the outcome of a command. Exit with 1 unless it was accepted, or is undecided without a wait."""
    if as_json:
        show.json_line(_as_dict(command, sent))
    else:
        _print(command, sent, wait_s)
    is_success = isinstance(sent.outcome, Accepted) or (isinstance(sent.outcome, Undecided) and wait_s <= 0)
    raise typer.Exit(0 if is_success else 1)


def _print(command: Command, sent: Sent, wait_s: float) -> None:
    sent_as = f"command {command.command_id}, offset {sent.offset} of partition {sent.partition}"
    match sent.outcome:
        case Accepted(record=record, repeated=repeated):
            name, style = show.name_and_style(record.message)
            word = "already accepted" if repeated else "accepted"
            where = f" {name}, version {record.message.version} of {command.order_id}"
            show.line((word, "green"), (":", ""), (where, style), (f": {show.describe(record.message)}", ""))
        case Refused(record=record, repeated=repeated):
            word = "already refused" if repeated else "refused"
            show.line((word, "red"), (f": {show.describe(record.message)}{_cure(record)}", ""))
        case Unreadable(reason=reason, detail=detail):
            show.line(("dead letter", "red"), (f": {reason}: {detail} ({sent_as})", ""))
        case AwaitingUser():
            text = f"the User Service has not answered yet; the command will be decided. {sent_as}"
            show.line(("waiting", "yellow"), (f": {text}", ""))
        case Undecided() if wait_s <= 0:
            show.line(("sent", "green"), (f": {sent_as}", ""))
        case Undecided():
            state = "The command is in Kafka and will be decided. Is a worker running?"
            text = f"no outcome within {wait_s:g} s. {state} {sent_as}"
            show.line(("undecided", "yellow"), (f": {text}", ""))
        case Repeated():
            text = f"the order remembers this command, but its outcome is no longer kept. {sent_as}"
            show.line(("already decided", "yellow"), (f": {text}", ""))


def _cure(record: OutcomeRecord) -> str:
    """Return what to do about a refusal, and the status of the order."""
    message = record.message
    if not isinstance(message, Rejection):
        return ""
    cure = MEANINGS[Reason(message.reason)].cure if message.reason in set(Reason) else ""
    status = f"{message.order_id} is {message.status}, version {message.version}." if message.version else ""
    return ("" if message.detail.endswith(".") else ".") + "".join(f" {text}" for text in (cure, status) if text)


def _as_dict(command: Command, sent: Sent) -> dict[str, Any]:
    outcome = sent.outcome
    fields: dict[str, Any] = {
        "outcome": outcome.__struct_config__.tag,
        "command_id": command.command_id,
        "order_id": command.order_id,
        "partition": sent.partition,
        "offset": sent.offset,
    }
    match outcome:
        case Accepted(record=record, repeated=repeated):
            return fields | {"repeated": repeated, "event": show.as_dict(record)}
        case Refused(record=record, repeated=repeated):
            return fields | {"repeated": repeated, "rejection": show.as_dict(record)}
        case Unreadable(reason=reason, detail=detail):
            return fields | {"reason": reason, "detail": detail}
        case AwaitingUser() | Undecided() | Repeated():
            return fields


def _joined(shared: inspect.Signature, own: inspect.Signature) -> inspect.Signature:
    """Return the joined parameters: the order, the command's own options, then the shared ones."""
    order_id, *envelope = [
        parameter for parameter in shared.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [order_id, *own.parameters.values(), *envelope]
    return shared.replace(
        parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )


def without_none(**fields: object) -> Fields:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
