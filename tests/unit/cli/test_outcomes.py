"""The lines that `up` shows: one for each outcome, safe for a terminal, and not more than a terminal can take."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.cli.outcomes import LINES_PER_S, TEXT_MAX, Lines, line_of, show_outcomes
from order_service.errors import DecodeError, KafkaAwayError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.wire import avro
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import dead_letter_headers, event_headers, rejection_headers
from tests.support.samples import but, events, order_cancelled, order_paid, ship_refused

NAMES = topic_names()


def record(topic, key, value, headers, offset=0) -> Any:
    return ConsumerRecord(topic, 2, offset, 0, 0, key, value, None, 0, 0, tuple(headers))


def event(message, command_offset=7):
    value, headers = avro.encode_event(message), event_headers(message, None, command_offset)
    return record(NAMES.events, message.order_id.encode(), value, headers)


def rejection(message):
    value, headers = avro.encode_rejection(message), rejection_headers(message, None, 7)
    return record(NAMES.rejections, message.order_id.encode(), value, headers)


def dead_letter(key, reason, detail):
    return record(NAMES.dead_letters, key, b"?", dead_letter_headers(DecodeError(reason, detail), "c", 2, 7, 0, []))


def text_of(shown):
    return "".join(text for text, _ in line_of(shown, NAMES))


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        pytest.param(
            event(order_paid),
            f"accepted: PayOrder, {order_paid.order_id}: OrderPaid, version {order_paid.version} (command 2:7)",
            id="an accepted command",
        ),
        pytest.param(
            event(order_cancelled, None),
            f"accepted: the service, {order_cancelled.order_id}: OrderCancelled, version {order_cancelled.version}",
            id="an order that the service cancelled",
        ),
        pytest.param(
            rejection(ship_refused),
            f"refused: ShipOrder, {ship_refused.order_id}: {ship_refused.reason}: {ship_refused.detail} (command 2:7)",
            id="a refused command",
        ),
        pytest.param(
            dead_letter(b"order-1", DeadLetterReason.BAD_SHAPE, "Object missing required field `user_id`"),
            "dead letter: key order-1: bad_shape: Object missing required field `user_id` (command 2:7)",
            id="a record that is not a command",
        ),
        pytest.param(
            dead_letter(None, DeadLetterReason.KEY_MISSING, "it must be the order_id"),
            "dead letter: no key: key_missing: it must be the order_id (command 2:7)",
            id="a record without a key",
        ),
        pytest.param(
            record(NAMES.dead_letters, b"order-1", None, []),
            "dead letter: key order-1: ?: ? (command ?:?)",
            id="a record that another program wrote",
        ),
        pytest.param(
            record(NAMES.events, b"order-1", b"?", [], 5),
            f"unreadable: offset 5 of partition 2 of {NAMES.events} cannot be read: "
            "not_avro: expected byte 0 and a schema id of 4 bytes",
            id="an event that cannot be decoded",
        ),
    ],
)
def test_the_line_of_an_outcome(shown, text):
    assert text_of(shown) == text


@pytest.mark.parametrize("message", events, ids=lambda message: type(message.fact).__name__)
def test_each_fact_is_shown_with_its_command(message):
    assert text_of(event(message)).startswith("accepted: ")


def test_a_text_of_any_length_and_of_any_bytes_is_one_short_line(capsys):
    Lines().add(dead_letter(b"\xff\x1b[2J\n" * 10_000, DeadLetterReason.NOT_JSON, "x" * 10_000), NAMES)
    Lines().add(rejection(but(ship_refused, detail="\x1b]0;" * 10_000)), NAMES)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2
    assert "\x1b" not in printed
    assert all(len(line) < 8 * TEXT_MAX for line in printed.splitlines())


async def test_while_kafka_is_away_the_reason_is_shown_once_and_the_run_goes_on(capsys, monkeypatch):
    monkeypatch.setattr("order_service.cli.outcomes.TRY_AGAIN_S", 0.0)
    servers, attempts, begun = f"127.0.0.1:{free_port()}", [], []

    def reader(settings):
        attempts.append(settings)
        return Reader(settings)

    monkeypatch.setattr("order_service.cli.outcomes.Reader", reader)
    task = asyncio.create_task(show_outcomes(Settings(kafka_bootstrap_servers=servers), lambda: begun.append(1)))
    async with asyncio.timeout(60):
        while len(attempts) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (task.done(), begun) == (False, [1])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"outcome   | outcomes cannot be read: no Kafka answers at {servers}")


class ScriptedReader:
    """A reader whose polls are given: each returns no records or raises an error. After the last one it blocks."""

    names = NAMES

    def __init__(self, polls):
        self.polls = polls

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def partitions(self, *topics):
        return [TopicPartition(topic, 0) for topic in topics]

    async def ends(self, partitions):
        return dict.fromkeys(partitions, 0)

    async def follow_many(self, _positions):
        while self.polls:
            poll = self.polls.pop(0)
            if isinstance(poll, Exception):
                raise poll
            yield poll
        await asyncio.Event().wait()


async def shown_after(monkeypatch, *polls):
    """Show the outcomes of these polls; return the calls of `on_begun`, and whether the showing has ended."""
    monkeypatch.setattr("order_service.cli.outcomes.TRY_AGAIN_S", 0.0)
    left, begun = list(polls), []
    monkeypatch.setattr("order_service.cli.outcomes.Reader", lambda _settings: ScriptedReader(left))
    task = asyncio.create_task(show_outcomes(Settings(), lambda: begun.append(1)))
    async with asyncio.timeout(30):
        while left:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.wait([task], timeout=0.5)
    has_ended = task.done()
    task.cancel()
    await asyncio.wait([task])
    return begun, has_ended


async def test_a_reason_is_shown_again_if_kafka_was_read_meanwhile(capsys, monkeypatch):
    away = KafkaAwayError("no Kafka answers")
    assert await shown_after(monkeypatch, away, away, [], away) == ([1], False)
    assert capsys.readouterr().out.splitlines() == ["outcome   | outcomes cannot be read: no Kafka answers"] * 2


async def test_an_unexpected_error_ends_the_lines_and_not_the_run(capsys, monkeypatch):
    assert await shown_after(monkeypatch, [], ValueError("x")) == ([1], True)
    assert capsys.readouterr().out.splitlines() == ["outcome   | outcomes are no longer shown: ValueError"]


def test_more_outcomes_than_a_terminal_can_take_are_counted():
    now, printed = SimpleNamespace(s=100.0), []
    lines = Lines(lambda parts: printed.append("".join(text for text, _ in parts)), lambda: now.s)
    for _ in range(LINES_PER_S + 1_000):
        lines.add(event(order_paid), NAMES)
    assert len(printed) == LINES_PER_S
    now.s += 1.0
    lines.count_hidden()
    assert printed[LINES_PER_S:] == [
        "1,000 more outcomes in this second; `order-service tail --rejections --from-beginning` shows them"
    ]
    lines.add(event(order_paid), NAMES)
    assert len(printed) == LINES_PER_S + 2
