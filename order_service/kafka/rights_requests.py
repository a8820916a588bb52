"""Requests that aiokafka 0.14 lacks: the features of a broker, and what our principal may do.

Source: Kafka's message definitions, `ApiVersionsRequest.json` (version 3), `MetadataRequest.json` (version 8) and
`DescribeGroupsRequest.json` (version 3).
"""

from io import BytesIO
from typing import Any, Final

from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)
from msgspec import Struct

from order_service.kafka.connection import Admin

OPERATIONS: Final = {"Read": 3, "Write": 4, "Delete": 6, "Describe": 8, "DescribeConfigs": 10, "AlterConfigs": 11}
"""The bits of the operations that this service needs. Source: Kafka's `AclOperation`."""
NOT_REPORTED: Final = -(2**31)
"""What a broker returns if it does not report the operations: its highest bit alone is set."""
AUTHORIZATION_FAILED: Final = frozenset({TopicAuthorizationFailedError.errno, GroupAuthorizationFailedError.errno})
SUPPORTED_FEATURES: Final = 0
"""The tag of the supported features in a response."""
METADATA_VERSION: Final = "metadata.version"

_Features: Final = CompactArray(
    ("name", CompactString("utf-8")), ("min_version", Int16), ("max_version", Int16), ("tags", TaggedFields)
)


class _FeaturesResponse(Response):  # type: ignore[misc] # aiokafka has no types
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "api_versions",
            CompactArray(("api_key", Int16), ("min_version", Int16), ("max_version", Int16), ("tags", TaggedFields)),
        ),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _FeaturesRequestV3(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 18
    API_VERSION = 3
    RESPONSE_TYPE = _FeaturesResponse
    SCHEMA = Schema(
        ("software_name", CompactString("utf-8")), ("software_version", CompactString("utf-8")), ("tags", TaggedFields)
    )

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> Any:
        """Return the header, which has no tags in a response to this request, whatever its version."""
        return ResponseHeader_v0.decode(read_buffer)


class _FeaturesRequest(Request[_FeaturesRequestV3]):  # type: ignore[misc]
    API_KEY = 18

    def build(self, request_struct_class: type[_FeaturesRequestV3]) -> _FeaturesRequestV3:
        return request_struct_class("order-service", "1", {})


class _RightsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _RightsRequestV8(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _RightsResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Int8),
        ("include_cluster_operations", Int8),
        ("include_topic_operations", Int8),
    )


class _RightsRequest(Request[_RightsRequestV8]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_RightsRequestV8]) -> _RightsRequestV8:
        return request_struct_class(self._topics, 0, 0, 1)


class _GroupRightsRequestV3(DescribeGroupsRequest_v3):  # type: ignore[misc]
    RESPONSE_TYPE = DescribeGroupsResponse_v3  # aiokafka decodes the response to its own request without the rights


class _GroupRightsRequest(Request[_GroupRightsRequestV3]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group_id: str) -> None:
        self._group_id = group_id

    def build(self, request_struct_class: type[_GroupRightsRequestV3]) -> _GroupRightsRequestV3:
        return request_struct_class([self._group_id], True)


class Rights(Struct, frozen=True):
    """What our principal may do with a topic or a group, or the error code of a resource that it may not see."""

    error_code: int
    operations: int

    @property
    def is_reported(self) -> bool:
        """Whether the broker reported the rights. A resource that the principal may not see has no rights for it."""
        return self.operations != NOT_REPORTED or self.error_code in AUTHORIZATION_FAILED

    def lacks(self, operation: str) -> bool:
        """Return whether the principal may not do an operation of `OPERATIONS`."""
        return not self.operations >> OPERATIONS[operation] & 1


async def metadata_version(admin: Admin) -> int | None:
    """Return the highest `metadata.version` that a broker supports, or None if it reports none."""
    response = await _send(admin, _FeaturesRequest())
    features = _Features.decode(BytesIO(response.tags.get(SUPPORTED_FEATURES, b"\x00"))) or []
    return next((newest for name, _, newest, _ in features if name == METADATA_VERSION), None)


async def topic_rights(admin: Admin, topics: list[str]) -> dict[str, Rights]:
    """Return what our principal may do with each topic. A topic need not exist."""
    response = await _send(admin, _RightsRequest(topics))
    return {topic: Rights(code, operations) for code, topic, _, _, operations in response.topics}


async def group_rights(admin: Admin, group_id: str) -> Rights:
    """Return what our principal may do with a consumer group. Raises KafkaError if the coordinator is away."""
    try:
        coordinator = await admin.find_coordinator(group_id)
    except GroupAuthorizationFailedError:
        return Rights(GroupAuthorizationFailedError.errno, 0)
    [(code, *_, operations)] = (await _send(admin, _GroupRightsRequest(group_id), coordinator)).groups
    return Rights(code, operations)


async def _send(admin: Admin, request: Any, node: int | None = None) -> Any:
    return await admin._send_request(request, node)  # noqa: SLF001, aiokafka has no method for these requests
