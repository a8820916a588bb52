"""What `up` chooses for a machine."""

import pytest

from order_service.errors import SetupError
from order_service.local.up import check_projectors, worker_count
from order_service.settings import Settings


@pytest.mark.parametrize(
    ("cores", "settings", "count"),
    [
        pytest.param(1, {}, 1, id="one core has one process"),
        pytest.param(2, {}, 1, id="two cores are shared with Kafka"),
        pytest.param(4, {}, 2, id="half of the cores"),
        pytest.param(64, {}, 4, id="not more than partitions"),
        pytest.param(4, {"workers": 1}, 1, id="the operator decides"),
        pytest.param(1, {"workers": 3}, 3, id="also for more"),
    ],
)
def test_the_number_of_worker_processes_of_a_local_run(cores, settings, count):
    assert worker_count(Settings(partitions=4, **settings), cores) == count


def test_several_projectors_on_sqlite_are_refused_before_anything_starts():
    check_projectors(Settings())
    check_projectors(Settings(projectors=2, database_url="postgresql://db/views"))
    with pytest.raises(SetupError, match="ORDERS_PROJECTORS is 2, but the views are in SQLite"):
        check_projectors(Settings(projectors=2))
