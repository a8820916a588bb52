"""The released schemas with the API of a schema registry: decoding our records needs no other registry.

Shape:    the read API of Confluent's Schema Registry, under `/schema-registry`; nothing can be registered, and no
          token is required.
Subjects: `<topic>-<record name>`, such as `orders.events.v1-orders.v1.OrderPaid` (TopicRecordNameStrategy). And
          `<topic>-value` with all schemas of the topic (TopicNameStrategy), which Kafka Connect's converters ask for.
          Its versions count the released schemas of the topic in the order of their ids.
Errors:   `{"error_code": 40403, "message": …}`; the first three digits are the status.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from msgspec import MsgspecError, Raw, Struct, json

from order_service.errors import NotAvro, NotThere
from order_service.kafka.registry_client import COMPATIBILITY, TYPE
from order_service.kafka.topics import TopicNames
from order_service.web.http.responses import encode
from order_service.wire.schemas import evolution
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Schema

ADDRESS: Final = "/schema-registry"

Handler = Callable[[web.Request], Awaitable[web.Response]]
Find = Callable[["Registry", Mapping[str, str]], Any]
"""Returns the resource that the parts of a path identify. Raises NotThere if it does not exist."""


class _LookupBody(Struct):
    schema: str


class Registry:
    """The schemas of a catalogue, by id and by subject; command schemas belong to the topic of the commands."""

    def __init__(self, names: TopicNames, catalogue: Catalogue) -> None:
        self._names = names
        self._by_id = catalogue.by_id

    def subjects(self, _: Mapping[str, str]) -> list[str]:
        """Return all subjects."""
        return sorted(self._subjects())

    def versions(self, path: Mapping[str, str]) -> list[int]:
        """Return the versions of a subject."""
        return sorted(self._of_subject(path))

    def version(self, path: Mapping[str, str]) -> dict[str, Any]:
        """Return a version of a subject, or its `latest`."""
        version, schema = self._version(path)
        return {"subject": path["subject"], "version": version, "id": schema.id, "schema": schema.text}

    def version_alone(self, path: Mapping[str, str]) -> Raw:
        """Return only the schema of a version, without an envelope."""
        return Raw(self._version(path)[1].text.encode())

    def lookup(self, path: Mapping[str, str], text: str) -> dict[str, Any]:
        """Return the version of a subject that writes the same bytes as this schema."""
        for version, schema in self._of_subject(path).items():
            if _is_same(schema.avro, text):
                return self.version({**path, "version": str(version)})
        raise NotThere(404_03, "Schema not found")

    def schema(self, path: Mapping[str, str]) -> dict[str, Any]:
        """Return the schema with an id."""
        return {"schema": self._of_id(path).text}

    def schema_alone(self, path: Mapping[str, str]) -> Raw:
        """Return only the schema with an id, without an envelope."""
        return Raw(self._of_id(path).text.encode())

    def subject_versions(self, path: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the subjects and versions of an id."""
        schema = self._of_id(path)
        return [
            {"subject": subject, "version": version}
            for subject, versions in self._subjects().items()
            for version, member in versions.items()
            if (member.message, member.version) == (schema.message, schema.version)
        ]

    def subjects_of(self, path: Mapping[str, str]) -> list[str]:
        """Return the subjects of an id."""
        return [version["subject"] for version in self.subject_versions(path)]

    def config(self, path: Mapping[str, str]) -> dict[str, str]:
        """Return the compatibility level, of a subject or of all."""
        if "subject" in path and len({schema.message for schema in self._of_subject(path).values()}) > 1:
            return {"compatibilityLevel": "NONE"}  # its versions are different records
        return {"compatibilityLevel": COMPATIBILITY}

    def _subjects(self) -> dict[str, dict[int, Schema]]:
        """Return the schemas of each subject by version."""
        schemas = {(schema.message, schema.version): schema for schema in self._by_id.values()}
        # An id from a real registry comes after the released one and replaces it, in its place.
        subjects: defaultdict[str, dict[int, Schema]] = defaultdict(dict)
        for schema in schemas.values():
            topic = self._names.of(schema.message)
            subjects[schema.subject(topic)][schema.version] = schema
            of_topic = subjects[f"{topic}-value"]
            of_topic[len(of_topic) + 1] = schema
        return subjects

    def _of_subject(self, path: Mapping[str, str]) -> dict[int, Schema]:
        subjects = self._subjects()
        if path["subject"] not in subjects:
            raise NotThere(404_01, f"Subject '{path['subject']}' not found.")
        return subjects[path["subject"]]

    def _version(self, path: Mapping[str, str]) -> tuple[int, Schema]:
        versions, wanted = self._of_subject(path), path["version"]
        if wanted in {"latest", "-1"}:
            return max(versions), versions[max(versions)]
        number = _number(wanted)
        if not number:
            raise NotThere(422_02, f"'{wanted}' is not a version: use a number from 1 up, or \"latest\"")
        if number not in versions:
            raise NotThere(404_02, f"Version {number} not found.")
        return number, versions[number]

    def _of_id(self, path: Mapping[str, str]) -> Schema:
        schema = self._by_id.get(_number(path["id"]) or 0)
        if schema is None:
            raise NotThere(404_03, f"Schema {path['id']} not found")
        return schema


FINDS: Final[dict[str, Find]] = {
    "/": lambda *_: {},  # by which clients detect a registry
    "/subjects": Registry.subjects,
    "/subjects/{subject}/versions": Registry.versions,
    "/subjects/{subject}/versions/{version}": Registry.version,
    "/subjects/{subject}/versions/{version}/schema": Registry.version_alone,
    "/schemas/ids/{id}": Registry.schema,
    "/schemas/ids/{id}/schema": Registry.schema_alone,
    "/schemas/ids/{id}/versions": Registry.subject_versions,
    "/schemas/ids/{id}/subjects": Registry.subjects_of,
    "/schemas/types": lambda *_: ["AVRO"],
    "/config": Registry.config,
    "/config/{subject}": Registry.config,
    "/mode": lambda *_: {"mode": "READONLY"},  # nothing can be registered
}


def routes(names: TopicNames) -> list[web.RouteDef]:
    """Return the routes of a registry that serves the released schemas."""
    registry = Registry(names, SCHEMAS)

    async def lookup(request: web.Request) -> Any:
        return registry.lookup(request.match_info, _schema_in(await request.read()))

    return [
        *(web.get(f"{ADDRESS}{path}", _read_handler(find, registry)) for path, find in FINDS.items()),
        web.post(f"{ADDRESS}/subjects/{{subject}}", _handler(lookup)),
        web.route("*", f"{ADDRESS}/{{rest:.*}}", _not_served),
    ]


def _read_handler(find: Find, registry: Registry) -> Handler:
    async def read(request: web.Request) -> Any:
        return find(registry, request.match_info)

    return _handler(read)


def _handler(find: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """Return a handler that responds with the resource, or with the error of a registry."""

    async def serve(request: web.Request) -> web.Response:
        try:
            return _response(await find(request))
        except NotThere as error:
            return _response({"error_code": error.code, "message": str(error)}, status=error.code // 100)

    return serve


def _schema_in(body: bytes) -> str:
    try:
        return json.decode(body, type=_LookupBody).schema
    except (MsgspecError, UnicodeError, RecursionError) as error:
        raise NotThere(422_01, "expected a JSON object with the text of a schema in `schema`") from error


def _is_same(released: Mapping[str, Any], text: str) -> bool:
    try:
        return evolution.same(released, json.decode(text))
    except (MsgspecError, UnicodeError, RecursionError, NotAvro):
        return False


async def _not_served(request: web.Request) -> web.Response:
    """Respond, as a registry does, that a path is not served or is read-only."""
    status = 404 if request.method in {"GET", "HEAD"} else 405
    return _response({"error_code": status, "message": "not served: this registry is read-only"}, status)


def _response(body: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(body), status=status, content_type=TYPE)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
