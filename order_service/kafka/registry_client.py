"""A schema registry: it gives our schemas ids of its own, by which everybody else's programs read our topics.

Spoken is the API of Confluent's Schema Registry, which others serve too (Apicurio under `/apis/ccompat/v7`). Without
`SCHEMA_REGISTRY_URL` nothing here is used. With it, what we write has the registry's ids, and an id that we meet and do
not know is looked up; what it stands for is read if it is a schema of ours, or a later version of one.
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

from order_service.errors import RegistryAwayError, SchemaError
from order_service.runtime.library_logger import library_logger
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Message, Schema

log = library_logger("order_service.kafka.registry_client")

COMPATIBILITY: Final = "FULL_TRANSITIVE"
"""What every released schema keeps with all before it in its subject."""
TYPE: Final = "application/vnd.schemaregistry.v1+json"
BODY_MAX: Final = 1024 * 1024
REFUSED: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
AT_ONCE: Final = 16
"""How many ids are looked up at the same time."""
UNKNOWN_S: Final = 30.0
"""How long an id that stands for nothing of ours is not asked about again."""
UNKNOWN_MAX: Final = 10_000
"""How many such ids are remembered."""
IDS_MAX: Final = 1_000
"""How many ids are looked up for one run of records."""
PATIENCE_S: Final = 60.0
"""How long a registry may be away before records by ids that it was to explain become dead letters."""
PAUSE_S: Final = 1.0
AGAIN_S: Final = 2.0
"""How long a process that cannot begin without the registry waits before it asks again."""

TopicOf = Callable[[type[Message]], str]


class RegistryPolicy(Struct, frozen=True, kw_only=True):
    """How we ask: `try_s` bounds each try, and there is one more after each of the waits."""

    url: str
    username: str = ""
    password: SecretStr = SecretStr("")
    try_s: float = 2.0
    waits_s: tuple[float, ...] = (0.1, 0.3)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take what can be set."""
        return cls(
            url=settings.schema_registry_url,
            username=settings.schema_registry_username,
            password=settings.schema_registry_password,
        )


class _Answer(Struct):
    """All that any answer of a registry tells us."""

    id: int | None = None
    schema: str | None = None
    schemaType: str = "AVRO"  # noqa: N815 - theirs
    references: list[Any] = []
    compatibilityLevel: str | None = None  # noqa: N815
    error_code: int | None = None
    message: str = ""


class SchemaRegistry:
    """A client; `async with` it. Every question raises RegistryAwayError for no answer, SchemaError for a refusal."""

    def __init__(self, policy: RegistryPolicy) -> None:
        self.url = policy.url
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Accept": f"{TYPE}, application/json", "Content-Type": TYPE, "User-Agent": "order-service"}
        if self._policy.username:
            password = self._policy.password.get_secret_value()
            headers["Authorization"] = aiohttp.encode_basic_auth(self._policy.username, password)
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._policy.try_s),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def id_of(self, subject: str, text: str) -> int | None:
        """Ask by which id a subject has a schema; None if it has not."""
        return (await self._ask("POST", f"/subjects/{_quoted(subject)}", {"schema": text})).id

    async def register(self, subject: str, text: str) -> int:
        """Add a schema to a subject, if it has not got it; give its id."""
        answer = await self._ask("POST", f"/subjects/{_quoted(subject)}/versions", {"schema": text})
        if answer.id is None:
            raise SchemaError(f"the schema registry at {self.url} takes {subject}, and gives no id")
        return answer.id

    async def text_of(self, schema_id: int) -> str | None:
        """Ask which schema an id stands for; None for none, and for one that is no Avro or not whole."""
        answer = await self._ask("GET", f"/schemas/ids/{schema_id}")
        return answer.schema if answer.schemaType == "AVRO" and not answer.references else None

    async def compatibility(self, subject: str) -> str | None:
        """Ask what a new version in a subject may change; None if nothing is set for it."""
        return (await self._ask("GET", f"/config/{_quoted(subject)}")).compatibilityLevel

    async def set_compatibility(self, subject: str, level: str) -> None:
        """Set what a new version in a subject may change."""
        await self._ask("PUT", f"/config/{_quoted(subject)}", {"compatibility": level})

    async def _ask(self, method: str, path: str, body: object = None) -> _Answer:
        for wait_s in self._policy.waits_s:
            try:
                return await self._try(method, path, body)
            except RegistryAwayError:
                await asyncio.sleep(wait_s)
        return await self._try(method, path, body)

    async def _try(self, method: str, path: str, body: object) -> _Answer:
        if self._session is None:
            raise RegistryAwayError("the client of the schema registry is closed")
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                return self._read(f"{method} {path}", response.status, await _body(response))
        except TimeoutError as error:
            raise RegistryAwayError(f"the schema registry at {self.url} does not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            kind = type(error).__name__
            raise RegistryAwayError(f"no schema registry answers at {self.url} ({kind})") from error

    def _read(self, asked: str, status: int, body: bytes) -> _Answer:
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RegistryAwayError(f"what answers at {self.url} is no schema registry (status {status})") from error
        if status == HTTPStatus.OK:
            return answer
        if status == HTTPStatus.NOT_FOUND and answer.error_code is not None:
            return _Answer()
        said = f"{asked}: status {status} {_line(answer.message)}".rstrip()
        if status in REFUSED and not asked.startswith("GET"):
            raise SchemaError(f"the schema registry at {self.url} refuses {said}")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            cure = "set ORDERS_SCHEMA_REGISTRY_USERNAME and …_PASSWORD of somebody who may"
            raise RegistryAwayError(f"the schema registry at {self.url} does not let us in: {said}: {cure}")
        raise RegistryAwayError(f"the schema registry at {self.url} does not serve us: {said}")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX:
            raise RegistryAwayError(f"the schema registry answers with more than {BODY_MAX} bytes")
    return bytes(body)


def _quoted(subject: str) -> str:
    return quote(subject, safe="")


def _line(message: str) -> str:
    """Make one line of it, for a log or a terminal."""
    return "".join(one if one.isprintable() else " " for one in message)[:300].strip()


async def register(registry: SchemaRegistry, schema: Schema, topic_of: TopicOf) -> int:
    """Bring a released schema into a registry, and see that no later version there may break it; give its id."""
    subject = schema.subject(topic_of(schema.message))
    if await registry.compatibility(subject) != COMPATIBILITY:
        await registry.set_compatibility(subject, COMPATIBILITY)
        if (kept := await registry.compatibility(subject)) != COMPATIBILITY:
            raise SchemaError(f"the schema registry at {registry.url} keeps {subject} at {kept}, not {COMPATIBILITY}")
    registered = await registry.id_of(subject, schema.text)
    if registered is None:
        registered = await registry.register(subject, schema.text)
        log.info("A schema was registered.", subject=subject, version=schema.version, schema_id=registered)
    return registered


async def adopt(registry: SchemaRegistry, topic_of: TopicOf, catalogue: Catalogue = SCHEMAS) -> None:
    """Bring all released schemas into a registry, and write by its ids from now on."""
    for schema in catalogue.released:
        catalogue.adopt(schema.file, await register(registry, schema, topic_of))


async def adopt_when_it_answers(
    settings: Settings, topic_of: TopicOf, tell: Callable[[str], None], again_s: float = AGAIN_S
) -> None:
    """Wait for the registry, if there is one to be used, and adopt its ids; `tell` each new reason why we wait."""
    client = registry_of(settings)
    if client is None:
        return
    async with client as registry:
        told = None
        while (why := await _try_to_adopt(registry, topic_of)) is not None:
            if why != told:
                tell(why)
            told = why
            await asyncio.sleep(again_s)


async def _try_to_adopt(registry: SchemaRegistry, topic_of: TopicOf) -> str | None:
    try:
        await adopt(registry, topic_of)
    except (RegistryAwayError, SchemaError) as error:
        return str(error)
    return None


def registry_of(settings: Settings) -> SchemaRegistry | None:
    """Give the client of SCHEMA_REGISTRY_URL; None if there is no registry to ask."""
    return SchemaRegistry(RegistryPolicy.from_settings(settings)) if settings.schema_registry_url else None


class Ids:
    """Looks up the ids that records carry and a catalogue does not know; `async with` it. Without a registry, none."""

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
        """Look up what these values are written by, so that they can be decoded. Raises RegistryAwayError."""
        failure = await self._ask(self._new(values))
        if failure is not None:
            raise failure

    def are_known(self, values: Iterable[bytes | None]) -> bool:
        """Return whether nothing has to be looked up before these values are decoded."""
        return not self._new(values)

    async def learn_patiently(self, values: Iterable[bytes | None]) -> None:
        """Look up what these values are written by, each id until it is answered or `patience_s` is over.

        A registry that has been away for so long is asked once for each new id. What nobody knows after that is decoded
        as an unknown schema.
        """
        wanted, began_at = self._new(values), time.monotonic()
        while wanted and (failure := await self._ask(wanted)) is not None:
            now = time.monotonic()
            self._away_since = min(self._away_since, now)
            log.warning("Schema registry lookup failed.", why=str(failure))
            if now - min(self._away_since, began_at) >= self._patience_s:
                for schema_id in wanted:
                    self._remember(schema_id)
                return
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, wanted: set[int]) -> RegistryAwayError | None:
        """Ask for these ids, and take those that were answered out of the set; return why others were not."""
        failure = None
        ids = sorted(wanted)
        for some in (ids[begin : begin + AT_ONCE] for begin in range(0, len(ids), AT_ONCE)):
            asked = await asyncio.gather(*map(self._look_up, some), return_exceptions=True)
            for schema_id, error in zip(some, asked, strict=True):
                if error is None:
                    wanted.discard(schema_id)
                elif isinstance(error, RegistryAwayError):
                    failure = error
                else:
                    raise error
            if failure is not None and wanted.issuperset(some):
                break  # nothing was answered
        return failure

    async def _look_up(self, schema_id: int) -> None:
        text = None if self._registry is None else await self._registry.text_of(schema_id)
        self._away_since = math.inf
        if text is not None and self._catalogue.learn(schema_id, text):
            log.info("A schema was looked up.", schema_id=schema_id)
        else:
            self._remember(schema_id)

    def _new(self, values: Iterable[bytes | None]) -> set[int]:
        """Return the ids to look up, `IDS_MAX` at most: a run of other bytes can look like any number of them."""
        if self._registry is None:
            return set()
        known, now = self._catalogue.by_id, time.monotonic()
        found = {int.from_bytes(value[1:5], "big") for value in values if value and value[0] == 0 and len(value) > 4}
        new = {schema_id for schema_id in found - known.keys() if 0 < schema_id < 2**31}
        return set(itertools.islice((one for one in new if self._unknown.get(one, 0.0) <= now), IDS_MAX))

    def _remember(self, schema_id: int) -> None:
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[schema_id] = time.monotonic() + UNKNOWN_S
