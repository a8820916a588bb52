"""The Java consumer, fetched and run as its folder says: it reads our events with nothing but our own addresses."""

import shutil
import subprocess
from pathlib import Path

import pytest

from order_service.embedded.kafka import find_program
from tests.service import until
from tests.web.shop import PAYMENT

EXAMPLE = Path(__file__).parents[2] / "examples" / "java"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give a copy of the folder, with its jars."""
    place = tmp_path_factory.mktemp("java") / "example"
    shutil.copytree(EXAMPLE, place)
    fetch = [find_program("mvn") or "mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
    subprocess.run(fetch, cwd=place, check=True, timeout=300)
    return place


def test_a_java_consumer_reads_the_events_of_an_order(place, shop, http):
    here = http.create().headers["location"]
    assert http.ask("POST", f"{here}/pay", PAYMENT).status == 200
    assert http.ask("DELETE", here).status == 200
    order_id = here.rpartition("/")[2]
    command = [find_program("java") or "java", "-cp", "jars/*", "OrderEvents.java", shop.service.bootstrap_servers]
    command += [f"http://127.0.0.1:{http.port}/schema-registry", shop.service.names.events]
    printed = place / "out"
    with printed.open("w") as out, subprocess.Popen(command, cwd=place, stdout=out) as consumer:
        try:
            until(lambda: consumer.poll() is not None or "OrderCancelled" in printed.read_text(), "all is printed")
        finally:
            consumer.kill()
    assert printed.read_text().splitlines() == [
        f"{order_id} 1 OrderCreated",
        f"{order_id} 2 OrderPaid",
        f"{order_id} 3 OrderCancelled",
    ]
