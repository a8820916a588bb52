"""The User Service client, which checks whether a user may order.

It is a small class; its policy is a value, and its metrics are in this module. From the inside out: a timeout, a few
tries within it, a concurrency limit, a breaker, one lookup in flight per user, and a cache.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from typing import Final, Self
from urllib.parse import quote, urlsplit

import stamina
import structlog
from msgspec import UNSET, MsgspecError, Struct, structs
from msgspec.json import Decoder
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr
from yarl import URL

from order_service.access_tokens import TIMEOUT_S, ClientCredentials, FileToken
from order_service.domain.decision import UserCheck
from order_service.errors import NoResponse, NoToken, ResponseTooLong, SetupError, UserServiceUnavailable
from order_service.http_client import TRACE_HEADERS, HttpClient, Reply, TokenSource, tls_context
from order_service.runtime.deadline import deadline
from order_service.settings import Settings
from order_service.users.breaker import Breaker, Clock, NoAnswers, Refusals, Slots, State, Unusable
from order_service.wire.trace_context import TRACEPARENT, exemplar_of

LOOKUPS = Counter(
    "orders_user_lookups",
    "User validations, by outcome; not_asked: the circuit breaker is open, or too many wait; cached: none was sent.",
    ["outcome"],
)
UNUSABLE = Counter("orders_user_answers_unusable", "Unusable answers about one user, by HTTP status.", ["status"])
SECONDS = Histogram("orders_user_lookup_seconds", "Duration of a lookup that was sent, with its retries.")
IN_FLIGHT = Gauge("orders_user_lookups_in_flight", "Lookups under way.")
BREAKER = Gauge("orders_user_breaker_state", "State of the circuit breaker: 0 closed, 1 half-open, 2 open.")

CACHED = LOOKUPS.labels("cached")
NO_ANSWER = LOOKUPS.labels("no_answer")
NOT_ASKED = LOOKUPS.labels("not_asked")  # the breaker is open, or too many wait
ANSWERED: dict[UserCheck, Counter] = {
    check: LOOKUPS.labels(check.value) for check in (UserCheck.ACTIVE, UserCheck.NOT_FOUND, UserCheck.NOT_ACTIVE)
}

BODY_MAX = 64 * 1024
UNSENDABLE = frozenset({"", ".", ".."})  # no URL can carry these as a segment, even quoted (RFC 3986, 5.2.4)
CREDENTIAL_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
SERVICE_STATUSES = frozenset(
    {
        *CREDENTIAL_REFUSED,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Statuses below 500 that concern the service, not one user."""
CREDENTIALS: Final = (
    "ORDERS_USER_SERVICE_TOKEN, ORDERS_USER_SERVICE_TOKEN_FILE, ORDERS_USER_SERVICE_OAUTH_TOKEN_URL, and a user name "
    "in USER_SERVICE_URL"
)
"""The ways to authenticate, of which at most one is set."""
UNUSABLE_LOG_EVERY_S = 60.0

log = structlog.get_logger()


class OAuthClient(Struct, frozen=True, kw_only=True):
    """How to get access tokens by the client credentials grant: the arguments of `ClientCredentials`."""

    token_url: str
    client_id: str
    client_secret: SecretStr
    scope: str = ""
    audience: str = ""
    in_body: bool = False


class CallPolicy(Struct, frozen=True, kw_only=True):
    """The policy of lookups. `total_s` bounds all tries of a lookup together, and separately the wait for a slot.

    It is time of the running event loop, in ticks of `TICK_S`: after a SIGSTOP, answers may be in the sockets, unread.

    `active` are the values of the field that mean an active user, case-folded. Raises SetupError for credentials that
    cannot work.
    """

    url: str
    path: str = "/v1/users/{id}"
    field: str = "status"
    active: frozenset[str] = frozenset({"active", "true"})
    not_found: frozenset[int] = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
    token: SecretStr = SecretStr("")
    token_file: Path | None = None
    oauth: OAuthClient | None = None
    ssl_context: SSLContext | None = None
    attempts: int = 3
    total_s: float = 2.0
    wait_initial_s: float = 0.05
    wait_max_s: float = 0.5
    concurrency: int = 256
    queue_max: int = 1024
    cache_s: float = 60.0
    negative_s: float = 5.0
    cache_max: int = 100_000
    breaker_users: int = 5
    breaker_silence_s: float = 5.0
    probe_every_s: float = 3.0

    def __post_init__(self) -> None:
        token = self.token.get_secret_value()
        if not (token.isascii() and token.isprintable()):
            raise SetupError("ORDERS_USER_SERVICE_TOKEN must be printable ASCII")
        if sum(map(bool, (token, self.token_file, self.oauth, urlsplit(self.url).username))) > 1:
            raise SetupError(f"only one of these must be set: {CREDENTIALS}")
        if self.probe_every_s <= self.total_s:
            raise ValueError(f"probes every {self.probe_every_s} s must be further apart than {self.total_s} s")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy with the values of the settings. The other fields have one good value."""
        return cls(
            url=settings.user_service_url,
            path=settings.user_service_path,
            field=settings.user_service_field,
            active=frozenset(settings.user_service_active.casefold().split(",")),
            not_found=frozenset(map(int, settings.user_service_not_found.split(","))),
            token=settings.user_service_token,
            token_file=settings.user_service_token_file,
            oauth=_oauth(settings),
            ssl_context=tls_context(
                "ORDERS_USER_SERVICE_SSL_",
                settings.user_service_ssl_cafile,
                settings.user_service_ssl_certfile,
                settings.user_service_ssl_keyfile,
            ),
            concurrency=settings.user_service_concurrency,
            cache_s=settings.user_cache_s,
        )

    def authorization(self) -> str | TokenSource:
        """Return the value of the `Authorization` header, empty without a credential, or a new source of tokens."""
        if self.token_file is not None:
            return FileToken(self.token_file)
        if self.oauth is not None:
            return ClientCredentials(
                self.oauth.token_url,
                self.oauth.client_id,
                self.oauth.client_secret.get_secret_value(),
                scope=self.oauth.scope,
                audience=self.oauth.audience,
                in_body=self.oauth.in_body,
                ssl_context=self.ssl_context,
            )
        token = self.token.get_secret_value()
        return f"Bearer {token}" if token else ""

    def once(self) -> Self:
        """Return the policy of a single request, with the time to get an access token before it."""
        token_s = 0.0 if self.oauth is None else TIMEOUT_S
        return structs.replace(
            self, attempts=1, total_s=self.total_s + token_s, probe_every_s=self.probe_every_s + token_s
        )

    @property
    def again_concurrency(self) -> int:
        """The concurrency of repeated lookups: a quarter, so that hanging users never block new ones."""
        return max(1, self.concurrency // 4)


def _oauth(settings: Settings) -> OAuthClient | None:
    """Return how to get access tokens, or None if nothing is set for it. Raises SetupError if only a part is set."""
    values = {
        "ORDERS_USER_SERVICE_OAUTH_TOKEN_URL": settings.user_service_oauth_token_url,
        "ORDERS_USER_SERVICE_OAUTH_CLIENT_ID": settings.user_service_oauth_client_id,
        "ORDERS_USER_SERVICE_OAUTH_CLIENT_SECRET": settings.user_service_oauth_client_secret.get_secret_value(),
    }
    options = {
        "ORDERS_USER_SERVICE_OAUTH_SCOPE": settings.user_service_oauth_scope,
        "ORDERS_USER_SERVICE_OAUTH_AUDIENCE": settings.user_service_oauth_audience,
    }
    missing = [name for name, value in values.items() if not value]
    used = [name for name, value in (values | options).items() if value]
    if not used:
        return None
    if missing:
        raise SetupError(f"{', '.join(used)} needs {' and '.join(missing)}")
    return OAuthClient(
        token_url=settings.user_service_oauth_token_url,
        client_id=settings.user_service_oauth_client_id,
        client_secret=settings.user_service_oauth_client_secret,
        scope=settings.user_service_oauth_scope,
        audience=settings.user_service_oauth_audience,
        in_body=settings.user_service_oauth_client_auth == "post",
    )


class UserApi:
    """One lookup over HTTP: a few tries within `total_s`."""

    def __init__(self, policy: CallPolicy) -> None:
        before, after = (policy.url + policy.path).split("{id}")
        self._url = before, after
        self._policy = policy
        self._user: Decoder[dict[str, object]] = Decoder(dict[str, object])
        self._retry = stamina.AsyncRetryingCaller(
            attempts=policy.attempts,
            timeout=policy.total_s,
            wait_initial=policy.wait_initial_s,
            wait_jitter=policy.wait_initial_s,
            wait_max=policy.wait_max_s,
        ).on(_again)
        self._http = HttpClient(
            timeout_s=None,  # `ask` has one for all tries together
            body_max_bytes=BODY_MAX,
            authorization=policy.authorization(),
            connections_max=policy.concurrency,
            ssl_context=policy.ssl_context,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def ask(self, user_id: str) -> UserCheck:
        """Try until there is an answer. Raises UserServiceUnavailable if no retry can help, or after `total_s`."""
        try:
            async with deadline(self._policy.total_s):
                return await self._tries(user_id)
        except TimeoutError as error:
            raise UserServiceUnavailable(f"no answer within {self._policy.total_s:g} s") from error

    async def _tries(self, user_id: str) -> UserCheck:
        """Try once without stamina, then retry with it: its bookkeeping costs 33 us, a lookup without it 200 us."""
        try:
            return await self._try(user_id)
        except UserServiceUnavailable as error:
            failed = [error]

        async def next_try() -> UserCheck:
            if failed:
                raise failed.pop()
            return await self._try(user_id)

        return await self._retry(next_try)

    async def _try(self, user_id: str) -> UserCheck:
        return self.check_of(await self.request(user_id))

    def url_of(self, user_id: str) -> URL:
        """Return the address of a user. No id leaves its segment of the path, and none raises, not even surrogates."""
        # `encoded`: yarl would decode what `quote` made and resolve `%2e%2e`.
        return URL(quote(user_id, safe="", errors="surrogatepass").join(self._url), encoded=True)

    async def request(self, user_id: str) -> Reply:
        """Send one request, without a limit of time. Raises UserServiceUnavailable if there is no response."""
        try:
            return await self._http.request("GET", self.url_of(user_id))
        except ResponseTooLong as error:
            raise _unusable(str(error)) from error
        except NoToken as error:  # it has retries of its own
            raise UserServiceUnavailable(str(error)) from error
        except NoResponse as error:
            raise UserServiceUnavailable(str(error), again=True) from error

    def check_of(self, reply: Reply) -> UserCheck:
        """Return what a response says about its user. Raises UserServiceUnavailable if it is not an answer."""
        if reply.status in self._policy.not_found:
            return UserCheck.NOT_FOUND
        if reply.status != HTTPStatus.OK:
            raise self._refusal(reply)
        is_active = self.value_of(reply).casefold() in self._policy.active
        return UserCheck.ACTIVE if is_active else UserCheck.NOT_ACTIVE

    def value_of(self, reply: Reply) -> str:
        """Return the value of the field in a body, a boolean as JSON has it. Raises UserServiceUnavailable."""
        try:
            value = _value(self._user.decode(reply.body), self._policy.field)
        except (MsgspecError, UnicodeError, RecursionError) as error:  # all that msgspec raises for bytes
            raise _unusable(f"{reply.summary}: the body is not a JSON object") from error
        if value is UNSET:
            raise _unusable(f"{reply.summary}: the field {self._policy.field} is missing")
        if isinstance(value, bool):
            return "true" if value else "false"
        if not isinstance(value, str):
            raise _unusable(f"{reply.summary}: the field {self._policy.field} is neither text nor true or false")
        return value

    def _refusal(self, reply: Reply) -> UserServiceUnavailable:
        """Return what a status means that is no answer: for the service, or for this user only."""
        is_of_user = reply.status < HTTPStatus.INTERNAL_SERVER_ERROR and reply.status not in SERVICE_STATUSES
        again = self._after(reply)
        return UserServiceUnavailable(reply.summary, again=again, status=reply.status, is_of_user=is_of_user)

    def _after(self, reply: Reply) -> float | bool:
        """Return whether a retry may help: Retry-After within `total_s`, in seconds, or a 5xx without Retry-After."""
        after = reply.retry_after
        if reply.status == HTTPStatus.TOO_MANY_REQUESTS or after:
            in_time = after.isdecimal() and len(after) < 5 and int(after) < self._policy.total_s
            return float(after) if in_time else False
        return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _value(user: dict[str, object], field: str) -> object:
    """Return the value of a field, or of a field of an object in it if the name has dots; UNSET if it is missing."""
    if field in user:
        return user[field]
    value: object = user
    for name in field.split("."):
        value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
    return value


def _again(error: Exception) -> float | bool:
    return isinstance(error, UserServiceUnavailable) and error.again


def _unusable(why: str) -> UserServiceUnavailable:
    """Return the UserServiceUnavailable for a status 200 whose body does not have the user's status."""
    return UserServiceUnavailable(why, status=HTTPStatus.OK, is_of_user=True)


class UserClient:
    """The client, used with `async with`. All functions in `on_breaker_closed` are called when the breaker closes."""

    def __init__(self, policy: CallPolicy, *, clock: Clock = time.monotonic) -> None:
        self.on_breaker_closed: list[Callable[[], None]] = []
        self._policy = policy
        self._clock = clock
        self._cache: OrderedDict[str, tuple[UserCheck, float]] = OrderedDict()
        self._flights: dict[str, asyncio.Task[UserCheck | UserServiceUnavailable]] = {}
        self._breaker = Breaker(
            users=policy.breaker_users,
            silence_s=policy.breaker_silence_s,
            probe_every_s=policy.probe_every_s,
            clock=clock,
        )
        self._refusals = Refusals(calm_s=policy.breaker_silence_s, clock=clock)
        self._no_answers = NoAnswers(clock=clock)
        self._unusable = Unusable(pause_s=UNUSABLE_LOG_EVERY_S, clock=clock)
        self._slots = Slots(policy.concurrency, queue_max=policy.queue_max, wait_s=policy.total_s)
        self._again = Slots(policy.again_concurrency, queue_max=policy.queue_max // 4, wait_s=policy.total_s)
        self._api: UserApi | None = None

    async def __aenter__(self) -> Self:
        self._api = UserApi(self._policy)
        BREAKER.set_function(lambda: self._breaker.state)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel all lookups in flight. Callers that wait for one get UserServiceUnavailable."""
        api, self._api = self._api, None
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        self._flights.clear()
        if api is not None:
            await api.close()

    @property
    def breaker(self) -> State:
        """The state of the breaker."""
        return self._breaker.state

    @property
    def problem(self) -> str | None:
        """Why we are not ready until an operator acts: our credential is refused. None without such a reason."""
        return self._refusals.reason

    @property
    def no_answer(self) -> str | None:
        """Why lookups have no usable answer, after the third in a row; None if they have."""
        return self._no_answers.reason

    @property
    def retry_capacity(self) -> int:
        """How many `check(again=True)` would be sent at once: 0 while the breaker refuses, 1 for a probe."""
        if self._breaker.refuses:
            return 0
        return self._again.free if self._breaker.state is State.CLOSED else min(1, self._again.free)

    def known(self, user_id: str) -> UserCheck | None:
        """Return the cached check of this user, or None, without a lookup: within a microsecond."""
        entry = self._cache.get(user_id)
        if entry is None or entry[1] <= self._clock():
            return None
        return entry[0]

    async def check(self, user_id: str, *, again: bool = False) -> UserCheck:
        """Return the check of this user, from the cache, the lookup in flight, or a new one.

        Cancelling a caller does not end the lookup. `again` is for users whose last lookup had no answer. Raises
        UserServiceUnavailable if there is no answer: retry later.
        """
        if user_id in UNSENDABLE:
            return UserCheck.NOT_FOUND
        check = self.known(user_id)
        if check is not None:
            CACHED.inc()
            return check
        flight = self._flights.get(user_id) or self._start(user_id, again=again)
        await asyncio.wait((flight,))
        if flight.cancelled():
            raise UserServiceUnavailable("the client was closed")
        answer = flight.result()
        if isinstance(answer, UserServiceUnavailable):
            raise UserServiceUnavailable(str(answer)) from answer
        return answer

    def _start(self, user_id: str, *, again: bool) -> asyncio.Task[UserCheck | UserServiceUnavailable]:
        if self._api is None:
            raise UserServiceUnavailable("the client is closed")
        if self._breaker.refuses:
            NOT_ASKED.inc()
            raise UserServiceUnavailable("the breaker is open")
        flight = asyncio.create_task(self._fly(self._api, user_id, again=again), name="user lookup")
        self._flights[user_id] = flight
        return flight

    async def _fly(self, api: UserApi, user_id: str, *, again: bool) -> UserCheck | UserServiceUnavailable:
        """Wait for a slot and look up. The error is returned, not raised: no caller may be left to catch it."""
        try:
            async with self._again if again else nullcontext(), self._slots:
                if self._breaker.admit():
                    return await self._look_up(api, user_id)
                no_answer = UserServiceUnavailable("the breaker is open")
        except UserServiceUnavailable as no_slot:
            no_answer = no_slot
        finally:
            self._flights.pop(user_id, None)
        NOT_ASKED.inc()
        return no_answer

    async def _look_up(self, api: UserApi, user_id: str) -> UserCheck | UserServiceUnavailable:
        """Send the lookup, and record its outcome."""
        IN_FLIGHT.inc()
        asked_at = self._clock()
        began_at = time.perf_counter()
        try:
            check = await api.ask(user_id)
        except UserServiceUnavailable as no_answer:
            self._note_no_answer(user_id, asked_at, no_answer)
            return no_answer
        finally:
            SECONDS.observe(time.perf_counter() - began_at, exemplar_of(TRACE_HEADERS.get().get(TRACEPARENT, "")))
            IN_FLIGHT.dec()
        self._note(user_id, check)
        return check

    def _note(self, user_id: str, check: UserCheck) -> None:
        ANSWERED[check].inc()
        keep_s = self._policy.cache_s if check is UserCheck.ACTIVE else self._policy.negative_s
        self._cache[user_id] = (check, self._clock() + keep_s)
        self._cache.move_to_end(user_id)
        if len(self._cache) > self._policy.cache_max:
            self._cache.popitem(last=False)
        if self._refusals.record_answer():
            log.info("The User Service accepts our credential again.")
        if self._no_answers.record_answer():
            log.info("The User Service gives usable answers again.")
        self._note_alive()

    def _note_alive(self) -> None:
        """Record that the service works. The breaker closes if it is open."""
        if self._breaker.record_answer():
            log.info("The User Service answers again; all lookups are sent.")
            for notify in self.on_breaker_closed:
                notify()

    def _refuses_credential(self, status: int) -> bool:
        """Return whether a status concerns our credential. If users ever had an answer, a 403 may concern one user."""
        may_concern_user = status == HTTPStatus.FORBIDDEN and self._no_answers.has_answered
        return status in CREDENTIAL_REFUSED and not may_concern_user

    def _note_no_answer(self, user_id: str, asked_at: float, no_answer: UserServiceUnavailable) -> None:
        NO_ANSWER.inc()
        why = str(no_answer)
        if self._refuses_credential(no_answer.status):
            if self._refusals.record_refusal(no_answer.status):
                log.error("The User Service refuses our credential; orders wait.", status=no_answer.status)
        elif self._no_answers.record_no_answer(user_id, asked_at, why):
            log.warning("The User Service gives no usable answer; orders wait.", why=why)
        if no_answer.is_of_user:
            UNUSABLE.labels(str(no_answer.status)).inc()
            counts = self._unusable.record(why)
            if counts is not None:
                log.warning(
                    "The User Service returns unusable answers about some users; their orders wait.", counts=counts
                )
            self._note_alive()
        elif self._breaker.record_failure(user_id, asked_at):
            log.warning("The User Service does not answer; lookups are paused except for one probe at a time.", why=why)
