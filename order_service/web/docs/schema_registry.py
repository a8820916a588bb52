"""The released schemas, as a schema registry serves them: whoever decodes our records needs no other one.

Shape:    what can be asked of Confluent's Schema Registry, under `/schema-registry`; nothing can be registered, and
          nobody is asked for a token.
Subjects: `<topic>-<record name>`, such as `orders.events.v1-orders.v1.OrderPaid` (TopicRecordNameStrategy).
Errors:   `{"error_code": 40403, "message": …}`; the first three digits are the status.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from msgspec import MsgspecError, Raw, Struct, json

from order_service.kafka.topics import TopicNames
from order_service.web.http.responses import encode
from order_service.wire.schemas import evolution
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Schema

TYPE: Final = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY: Final = "FULL_TRANSITIVE"
"""What every released schema keeps with all before it in its subject."""

ADDRESS: Final = "/schema-registry"

Handler = Callable[[web.Request], Awaitable[web.Response]]
Find = Callable[["Registry", Mapping[str, str]], Any]
"""Finds what is asked for by the parts of a path; NotThere if there is no such thing."""


class NotThere(LookupError):
    """What was asked for is not there, in the registry's own words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Asked(Struct):
    schema: str


class Registry:
    """The schemas of a catalogue, by id and by subject; those of the commands lie at the topic of the commands."""

    def __init__(self, names: TopicNames, catalogue: Catalogue) -> None:
        self._names = names
        self._by_id = catalogue.by_id

    def root(self, _: Mapping[str, str]) -> dict[str, str]:
        """Answer whoever asks whether a registry is here."""
        return {}

    def subjects(self, _: Mapping[str, str]) -> list[str]:
        """Name all subjects."""
        return sorted(self._subjects())

    def versions(self, path: Mapping[str, str]) -> list[int]:
        """List the versions of a subject."""
        return sorted(self._of_subject(path))

    def version(self, path: Mapping[str, str]) -> dict[str, Any]:
        """Give a version of a subject, or its `latest`."""
        schema = self._version(path)
        return {"subject": path["subject"], "version": schema.version, "id": schema.id, "schema": schema.text}

    def version_alone(self, path: Mapping[str, str]) -> Raw:
        """Give the schema of a version, and nothing around it."""
        return Raw(self._version(path).text.encode())

    def lookup(self, path: Mapping[str, str], text: str) -> dict[str, Any]:
        """Find the version of a subject that writes the same bytes as this schema does."""
        for schema in self._of_subject(path).values():
            if _is_same(schema.avro, text):
                return self.version({**path, "version": str(schema.version)})
        raise NotThere(404_03, "Schema not found")

    def schema(self, path: Mapping[str, str]) -> dict[str, Any]:
        """Give the schema of an id."""
        return {"schema": self._of_id(path).text}

    def schema_alone(self, path: Mapping[str, str]) -> Raw:
        """Give it, and nothing around it."""
        return Raw(self._of_id(path).text.encode())

    def places(self, path: Mapping[str, str]) -> list[dict[str, Any]]:
        """Say under which subjects and versions an id is known."""
        schema = self._of_id(path)
        return [{"subject": schema.subject(self._names.of(schema.message)), "version": schema.version}]

    def subjects_of(self, path: Mapping[str, str]) -> list[str]:
        """Name the subjects under which an id is known."""
        return [place["subject"] for place in self.places(path)]

    def types(self, _: Mapping[str, str]) -> list[str]:
        """Name the kinds of schemas."""
        return ["AVRO"]

    def config(self, path: Mapping[str, str]) -> dict[str, str]:
        """Say what a new version may change, of a subject or of any."""
        if "subject" in path:
            self._of_subject(path)
        return {"compatibilityLevel": COMPATIBILITY}

    def mode(self, _: Mapping[str, str]) -> dict[str, str]:
        """Say that nothing can be registered."""
        return {"mode": "READONLY"}

    def _subjects(self) -> dict[str, dict[int, Schema]]:
        found: defaultdict[str, dict[int, Schema]] = defaultdict(dict)
        for schema in self._by_id.values():  # an id that a real registry gave comes behind the released one
            found[schema.subject(self._names.of(schema.message))][schema.version] = schema
        return found

    def _of_subject(self, path: Mapping[str, str]) -> dict[int, Schema]:
        subjects = self._subjects()
        if path["subject"] not in subjects:
            raise NotThere(404_01, f"Subject '{path['subject']}' not found.")
        return subjects[path["subject"]]

    def _version(self, path: Mapping[str, str]) -> Schema:
        evolution, wanted = self._of_subject(path), path["version"]
        if wanted in {"latest", "-1"}:
            return evolution[max(evolution)]
        number = _number(wanted)
        if not number:
            raise NotThere(422_02, f"'{wanted}' is no version: a number from 1 up, or \"latest\"")
        if number not in evolution:
            raise NotThere(404_02, f"Version {number} not found.")
        return evolution[number]

    def _of_id(self, path: Mapping[str, str]) -> Schema:
        schema = self._by_id.get(_number(path["id"]) or 0)
        if schema is None:
            raise NotThere(404_03, f"Schema {path['id']} not found")
        return schema


FINDS: Final[dict[str, Find]] = {
    "/": Registry.root,
    "/subjects": Registry.subjects,
    "/subjects/{subject}/versions": Registry.versions,
    "/subjects/{subject}/versions/{version}": Registry.version,
    "/subjects/{subject}/versions/{version}/schema": Registry.version_alone,
    "/schemas/ids/{id}": Registry.schema,
    "/schemas/ids/{id}/schema": Registry.schema_alone,
    "/schemas/ids/{id}/versions": Registry.places,
    "/schemas/ids/{id}/subjects": Registry.subjects_of,
    "/schemas/types": Registry.types,
    "/config": Registry.config,
    "/config/{subject}": Registry.config,
    "/mode": Registry.mode,
}


def routes(names: TopicNames) -> list[web.RouteDef]:
    """Give the routes of a registry of our released schemas."""
    registry = Registry(names, SCHEMAS)
    found = [web.get(f"{ADDRESS}{path}", _served(find, registry)) for path, find in FINDS.items()]
    lookup = web.post(f"{ADDRESS}/subjects/{{subject}}", _looked_up(registry))
    return [*found, lookup, web.route("*", f"{ADDRESS}/{{rest:.*}}", _not_served)]


def _served(find: Find, registry: Registry) -> Handler:
    async def found(request: web.Request) -> Any:
        return find(registry, request.match_info)

    return _answered(found)


def _looked_up(registry: Registry) -> Handler:
    async def found(request: web.Request) -> Any:
        return registry.lookup(request.match_info, _schema_in(await request.read()))

    return _answered(found)


def _answered(find: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """Serve what is found, or why nothing is."""

    async def serve(request: web.Request) -> web.Response:
        try:
            return _answer(await find(request))
        except NotThere as error:
            return _answer({"error_code": error.code, "message": str(error)}, status=error.code // 100)

    return serve


def _schema_in(body: bytes) -> str:
    try:
        return json.decode(body, type=_Asked).schema
    except (MsgspecError, UnicodeError, RecursionError) as error:
        raise NotThere(422_01, "expected an object with the text of a schema in `schema`") from error


def _is_same(released: Mapping[str, Any], text: str) -> bool:
    try:
        return evolution.same(released, json.decode(text))
    except (MsgspecError, UnicodeError, RecursionError, evolution.NotAvro):
        return False


async def _not_served(request: web.Request) -> web.Response:
    """Say, as a registry does, that a path is none of ours, or that it is only to be read."""
    status = 404 if request.method in {"GET", "HEAD"} else 405
    return _answer({"error_code": status, "message": "not served: this registry can only be read"}, status)


def _answer(found: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(found), status=status, content_type=TYPE)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
