"""Makes a plan: selects dead letters, and decides their commands against the present state. It writes nothing."""

import asyncio
from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct

from order_service.domain.decision import UserCheck
from order_service.errors import DecodeError, UserServiceUnavailable
from order_service.kafka.reader import Reader
from order_service.operations.dead_letters.letter import DeadLetter, Selection, in_sequence
from order_service.operations.dead_letters.past_operations import PastOperations
from order_service.operations.dead_letters.planning import Decision, decide, users_of
from order_service.operations.dead_letters.scan import LetterScan, read_entries
from order_service.settings import Settings
from order_service.users.client import CallPolicy, UserClient
from order_service.wire.operations import DeadLettersPlanned, PlannedCommand


class Proposal(Struct, frozen=True):
    """The decisions in sequence, how many more dead letters are selected, and how many are settled already."""

    decisions: list[Decision]
    left: int
    settled: int

    def records(self, plan_id: str, at: datetime, actor: str, reason: str) -> dict[int, DeadLettersPlanned]:
        """Return the records of a plan, by partition; none if there is nothing to send."""
        commands: dict[int, list[PlannedCommand]] = {}
        for decision in self.decisions:
            if decision.planned is not None:
                commands.setdefault(decision.letter.id[0], []).append(decision.planned)
        partitions = tuple(sorted(commands))
        return {
            partition: DeadLettersPlanned(
                id=plan_id,
                at=at,
                actor=actor,
                reason=reason,
                commands=tuple(commands[partition]),
                partitions=partitions,
            )
            for partition in partitions
        }


async def propose(
    reader: Reader, settings: Settings, past: PastOperations, selection: Selection, *, limit: int, now: datetime
) -> Proposal:
    """Decide the selected dead letters, the first `limit` of them in sequence.

    Raises RegistryAwayError if a schema may be unknown only because the registry does not answer.
    """
    scan = LetterScan(reader, selection)
    letters, count, settled = list[DeadLetter](), 0, 0
    async for letter in scan.letters():
        if past.is_settled(letter.id):
            settled += 1
            continue
        count += 1
        letters.append(letter.without_bytes())
        if len(letters) >= 2 * limit:
            letters = in_sequence(letters)[:limit]
    if scan.registry_error is not None:
        raise scan.registry_error
    letters = in_sequence(letters)[:limit]
    entries = await read_entries(reader, _order_ids(letters))
    users = await check_users(settings, users_of(letters))
    decisions = decide(letters, entries, users, now)
    return Proposal(decisions, count - len(letters), settled)


async def check_users(settings: Settings, user_ids: Iterable[str]) -> dict[str, UserCheck]:
    """Return the checks of these users. Users without an answer are left out: all of them without USER_SERVICE_URL.

    Raises SetupError if the settings of the User Service are invalid.
    """
    if "user_service_url" not in settings.model_fields_set:
        return {}
    async with UserClient(CallPolicy.from_settings(settings)) as client:

        async def check(user_id: str) -> tuple[str, UserCheck] | None:
            try:
                return user_id, await client.check(user_id)
            except UserServiceUnavailable:
                return None

        answers = await asyncio.gather(*map(check, user_ids))
    return dict(answer for answer in answers if answer is not None)


def _order_ids(letters: Iterable[DeadLetter]) -> set[str]:
    return {letter.command.order_id for letter in letters if not isinstance(letter.command, DecodeError)}
