import pytest

from order_service.errors import KafkaAwayError
from order_service.kafka.connection import Admin, ask_admin
from order_service.local.broker import free_port
from order_service.settings import Settings


async def test_the_error_says_that_no_kafka_is_set():
    settings = Settings(kafka_bootstrap_servers="", kafka="", kafka_port=free_port())
    where = rf"127.0.0.1:{settings.kafka_port} \(KAFKA_BOOTSTRAP_SERVERS is not set\) within 0 s$"
    with pytest.raises(KafkaAwayError, match=where):
        await ask_admin(settings, Admin.describe_cluster, patience_s=0.1)
