"""Asks the User Service about one user, once, and explains the answer: for `order-service users check`."""

import asyncio
import time
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from order_service.domain.decision import UserCheck
from order_service.domain.refusals import Reason
from order_service.errors import NoToken, UserServiceUnavailable
from order_service.http_client import Reply
from order_service.settings import NOT_FOUND_STATUSES, Settings
from order_service.users.client import CREDENTIAL_REFUSED, UNSENDABLE, CallPolicy, UserApi

NO_ANSWER: Final = "no_answer"
TEXT_MAX: Final = 200
FIELDS_MAX: Final = 20
FIX_CREDENTIAL: Final = "Correct the credential: ORDERS_USER_SERVICE_TOKEN, …_TOKEN_FILE or …_OAUTH_CLIENT_SECRET."


class Explanation(Struct, frozen=True, kw_only=True):
    """What the User Service answers about a user, and what that means for a create of that user.

    `status` and `took_ms` are null without a response. `value` is null without the field, and `fields` are then those
    that are there. `check` is a `UserCheck`, or `no_answer` with its `reason`. `fix` says what to do if this is not
    what the caller expected.
    """

    user_id: str
    request: str
    credential: str
    status: int | None = None
    took_ms: int | None = None
    field: str
    value: str | None = None
    fields: tuple[str, ...] = ()
    check: str = NO_ANSWER
    reason: str = ""
    create: str
    fix: str = ""


async def check_user(settings: Settings, user_id: str) -> Explanation:
    """Send one lookup, as a worker does. Raises SetupError if the settings of the User Service do not fit together."""
    policy = CallPolicy.from_settings(settings).once()
    api = UserApi(policy)
    try:
        if user_id in UNSENDABLE:
            return _explain(settings, policy, api, user_id, UserCheck.NOT_FOUND)
        asked_at = time.monotonic()
        reply = await _request(api, policy, user_id)
        took_ms = round((time.monotonic() - asked_at) * 1000)
        if isinstance(reply, UserServiceUnavailable):
            return _explain(settings, policy, api, user_id, reply)
        return _explain(settings, policy, api, user_id, _check(api, reply), reply, took_ms)
    finally:
        await api.close()


async def _request(api: UserApi, policy: CallPolicy, user_id: str) -> Reply | UserServiceUnavailable:
    try:
        async with asyncio.timeout(policy.total_s):
            return await api.request(user_id)
    except UserServiceUnavailable as error:
        return error
    except TimeoutError:
        return UserServiceUnavailable(f"no answer within {policy.total_s:g} s")


def _check(api: UserApi, reply: Reply) -> UserCheck | UserServiceUnavailable:
    try:
        return api.check_of(reply)
    except UserServiceUnavailable as error:
        return error


def _explain(
    settings: Settings,
    policy: CallPolicy,
    api: UserApi,
    user_id: str,
    check: UserCheck | UserServiceUnavailable,
    reply: Reply | None = None,
    took_ms: int | None = None,
) -> Explanation:
    has_value = reply is not None and check in {UserCheck.ACTIVE, UserCheck.NOT_ACTIVE}
    return Explanation(
        user_id=user_id,
        request=_address(api, user_id),
        credential=_credential(policy),
        status=None if reply is None else reply.status,
        took_ms=took_ms,
        field=policy.field,
        value=api.value_of(reply)[:TEXT_MAX] if reply is not None and has_value else None,
        fields=() if reply is None or has_value else _fields(reply),
        check=check.value if isinstance(check, UserCheck) else NO_ANSWER,
        reason="" if isinstance(check, UserCheck) else str(check),
        create=_create(check, settings),
        fix=_fix_of_check(check) if isinstance(check, UserCheck) else fix_of(check),
    )


def _fields(reply: Reply) -> tuple[str, ...]:
    """Return the names of the fields of a body with status 200, or an empty tuple if it is not a JSON object."""
    try:
        names = list(msgspec.json.decode(reply.body, type=dict[str, msgspec.Raw]) if reply.body else ())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # all that msgspec raises for bytes
        return ()
    return tuple(name[:TEXT_MAX] for name in names[:FIELDS_MAX])


def _address(api: UserApi, user_id: str) -> str:
    """Return the address of a lookup without credentials and without its query, which may hold a key."""
    if user_id in UNSENDABLE:
        return "none: no URL can carry this id"
    url = api.url_of(user_id).with_user(None)
    return f"GET {url.with_query(None)}" + ("?…" if url.raw_query_string else "")


def _credential(policy: CallPolicy) -> str:
    """Return how a lookup authenticates, without the secret."""
    if policy.token_file is not None:
        return f"bearer token of {policy.token_file}"
    if policy.oauth is not None:
        return f"access token of {urlsplit(policy.oauth.token_url).netloc} for client {policy.oauth.client_id}"
    if policy.token.get_secret_value():
        return "bearer token"
    return "none" if urlsplit(policy.url).username is None else "user name and password of USER_SERVICE_URL"


def _create(check: UserCheck | UserServiceUnavailable, settings: Settings) -> str:
    """Return what happens to a create of this user."""
    match check:
        case UserCheck.ACTIVE:
            return "accepted"
        case UserCheck.NOT_FOUND:
            return f"refused: {Reason.USER_NOT_FOUND}"
        case UserCheck.NOT_ACTIVE:
            return f"refused: {Reason.USER_NOT_ACTIVE}"
        case _:
            return (
                f"waits, and the lookup is repeated; refused after {settings.user_deadline_s:g} s: "
                f"{Reason.USER_CHECK_TIMED_OUT}"
            )


def _fix_of_check(check: UserCheck) -> str:
    match check:
        case UserCheck.NOT_FOUND:
            return "If the user exists, correct USER_SERVICE_URL and ORDERS_USER_SERVICE_PATH."
        case UserCheck.NOT_ACTIVE:
            return "If this value means that the user may order, add it to ORDERS_USER_SERVICE_ACTIVE."
        case _:
            return ""


def fix_of(error: UserServiceUnavailable) -> str:
    """Return what to do about a lookup without an answer."""
    if error.status in CREDENTIAL_REFUSED or isinstance(error.__cause__, NoToken):
        return FIX_CREDENTIAL
    if error.status == HTTPStatus.OK:
        return "Correct USER_SERVICE_URL, ORDERS_USER_SERVICE_PATH and ORDERS_USER_SERVICE_FIELD."
    if HTTPStatus.MULTIPLE_CHOICES <= error.status < HTTPStatus.BAD_REQUEST:
        return "Correct USER_SERVICE_URL and ORDERS_USER_SERVICE_PATH: a redirect is not followed."
    if str(error.status) in NOT_FOUND_STATUSES:
        return (
            "Correct ORDERS_USER_SERVICE_PATH. If this status means that the user does not exist, add it to "
            "ORDERS_USER_SERVICE_NOT_FOUND."
        )
    if error.status:
        return "Repair the User Service."
    return "Start the User Service, or correct USER_SERVICE_URL and the ORDERS_USER_SERVICE_SSL_… settings."
