"""The alerts about the User Service and the clock."""

import signal

from order_service.users.stub import Mode
from tests.support.command_line import CommandLine
from tests.support.deciding import end
from tests.support.prometheus import fires
from tests.support.samples import SHOP, but, create
from tests.support.service import until
from tests.support.users import failing, hanging

AHEAD_S = 400


def creates(users):
    return [but(create, order_id=user, command_id=user, user_id=user, actor=SHOP) for user in users]


def unanswered(watch):
    return sum(watch.value("orders_user_lookups_total", outcome=outcome) for outcome in ("no_answer", "not_asked"))


@fires(
    "OrdersUserServiceAway",
    "OrdersUserLookupsFail",
    "OrdersUserLookupsSaturated",
    "OrdersWaitingRoomFilling",
    "OrdersWaitForUsers",
    "OrdersClockSkew",
)
def test_a_user_service_that_hangs_for_minutes(watch, users, tmp_path):
    """The minutes pass for a worker that is started again with a clock that is fast."""
    service, clock = watch.service, tmp_path / "clock"
    worker = watch.target(service.start_worker()).wait_lanes(4)
    watch.before()
    with hanging(users):
        count = service.send(creates(f"hangs-{n}" for n in range(12)))
        until(lambda: watch.value("orders_user_lookups_in_flight") == 2, "as many lookups as may run")
        watch.fault()
        until(lambda: watch.value("orders_user_breaker_state") == 2, "the breaker is open")
        until(lambda: watch.value("orders_waiting_commands") > 8, "the orders wait")
        watch.fault()
        before = unanswered(watch)
        until(lambda: unanswered(watch) > before and watch.value("orders_user_breaker_state") == 2, "more have none")
        watch.fault()
        worker.send(signal.SIGKILL)
        worker.wait_ended()
        clock.write_text(str(AHEAD_S))
        worker = watch.target(service.start_worker(TEST_CLOCK_FILE=str(clock)))
        until(lambda: watch.value("orders_waiting_oldest_seconds") > 300, "the orders have waited for long")
        until(lambda: watch.value("orders_clock_skew_seconds") > 300, "the clock is compared")
        watch.fault()
    end(worker)
    watch.target(service.start_worker()).wait_lanes(4)
    service.wait_outcomes(count)
    until(lambda: watch.value("orders_waiting_commands") == 0, "nothing waits")
    until(lambda: watch.value("orders_user_breaker_state") == 0, "the breaker is closed")
    watch.after()


@fires("OrdersUserAnswersUnusable", "OrdersUserLookupsSlow")
def test_a_user_service_with_an_odd_and_a_slow_answer(watch, users):
    service = watch.service
    watch.target(service.start_worker()).wait_lanes(4)
    watch.before()
    watch.fault()
    with failing(users, Mode.GARBAGE):
        service.send(creates(["odd"]))
        until(lambda: watch.value("orders_user_answers_unusable_total") >= 1, "the answer is counted")
        watch.fault()
    service.send(creates(["slow-1200"]))
    service.wait_outcomes(2)
    watch.fault()
    CommandLine(service.environment)("users", "check", "odd")
    watch.after()
