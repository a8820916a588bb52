"""A test finds its own Kafka, whichever Kafka the environment selects for `order-service up`."""

from order_service.settings import Settings
from tests.support.service import Service, without_kafka


def test_a_kafka_that_the_environment_forces_does_not_replace_that_of_a_test(monkeypatch, tmp_path, users):
    monkeypatch.setenv("ORDERS_KAFKA", "docker")
    service = Service("127.0.0.1:1", tmp_path, users)
    assert service.environment["ORDERS_KAFKA"] == ""
    assert without_kafka(tmp_path)["ORDERS_KAFKA"] == ""
    assert Settings().kafka == "docker"
