"""The overview for operators: one refresh for all viewers, which needs neither the views nor Kafka."""

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from aiohttp.test_utils import TestClient, TestServer

from order_service.local.broker import free_port
from order_service.runtime.admin import AdminServer
from order_service.settings import Settings
from order_service.web.http.problems import Problem, Trouble
from order_service.web.live.overview_watch import WATCHED_FOR_S, OverviewWatch
from order_service.worker.lane_states import LaneState
from tests.support.alone import application_alone
from tests.support.samples import NOW

AWAY = "127.0.0.1:1"


@pytest.fixture
def worker():
    """Serve the admin port of a worker with a parked lane."""
    port = free_port()
    with AdminServer("127.0.0.1", port, list) as server:
        server.lanes = lambda: [LaneState(1, "parked", NOW, "too large"), LaneState(0, "running")]
        yield f"127.0.0.1:{port}"


class Watched:
    """A watch of a Kafka that is away. Each refresh has a time of its own, a second after the one before."""

    def __init__(self, addresses):
        self.seconds = 0.0
        ticks = count()
        settings = Settings(kafka_bootstrap_servers=AWAY, admin_addresses=addresses)
        self.watch = OverviewWatch(
            settings,
            lambda: NOW + timedelta(seconds=next(ticks)),
            lambda: self.seconds,
            watched_every_s=3_600,
            unwatched_every_s=3_600,
        )

    async def __aenter__(self):
        self._task = asyncio.create_task(self.watch.run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def is_refreshed(self, after=NOW):
        """Look, and return whether there are figures after this time."""
        overview = self.watch.latest()
        return overview.at is not None and overview.at > after


async def test_without_kafka_it_shows_what_the_workers_say_and_names_what_is_missing(worker, until):
    async with Watched(worker) as watched:
        await until(watched.is_refreshed)
        overview = watched.watch.latest()
    assert [(lane.partition, lane.state, lane.reason) for lane in overview.lanes] == [
        (0, "running", ""),
        (1, "parked", "too large"),
    ]
    assert [(row.address, row.state) for row in overview.processes] == [(worker, "ready")]
    assert [finding.text for finding in overview.findings][:1] == ["Partition 1 is parked: too large"]
    assert len(overview.notes) == 2
    assert all("127.0.0.1:1" in note for note in overview.notes)
    assert {(point.lag, point.decided_per_s) for point in overview.history} == {(None, None)}
    assert (overview.dead_letters, overview.waiting) == (None, None)


async def test_looking_never_waits_and_the_first_look_causes_a_refresh(worker, until):
    async with Watched(worker) as watched:
        assert watched.watch.latest().at is None
        await until(watched.is_refreshed)
        first = watched.watch.latest()
        assert all(watched.watch.latest() is first for _ in range(1_000)), "looking reads nothing"
        watched.seconds += 2 * WATCHED_FOR_S
        await until(lambda: watched.is_refreshed(first.at))


async def test_a_caller_is_served_while_the_views_cannot_be_read(tmp_path):
    not_ready = Problem(Trouble.VIEWS_NOT_READY)
    with application_alone(tmp_path, not_ready=lambda: not_ready) as application:
        async with TestClient(TestServer(application)) as client:
            overview = await client.get("/v1/operations/overview")
            assert (overview.status, (await overview.json())["at"]) == (200, None)
            assert (await client.get("/v1/orders")).status == 503
