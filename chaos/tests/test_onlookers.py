"""What callers and readers were told, compared with an honest log and with what they must not be told."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chaos.callers import Outside, answered
from chaos.tests.honest_log import MAIN, PARTITION, PARTITIONS, SIDE, Service
from chaos.verdict.checker import Findings
from chaos.verdict.judging import check_ends
from chaos.verdict.onlookers import Answered, End, Reader, Request, Shown, events_of, requests_of, unseen, why_wrong
from order_service.domain.decision import UserCheck
from order_service.web.http.responses import outcome_json
from order_service.wire.commands import encode_json_command
from tests.support.samples import but, create, order_paid, pay, ship, ship_refused
from tests.support.service import WorkerProcess
from tests.support.shop import Answer

KEY = "http-1"


def log_of(*commands):
    """Return the log of a lane that decides each command in a turn of its own, with the correlation id of a request."""
    service = Service(0)
    service.known["dana"] = UserCheck.ACTIVE
    for command in commands:
        said = but(command, order_id=MAIN, correlation_id=KEY if command.command_id != create.command_id else "http-0")
        service.turn([(MAIN.encode(), encode_json_command(said), ())])
    return service.end()


def answer(**changes):
    return but(Answered(KEY, 200, MAIN, 2, "paid", None), **changes)


def refusal(reason, http_status=404):
    return Answered(KEY, http_status, MAIN, None, None, reason)


PAID = (create, pay)
NOT_THERE = (pay,)
REFUSED_AND_THEN_PAID = (pay, create, pay)
REPEATED = (create, pay, pay)


@pytest.mark.parametrize(
    ("commands", "said", "is_right"),
    [
        pytest.param(PAID, answer(), True, id="as it is"),
        pytest.param(PAID, answer(version=5, status="delivered"), True, id="as it is by now"),
        pytest.param(REPEATED, answer(), True, id="sent twice, and made once"),
        pytest.param(PAID, answer(version=1, status="created"), False, id="older than what was made"),
        pytest.param(PAID, answer(status="shipped"), False, id="another status"),
        pytest.param(PAID, answer(order_id=SIDE), False, id="another order"),
        pytest.param(PAID, refusal("order_not_found"), False, id="refused, and it happened"),
        pytest.param(REFUSED_AND_THEN_PAID, refusal("order_not_found"), False, id="refused, and a later copy happened"),
        pytest.param(REFUSED_AND_THEN_PAID, answer(), True, id="a later copy happened"),
        pytest.param(NOT_THERE, refusal("order_not_found"), True, id="refused"),
        pytest.param(NOT_THERE, refusal("already_paid", 409), False, id="refused for another reason"),
        pytest.param(NOT_THERE, answer(), False, id="said to have happened"),
        pytest.param((create,), answer(), False, id="said to have happened, and never sent"),
    ],
)
def test_an_answer_is_what_became_of_its_command(commands, said, is_right):
    requests = requests_of(log_of(*commands), PARTITIONS, "http-")
    request = requests.get(KEY, Request())
    assert request.copies == sum(command.command_id == pay.command_id for command in commands)
    assert (why_wrong(said, request.outcomes) is None) == is_right


@pytest.mark.parametrize(
    ("outcome", "is_success"), [(order_paid, True), (ship_refused, False)], ids=["accepted", "refused"]
)
def test_the_outcome_at_an_address_is_an_answer(outcome, is_success):
    """Compared with the answer that the same outcome gives at once."""
    body = msgspec.json.decode(msgspec.json.encode(outcome_json(outcome, "")))
    got = answered(KEY, Answer(200, {}, body))
    assert got.is_success == is_success
    if is_success:
        assert (got.order_id, got.version, got.status) == (order_paid.order_id, order_paid.version, "paid")
    else:
        assert got.reason == ship_refused.reason


EVENTS = events_of(log_of(create, pay, ship))
FIRST, SECOND, THIRD = (Shown(PARTITION, offset, order_id, version) for offset, (order_id, version) in EVENTS.items())


@pytest.mark.parametrize(
    ("lives", "may_repeat", "count"),
    [
        pytest.param([[FIRST, SECOND, THIRD]], False, 0, id="the whole stream"),
        pytest.param([[FIRST], [SECOND, THIRD]], False, 0, id="the whole stream in two lives"),
        pytest.param([[FIRST, SECOND], [SECOND, THIRD]], True, 0, id="a repeat in a new life"),
        pytest.param([[FIRST, SECOND], [SECOND, THIRD]], False, 1, id="a repeat that may not be"),
        pytest.param([[FIRST, SECOND, SECOND, THIRD]], True, 1, id="a repeat in one life"),
        pytest.param([[FIRST, THIRD]], True, 2, id="a hole, and what is in it"),
        pytest.param([[FIRST], [THIRD]], True, 2, id="a hole between two lives"),
        pytest.param([[FIRST, SECOND]], True, 1, id="the end is missing"),
        pytest.param([[]], True, 3, id="nothing"),
        pytest.param([[FIRST, SECOND, but(THIRD, order_id=SIDE)]], True, 1, id="an event of another order"),
        pytest.param([[FIRST, but(SECOND, partition=PARTITION + 1), SECOND, THIRD]], True, 0, id="another partition"),
    ],
)
def test_a_reader_sees_each_event_in_the_order_of_versions(lives, may_repeat, count):
    reader = Reader("a reader", lives, {}, may_repeat)
    assert len(unseen(reader, PARTITION, EVENTS)) == count


def test_what_comes_after_the_end_of_a_reader_is_not_missed():
    reader = Reader("a reader", [[]], {}, may_repeat=False, until={PARTITION: THIRD.offset})
    assert THIRD.offset not in [offset for offset, _ in unseen(reader, PARTITION, EVENTS)]


def test_what_lies_before_the_beginning_of_a_reader_is_not_missed():
    reader = Reader("a reader", [[]], {PARTITION: THIRD.offset}, may_repeat=False)
    assert [offset for offset, _ in unseen(reader, PARTITION, EVENTS)] == [THIRD.offset]


def test_a_process_that_ends_is_a_finding_unless_a_fault_killed_it():
    findings = Findings(PARTITION)
    check_ends([End("web-80", "worker-3.log", -9, was_killed=True)], findings)
    assert findings.counts == {}
    check_ends([End("subscriber", "worker-4.log", 1, was_killed=False)], findings)
    assert findings.counts == {"ended": 1}


def test_a_process_that_ends_is_recorded_with_its_cause_and_started_again(tmp_path):
    def start(*_, **__):
        return WorkerProcess("worker-1", {}, tmp_path, None, ("chaos.subscriber", "arguments are missing"))

    service: Any = SimpleNamespace(app_id="orders", start_worker=start)
    outside = Outside(service, tmp_path, 1)
    outside._processes = {"subscriber": start(), "projector": start()}
    outside.kill("projector", 0.0)
    for process in outside._processes.values():
        process.process.wait(60)
    first = dict(outside._processes)
    outside.tend()
    assert set(outside.ends) == {
        End("subscriber", "worker-1.log", 1, was_killed=False),
        End("projector", "worker-1.log", -9, was_killed=True),
    }
    assert all(outside._processes[name] is not process for name, process in first.items())
    for process in outside._processes.values():
        process.end()
