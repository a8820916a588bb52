"""What a rebuild needs to be allowed to do, checked before it changes anything.

Rights on transactional ids are not reported: Kafka refuses the takeover without them, before any change.
"""

from collections.abc import Collection

from order_service.errors import OperationRefused
from order_service.kafka.connection import ask_admin
from order_service.kafka.rights_requests import topic_rights
from order_service.kafka.topics import TopicNames
from order_service.settings import Settings


async def check_rights(settings: Settings, names: TopicNames, unreadable: Collection[str]) -> None:
    """Raise OperationRefused if our principal may not write to a topic, or delete the records of an unreadable one.

    Brokers that do not report rights refuse the write itself.
    """
    needed = {topic: ["Write"] for topic in (names.table, names.waiting, names.operations)}
    for topic in unreadable:
        needed[topic] += ["AlterConfigs", "Delete"]
    rights = await ask_admin(settings, lambda admin: topic_rights(admin, list(needed)))
    lacking = [
        f"{operation} on {topic}"
        for topic, operations in needed.items()
        for operation in operations
        if rights[topic].is_reported and rights[topic].lacks(operation)
    ]
    if lacking:
        raise OperationRefused(f"Kafka does not allow it: grant this principal {', '.join(lacking)}")
