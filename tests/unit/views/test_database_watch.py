"""A database that takes questions and never answers: readiness of the projector and of the HTTP server says so."""

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import event, make_url
from sqlalchemy.exc import OperationalError

from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import open_database, prepare
from order_service.web.http.problems import Trouble
from order_service.web.process import Readiness


def refused_by(readiness):
    """Return the type and the detail of the problem that a request gets."""
    problem = readiness.problem()
    return problem.kind, problem.detail


class Hanging:
    """An engine that blocks each question in its thread until `answers` is set."""

    def __init__(self, url):
        self.asked, self.answers = threading.Event(), threading.Event()
        self.engine = open_database(url, writes=True)
        prepare(self.engine)
        event.listen(self.engine, "begin", self._hang)

    def _hang(self, _connection):
        self.asked.set()
        assert self.answers.wait(30)


@pytest.fixture
def hanging(tmp_path):
    hanging = Hanging(make_url(f"sqlite:///{tmp_path}/views.db"))
    yield hanging
    hanging.answers.set()
    hanging.engine.dispose()


async def test_a_question_of_the_projector_that_is_open_for_long_is_a_fault(hanging):
    now_s = [100.0]
    projection = Projection(hanging.engine, topic_names(), lambda: now_s[0])
    assert projection.database.faults() == []
    asking = asyncio.create_task(asyncio.to_thread(projection.positions))
    assert await asyncio.to_thread(hanging.asked.wait, 30)
    now_s[0] += 14
    assert projection.database.faults() == []
    now_s[0] += 2
    assert projection.database.faults() == ["the database has not answered for 16 s"]
    hanging.answers.set()
    await asking
    assert projection.database.faults() == []


async def test_a_question_of_the_http_server_that_is_open_for_long_is_a_fault(hanging):
    now_s = [100.0]
    readiness = Readiness(Views(hanging.engine, topic_names()), lambda: now_s[0])
    asking = asyncio.create_task(readiness.check())
    assert await asyncio.to_thread(hanging.asked.wait, 30)
    assert readiness.faults() == ["the views are being opened"]
    assert refused_by(readiness) == (Trouble.VIEWS_NOT_READY, "The views are being opened.")
    now_s[0] += 16
    assert readiness.faults() == ["the database has not answered for 16 s"]
    assert refused_by(readiness) == (Trouble.SERVICE_UNAVAILABLE, "The database has not answered for 16 s.")
    hanging.answers.set()
    await asking
    assert readiness.faults() == ["the views are being built"]
    assert refused_by(readiness) == (Trouble.VIEWS_NOT_READY, "The views are being built.")


async def test_a_database_that_refuses_is_a_problem_of_the_service_and_not_of_the_views():
    class Views:
        error = OperationalError("SELECT 1", {}, Exception("no connection"))

        def faults(self):
            if self.error is not None:
                raise self.error
            return []

    views: Any = Views()
    readiness = Readiness(views)
    await readiness.check()
    assert refused_by(readiness) == (Trouble.SERVICE_UNAVAILABLE, "The database is unavailable.")
    views.error = None
    await readiness.check()
    assert (readiness.problem(), readiness.faults()) == (None, [])
