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
from typing import Self
from urllib.parse import quote, urlsplit

import stamina
import structlog
from msgspec import MsgspecError, Struct
from msgspec.json import Decoder
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr
from yarl import URL

from order_service.domain.decision import UserCheck
from order_service.errors import NoResponse, ResponseTooLong, UserServiceUnavailable
from order_service.http_client import HttpClient, Reply
from order_service.settings import Settings
from order_service.users.breaker import Breaker, Clock, Refusals, Slots, State, Unusable

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
UNUSABLE_LOG_EVERY_S = 60.0

log = structlog.get_logger()


class CallPolicy(Struct, frozen=True, kw_only=True):
    """The policy of lookups. `total_s` bounds all tries of a lookup together, and separately the wait for a slot."""

    url: str
    path: str = "/v1/users/{id}"
    field: str = "status"
    token: SecretStr = SecretStr("")
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
        if not (token.isascii() and token.isprintable()) or (token and urlsplit(self.url).username):
            raise ValueError("the token must be printable ASCII, and the URL must not hold a user name beside it")
        if self.probe_every_s <= self.total_s:
            raise ValueError(f"probes every {self.probe_every_s} s must be further apart than {self.total_s} s")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy with the values of the settings. The other fields have one good value."""
        return cls(
            url=settings.user_service_url,
            path=settings.user_service_path,
            field=settings.user_service_field,
            token=settings.user_service_token,
            concurrency=settings.user_service_concurrency,
            cache_s=settings.user_cache_s,
        )

    @property
    def again_concurrency(self) -> int:
        """The concurrency of repeated lookups: a quarter, so that hanging users never block new ones."""
        return max(1, self.concurrency // 4)


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
        token = policy.token.get_secret_value()
        self._http = HttpClient(
            timeout_s=None,  # `ask` has one for all tries together
            body_max_bytes=BODY_MAX,
            authorization=f"Bearer {token}" if token else "",
            connections_max=policy.concurrency,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def ask(self, user_id: str) -> UserCheck:
        """Try until there is an answer. Raises UserServiceUnavailable if no retry can help, or after `total_s`."""
        try:
            async with asyncio.timeout(self._policy.total_s):
                return await self._tries(user_id)
        except TimeoutError as error:
            raise UserServiceUnavailable("no answer in time") from error

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
        # `encoded`: yarl would decode what `quote` made and resolve `%2e%2e`. Surrogates pass: no id may raise here.
        url = URL(quote(user_id, safe="", errors="surrogatepass").join(self._url), encoded=True)
        try:
            reply = await self._http.request("GET", url)
        except ResponseTooLong as error:
            raise _unusable(str(error)) from error
        except NoResponse as error:
            raise UserServiceUnavailable(str(error), again=True) from error
        if reply.status == HTTPStatus.NOT_FOUND:
            return UserCheck.NOT_FOUND
        if reply.status != HTTPStatus.OK:
            raise self._refusal(reply)
        return self._read(reply.body)

    def _read(self, body: bytes) -> UserCheck:
        try:
            status = self._user.decode(body).get(self._policy.field)
        except (MsgspecError, UnicodeError, RecursionError) as error:  # all that msgspec raises for bytes
            raise _unusable("the body is not a JSON object") from error
        if isinstance(status, bool):
            return UserCheck.ACTIVE if status else UserCheck.NOT_ACTIVE
        if not isinstance(status, str):
            raise _unusable("the body lacks the field, or it is neither text nor a boolean")
        return UserCheck.ACTIVE if status.casefold() == "active" else UserCheck.NOT_ACTIVE

    def _refusal(self, reply: Reply) -> UserServiceUnavailable:
        """Return what a status other than 200 and 404 means: for the service, or for this user only."""
        is_of_user = reply.status < HTTPStatus.INTERNAL_SERVER_ERROR and reply.status not in SERVICE_STATUSES
        again = self._after(reply)
        return UserServiceUnavailable(f"status {reply.status}", again=again, status=reply.status, is_of_user=is_of_user)

    def _after(self, reply: Reply) -> float | bool:
        """Return whether a retry may help: Retry-After within `total_s`, in seconds, or a 5xx without Retry-After."""
        after = reply.retry_after
        if reply.status == HTTPStatus.TOO_MANY_REQUESTS or after:
            in_time = after.isdecimal() and len(after) < 5 and int(after) < self._policy.total_s
            return float(after) if in_time else False
        return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR


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
        try:
            with SECONDS.time():
                check = await api.ask(user_id)
        except UserServiceUnavailable as no_answer:
            self._note_no_answer(user_id, asked_at, no_answer)
            return no_answer
        finally:
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
        self._note_alive()

    def _note_alive(self) -> None:
        """Record that the service works. The breaker closes if it is open."""
        if self._breaker.record_answer():
            log.info("The User Service answers again; all lookups are sent.")
            for notify in self.on_breaker_closed:
                notify()

    def _note_no_answer(self, user_id: str, asked_at: float, no_answer: UserServiceUnavailable) -> None:
        NO_ANSWER.inc()
        if no_answer.is_of_user:
            UNUSABLE.labels(str(no_answer.status)).inc()
            counts = self._unusable.record(no_answer.status)
            if counts is not None:
                log.warning(
                    "The User Service returns unusable answers about some users; their orders wait.", counts=counts
                )
            self._note_alive()
            return
        if no_answer.status in CREDENTIAL_REFUSED and self._refusals.record_refusal(no_answer.status):
            log.error("The User Service refuses our credential; orders wait.", status=no_answer.status)
        if self._breaker.record_failure(user_id, asked_at):
            log.warning(
                "The User Service does not answer; lookups are paused except for one probe at a time.",
                why=str(no_answer),
            )
