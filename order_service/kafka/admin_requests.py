"""Three requests to Kafka that aiokafka 0.14 does not have: ListTransactions, IncrementalAlterConfigs, topic ids.

Source: Kafka protocol guide; KIP-664 (transactions), KIP-339 (incremental changes of settings), KIP-516 (topic
ids, in version 12 of Metadata).
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final
from uuid import UUID

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)
from msgspec import Struct

from order_service.kafka.connection import Admin, raise_for

_SET: Final = 0
_DELETE: Final = 1


class _ListTransactionsResponse(Response):  # type: ignore[misc] # aiokafka has no types
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_state_filters", CompactArray(CompactString("utf-8"))),
        (
            "transactions",
            CompactArray(
                ("transactional_id", CompactString("utf-8")),
                ("producer_id", Int64),
                ("state", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ListTransactionsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 66
    API_VERSION = 0
    RESPONSE_TYPE = _ListTransactionsResponse
    SCHEMA = Schema(
        ("state_filters", CompactArray(CompactString("utf-8"))),
        ("producer_id_filters", CompactArray(Int64)),
        ("tags", TaggedFields),
    )


class _ListTransactions(Request[_ListTransactionsRequest]):  # type: ignore[misc]
    API_KEY = 66

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([], [], {})


class _AlterConfigsResponse(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "resources",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _AlterConfigsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("configs", Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8")))),
            ),
        ),
        ("validate_only", Boolean),
    )


class _AlterConfigs(Request[_AlterConfigsRequest]):  # type: ignore[misc]
    API_KEY = 44

    def __init__(self, topic: str, values: Mapping[str, str | None]) -> None:
        self._topic = topic
        self._values = values

    def build(self, request_struct_class: Any) -> Any:
        changes = [(name, _DELETE if value is None else _SET, value) for name, value in self._values.items()]
        return request_struct_class([(ConfigResourceType.TOPIC, self._topic, changes)], False)


class TopicIdentity(Struct, frozen=True):
    """A topic, and what changes if it is deleted and created again: its id. The cluster has an id of its own."""

    name: str
    cluster_id: str
    topic_id: str


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _TopicIdsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicIdsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _TopicIdsResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIds(Request[_TopicIdsRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([(UUID(int=0), self._topic, {})], False, False, {})


async def topic_identity(admin: Admin, topic: str) -> TopicIdentity:
    """Return the identity of a topic. Raises KafkaError if it does not exist, or for a broker before Kafka 3.1."""
    response = await admin._send_request(_TopicIds(topic))  # noqa: SLF001
    [(code, _, topic_id, *_)] = response.topics
    raise_for(code)
    return TopicIdentity(topic, response.cluster_id or "", str(topic_id))


async def transactional_ids(admin: Admin, prefix: str) -> list[str]:
    """Return the transactional ids with this prefix that Kafka knows, of all coordinators.

    No other id can write: Kafka forgets an id that was idle for `transactional.id.expiration.ms`, and refuses its
    producer. Ids that this principal may not describe are left out.
    """
    ids = set()
    for broker in (await admin.describe_cluster())["brokers"]:
        response = await admin._send_request(_ListTransactions(), broker["node_id"])  # noqa: SLF001
        raise_for(response.error_code)
        ids |= {transactional_id for transactional_id, *_ in response.transactions}
    return sorted(each for each in ids if each.startswith(prefix))


async def alter_topic(admin: Admin, topic: str, values: Mapping[str, str | None]) -> None:
    """Change these settings of a topic, and no others. None removes a setting, so that the broker's default applies."""
    response = await admin._send_request(_AlterConfigs(topic, values))  # noqa: SLF001
    for code, *_ in response.resources:
        raise_for(code)
