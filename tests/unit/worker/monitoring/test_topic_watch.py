"""The comparison of topics while a worker runs: one that cannot be made changes nothing and ends nothing."""

import structlog

from order_service.settings import Settings
from order_service.worker.monitoring.topic_watch import TopicWatch


def watch_with(cafile):
    return TopicWatch(Settings(kafka_security_protocol="SSL", kafka_ssl_cafile=cafile), {})


async def test_a_ca_file_that_cannot_be_read_leaves_the_last_result_and_is_logged_once(tmp_path):
    watch = watch_with(tmp_path / "missing.pem")
    watch.faults = ["the topic keeps less than it must"]
    with structlog.testing.capture_logs() as logged:
        await watch.compare()
        await watch.compare()
    assert watch.faults == ["the topic keeps less than it must"]
    [line] = logged
    assert line["event"] == "The topics could not be compared."
    assert "missing.pem of ORDERS_KAFKA_SSL_CAFILE cannot be read: No such file" in line["why"]


async def test_a_ca_file_that_is_half_written_is_a_comparison_that_cannot_be_made(tmp_path):
    cafile = tmp_path / "ca.pem"
    cafile.write_text("-----BEGIN CERTIFICATE-----\n")
    with structlog.testing.capture_logs() as logged:
        await watch_with(cafile).compare()
    assert [line["event"] for line in logged] == ["The topics could not be compared."]
