"""`order-service views`: what it says, and with which exit code, with and without views; no Kafka is asked."""

import pytest

from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.stopped import BadRecord
from order_service.views.tables import FORM, form
from tests.support.command_line import CommandLine
from tests.support.event_log import EVENTS, START

STOPPED = ("views", "stopped")
SKIP = ("views", "skip", EVENTS.topic, 0, 0)


@pytest.fixture
def cli(url):
    return CommandLine({"ORDERS_DATABASE_URL": url.render_as_string(hide_password=False)})


@pytest.mark.parametrize("command", [STOPPED, SKIP], ids=["stopped", "skip"])
def test_without_views_it_says_so_and_makes_no_file(cli, command, tmp_path):
    assert cli(*command, code=3).stderr == "order-service: there are no views here yet: no projector has created them\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [STOPPED, SKIP], ids=["stopped", "skip"])
def test_views_of_another_form_are_left_alone(cli, command, engine):
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    line = f"order-service: the views have schema version {FORM - 1}, this program supports {FORM}\n"
    assert cli(*command, code=3).stderr == line


@pytest.mark.parametrize("command", [STOPPED, SKIP], ids=["stopped", "skip"])
def test_a_database_that_cannot_be_read_has_a_status_of_its_own(command, tmp_path):
    file = tmp_path / "views.db"
    file.write_text("no database, but long enough for the head of one: " + "x" * 100)
    said = CommandLine({"ORDERS_DATABASE_URL": f"sqlite:///{file}"})(*command, code=4).stderr
    assert said == "order-service: the database of ORDERS_DATABASE_URL cannot be used: DatabaseError (SQLITE_NOTADB)\n"


def test_a_stopped_partition_is_listed_with_1_and_skipped_once(cli, engine):
    projection = Projection(engine, topic_names())
    projection.positions(START)
    assert cli(*STOPPED).stdout == "no partition is stopped\n"
    projection.apply([BadRecord(EVENTS, 0, "not Avro")], START, {EVENTS: 1})
    (listed,) = cli.json(*STOPPED, code=1)
    assert listed == {"topic": EVENTS.topic, "partition": 0, "offset": 0, "reason": "not Avro"}
    assert cli(*SKIP).stdout == f"the views continue after offset 0 of partition 0 of {EVENTS.topic}\n"
    assert "is not stopped at offset 0" in cli(*SKIP, code=1).stderr


def test_the_help_tells_to_remove_the_views_where_a_log_lost_its_end(cli):
    said = " ".join(cli("views", "--help").stdout.replace("│", " ").split())
    assert "If a log lost its end, remove the views" in said
    assert "After `skip` the partition stops again while the log is shorter" in said
