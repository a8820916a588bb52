"""The check of the User Service: one request, as the workers send it."""

from http import HTTPStatus
from typing import Final

from order_service.errors import UserServiceUnavailable
from order_service.operations.doctor.checks.check import Result, address_of, ok, problem
from order_service.operations.user_check import fix_of
from order_service.settings import Settings
from order_service.users.client import CREDENTIAL_REFUSED, CallPolicy, UserApi

FIX: Final = "Correct USER_SERVICE_URL and the ORDERS_USER_SERVICE_… settings."
USER_ID: Final = "order-service-doctor"
"""The user that the User Service is asked about. It need not exist: any answer about it will do."""


def user_api(settings: Settings) -> UserApi:
    """Return the client of the workers, without its retries. Raises SetupError if its settings are invalid."""
    return UserApi(CallPolicy.from_settings(settings).once())


async def check_user_service(settings: Settings) -> list[Result]:
    """Look up a user as the workers do. Raises SetupError if the settings of the User Service are invalid."""
    api = user_api(settings)
    try:
        await api.ask(USER_ID)
    except UserServiceUnavailable as error:
        return [judge_no_answer(address_of(settings.user_service_url), error)]
    finally:
        await api.close()
    return [ok(f"{address_of(settings.user_service_url)} answers lookups, and accepts the credential.")]


def judge_no_answer(address: str, error: UserServiceUnavailable) -> Result:
    """Return what a lookup without an answer means. A 4xx about an unknown id shows a service that works."""
    if error.status in CREDENTIAL_REFUSED:
        return problem(f"{address} refuses the credential with status {error.status}; creates wait.", fix_of(error))
    if error.is_of_user and error.status >= HTTPStatus.BAD_REQUEST:
        return ok(f"{address} answers lookups, for an unknown id with status {error.status}.")
    if error.is_of_user:
        return problem(f"{address} answers a lookup, but not as expected: {error}.", fix_of(error))
    return problem(
        f"{address} gives no answer: {error}; creates wait.",
        f"{fix_of(error)} Waiting creates are decided when it answers.",
    )
