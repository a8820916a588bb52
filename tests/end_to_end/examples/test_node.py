"""The Node consumer, fetched and run as its folder says: it reads our events with nothing but our own addresses."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.examples.consuming import (
    Example,
    goes_on_where_another_was,
    goes_on_where_it_was,
    passes_over_what_was_aborted,
)
from tests.support.node_packages import link_packages

FOLDER = Path(__file__).parents[3] / "examples" / "node"


@pytest.fixture(scope="module")
def example(tmp_path_factory, shop, http):
    """Return the program in a copy of its folder, with its packages."""
    place = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(FOLDER, place, ignore=shutil.ignore_patterns("node_modules"))
    link_packages(place)
    return Example(["node", "order-events.js"], place, shop, http)


def test_a_node_consumer_goes_on_where_it_was(example):
    goes_on_where_it_was(example)


def test_a_node_consumer_passes_over_what_was_aborted(example):
    passes_over_what_was_aborted(example)


def test_a_node_consumer_goes_on_where_another_was(example):
    goes_on_where_another_was(example)
