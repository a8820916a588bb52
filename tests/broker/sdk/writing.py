"""Events that a test writes, as a worker would."""

from order_service.wire.avro import encode_event


def write(service, *events):
    """Write events as a worker would; all of them are in Kafka when this returns."""
    for event in events:
        service.producer.produce(service.names.events, key=event.order_id, value=encode_event(event))
    assert service.producer.flush(30) == 0
