"""The Java consumer, fetched and run as its folder says: it reads our events with nothing but our own addresses."""

import shutil
import subprocess
from pathlib import Path

import pytest

from order_service.local.kafka import find_program
from tests.end_to_end.examples.consuming import (
    Example,
    goes_on_where_another_was,
    goes_on_where_it_was,
    passes_over_what_was_aborted,
)

FOLDER = Path(__file__).parents[3] / "examples" / "java"


@pytest.fixture(scope="module")
def example(tmp_path_factory, shop, http):
    """Return the program in a copy of its folder, with its jars."""
    place = tmp_path_factory.mktemp("java") / "example"
    shutil.copytree(FOLDER, place)
    fetch = [find_program("mvn") or "mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
    subprocess.run(fetch, cwd=place, check=True, timeout=100)
    return Example([find_program("java") or "java", "-cp", "jars/*", "OrderEvents.java"], place, shop, http)


def test_a_java_consumer_goes_on_where_it_was(example):
    goes_on_where_it_was(example)


def test_a_java_consumer_passes_over_what_was_aborted(example):
    passes_over_what_was_aborted(example)


def test_a_java_consumer_goes_on_where_another_was(example):
    goes_on_where_another_was(example)
