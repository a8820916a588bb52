"""A database that takes questions and never answers: readiness of the projector and of the HTTP server says so."""

import asyncio
import threading

import pytest
from sqlalchemy import event, make_url

from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import open_database, prepare
from order_service.web.process import Readiness


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
    now_s[0] += 16
    assert readiness.faults() == ["the database has not answered for 16 s"]
    hanging.answers.set()
    await asking
    assert readiness.faults() == ["the views are being built"]
