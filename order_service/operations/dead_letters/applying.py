"""Applies a plan: sends the commands of its dead letters again, in the sequence of each order.

A transaction has some commands and the records that they were sent. So a crash leaves a plan that is applied in part,
and the next `apply` continues with the rest. Whether an order has changed is checked under the lock of the producer,
and once more by the worker, because each command names the version of its order (see `planning`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import islice

from msgspec import Struct

from order_service.domain.entry import Entry
from order_service.domain.messages import Command
from order_service.errors import DecodeError, KafkaAwayError, OperationRefused, OrderServiceError, Unavailable
from order_service.kafka.command_producer import WITHIN_S
from order_service.kafka.reader import Reader
from order_service.kafka.topics import TopicNames
from order_service.operations.dead_letters.letter import DeadLetter, LetterId, Selection, in_sequence, name_of
from order_service.operations.dead_letters.past_operations import PastOperations, Plan
from order_service.operations.dead_letters.planning import command_to_send
from order_service.operations.dead_letters.scan import LetterScan, read_entries, read_operations
from order_service.operations.operator_producer import operator_producer, send_operations
from order_service.runtime.deadline import deadline
from order_service.sdk.outcome_reader import AwaitedOutcome, OutcomeReader
from order_service.sdk.outcomes import Outcome
from order_service.settings import Settings
from order_service.wire.commands import encode_json_command, partition_of
from order_service.wire.operations import Act, DeadLettersApplied, PlannedCommand
from order_service.worker.records import Record
from order_service.worker.transactions import DEADLINE_S, TurnProducer

BATCH_MAX = 200
"""The most commands of one transaction, which must end within `DEADLINE_S`."""


class ToSend(Struct, frozen=True):
    """A command of a plan that was not sent yet."""

    letter: DeadLetter
    planned: PlannedCommand
    command: Command

    @property
    def record(self) -> Record:
        """The record to send: the original bytes, unless the plan adds an expected version."""
        original = self.planned.expected_version is None
        value = self.letter.value if original else encode_json_command(self.command)
        return self.command.order_id.encode(), value, self.letter.original_headers


class Applied(Struct, frozen=True):
    """A command that was sent again, the partition and the offset that it got, and its outcome.

    The outcome is an error if it could not be read.
    """

    sent: ToSend
    partition: int
    offset: int
    outcome: Outcome | OrderServiceError


class Terms(Struct, frozen=True, kw_only=True):
    """How to apply a plan. `wait_s` is how long to wait for outcomes after the last command was sent."""

    max_age: timedelta
    per_second: int
    wait_s: float


async def prepare(reader: Reader, plan_id: str, max_age: timedelta, now: datetime) -> list[ToSend]:
    """Return the commands that are left to send. Raises OperationRefused if the plan must not be applied now."""
    past = await read_operations(reader)
    plan = _checked(past, plan_id, max_age, now)
    left = {letter_id for letter_id in plan.commands if letter_id not in past.applied}
    scan = LetterScan(reader, Selection(ids=frozenset(left)))
    letters = [letter async for letter in scan.letters()]
    if scan.registry_error is not None:
        raise scan.registry_error
    commands = [_to_send(letter, plan.commands[letter.id]) for letter in in_sequence(letters)]
    if moved := moved_orders(commands, await read_entries(reader, {each.command.order_id for each in commands})):
        raise OperationRefused(f"nothing was sent: {'; '.join(moved)}. Make a new plan")
    return commands


def moved_orders(commands: Sequence[ToSend], entries: Mapping[str, Entry]) -> list[str]:
    """Return which orders are not at the version that the plan has before their first command, ten at most."""
    first: dict[str, PlannedCommand] = {}
    for each in commands:
        first.setdefault(each.command.order_id, each.planned)
    versions = {order_id: entries[order_id].version if order_id in entries else 0 for order_id in first}
    moved = [
        f"order {order_id} is at version {versions[order_id]}, the plan expects {planned.version}"
        for order_id, planned in first.items()
        if versions[order_id] != planned.version
    ]
    return moved[:10] + ([f"and {len(moved) - 10} orders more"] if len(moved) > 10 else [])


def _checked(past: PastOperations, plan_id: str, max_age: timedelta, now: datetime) -> Plan:
    """Return the plan, if it may be applied as far as the operations before show."""
    if past.unreadable:
        raise OperationRefused(
            f"an operation before cannot be read, perhaps of a newer version ({past.unreadable[0]}): use that version"
        )
    plan = past.plan(plan_id)
    if plan is None:
        raise OperationRefused(f"there is no plan {plan_id}")
    if plan.missing:
        numbers = ", ".join(map(str, sorted(plan.missing)))
        raise OperationRefused(f"plan {plan_id} lacks its records in the partitions {numbers}: make a new plan")
    elsewhere = [
        name_of(letter_id)
        for letter_id in plan.commands
        if letter_id in past.discarded or (letter_id in past.applied and past.applied[letter_id].plan_id != plan_id)
    ]
    if elsewhere:
        raise OperationRefused(
            f"nothing was sent: since plan {plan_id}, others have discarded or applied {', '.join(elsewhere[:10])}."
            " Make a new plan"
        )
    if all(letter_id in past.applied for letter_id in plan.commands):
        raise OperationRefused(f"plan {plan_id} was applied before: nothing is left to send")
    if now - plan.act.at > max_age:
        age_h = (now - plan.act.at) / timedelta(hours=1)
        raise OperationRefused(
            f"plan {plan_id} is {age_h:.1f} h old, at most {max_age / timedelta(hours=1):g} h are allowed: make a new"
            " plan, or see --max-age"
        )
    return plan


def _to_send(letter: DeadLetter, planned: PlannedCommand) -> ToSend:
    command = letter.command
    if isinstance(command, DecodeError):
        raise OperationRefused(
            f"nothing was sent: dead letter {name_of(letter.id)} cannot be decoded here ({command.reason}). Use the"
            " version and the schema registry of the plan"
        )
    if (command.order_id, command.command_id) != (planned.order_id, planned.command_id):
        raise OperationRefused(
            f"nothing was sent: dead letter {name_of(letter.id)} is not the one of the plan. Was the topic created"
            " again? Make a new plan"
        )
    return ToSend(letter, planned, command_to_send(command, planned))


async def apply(
    settings: Settings,
    act: Act,
    plan_id: str,
    terms: Terms,
    on_outcome: Callable[[Applied], None],
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> int:
    """Send what is left of a plan, and call `on_outcome` for each command in sequence. Return how many were sent.

    Raises OperationRefused before the first command if the plan must not be applied, or later if another operator has
    fenced this one; Unavailable if Kafka goes away. What was sent before is recorded, and has been passed on.
    """
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(Reader(settings))
        outcomes = OutcomeReader(settings, WITHIN_S)
        await outcomes.open()
        stack.push_async_callback(outcomes.close)
        sent: list[tuple[ToSend, AwaitedOutcome, int]] = []
        failure: OrderServiceError | None = None
        try:
            async with operator_producer(settings) as producer:
                # Only now: no other operator can send anything after this producer has started.
                commands = await prepare(reader, plan_id, terms.max_age, act.at)
                partitions = len(await reader.partitions(reader.names.commands))
                sender = _BatchSender(producer, reader.names, partitions, act, plan_id)
                for batch in _batches(commands, min(terms.per_second, BATCH_MAX)):
                    began_at = time.monotonic()
                    awaited = [await stack.enter_async_context(outcomes.awaiting(each.command)) for each in batch]
                    offsets = await sender.send(batch)
                    for each, one, offset in zip(batch, awaited, offsets, strict=True):
                        outcomes.set_offset(one, offset)
                        sent.append((each, one, offset))
                    if len(sent) < len(commands):
                        await sleep(max(0.0, began_at + len(batch) / terms.per_second - time.monotonic()))
        except (OperationRefused, Unavailable) as error:
            if not sent:
                raise
            failure = error
        give_up_at = time.monotonic() + terms.wait_s
        for each, one, offset in sent:
            outcome = await _outcome(one, give_up_at - time.monotonic())
            on_outcome(Applied(each, one.partition, offset, outcome))
    if failure is not None:
        raise _after_some(failure, len(sent)) from failure
    return len(sent)


def _after_some(failure: OrderServiceError, count: int) -> OperationRefused | KafkaAwayError:
    """Return the error of an `apply` that has sent some commands, with what to do about the rest."""
    text = f"{failure}; commands sent before: {count}; apply the plan again for the rest"
    return OperationRefused(text) if isinstance(failure, OperationRefused) else KafkaAwayError(text)


async def _outcome(awaited: AwaitedOutcome, wait_s: float) -> Outcome | OrderServiceError:
    try:
        return await awaited.wait(max(0.0, wait_s))
    except OrderServiceError as error:
        return error


class _BatchSender:
    """Sends commands and the records about them, a transaction for each batch."""

    def __init__(self, producer: TurnProducer, names: TopicNames, partitions: int, act: Act, plan_id: str) -> None:
        self._producer = producer
        self._names = names
        self._partitions = partitions
        self._act = act
        self._plan_id = plan_id

    async def send(self, batch: Sequence[ToSend]) -> list[int]:
        """Send a batch, and return the offsets of the commands when the transaction is committed."""
        producer = self._producer
        async with deadline(DEADLINE_S):
            await producer.begin()
            sent = []
            for each in batch:
                partition = partition_of(each.command.order_id.encode(), self._partitions)
                sent += await producer.send_all(self._names.commands, partition, [each.record])
            offsets = [metadata.offset for metadata in await producer.wait_for_acks(sent)]
            records = self._applied(batch, offsets)
            await producer.commit(await send_operations(producer, self._names.operations, records))
        return offsets

    def _applied(self, batch: Sequence[ToSend], offsets: Sequence[int]) -> dict[int, DeadLettersApplied]:
        """Return the records of what a batch has sent, by the partition of the dead letters."""
        sent: dict[int, list[tuple[LetterId, int, str]]] = {}
        for each, offset in zip(batch, offsets, strict=True):
            sent.setdefault(each.letter.id[0], []).append((each.letter.id, offset, each.command.order_id))
        return {
            partition: DeadLettersApplied(
                id=self._act.id,
                at=self._act.at,
                actor=self._act.actor,
                reason=self._act.reason,
                plan_id=self._plan_id,
                sent={letter_id[1]: offset for letter_id, offset, _ in commands},
                order_ids=tuple(order_id for _, _, order_id in commands),
            )
            for partition, commands in sent.items()
        }


def _batches(commands: Sequence[ToSend], size: int) -> Iterator[list[ToSend]]:
    iterator = iter(commands)
    while batch := list(islice(iterator, size)):
        yield batch
