"""The schema registry client. A registry assigns its own ids to our schemas; other programs read our topics by them.

It speaks the Confluent Schema Registry API, which Apicurio also serves (under `/apis/ccompat/v7`). Without
`SCHEMA_REGISTRY_URL`, this module is unused. With it, we write with the registry's ids, and look up unknown ids. Their
records are decoded if the schema is ours, or a later version of it.

An id is looked up before anything is written. A compatibility level that is set is never changed.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct

from order_service.access_tokens import ClientCredentials, FileToken
from order_service.errors import (
    NoResponse,
    NoResponseInTime,
    NoToken,
    RegistryAwayError,
    RegistryDeniedError,
    ResponseTooLong,
    SchemaError,
)
from order_service.http_client import HttpClient, Reply, TokenSource, tls_context
from order_service.runtime.library_logger import library_logger
from order_service.settings import Settings, pairs
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Message, Schema

log = library_logger("order_service.registry")

COMPATIBILITY: Final = "FULL_TRANSITIVE"
"""The level that our subjects need: a released schema is compatible with all earlier ones in its subject. It is the
strictest level."""
DEFAULT_LEVELS: Final = frozenset({None, "BACKWARD", "NONE"})
"""The global levels that registries have by default: `BACKWARD` in Confluent's, Karapace and Redpanda; `NONE`, or no
level, in Apicurio."""
TYPE: Final = "application/vnd.schemaregistry.v1+json"
BODY_MAX: Final = 1024 * 1024
REFUSED: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED})
REGISTERS: Final = "`ORDERS_SCHEMA_REGISTRY_REGISTER=true order-service schemas register`"
"""The command that registers, whatever the setting of the environment."""
AT_ONCE: Final = 16
"""How many ids are looked up at the same time."""
UNKNOWN_S: Final = 30.0
"""How long an id that gave no schema of this service is not looked up again."""
UNKNOWN_MAX: Final = 10_000
"""How many such ids are remembered."""
IDS_MAX: Final = 1_000
"""How many ids are looked up for one run of records."""
PATIENCE_S: Final = 60.0
"""How long a registry may be away before records with unknown ids become dead letters."""
PAUSE_S: Final = 1.0
RETRY_S: Final = 2.0
"""How long a process that cannot start without the registry waits between two tries."""

TopicOf = Callable[[type[Message]], str]


class RegistryPolicy(Struct, frozen=True, kw_only=True):
    """The policy of requests: `try_s` bounds each try, and another try follows each of the waits.

    Several URLs are tried in turn, without a wait before a URL that was not tried yet. `authorization` makes the value
    of that header (by default none), or a source of tokens. Without `registers`, nothing is ever written.
    """

    urls: tuple[str, ...]
    authorization: Callable[[], str | TokenSource] = str
    headers: dict[str, str] = {}
    ssl_context: SSLContext | None = None
    registers: bool = True
    try_s: float = 2.0
    waits_s: tuple[float, ...] = (0.1, 0.3)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy of the settings. Raises SetupError for a certificate that cannot be used."""
        ssl_context = tls_context(
            "ORDERS_SCHEMA_REGISTRY_SSL_",
            settings.schema_registry_ssl_cafile,
            settings.schema_registry_ssl_certfile,
            settings.schema_registry_ssl_keyfile,
        )
        return cls(
            urls=settings.schema_registry_urls,
            authorization=lambda: _authorization(settings, ssl_context),
            headers=pairs(settings.schema_registry_headers.get_secret_value()),
            ssl_context=ssl_context,
            registers=settings.schema_registry_register,
        )


def _authorization(settings: Settings, ssl_context: SSLContext | None) -> str | TokenSource:
    if settings.schema_registry_oauth_token_url:
        return ClientCredentials(
            settings.schema_registry_oauth_token_url,
            settings.schema_registry_oauth_client_id,
            settings.schema_registry_oauth_client_secret.get_secret_value(),
            scope=settings.schema_registry_oauth_scope,
            audience=settings.schema_registry_oauth_audience,
            in_body=settings.schema_registry_oauth_client_auth == "post",
            ssl_context=ssl_context,
        )
    if settings.schema_registry_token_file is not None:
        return FileToken(settings.schema_registry_token_file)
    if token := settings.schema_registry_token.get_secret_value():
        return f"Bearer {token}"
    if username := settings.schema_registry_username:
        return aiohttp.encode_basic_auth(username, settings.schema_registry_password.get_secret_value())
    return ""


class _Response(Struct):
    """The fields that we use of any response."""

    id: int | None = None
    schema: str | None = None
    schemaType: str = "AVRO"  # noqa: N815 - the API's name
    references: list[Any] = []
    compatibilityLevel: str | None = None  # noqa: N815
    error_code: int | None = None
    message: str = ""


class SchemaRegistry:
    """A client, used with `async with`. Requests raise RegistryAwayError without an answer, SchemaError if refused.

    It stays with the URL that answered last, and tries the next URL when that one fails.
    """

    def __init__(self, policy: RegistryPolicy) -> None:
        self.registers = policy.registers
        self._policy = policy
        self._index = 0
        self._http: HttpClient | None = None

    @property
    def url(self) -> str:
        """The URL to ask next."""
        return self._policy.urls[self._index]

    async def __aenter__(self) -> Self:
        self._http = HttpClient(
            timeout_s=self._policy.try_s,
            body_max_bytes=BODY_MAX,
            authorization=self._policy.authorization(),
            headers={"Accept": f"{TYPE}, application/json", "Content-Type": TYPE, **self._policy.headers},
            reads_errors=True,
            ssl_context=self._policy.ssl_context,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def id_of(self, subject: str, text: str) -> int | None:
        """Return the id of a schema in a subject, or None if the subject does not have it."""
        return (await self._ask("POST", f"/subjects/{_quoted(subject)}", {"schema": text})).id

    async def register(self, subject: str, text: str) -> int:
        """Add a schema to a subject unless it is there, and return its id."""
        response = await self._ask("POST", f"/subjects/{_quoted(subject)}/versions", {"schema": text})
        if response.id is None:
            raise SchemaError(f"the schema registry at {self.url} accepted {subject} but returned no id")
        return response.id

    async def text_of(self, schema_id: int) -> str | None:
        """Return the schema of an id, or None if it does not exist, is not Avro, or references other schemas."""
        response = await self._ask("GET", f"/schemas/ids/{schema_id}")
        return response.schema if response.schemaType == "AVRO" and not response.references else None

    async def compatibility(self, subject: str) -> str | None:
        """Return the compatibility level in effect for a subject, or None without levels."""
        level = (await self._ask("GET", f"/config/{_quoted(subject)}?defaultToGlobal=true")).compatibilityLevel
        return level or await self.global_compatibility()

    async def own_compatibility(self, subject: str) -> str | None:
        """Return the compatibility level that is set for a subject, or None."""
        return (await self._ask("GET", f"/config/{_quoted(subject)}")).compatibilityLevel

    async def global_compatibility(self) -> str | None:
        """Return the compatibility level of subjects without one, or None without levels."""
        return (await self._ask("GET", "/config")).compatibilityLevel

    async def set_compatibility(self, subject: str, level: str) -> None:
        """Set the compatibility level of a subject: what a new version may change."""
        await self._ask("PUT", f"/config/{_quoted(subject)}", {"compatibility": level})

    async def _ask(self, method: str, path: str, body: object = None) -> _Response:
        urls, waits_s = self._policy.urls, self._policy.waits_s
        first, last_try = self._index, max(len(urls), len(waits_s) + 1)
        faults: dict[str, str] = {}
        number = 0
        while True:
            index = (first + number) % len(urls)
            number += 1
            try:
                return await self._try(index, method, path, body)
            except RegistryAwayError as error:
                faults[urls[index]] = str(error)
                self._index = (index + 1) % len(urls)
                if number == last_try:
                    raise type(error)("; ".join(faults.values())) from error
            if number % len(urls) == 0:
                await asyncio.sleep(waits_s[number // len(urls) - 1])

    async def _try(self, index: int, method: str, path: str, body: object) -> _Response:
        """Ask at one URL."""
        if self._http is None:
            raise RegistryAwayError("the schema registry client is closed")
        url = self._policy.urls[index]
        data = None if body is None else msgspec.json.encode(body)
        try:
            reply = await self._http.request(method, url + path, data)
        except asyncio.CancelledError:  # because it takes too long: the next request begins at the next URL
            self._index = (index + 1) % len(self._policy.urls)
            raise
        except NoResponseInTime as error:
            raise RegistryAwayError(f"the schema registry at {url} does not answer in time") from error
        except ResponseTooLong as error:
            raise RegistryAwayError(f"the schema registry at {url} returned too much: {error}") from error
        except NoToken as error:
            raise RegistryAwayError(f"the schema registry at {url} is not asked: {error}") from error
        except NoResponse as error:
            raise RegistryAwayError(f"no schema registry answers at {url}: {error}") from error
        self._index = index
        return _read(url, f"{method} {path}", reply)


def _read(url: str, request: str, reply: Reply) -> _Response:
    try:
        response = msgspec.json.decode(reply.body, type=_Response)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RegistryAwayError(f"the server at {url} is not a schema registry ({reply.summary})") from error
    status = reply.status
    if status == HTTPStatus.OK:
        return response
    if status == HTTPStatus.NOT_FOUND and response.error_code is not None:
        return _Response()
    result = f"{request}: status {status} {_line(response.message)}".rstrip()
    if status in REFUSED and not request.startswith("GET"):
        raise SchemaError(f"the schema registry at {url} refuses {result}")
    if status in DENIED:
        raise RegistryDeniedError(f"the schema registry at {url} denies access: {result}: {_cure(request)}")
    raise RegistryAwayError(f"the schema registry at {url} returned an error: {result}")


def _cure(request: str) -> str:
    if request.startswith("POST") and request.endswith("/versions"):
        return f"run {REGISTERS} with an account that may register"
    return "set ORDERS_SCHEMA_REGISTRY_USERNAME and …_PASSWORD, …_TOKEN or …_OAUTH_… of an account with access"


def _quoted(subject: str) -> str:
    return quote(subject, safe="")


def _line(message: str) -> str:
    """Return a message as one line of up to 300 characters, for a log or a terminal."""
    return "".join(character if character.isprintable() else " " for character in message)[:300].strip()


async def register(registry: SchemaRegistry, schema: Schema, topic_of: TopicOf) -> int:
    """Return the id of a released schema in the registry, and register it if the registry lacks it.

    Raises SchemaError if it is lacking and must not be registered.
    """
    subject = schema.subject(topic_of(schema.message))
    schema_id = await registry.id_of(subject, schema.text)
    if schema_id is not None:
        return schema_id
    if not registry.registers:
        raise SchemaError(
            f"the schema registry at {registry.url} lacks {schema.file} in the subject {subject}, and "
            f"ORDERS_SCHEMA_REGISTRY_REGISTER is false: run {REGISTERS} with an account that may register"
        )
    await _set_compatibility(registry, subject)
    schema_id = await registry.register(subject, schema.text)
    log.info("Schema registered.", subject=subject, version=schema.version, schema_id=schema_id)
    return schema_id


async def _set_compatibility(registry: SchemaRegistry, subject: str) -> None:
    """Make a subject refuse later versions that break readers, unless its level or the global one was set.

    Registering goes on without it: an account may be allowed to register and not to set levels.
    """
    try:
        if await registry.own_compatibility(subject) is not None:
            return
        if await registry.global_compatibility() in DEFAULT_LEVELS:
            await registry.set_compatibility(subject, COMPATIBILITY)
    except (SchemaError, RegistryDeniedError) as error:
        log.warning("The compatibility of a subject was not set.", subject=subject, why=str(error))


async def weak_levels(registry: SchemaRegistry, topic_of: TopicOf, catalogue: Catalogue = SCHEMAS) -> dict[str, str]:
    """Return the subjects whose compatibility level is weaker than needed, with it.

    A level that this account may not see is left out.
    """
    subjects = {schema.subject(topic_of(schema.message)) for schema in catalogue.released}
    levels = {subject: await visible_level(registry, subject) for subject in sorted(subjects)}
    return {subject: level for subject, level in levels.items() if level and level != COMPATIBILITY}


async def visible_level(registry: SchemaRegistry, subject: str) -> str | None:
    """Return the compatibility level in effect for a subject, or None if this account may not see it."""
    try:
        return await registry.compatibility(subject)
    except RegistryDeniedError:
        return None


async def adopt(registry: SchemaRegistry, topic_of: TopicOf, catalogue: Catalogue = SCHEMAS) -> None:
    """Write with the registry's ids of all released schemas from now on; register those that it lacks."""
    for schema in catalogue.released:
        catalogue.adopt(schema.file, await register(registry, schema, topic_of))
    try:
        levels = await weak_levels(registry, topic_of, catalogue)
    except RegistryAwayError as error:
        log.warning("Schema compatibility was not compared.", why=str(error))
        return
    if levels:
        subjects = [f"{subject} {level}" for subject, level in levels.items()]
        log.warning("Schema compatibility is weaker than required.", required=COMPATIBILITY, subjects=subjects)


async def adopt_when_available(
    settings: Settings, topic_of: TopicOf, notify: Callable[[str], None], retry_s: float = RETRY_S
) -> None:
    """Wait for the registry, if one is set, and adopt its ids. `notify` gets each new reason to wait."""
    client = registry_of(settings)
    if client is None:
        return
    async with client as registry:
        last = ""
        while True:
            try:
                await adopt(registry, topic_of)
            except (RegistryAwayError, SchemaError) as error:
                if str(error) != last:
                    notify(str(error))
                last = str(error)
                await asyncio.sleep(retry_s)
            else:
                return


def registry_of(settings: Settings) -> SchemaRegistry | None:
    """Return the client of SCHEMA_REGISTRY_URL, or None if it is not set."""
    return SchemaRegistry(RegistryPolicy.from_settings(settings)) if settings.schema_registry_url else None


class Ids:
    """Looks up schema ids of records that a catalogue lacks; used with `async with`. No lookups without a registry."""

    def __init__(
        self, registry: SchemaRegistry | None, catalogue: Catalogue = SCHEMAS, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._patience_s = patience_s
        self._away_since = math.inf
        self._unknown: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        if self._registry is not None:
            await self._registry.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._registry is not None:
            await self._registry.__aexit__()

    async def learn(self, values: Iterable[bytes | None]) -> None:
        """Look up the schemas of these values, so that they can be decoded. Raises RegistryAwayError."""
        failure = await self._ask(self._new(values))
        if failure is not None:
            raise failure

    def are_known(self, values: Iterable[bytes | None]) -> bool:
        """Return whether these values can be decoded without a lookup."""
        return not self._new(values)

    async def learn_patiently(self, values: Iterable[bytes | None]) -> None:
        """Look up the schemas of these values, each id until the registry answers or `patience_s` has passed.

        A registry that has been away for so long is queried once for each new id. An id that stays unknown is decoded
        as an unknown schema.
        """
        missing, began_at = self._new(values), time.monotonic()
        while missing and (failure := await self._ask(missing)) is not None:
            now = time.monotonic()
            self._away_since = min(self._away_since, now)
            log.warning("Schema registry lookup failed.", why=str(failure))
            if now - min(self._away_since, began_at) >= self._patience_s:
                for schema_id in missing:
                    self._remember(schema_id)
                return
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, missing: set[int]) -> RegistryAwayError | None:
        """Look up these ids, and remove those with an answer from the set. Return why others have no answer."""
        failure = None
        ids = sorted(missing)
        for chunk in (ids[begin : begin + AT_ONCE] for begin in range(0, len(ids), AT_ONCE)):
            errors = await asyncio.gather(*map(self._look_up, chunk), return_exceptions=True)
            for schema_id, error in zip(chunk, errors, strict=True):
                if error is None:
                    missing.discard(schema_id)
                elif isinstance(error, RegistryAwayError):
                    failure = error
                else:
                    raise error
            if failure is not None and missing.issuperset(chunk):
                break  # no id of this chunk was answered
        return failure

    async def _look_up(self, schema_id: int) -> None:
        text = None if self._registry is None else await self._registry.text_of(schema_id)
        self._away_since = math.inf
        if text is not None and self._catalogue.learn(schema_id, text):
            log.info("Schema looked up.", schema_id=schema_id)
        else:
            self._remember(schema_id)

    def _new(self, values: Iterable[bytes | None]) -> set[int]:
        """Return the ids to look up, `IDS_MAX` at most: a run of arbitrary bytes can look like any number of ids."""
        if self._registry is None:
            return set()
        known, now = self._catalogue.by_id, time.monotonic()
        ids = {int.from_bytes(value[1:5], "big") for value in values if value and value[0] == 0 and len(value) > 4}
        new = {schema_id for schema_id in ids - known.keys() - self._catalogue.new_types if 0 < schema_id < 2**31}
        due = (schema_id for schema_id in new if self._unknown.get(schema_id, 0.0) <= now)
        return set(itertools.islice(due, IDS_MAX))

    def _remember(self, schema_id: int) -> None:
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[schema_id] = time.monotonic() + UNKNOWN_S
