"""The schema registry client. A registry assigns its own ids to our schemas; other programs read our topics by them.

It speaks the Confluent Schema Registry API, which Apicurio also serves (under `/apis/ccompat/v7`). Without
`SCHEMA_REGISTRY_URL`, this module is unused. With it, we write with the registry's ids, and look up unknown ids. Their
records are decoded if the schema is ours, or a later version of it.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct
from pydantic import SecretStr

from order_service.errors import NoResponse, NoResponseInTime, RegistryAwayError, ResponseTooLong, SchemaError
from order_service.http_client import HttpClient
from order_service.runtime.library_logger import library_logger
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Message, Schema

log = library_logger("order_service.registry")

COMPATIBILITY: Final = "FULL_TRANSITIVE"
"""The compatibility level of our subjects: a released schema is compatible with all earlier ones in its subject."""
TYPE: Final = "application/vnd.schemaregistry.v1+json"
BODY_MAX: Final = 1024 * 1024
REFUSED: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
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
    """The policy of requests: `try_s` bounds each try, and another try follows each of the waits."""

    url: str
    username: str = ""
    password: SecretStr = SecretStr("")
    try_s: float = 2.0
    waits_s: tuple[float, ...] = (0.1, 0.3)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy with the URL and the credentials of the settings."""
        return cls(
            url=settings.schema_registry_url,
            username=settings.schema_registry_username,
            password=settings.schema_registry_password,
        )


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
    """A client, used with `async with`. Requests raise RegistryAwayError without an answer, SchemaError if refused."""

    def __init__(self, policy: RegistryPolicy) -> None:
        self.url = policy.url
        self._policy = policy
        self._http: HttpClient | None = None

    async def __aenter__(self) -> Self:
        username, password = self._policy.username, self._policy.password.get_secret_value()
        self._http = HttpClient(
            timeout_s=self._policy.try_s,
            body_max_bytes=BODY_MAX,
            authorization=aiohttp.encode_basic_auth(username, password) if username else "",
            headers={"Accept": f"{TYPE}, application/json", "Content-Type": TYPE},
            reads_errors=True,
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
        """Return the compatibility level of a subject, or None if it is not set."""
        return (await self._ask("GET", f"/config/{_quoted(subject)}")).compatibilityLevel

    async def set_compatibility(self, subject: str, level: str) -> None:
        """Set the compatibility level of a subject: what a new version may change."""
        await self._ask("PUT", f"/config/{_quoted(subject)}", {"compatibility": level})

    async def _ask(self, method: str, path: str, body: object = None) -> _Response:
        for wait_s in self._policy.waits_s:
            try:
                return await self._try(method, path, body)
            except RegistryAwayError:
                await asyncio.sleep(wait_s)
        return await self._try(method, path, body)

    async def _try(self, method: str, path: str, body: object) -> _Response:
        if self._http is None:
            raise RegistryAwayError("the schema registry client is closed")
        data = None if body is None else msgspec.json.encode(body)
        try:
            reply = await self._http.request(method, self.url + path, data)
        except NoResponseInTime as error:
            raise RegistryAwayError(f"the schema registry at {self.url} does not answer in time") from error
        except ResponseTooLong as error:
            raise RegistryAwayError(f"the schema registry at {self.url} returned too much: {error}") from error
        except NoResponse as error:
            kind = type(error.__cause__).__name__
            raise RegistryAwayError(f"no schema registry answers at {self.url} ({kind})") from error
        return self._read(f"{method} {path}", reply.status, reply.body)

    def _read(self, request: str, status: int, body: bytes) -> _Response:
        try:
            response = msgspec.json.decode(body, type=_Response)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RegistryAwayError(f"the server at {self.url} is not a schema registry (status {status})") from error
        if status == HTTPStatus.OK:
            return response
        if status == HTTPStatus.NOT_FOUND and response.error_code is not None:
            return _Response()
        result = f"{request}: status {status} {_line(response.message)}".rstrip()
        if status in REFUSED and not request.startswith("GET"):
            raise SchemaError(f"the schema registry at {self.url} refuses {result}")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            cure = "set ORDERS_SCHEMA_REGISTRY_USERNAME and …_PASSWORD of an account with access"
            raise RegistryAwayError(f"the schema registry at {self.url} denies access: {result}: {cure}")
        raise RegistryAwayError(f"the schema registry at {self.url} returned an error: {result}")


def _quoted(subject: str) -> str:
    return quote(subject, safe="")


def _line(message: str) -> str:
    """Return a message as one line of up to 300 characters, for a log or a terminal."""
    return "".join(character if character.isprintable() else " " for character in message)[:300].strip()


async def register(registry: SchemaRegistry, schema: Schema, topic_of: TopicOf) -> int:
    """Register a released schema, and return its id. Set its subject to refuse incompatible later versions."""
    subject = schema.subject(topic_of(schema.message))
    if await registry.compatibility(subject) != COMPATIBILITY:
        await registry.set_compatibility(subject, COMPATIBILITY)
        if (level := await registry.compatibility(subject)) != COMPATIBILITY:
            raise SchemaError(f"the schema registry at {registry.url} keeps {subject} at {level}, not {COMPATIBILITY}")
    schema_id = await registry.id_of(subject, schema.text)
    if schema_id is None:
        schema_id = await registry.register(subject, schema.text)
        log.info("Schema registered.", subject=subject, version=schema.version, schema_id=schema_id)
    return schema_id


async def adopt(registry: SchemaRegistry, topic_of: TopicOf, catalogue: Catalogue = SCHEMAS) -> None:
    """Register all released schemas, and write with the registry's ids from now on."""
    for schema in catalogue.released:
        catalogue.adopt(schema.file, await register(registry, schema, topic_of))


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
        new = {schema_id for schema_id in ids - known.keys() if 0 < schema_id < 2**31}
        due = (schema_id for schema_id in new if self._unknown.get(schema_id, 0.0) <= now)
        return set(itertools.islice(due, IDS_MAX))

    def _remember(self, schema_id: int) -> None:
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[schema_id] = time.monotonic() + UNKNOWN_S
