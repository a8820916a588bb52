"""Three brokers for all tests of this folder. Its files run in one process."""

import pytest

from chaos.cluster import Cluster
from tests.support.service import Service


@pytest.fixture(scope="package")
def cluster(tmp_path_factory):
    """Run three brokers. A test that stops one starts it again."""
    with Cluster(tmp_path_factory.mktemp("cluster"), 3, proxied=False) as nodes:
        yield nodes


@pytest.fixture
def service(cluster, tmp_path, users):
    with Service(cluster.bootstrap_servers, tmp_path, users) as made:
        yield made


@pytest.fixture(autouse=True)
def whole_cluster(cluster):
    """Start what a failed test has left stopped, and wait until all replicas are in sync."""
    if stopped := set(cluster.nodes) - cluster.running:
        cluster.start(*sorted(stopped))
    cluster.wait_all_in_sync()
