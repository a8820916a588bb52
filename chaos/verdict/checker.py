"""The checker: walks the commands of a partition and tells what the log does not say of them as it must.

Topics are co-partitioned, so a partition is checked by itself, and an order by itself in it. Where the log cannot be
what the rules make of it, each reading that could explain it is kept, and what follows tells which one it was: so one
fault is counted once, and not again with every later command of its order.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from msgspec import Struct, field, structs

from chaos.verdict import model
from chaos.verdict.decoding import (
    LINE_FIELDS,
    MILLISECOND,
    POSITION_KEY,
    Command,
    Entry,
    Event,
    Poison,
    Record,
    Rejection,
    Unreadable,
    decode_command,
    decode_entry,
    decode_event,
    decode_position,
    decode_rejection,
    digest_of,
    id_of,
    or_refused,
    waiting_offset,
    without_commands,
)
from chaos.verdict.liveness import Silence, Watched, silences, stuck, unexplained
from chaos.verdict.model import Happens, Order, Refused

KINDS: Final = (
    "lost",
    "duplicate",
    "phantom",
    "disorder",
    "state",
    "chain",
    "waiting",
    "dead",
    "silence",
    "stuck",
    "wrong_answers",
    "unseen",
    "ended",
)
MAX_DEAD_KEY: Final = 64 * 1024
MAX_DEAD_VALUE: Final = 6 * 1024 * 1024
MAX_DEAD_HEADERS: Final = 1024 * 1024
"""What is kept whole of a dead letter: Kafka bounds records as they are compressed, so one can unpack to more."""
MAX_READINGS: Final = 16
TIME_FAR_MS: Final = 120_000
"""How far the time in an outcome may be from the broker's: ORDERS_CLOCK_SKEW_MAX_S, 60 s, and as long on its way."""


class PartitionRecords(Struct, frozen=True):
    """All committed records of one partition, topic by topic, from the start; `commands_end` is the end of commands."""

    partition: int
    commands_end: int
    commands: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    rejections: list[Record] = field(default_factory=list)
    dead_letters: list[Record] = field(default_factory=list)
    table: list[Record] = field(default_factory=list)
    waiting: list[Record] = field(default_factory=list)


def nobody(_user_id: str) -> bool:
    """Return False: the User Service answers in time for each user."""
    return False


class Terms(Struct, frozen=True):
    """What the checker must know of the service: its settings, with its own defaults, and what its User Service says.

    `user_of` gives active, unknown or inactive. `may_time_out` tells whose answer may not come in time. A record's
    timestamp is the clock of the broker that appended it; readers see it once its replicas have it, `on_its_way_s`
    later at the most. `old` has the keys and values of the table's records of this partition that were there before
    all commands. Where they `may_forget`, these orders, which were closed long ago, may have forgotten their commands.
    """

    partition_count: int
    commands_topic: str
    user_of: Callable[[str], str]
    user_deadline_s: float = 3600.0
    payment_due_s: float | None = None
    may_time_out: Callable[[str], bool] = nobody
    on_its_way_s: float = 0.0
    old: Mapping[bytes, bytes] = field(default_factory=dict)
    may_forget: bool = False

    def due_at(self, created_at: int) -> int | None:
        """Return when an unpaid order cancels itself; None if it never does."""
        return created_at + timedelta(seconds=self.payment_due_s) // MILLISECOND if self.payment_due_s else None

    def arrived_at(self, record: Record) -> int:
        """Return when a command was in the log at the latest."""
        return record.timestamp_ms + timedelta(seconds=self.on_its_way_s) // MILLISECOND


class Finding(Struct, frozen=True):
    """One thing that is not as it must be; `offset` is that of the record in its own topic that shows it."""

    kind: str
    partition: int
    offset: int
    order_id: str
    command_id: str | None
    what: str


Outcomes = dict[str, Counter[str]]
"""How often there was what: events by type, rejections and dead letters by reason, repeats by type of command.

An order's own cancellation counts as payment_timeout, and not as OrderCancelled.
"""


def no_outcomes() -> Outcomes:
    """Count nothing yet."""
    return {kind: Counter() for kind in ("events", "rejections", "dead_letters", "repeats")}


class Findings(Struct):
    """What was found in one partition."""

    partition: int
    commands: int = 0
    found: list[Finding] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=no_outcomes)
    silence_s: float = 0.0
    http_commands: int = 0
    forgotten: int = 0
    """How many old orders have forgotten their commands."""

    @property
    def counts(self) -> dict[str, int]:
        """Count the findings, kind by kind; only kinds that were found."""
        return dict(Counter(finding.kind for finding in self.found))

    def add(self, kind: str, offset: int, what: str, order_id: str = "", command_id: str | None = None) -> None:
        """Note one finding."""
        self.found.append(Finding(kind, self.partition, offset, order_id, command_id, what))


class Verdict(Struct, frozen=True):
    """What is true of all partitions together; `silence_s` is the longest silence that no fault explains."""

    counts: dict[str, int]
    commands: int
    faults: int
    seed: int
    outcomes: Outcomes = field(default_factory=no_outcomes)
    silence_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Return whether there were commands and nothing was found; of an empty log nothing is proved."""
        return self.commands > 0 and not any(self.counts.values())

    def __str__(self) -> str:
        said = self.counts | {"silence": f"{self.silence_s:.1f}"}
        counts = " ".join(f"{kind}={said[kind]}" for kind in KINDS)
        return f"{counts} commands={self.commands} faults={self.faults} seed={self.seed}"

    def outcome_lines(self) -> Iterator[str]:
        """Yield the outcomes of the commands, a line for each kind."""
        for kind, counts in self.outcomes.items():
            yield f"{kind}: " + (" ".join(f"{name}={count}" for name, count in sorted(counts.items())) or "none")


def verdict_of(findings: Iterable[Findings], *, faults: int, seed: int) -> Verdict:
    """Add up partitions, one after the other, so that only one must be in memory."""
    counts = dict.fromkeys(KINDS, 0)
    commands = 0
    silence_s = 0.0
    outcomes = no_outcomes()
    for found in findings:
        commands += found.commands
        silence_s = max(silence_s, found.silence_s)
        for kind, count in found.counts.items():
            counts[kind] += count
        for kind, happened in found.outcomes.items():
            outcomes[kind].update(happened)
    return Verdict(counts, commands, faults, seed, outcomes, silence_s)


def check_partition(records: PartitionRecords, terms: Terms) -> Findings:
    """Check all that one partition holds."""
    findings = Findings(records.partition, commands=len(records.commands))
    outcomes = _Outcomes(records, findings)
    waiting = _check_waiting(records, findings)
    entries = _check_table(records, terms, findings)
    walks: dict[str, _Walk] = {}
    for record, command in _check_commands(records, terms, findings):
        order_id = command.order_id
        if order_id not in walks:
            walks[order_id] = _Walk(order_id, terms, findings, outcomes.timeouts.pop(order_id, []))
        walks[order_id].take(record, command, outcomes.of(record, command, waiting))
    outcomes.report_phantoms()
    for order_id, walk in walks.items():
        walk.finish(entries.pop(order_id, None))
    for order_id, entry in entries.items():
        findings.add("state", entry.offset, "The table has an order that no command made.", order_id)
    return findings


def check_liveness(records: PartitionRecords, terms: Terms, watched: Watched, findings: Findings) -> list[Silence]:
    """Report silences that nothing explains and lanes that were stuck; return all silences, explained or not."""
    partition = records.partition
    commands = ((record.offset, decode_command(record, terms.partition_count)) for record in records.commands)
    found = silences(partition, commands, watched.seen[partition])
    for silence in unexplained(found, watched.touches):
        findings.silence_s = max(findings.silence_s, silence.seconds)
        if silence.seconds > watched.silence_max_s:
            what = f"Commands waited, and no fault explains it: silent for {silence}."
            findings.add("silence", -1, what)
    for silence in stuck(partition, watched.served, watched.touches, watched.stuck_max_s):
        findings.add("stuck", -1, f"A lane neither ran nor was parked: {silence}.")
    return found


# Outcomes, by the command that they answer


class _Outcome(Struct, frozen=True, gc=False):
    """An event or a rejection in its topic, with the digest of its value."""

    offset: int
    said: Event | Rejection
    digest: bytes

    @property
    def at_ms(self) -> int:
        return self.said.occurred_at if isinstance(self.said, Event) else self.said.rejected_at


class _Timeout(Struct, frozen=True, gc=False):
    """An order's own cancellation in the topic of events, with the digest of its value."""

    offset: int
    event: Event
    digest: bytes


class _Answered(Struct, frozen=True, gc=False):
    """What the log has for one command: its outcomes, or why it may have none that can be read."""

    outcomes: list[_Outcome]
    is_unreadable: bool = False
    is_buried: bool = False
    is_waiting: bool = False


class _Outcomes:
    """Events, rejections and dead letters by the offset of their command."""

    def __init__(self, records: PartitionRecords, findings: Findings) -> None:
        self.timeouts: dict[str, list[_Timeout]] = defaultdict(list)
        self._findings = findings
        self._answers: dict[int, list[_Outcome]] = defaultdict(list)
        self._unreadable: set[int] = set()
        self._buried = {record.command_offset for record in records.dead_letters}
        for record in records.events:
            self._add(record, decode_event)
        for record in records.rejections:
            self._add(record, decode_rejection)
        reasons = (record.header("dl_reason") or b"none" for record in records.dead_letters)
        findings.outcomes["dead_letters"].update(reason.decode(errors="backslashreplace") for reason in reasons)

    def of(self, record: Record, command: Command, waiting: set[int]) -> _Answered:
        """Take the outcomes of one command; those that name another command stay, and are phantoms."""
        offset = record.offset
        named = self._answers.get(offset)
        outcomes = [] if named is None else [outcome for outcome in named if _answers(outcome.said, command)]
        if named is not None and len(outcomes) == len(named):
            del self._answers[offset]
        elif named is not None:
            self._answers[offset] = [outcome for outcome in named if outcome not in outcomes]
        return _Answered(outcomes, offset in self._unreadable, offset in self._buried, offset in waiting)

    def report_phantoms(self) -> None:
        """Report all that no command has taken."""
        for outcomes in self._answers.values():
            for outcome in outcomes:
                self._phantom(outcome.offset, outcome.said, "An outcome answers no command.")
        for timeouts in self.timeouts.values():
            for timeout in timeouts:
                self._phantom(timeout.offset, timeout.event, "An order cancelled itself that never was.")

    def _add(self, record: Record, decode: Callable[[bytes | None], Event | Rejection]) -> None:
        try:
            said = decode(record.value)
        except Unreadable:
            self._findings.add("chain", record.offset, "An outcome cannot be read.")
            self._unreadable.update(() if record.command_offset is None else (record.command_offset,))
            return
        self._count(said)
        at_ms = said.occurred_at if isinstance(said, Event) else said.rejected_at
        if abs(at_ms - record.timestamp_ms) > TIME_FAR_MS:
            what = f"An outcome is of {at_ms}, the broker appended it at {record.timestamp_ms}."
            self._findings.add("disorder", record.offset, what, said.order_id, said.command_id)
        offset, digest = record.command_offset, digest_of(record.value or b"")
        if record.key != said.order_id.encode():
            self._phantom(record.offset, said, "An outcome has another key than its order.")
        elif offset is not None:
            self._answers[offset].append(_Outcome(record.offset, said, digest))
        elif isinstance(said, Event) and model.is_payment_timeout(said):
            self.timeouts[said.order_id].append(_Timeout(record.offset, said, digest))
        else:
            self._phantom(record.offset, said, "An outcome names no command.")

    def _count(self, said: Event | Rejection) -> None:
        if isinstance(said, Rejection):
            self._findings.outcomes["rejections"][said.reason] += 1
        else:
            name = "payment_timeout" if model.is_payment_timeout(said) else said.type
            self._findings.outcomes["events"][name] += 1

    def _phantom(self, offset: int, said: Event | Rejection, what: str) -> None:
        self._findings.add("phantom", offset, what, said.order_id, said.command_id)


def _answers(said: Event | Rejection, command: Command) -> bool:
    return (said.order_id, said.command_id) == (command.order_id, command.command_id)


# One order


class _Walk:
    """The commands of one order in the order of the log, and what the order can be after each of them.

    `states` has one state as long as the log is what the rules make of it.
    """

    def __init__(self, order_id: str, terms: Terms, findings: Findings, timeouts: list[_Timeout]) -> None:
        self._order_id = order_id
        self._terms = terms
        self._findings = findings
        self._timeouts = sorted(timeouts, key=lambda timeout: timeout.offset)
        self._states: list[Order | None] = [None]
        self._event_ids: set[str] = set()
        self._last_offset: dict[type[Event | Rejection], int] = {Event: -1, Rejection: -1}
        self._decided_at: list[int | None] = []
        self._before: deque[tuple[str, bytes]] = deque(maxlen=model.MAX_WAITING)
        self._newest_at = model.UNKNOWN_TIME
        self._timeout_head: bytes | None = None

    def take(self, record: Record, command: Command, answered: _Answered) -> None:
        """Take the next command with what came of it."""
        if answered.is_buried:
            self._find("dead", record.offset, "A command became a dead letter.", command)
        if not answered.outcomes:
            if not self._is_copy_in_a_full_room(record, command):
                self._take_unanswered(record, command, answered)
            return
        outcome = self._choose(record, command, answered.outcomes)
        if _is_too_many_waiting(outcome):
            self._take_too_many_waiting(outcome, command)
            return
        self._note(command, max(outcome.at_ms, self._newest_at))
        self._newest_at = max(outcome.at_ms, self._newest_at)
        self._check_place(outcome, command)
        self._take_outcome(record, command, outcome)

    def finish(self, entry: "_TableEntry | None") -> None:
        """Compare what the order must be with what the table has of it."""
        while self._timeouts:
            self._take_timeout()
        if entry is not None and entry.entry is None:
            return  # it cannot be read, which is reported
        if not any(model.is_in_table(state, None if entry is None else entry.entry) for state in self._states):
            offset = -1 if entry is None else entry.offset
            self._find("state", offset, "The table has an order otherwise than its commands made it.")

    def _note(self, command: Command, decided_at: int | None) -> None:
        self._decided_at.append(decided_at)
        self._before.append((command.command_id, command.digest))

    def _is_copy_in_a_full_room(self, record: Record, command: Command) -> bool:
        """Return whether this is a copy of a command that waited in a full room, whose outcome answers both.

        Then 32 commands before it were undecided when it came.
        """
        waited = self._decided_at[-model.MAX_WAITING :]
        return (
            (command.command_id, command.digest) in self._before
            and len(waited) == model.MAX_WAITING
            and all(at_ms is None or at_ms >= record.timestamp_ms for at_ms in waited)
        )

    def _take_unanswered(self, record: Record, command: Command, answered: _Answered) -> None:
        repeating = [state for state in self._states if model.is_repeat(command, state)]
        if repeating:
            self._states = repeating
            self._findings.outcomes["repeats"][command.type] += 1
        elif not (answered.is_buried or answered.is_waiting):
            if not answered.is_unreadable:
                self._find("lost", record.offset, "A command has no outcome.", command)
            self._keep([*self._states, *(self._as_ruled(command, state) for state in self._states)])
        self._note(command, None)

    def _as_ruled(self, command: Command, state: Order | None, outcome: _Outcome | None = None) -> Order | None:
        """Apply the rules to a command, whatever the log has; time and digest are those of the outcome."""
        match model.answer(command, state, None, self._user_of(command)):
            case Happens() as happened:
                at_ms, head = model.UNKNOWN_TIME, model.UNKNOWN_DIGEST
                if outcome is not None:
                    at_ms, head = outcome.at_ms, outcome.digest
                return model.after_event(state, happened, (command.command_id, command.digest), at_ms, head)
            case Refused(reason=reason):
                return model.after_refusal(state, command, reason)
        return state

    def _choose(self, record: Record, command: Command, outcomes: list[_Outcome]) -> _Outcome:
        """Choose the one outcome to go on with: the first that follows, if there are many."""
        for extra in outcomes[1:]:
            self._find("duplicate", extra.offset, "A command has another outcome.", command)
        if len(outcomes) == 1:
            return outcomes[0]
        following = (outcome for outcome in outcomes if any(self._followers(record, command, outcome, self._states)))
        return next(following, outcomes[0])

    def _check_place(self, outcome: _Outcome, command: Command) -> None:
        kind = type(outcome.said)
        if outcome.offset < self._last_offset[kind]:
            self._find("disorder", outcome.offset, "An outcome stands before that of an earlier command.", command)
        self._last_offset[kind] = max(outcome.offset, self._last_offset[kind])

    def _take_outcome(self, record: Record, command: Command, outcome: _Outcome) -> None:
        followers = list(self._followers(record, command, outcome, self._states))
        if not followers and self._timeouts and any(self._followers(record, command, outcome, self._timed_out())):
            self._take_timeout()
            followers = list(self._followers(record, command, outcome, self._states))
        if followers:
            self._check_not_overtaken(record, command, outcome, followers)
            self._check_digests(command, outcome, followers)
        else:
            self._take_what_cannot_be(command, outcome)
        if isinstance(outcome.said, Event):
            self._event_ids.add(outcome.said.event_id)

    def _followers(
        self, record: Record, command: Command, outcome: _Outcome, states: Iterable[Order | None]
    ) -> Iterator[tuple[Order | None, Order | None]]:
        """Provide each state from which the rules lead to this outcome, and the one after it."""
        for state in states:
            if isinstance(outcome.said, Event):
                happened = self._as_it_happened(command, state, outcome.said)
                if happened is not None:
                    known = (command.command_id, command.digest)
                    yield state, model.after_event(state, happened, known, outcome.said.occurred_at, outcome.digest)
            elif self._is_refused_so(record, command, state, outcome.said):
                yield state, model.after_refusal(state, command, outcome.said.reason)

    def _as_it_happened(self, command: Command, state: Order | None, event: Event) -> Happens | None:
        """Return what the rules make of a command, if that is the event."""
        version, changed_at = (0, model.UNKNOWN_TIME) if state is None else (state.version, state.changed_at)
        # Time never runs backwards in an order, so with the time of the event before it was decided at any time before.
        now_ms = None if event.occurred_at == changed_at else event.occurred_at
        answer = model.answer(command, state, now_ms, self._user_of(command))
        is_so = (
            isinstance(answer, Happens)
            and (answer.type, answer.fact) == (event.type, event.fact)
            and (version + 1, command.actor) == (event.version, event.actor)
            and command.correlation_id == event.correlation_id
            and event.occurred_at >= changed_at
            and event.event_id == id_of(event.order_id, str(event.version))
        )
        return answer if is_so and isinstance(answer, Happens) else None

    def _is_refused_so(self, record: Record, command: Command, state: Order | None, rejection: Rejection) -> bool:
        user = "timed_out" if self._is_timed_out(record, command, rejection) else self._user_of(command)
        answer = model.answer(command, state, rejection.rejected_at, user)
        return answer == Refused(rejection.reason, rejection.status, rejection.version) and _is_about(
            rejection, command
        )

    def _is_timed_out(self, record: Record, command: Command, rejection: Rejection) -> bool:
        """Return whether a create was refused because its user was not answered for, and that could be so."""
        return (
            (command.type, rejection.reason) == ("CreateOrder", "user_check_timed_out")
            and rejection.rejected_at >= record.timestamp_ms + self._terms.user_deadline_s * 1000
            and self._terms.may_time_out(command.body["user_id"])
        )

    def _check_not_overtaken(
        self, record: Record, command: Command, outcome: _Outcome, followers: list[tuple[Order | None, Order | None]]
    ) -> None:
        """Report a payment that was in the log in time, and that the order did not wait for: one of each order."""
        if command.type == "PayOrder" and all(
            self._is_overtaken(record, command, before, outcome.said) for before, _ in followers
        ):
            self._find("disorder", outcome.offset, "An order cancelled itself before a payment was looked at.", command)
            self._timeout_head = None

    def _is_overtaken(self, record: Record, command: Command, state: Order | None, said: Event | Rejection) -> bool:
        """Return whether the order's own cancellation came first, and changed the outcome of a command in time."""
        if not isinstance(said, Rejection) or state is None or state.head != self._timeout_head:
            return False
        due_at = self._terms.due_at(state.created_at)
        unpaid = structs.replace(state, status="created", version=state.version - 1, accepted=state.accepted[:-1])
        answer = model.answer(command, unpaid, said.rejected_at, "active")
        is_the_same = isinstance(answer, Refused) and answer.reason == said.reason
        return due_at is not None and self._terms.arrived_at(record) < due_at and not is_the_same

    def _check_digests(
        self, command: Command, outcome: _Outcome, followers: list[tuple[Order | None, Order | None]]
    ) -> None:
        """Go on with the states whose head the event follows; without any, go on with all of them, and a finding."""
        said = outcome.said
        chained = followers
        if isinstance(said, Event):
            chained = [(before, after) for before, after in followers if _is_chained(said, before)]
        if not chained or said.command_digest != command.digest:
            self._find("chain", outcome.offset, "An outcome has another digest than what it follows.", command)
        self._keep([after for _, after in chained or followers])

    def _take_what_cannot_be(self, command: Command, outcome: _Outcome) -> None:
        """Report an outcome that does not follow, and go on with each reading that could explain it."""
        said = outcome.said
        is_twice = isinstance(said, Event) and said.event_id in self._event_ids
        if is_twice or any(model.is_repeat(command, state) for state in self._states):
            self._find("duplicate", outcome.offset, "A command was decided again.", command)
        else:
            self._find("disorder", outcome.offset, "An outcome does not follow from the commands.", command)
        self._keep(
            [
                *(_adopted(command, state, outcome) for state in self._states),
                *(self._as_ruled(command, state, outcome) for state in self._states),
                *self._states,
            ]
        )

    def _take_too_many_waiting(self, outcome: _Outcome, command: Command) -> None:
        """Check that the 32 commands before it waited at that moment: decided in sequence, none of them was earlier."""
        said = outcome.said
        waiting = self._decided_at[-model.MAX_WAITING :]
        first_at = next((decided_at for decided_at in waiting if decided_at is not None), outcome.at_ms)
        is_so = (
            isinstance(said, Rejection)
            and len(waiting) == model.MAX_WAITING
            and first_at >= outcome.at_ms
            and (said.status, said.version) == ("absent", 0)
            and _is_about(said, command)
        )
        if not is_so:
            self._find("disorder", outcome.offset, "A command was refused as one too many to wait.", command)
        elif said.command_digest != command.digest:
            self._find("chain", outcome.offset, "An outcome has another digest than its command.", command)

    def _take_timeout(self) -> None:
        """Fold in the order's own cancellation, which answers no command."""
        cancelled = self._timed_out()
        timeout = self._timeouts.pop(0)
        event = timeout.event
        if event.event_id in self._event_ids:
            self._find("duplicate", timeout.offset, "An event stands there twice.")
            return
        unpaid = [state for state in self._states if state is not None and _is_unpaid(state, event)]
        due = [state for state in unpaid if self._is_due(state, event)]
        if timeout.offset < self._last_offset[Event] or not unpaid:
            self._find("disorder", timeout.offset, "An order cancelled itself that was not unpaid then.")
        elif not due:
            self._find("disorder", timeout.offset, "An order cancelled itself before its payment was due.")
        elif not any(_is_chained(event, state) for state in due):
            self._find("chain", timeout.offset, "An outcome has another digest than what it follows.")
        else:
            self._timeout_head = timeout.digest
        self._last_offset[Event] = max(timeout.offset, self._last_offset[Event])
        self._event_ids.add(event.event_id)
        self._keep(cancelled if unpaid else [*cancelled, *self._states])

    def _is_due(self, state: Order, event: Event) -> bool:
        due_at = self._terms.due_at(state.created_at)
        return due_at is not None and event.occurred_at >= due_at

    def _timed_out(self) -> list[Order | None]:
        """Return the order after its own cancellation, if its version allows that now."""
        timeout = self._timeouts[0]
        event = timeout.event
        happened, known = Happens(event.type, event.fact), (event.command_id, event.command_digest)
        return [
            model.after_event(state, happened, known, event.occurred_at, timeout.digest)
            for state in self._states
            if state is not None and state.version + 1 == event.version
        ]

    def _user_of(self, command: Command) -> str:
        return self._terms.user_of(command.body["user_id"]) if command.type == "CreateOrder" else "active"

    def _keep(self, states: list[Order | None]) -> None:
        """Keep the states that differ, and not too many of them."""
        if len(states) > 1:
            states = [state for place, state in enumerate(states) if state not in states[:place]][:MAX_READINGS]
        self._states = states

    def _find(self, kind: str, offset: int, what: str, command: Command | None = None) -> None:
        self._findings.add(kind, offset, what, self._order_id, None if command is None else command.command_id)


def _is_too_many_waiting(outcome: _Outcome) -> bool:
    return isinstance(outcome.said, Rejection) and outcome.said.reason == "too_many_waiting"


def _is_about(rejection: Rejection, command: Command) -> bool:
    """Return whether a rejection repeats what it must of its command."""
    return (
        rejection.command_type == command.type
        and rejection.actor == command.actor
        and rejection.correlation_id == command.correlation_id
        and rejection.rejection_id == id_of(command.order_id, command.command_id, command.digest.hex())
        and _is_pointed(rejection, command)
    )


def _is_pointed(rejection: Rejection, command: Command) -> bool:
    """Return whether an invalid_order points to a field of its command, and any other refusal to none."""
    body = command.body
    if rejection.reason != "invalid_order" or all(value is None for value in body.values()):
        return rejection.pointer is None
    lines = range(len(body.get("lines") or ()))
    fields = [*body, *(f"lines/{place}/{field}" for place in lines for field in LINE_FIELDS)]
    return rejection.pointer in {f"/{field}" for field in fields}


def _is_unpaid(state: Order, event: Event) -> bool:
    """Return whether an order can cancel itself by this event, if its payment is due."""
    return (state.status, state.version + 1) == ("created", event.version) and event.occurred_at >= state.changed_at


def _is_chained(event: Event, before: Order | None) -> bool:
    """Return whether an event follows the head of an order; one that is not in the log has an unknown head."""
    if before is None:
        return event.previous_digest is None
    return before.head in {model.UNKNOWN_DIGEST, event.previous_digest}


def _adopted(command: Command, state: Order | None, outcome: _Outcome) -> Order | None:
    """Believe the log: what an order is if this outcome is true."""
    said = outcome.said
    if isinstance(said, Event):
        known = (command.command_id, command.digest)
        after = model.after_event(state, Happens(said.type, said.fact), known, said.occurred_at, outcome.digest)
        return structs.replace(after, version=said.version)
    after_it = model.after_refusal(state, command, said.reason)
    if after_it is None or model.seen_by(said.actor, after_it) == (said.status, said.version):
        return after_it
    if said.version:
        return structs.replace(after_it, status=said.status, version=said.version)
    return None if said.actor.startswith("service:") else after_it  # others may just not see it


# Commands and dead letters


def _check_commands(records: PartitionRecords, terms: Terms, findings: Findings) -> list[tuple[Record, Command]]:
    """Decode the commands; each other record must be a dead letter, once and whole, and no other letter be there."""
    letters: dict[int | None, list[Record]] = defaultdict(list)
    for letter in records.dead_letters:
        letters[letter.command_offset].append(letter)
    commands = []
    for record in records.commands:
        command = decode_command(record, terms.partition_count)
        found = letters.pop(record.offset, [])
        if found:
            command = or_refused(command, record.value)
        if isinstance(command, Poison):
            _check_letters(record, command, found, terms, findings)
        else:
            commands.append((record, command))
        for extra in found[1:]:
            findings.add("duplicate", extra.offset, "A command has another dead letter.")
    for unknown in letters.values():
        for letter in unknown:
            findings.add("phantom", letter.offset, "A dead letter answers no command.")
    return commands


def _check_letters(record: Record, poison: Poison, letters: list[Record], terms: Terms, findings: Findings) -> None:
    if not letters:
        findings.add("dead", record.offset, "What is no command has no dead letter.")
    elif not any(_is_whole(letter, record, poison, terms) for letter in letters):
        findings.add("dead", letters[0].offset, "A dead letter is not whole.")


def _is_whole(letter: Record, record: Record, poison: Poison, terms: Terms) -> bool:
    origin = {
        "dl_topic": terms.commands_topic,
        "dl_partition": str(record.partition),
        "dl_offset": str(record.offset),
        "dl_timestamp": str(record.timestamp_ms),
    }
    return (
        all(letter.header(name) == value.encode() for name, value in origin.items())
        and letter.header("dl_reason") in {reason.encode() for reason in poison.reasons}
        and letter.header("dl_detail") is not None
        and _is_kept(letter.key, record.key, MAX_DEAD_KEY, letter)
        and _is_kept(letter.value, record.value, MAX_DEAD_VALUE, letter)
        and _has_headers_of(letter, record)
    )


def _is_kept(kept: bytes | None, whole: bytes | None, most: int, letter: Record) -> bool:
    """Return whether a key or value is there as it came, or cut at the most that fits and its length named."""
    if whole is None or len(whole) <= most:
        return kept == whole
    return kept == whole[:most] and ("dl_cut", str(len(whole)).encode()) in letter.headers


def _has_headers_of(letter: Record, record: Record) -> bool:
    kept = [(name.removeprefix("orig_"), value) for name, value in letter.headers if name.startswith("orig_")]
    original = [(name, value or b"") for name, value in record.headers]
    dropped = len(original) - len(kept)
    if dropped == 0:
        return kept == original
    size = sum(len(name.encode()) + len(value) + 15 for name, value in original)  # 15: lengths, and "orig_"
    is_too_much = size > MAX_DEAD_HEADERS and letter.header("dl_headers_dropped") == str(dropped).encode()
    return is_too_much and kept == original[: len(kept)]


# Changelogs


class _TableEntry(Struct, frozen=True):
    """The newest record that the table has of an order; `entry` is None where it cannot be read."""

    offset: int
    entry: Entry | None


def _newest(records: list[Record]) -> dict[bytes, Record]:
    return {record.key or b"": record for record in records}


def _check_table(records: PartitionRecords, terms: Terms, findings: Findings) -> dict[str, _TableEntry]:
    """Check the position and the old orders, and give the newest entry of each other order."""
    newest = _newest(records.table)
    _check_positions(records, findings)
    for key, value in terms.old.items():
        record = newest.pop(key, None)
        if record is not None and terms.may_forget and record.value == without_commands(value):
            findings.forgotten += 1
        elif record is None or record.value != value:
            order_id = key.decode(errors="backslashreplace")
            findings.add("state", -1, "An old order is gone from the table, or changed.", order_id)
    entries = {}
    for key, record in newest.items():
        if record.value is None or key.startswith(b"\0"):
            continue
        order_id = key.decode(errors="backslashreplace")
        entries[order_id] = _TableEntry(record.offset, _entry_of(record, order_id, findings))
    return entries


def _entry_of(record: Record, order_id: str, findings: Findings) -> Entry | None:
    try:
        return decode_entry(record.value or b"")
    except Unreadable:
        findings.add("state", record.offset, "A record of the table cannot be read.", order_id)
        return None


def _check_positions(records: PartitionRecords, findings: Findings) -> None:
    """Check that the newest position is at the end of the commands, and that they never ended later than they do."""
    positions = [record for record in records.table if record.key == POSITION_KEY]
    least = records.commands[-1].offset + 1 if records.commands else 0
    if not positions and least:
        findings.add("state", -1, "The table has no position.")
    ends = [0]
    for record in positions:
        try:
            position = decode_position(record.value or b"")
        except Unreadable:
            findings.add("state", record.offset, "A position cannot be read.")
            continue
        if record is positions[-1] and not least <= position.next_offset <= records.commands_end:
            findings.add("state", record.offset, "The position is not at the end of the commands.")
        ends.append(position.end_offset)
    if max(ends) > records.commands_end:
        findings.add("lost", max(ends), f"Commands are gone: they end at {records.commands_end}, and ended later.")


def _check_waiting(records: PartitionRecords, findings: Findings) -> set[int]:
    """Report what is left in the waiting room, and give the offsets of those commands."""
    left = set()
    for key, record in _newest(records.waiting).items():
        if record.value is None or key.startswith(b"\0"):
            continue
        order_id = key.partition(b"\0")[0].decode(errors="backslashreplace")
        findings.add("waiting", record.offset, "A command is left in the waiting room.", order_id)
        offset = waiting_offset(key)
        if offset is not None:
            left.add(offset)
    return left
