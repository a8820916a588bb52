"""What the six commands share: the order, the envelope, how long to wait, and how to tell what became of it."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson
from order_service.cli.sending import send
from order_service.domain.messages import Command, Rejection
from order_service.domain.refusals import MEANINGS, Reason
from order_service.errors import DecodeError
from order_service.kafka.reader import OutcomeRecord
from order_service.sdk.outcomes import Accepted, AwaitingUser, Refused, Repeated, Undecided, Unreadable
from order_service.sdk.sending import Sent
from order_service.wire.commands import decode_command

Fields = dict[str, object]

OrderId = Annotated[str, typer.Argument(metavar="ORDER_ID", help="1-64 of A-Z a-z 0-9 . _ -")]
CommandId = Annotated[
    str | None, typer.Option(help="Names the command, so that sending it again is safe. [a new UUID]")
]
Actor = Annotated[str, typer.Option(help="Who wishes it: user:<id> or service:<id>.")]
ExpectedVersion = Annotated[int | None, typer.Option(help="Refuse it unless the order is at this version; 0: new.")]
DecideBy = Annotated[str | None, typer.Option(metavar="TIME", help="Refuse it after this time (RFC 3339).")]
CorrelationId = Annotated[str | None, typer.Option(help="Goes unchanged into the event or the rejection.")]
Wait = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the outcome; 0: not at all.")]
AsAvro = Annotated[bool, typer.Option("--avro", help="Send it as Avro instead of JSON.")]


def sends(kind: type[Command]) -> Callable[[Callable[..., Fields]], Callable[..., None]]:
    """Make a command line that sends a `kind` out of a function that gives its own fields.

    What all six share (the order, the envelope, how to wait) is written once, in `run`; typer reads the parameters
    from the signature, so both lists are joined there.
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
            command = made(kind, order_id, own_fields(**own), envelope)
            sent = asyncio.run(send(read_settings(), command, as_avro=avro, wait_s=wait))
            report(command, sent, wait_s=wait, as_json=as_json)

        joined = _joined(inspect.signature(run), inspect.signature(own_fields))
        run.__doc__, run.__name__ = own_fields.__doc__, own_fields.__name__
        run.__annotations__ = {name: parameter.annotation for name, parameter in joined.parameters.items()}
        run.__signature__ = joined  # type: ignore[attr-defined]
        return run

    return decorate


def made(kind: type[Command], order_id: str, fields: Mapping[str, object], envelope: Mapping[str, object]) -> Command:
    """Make a command; typer.BadParameter if it has not the shape of one. Values out of range are for the worker."""
    fixed = {"type": kind.__name__, "order_id": order_id}
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            raise typer.BadParameter(f"the file says another {name} than the command line")
    whole = {"command_id": str(uuid4()), **fields, **given(**envelope), **fixed}
    try:
        return decode_command(msgspec.json.encode(whole))
    except DecodeError as error:
        raise typer.BadParameter(f"this is no {kind.__name__}: {error.detail}") from error


def report(command: Command, sent: Sent, *, wait_s: float, as_json: bool) -> None:
    """Print what became of a command; exit with 1 unless it was accepted, or nobody wanted to wait."""
    if as_json:
        show.json_line(_as_dict(command, sent))
    else:
        _print(command, sent, wait_s)
    is_fine = isinstance(sent.outcome, Accepted) or (isinstance(sent.outcome, Undecided) and wait_s <= 0)
    raise typer.Exit(0 if is_fine else 1)


def _print(command: Command, sent: Sent, wait_s: float) -> None:
    place = f"command {command.command_id}, offset {sent.offset} of partition {sent.partition}"
    match sent.outcome:
        case Accepted(seen=seen, repeated=repeated):
            name, style = show.name_and_style(seen.message)
            word = "accepted before" if repeated else "accepted"
            where = f" {name}, version {seen.message.version} of {command.order_id}"
            show.line((word, "green"), (":", ""), (where, style), (f": {show.what(seen.message)}", ""))
        case Refused(seen=seen, repeated=repeated):
            word = "refused before" if repeated else "refused"
            show.line((word, "red"), (f": {show.what(seen.message)}{_cure(seen)}", ""))
        case Unreadable(reason=reason, detail=detail):
            show.line(("dead letter", "red"), (f": {reason}: {detail} ({place})", ""))
        case AwaitingUser():
            show.line(
                ("waiting", "yellow"), (f": the User Service has not answered yet; it will be decided. {place}", "")
            )
        case Undecided() if wait_s <= 0:
            show.line(("sent", "green"), (f": {place}", ""))
        case Undecided():
            said = f"no outcome within {wait_s:g} s; it is in Kafka and will be decided. Is a worker running? {place}"
            show.line(("undecided", "yellow"), (f": {said}", ""))
        case Repeated():
            said = f"the order remembers this command; its answer is not kept any more. {place}"
            show.line(("decided before", "yellow"), (f": {said}", ""))


def _cure(seen: OutcomeRecord) -> str:
    """Say what to do about a refusal, and where the order stands."""
    message = seen.message
    if not isinstance(message, Rejection):
        return ""
    cure = MEANINGS[Reason(message.reason)].cure if message.reason in set(Reason) else ""
    stands = f"{message.order_id} is {message.status}, version {message.version}." if message.version else ""
    return ("" if message.detail.endswith(".") else ".") + "".join(f" {said}" for said in (cure, stands) if said)


def _as_dict(command: Command, sent: Sent) -> dict[str, Any]:
    outcome = sent.outcome
    told: dict[str, Any] = {
        "outcome": outcome.__struct_config__.tag,
        "command_id": command.command_id,
        "order_id": command.order_id,
        "partition": sent.partition,
        "offset": sent.offset,
    }
    match outcome:
        case Accepted(seen=seen, repeated=repeated):
            return told | {"repeated": repeated, "event": show.as_dict(seen)}
        case Refused(seen=seen, repeated=repeated):
            return told | {"repeated": repeated, "rejection": show.as_dict(seen)}
        case Unreadable(reason=reason, detail=detail):
            return told | {"reason": reason, "detail": detail}
        case AwaitingUser() | Undecided() | Repeated():
            return told


def _joined(shared: inspect.Signature, own: inspect.Signature) -> inspect.Signature:
    """Put the order first, then the command's own options, then those that all commands have."""
    order_id, *envelope = [
        parameter for parameter in shared.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [order_id, *own.parameters.values(), *envelope]
    return shared.replace(
        parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )


def given(**fields: object) -> Fields:
    """Leave out what was not given."""
    return {name: value for name, value in fields.items() if value is not None}
