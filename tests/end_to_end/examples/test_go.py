"""The Go consumer, built and run as its folder says: it reads our events with nothing but our own addresses."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.examples.consuming import (
    Example,
    goes_on_where_another_was,
    goes_on_where_it_was,
    passes_over_what_was_aborted,
)

FOLDER = Path(__file__).parents[3] / "examples" / "go"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def example(tmp_path_factory, shop, http):
    """Return the program, built in a copy of its folder; the first build of a machine compiles all that it needs."""
    place = tmp_path_factory.mktemp("go") / "example"
    shutil.copytree(FOLDER, place)
    subprocess.run(["go", "build", "-o", "order-events", "."], cwd=place, check=True, timeout=240)
    return Example([str(place / "order-events")], place, shop, http)


def test_a_go_consumer_goes_on_where_it_was(example):
    goes_on_where_it_was(example)


def test_a_go_consumer_passes_over_what_was_aborted(example):
    passes_over_what_was_aborted(example)


def test_a_go_consumer_goes_on_where_another_was(example):
    goes_on_where_another_was(example)
