"""Checks every dependency of the service from outside. It writes nothing.

All checks run at the same time, each with a time limit, and their results have a fixed sequence. Those of the state in
Kafka wait for the check of the brokers: if it fails, they are skipped.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from msgspec import structs

from order_service.errors import HistoryError, OrderServiceError, TopicsError
from order_service.operations.doctor.checks import (
    brokers,
    clocks,
    group,
    readiness,
    registry,
    rights,
    transactions,
    user_service,
    views,
    waiting,
)
from order_service.operations.doctor.checks.check import (
    Check,
    Diagnosis,
    Result,
    Status,
    not_checked,
    problem,
    sentence,
)
from order_service.settings import Settings

NOT_ALLOWED: Final = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)
START_KAFKA: Final = "Start the brokers, or correct KAFKA_BOOTSTRAP_SERVERS and the ORDERS_KAFKA_… settings."
SEE_KAFKA: Final = "Check the brokers and the network between them and this machine."
SEE_REASONS: Final = "Run `order-service verify`, and look up the text in docs/operations/reasons.md."


def kafka_check(settings: Settings) -> Check:
    """Return the check that decides whether the checks of the state in Kafka can be made."""
    return Check("kafka", partial(brokers.check_brokers, settings), START_KAFKA)


def checks_of(settings: Settings) -> list[Check]:
    """Return the other checks for these settings, in the sequence of the output."""

    def of_kafka(name: str, run: Callable[[Settings], Coroutine[Any, Any, list[Result]]]) -> Check:
        return Check(name, partial(run, settings), SEE_KAFKA, needs_kafka=True)

    def of_service(name: str, run: Callable[[Settings], Coroutine[Any, Any, list[Result]]], fix: str) -> Check:
        return Check(name, partial(run, settings), fix)

    return [
        of_kafka("topics", brokers.check_topics),
        of_kafka("acls", rights.check_rights),
        of_kafka("group", group.check_group),
        of_kafka("lag", group.check_lag),
        of_kafka("transactions", transactions.check_transactions),
        of_service("lanes", readiness.check_readiness, "Read /health/ready of each worker."),
        of_kafka("waiting_room", waiting.check_waiting),
        of_service("user_service", user_service.check_user_service, user_service.FIX),
        of_service("schema_registry", registry.check_registry, "Start the schema registry, or correct its settings."),
        of_service("clock", clocks.check_clock, clocks.SET_CLOCK),
        of_kafka("broker_clock", clocks.check_broker_clock),
        of_service("views", views.check_views, f"Check ORDERS_DATABASE_URL and the database. {views.PROJECTOR}"),
        of_kafka("projector", views.check_projector),
    ]


async def examine(kafka: Check, others: Sequence[Check]) -> Diagnosis:
    """Make all checks. One that fails or takes too long is a finding, and the others go on."""
    first = asyncio.ensure_future(_results_of(kafka))

    async def after_kafka(check: Check) -> list[Result]:
        if check.needs_kafka and not _is_reachable(await first):
            return [structs.replace(not_checked("Kafka cannot be reached."), check=check.name)]
        return await _results_of(check)

    made = await asyncio.gather(first, *map(after_kafka, others))
    return Diagnosis([result for results in made for result in results], _is_reachable(made[0]))


def _is_reachable(results: Sequence[Result]) -> bool:
    return all(result.status is not Status.PROBLEM for result in results)


async def _results_of(check: Check) -> list[Result]:
    try:
        async with asyncio.timeout(check.within_s):
            results = await check.run()
    except TimeoutError:
        results = [problem(f"The check had no result within {check.within_s:g} s.", check.fix)]
    except (OrderServiceError, KafkaError) as error:
        results = [_as_result(error, check.fix)]
    except Exception as error:  # noqa: BLE001, one check must not end the others
        results = [problem(f"The check itself failed ({type(error).__name__}).", check.fix)]
    return [structs.replace(result, check=check.name) for result in results]


def _as_result(error: BaseException, fix: str) -> Result:
    """Return the result of a check that failed. What our principal may not see is no finding: `acls` has it."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if refused := next((cause for cause in causes if isinstance(cause, NOT_ALLOWED)), None):
        text = f"Kafka does not allow this principal to see it ({type(refused).__name__})."
        return not_checked(text, "Grant what `acls` reports, and run `doctor` again.")
    if isinstance(error, TopicsError):
        return not_checked(sentence(str(error)), "Fix what `topics` and `acls` report first.")
    if isinstance(error, HistoryError):
        return problem(sentence(str(error)), SEE_REASONS)
    return problem(sentence(str(error) or repr(error)), fix)
