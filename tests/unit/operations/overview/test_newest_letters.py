"""The newest dead letters: as the list of the command line has them, and never a byte of their records."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec

from order_service.operations.overview import newest_letters
from order_service.operations.overview.newest_letters import SHOWN, TEXT_MAX, NewestLetters
from order_service.wire.operations import DeadLettersDiscarded, encode
from tests.support.samples import NOW
from tests.unit.operations.topics_in_memory import COMMANDS, DEAD_LETTERS, OPERATIONS, MemoryReader, Topics

SECRET = b"not json: 4711-0815"


def read(topics, letters=None):
    reader: Any = MemoryReader(topics)
    return asyncio.run((letters or NewestLetters()).read(reader))


def bury(topics, number=0, key=b"o-1", detail="the body is not JSON", at=NOW):
    headers = [
        ("dl_reason", b"not_json"),
        ("dl_detail", detail.encode()),
        ("dl_topic", COMMANDS.encode()),
        ("dl_partition", b"0"),
        ("dl_offset", str(number).encode()),
        ("orig_authorization", b"sesame"),
    ]
    return topics.append(DEAD_LETTERS, key, SECRET, headers, at)


def test_without_dead_letters_the_list_is_empty():
    assert read(Topics()) == []


def test_a_dead_letter_is_shown_without_its_bytes():
    topics = Topics()
    bury(topics, 17)
    [row] = read(topics)
    assert (row.id, row.reason, row.detail) == ("0:0", "not_json", "the body is not JSON")
    assert (row.order_id, row.command, row.state) == ("o-1", f"{COMMANDS} 0:17", "open")
    shown = msgspec.json.encode(row)
    assert b"4711" not in shown
    assert b"sesame" not in shown


def test_long_texts_of_a_sender_are_cut():
    topics = Topics()
    bury(topics, detail="x" * 10_000)
    assert [len(row.detail) for row in read(topics)] == [TEXT_MAX]


def test_only_the_end_of_a_partition_is_read_and_later_only_what_is_new():
    topics, letters = Topics(), NewestLetters()
    for number in range(1_000):
        bury(topics, number, at=NOW + timedelta(seconds=number))
    reader: Any = MemoryReader(topics)
    starts: list[int] = []
    between = reader.between

    def recorded(begins, ends):
        starts.extend(begins[each] for each in begins if each.topic == DEAD_LETTERS)
        return between(begins, ends)

    reader.between = recorded
    rows = asyncio.run(letters.read(reader))
    assert [row.id for row in rows] == [f"0:{999 - number}" for number in range(SHOWN)]
    bury(topics, 1_000, at=NOW + timedelta(seconds=1_000))
    assert asyncio.run(letters.read(reader))[0].id == "0:1000"
    assert starts == [1_000 - newest_letters.TAIL_OFFSETS, 1_000]


def test_what_was_done_to_a_dead_letter_is_its_state():
    topics, letters = Topics(), NewestLetters()
    bury(topics)
    assert read(topics, letters)[0].state == "open"
    act = DeadLettersDiscarded(id="a1", at=NOW, actor="user:alice", reason="a test", offsets=(0,))
    topics.append(OPERATIONS, None, encode(act))
    assert read(topics, letters)[0].state == "discarded"


def test_a_topic_that_was_recreated_is_read_again():
    topics, letters = Topics(), NewestLetters()
    for number in range(3):
        bury(topics, number)
    assert len(read(topics, letters)) == 3
    again = Topics()
    bury(again, 8)
    assert [row.command for row in read(again, letters)] == [f"{COMMANDS} 0:8"]
