"""A log as the topics hold it, without a Kafka: events and rejections with their places."""

from aiokafka.structs import TopicPartition

from order_service.domain.messages import Event
from order_service.reading import Seen
from tests.samples import digest_of

EVENTS = TopicPartition("orders.events.v1", 0)
REJECTIONS = TopicPartition("orders.rejections.v1", 0)
START = {EVENTS: 0, REJECTIONS: 0}


def seens(messages, offset=0):
    """Put messages behind each other, from this offset on."""
    return [Seen(message, 0, at, digest_of(message), at) for at, message in enumerate(messages, offset)]


def order_of(views, order_id):
    """Give an order as it is now, None if there is none."""
    return views.orders([order_id]).get(order_id)


def after(before, seen):
    """Give the positions behind these."""
    moved = dict(before)
    for one in seen:
        moved[EVENTS if isinstance(one.message, Event) else REJECTIONS] = one.offset + 1
    return {place: offset for place, offset in moved.items() if offset != before[place]}
