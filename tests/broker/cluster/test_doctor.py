"""`doctor` while one of three brokers is down."""

import asyncio
import json

from order_service.operations.doctor.checks.brokers import check_brokers
from tests.support.command_line import CommandLine
from tests.support.service import until


def test_a_broker_that_is_down_is_named_and_kafka_counts_as_reachable(cluster, service):
    """Until its session ends, the others still list it: requests that may go to any broker try another one."""
    settings, cli = service.settings(), CommandLine(service.environment)
    down = cluster.coordinator_of_group(service.group_id)
    cluster.kill(down)
    for _ in range(10):
        assert [result.status for result in asyncio.run(check_brokers(settings))] == ["ok"]

    def examined():
        document = json.loads(cli("doctor", "--json", code=1).stdout.splitlines()[-1])  # after lines of this log
        assert (document["kafka_reachable"], document["took_s"] < 25) == (True, True)
        assert all(each["fix"] for each in document["results"] if each["status"] in {"warning", "problem"})
        found = {(each["check"], each["fix"]) for each in document["results"] if each["status"] == "warning"}
        return found == {("topics", f"Start the brokers that have a replica, or wait for them: {down}.")}

    until(examined, "the replicas that are not in sync are a warning, with the broker to start")
    cluster.start(down)
