"""PostgreSQL as platforms have it: behind a pooler, with a schema and roles of its own, by TLS, and refusing us."""

import re

import pytest
from pydantic import ValidationError
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from order_service.errors import DatabaseError
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views.postgresql import quoted
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import FORM, database_of, describe, form, open_database, open_views, orders, prepare
from tests.support.certificates import CertificateAuthority
from tests.support.event_log import EVENTS, START, order_of, seens
from tests.support.proxies import running_pgbouncer
from tests.support.samples import events
from tests.support.service import ROOT

OWNER, LOGINS = "orders_owner", ("orders_1", "orders_2")
SCHEMA = 'Shop "A" 50%'
NAME = '"Shop ""A"" 50%"'


@pytest.fixture
def ask(postgresql):
    """Run statements as a superuser."""
    engine = open_database(postgresql, writes=True)

    def run(*statements):
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    yield run
    engine.dispose()


@pytest.fixture(params=["postgresql", "pgbouncer"])
def server(request, ask):
    """Return the URL of an empty database, directly and behind a pooler."""
    ask("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", f"DROP SCHEMA IF EXISTS {NAME} CASCADE")
    yield request.getfixturevalue(request.param)
    ask(f"DROP SCHEMA IF EXISTS {NAME} CASCADE")


@pytest.fixture
def role(postgresql, ask, server):
    """Return the URL of a role that may not create anything."""
    ask("CREATE ROLE clerk LOGIN", "GRANT USAGE ON SCHEMA public TO PUBLIC")
    yield postgresql.set(username="clerk")
    ask("DROP OWNED BY clerk", "DROP ROLE clerk")


@pytest.fixture
def opened(server):
    """Open the views for writing and for reading, in a schema."""
    engines = []

    def open_both(schema=""):
        writing, reading = open_database(server, schema, writes=True), open_database(server, schema)
        engines.extend([writing, reading])
        prepare(writing, schema)
        return writing, reading

    yield open_both
    for engine in engines:
        engine.dispose()


def project(writing):
    """Apply the life of the sample order."""
    projection, log = Projection(writing, topic_names()), seens(events)
    projection.positions(START)
    projection.apply(log, {EVENTS: 0}, {EVENTS: len(log)})
    return log[0].order_id


def test_views_in_a_schema_of_their_own_are_written_and_read_there(opened, ask):
    writing, reading = opened(SCHEMA)
    order_id = project(writing)
    assert order_of(Views(reading, topic_names()), order_id).version == len(events)
    assert not prepare(writing, SCHEMA), "a second projector finds them"
    ask(f"SELECT * FROM {NAME}.orders")
    with pytest.raises(DBAPIError, match="does not exist"):
        ask("SELECT * FROM public.orders")


@pytest.mark.parametrize("name", ["shop :views", 'a"b', "50%", "%s", "it's"])
def test_a_schema_may_have_any_name_that_postgresql_keeps(name, opened, ask):
    try:
        writing, reading = opened(name)
        assert order_of(Views(reading, topic_names()), project(writing)).version == len(events)
    finally:
        ask(f"DROP SCHEMA IF EXISTS {quoted(name)} CASCADE".replace(":", r"\:"))


def test_two_schemas_of_one_database_do_not_see_each_other(opened, ask):
    project(opened(SCHEMA)[0])
    _, other = opened()
    assert order_of(Views(other, topic_names()), events[0].order_id) is None


def test_a_schema_that_does_not_exist_has_no_views(server):
    with pytest.raises(DatabaseError, match="no projector has created them"), open_views(server, SCHEMA):
        pass


def test_every_transaction_and_every_query_has_its_limits_and_leaves_none_behind(opened):
    writing, reading = opened(SCHEMA)
    shown = {"statement_timeout": "10s", "lock_timeout": "10s", "search_path": NAME}
    for engine, settings in ((writing, {**shown, "synchronous_commit": "off"}), (reading, shown)):
        with engine.begin() as connection:
            for name, value in settings.items():
                assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
            raw = connection.connection.driver_connection
            raw.rollback()
            for name, value in settings.items():
                assert raw.pgconn.exec_(f"SHOW {name}".encode()).get_value(0, 0) != value.encode()
            connection.rollback()


def test_a_query_with_every_kind_of_value_is_the_same_behind_a_pooler(opened):
    _, reading = opened()
    values = "'; DROP TABLE orders; --", '50% \\ "x" %s %(y)s', "Größe", "\n"
    with reading.begin() as connection:
        for value in values:
            query = orders.select().where(orders.c.user_id == value, orders.c.created_at > 2**40)
            assert connection.execute(query).all() == []
            assert connection.execute(text("SELECT :value").bindparams(value=value)).scalar() == value


def test_without_the_right_to_create_a_schema_it_must_exist(ask, server, role):
    writing = open_database(role, SCHEMA, writes=True)
    with pytest.raises(DatabaseError) as refused:
        prepare(writing, SCHEMA)
    said = f"ORDERS_DATABASE_SCHEMA: {NAME} does not exist, and the role may not create it: CREATE SCHEMA {NAME} "
    assert str(refused.value) == said + 'AUTHORIZATION "<role>"'
    ask(f"CREATE SCHEMA {NAME} AUTHORIZATION clerk")
    assert prepare(writing, SCHEMA)
    writing.dispose()


def test_a_role_that_may_only_read_reads(opened, ask, role):
    order_id = project(opened(SCHEMA)[0])
    ask(f"GRANT USAGE ON SCHEMA {NAME} TO clerk", f"GRANT SELECT ON ALL TABLES IN SCHEMA {NAME} TO clerk")
    reading = open_database(role, SCHEMA)
    assert order_of(Views(reading, topic_names()), order_id) is not None
    reading.dispose()
    writing = open_database(role, SCHEMA, writes=True)
    with pytest.raises(DBAPIError) as refused:
        Projection(writing, topic_names()).mark_built(START)
    assert describe(refused.value) == ("InsufficientPrivilege (42501): permission denied for table view_positions")
    writing.dispose()


CREDENTIALS = (ROOT / "docs" / "operations" / "credentials.md").read_text(encoding="utf-8")


@pytest.fixture
def rotation(ask):
    """Return the blocks of statements by which an operator rotates a login."""
    yield [block.strip().split(";\n") for block in re.findall(r"```sql\n(.*?)```", CREDENTIALS, re.DOTALL)]
    ask(
        "DROP SCHEMA IF EXISTS orders CASCADE",
        *(f"DROP ROLE IF EXISTS {name}" for name in LOGINS),
        f"DROP ROLE {OWNER}",
    )


def test_a_second_login_takes_over_the_views_and_the_first_one_is_dropped(ask, postgresql, rotation):
    create_first, create_second, drop_first = rotation
    ask(*create_first)
    first, second = (open_database(postgresql.set(username=name), "orders", writes=True) for name in LOGINS)
    assert prepare(first, "orders")
    order_id = project(first)
    ask(*create_second)
    assert not prepare(second, "orders"), "it finds the tables of the first one"
    for engine in (first, second):
        Projection(engine, topic_names()).mark_built(START)
    with second.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    assert prepare(second, "orders"), "it replaces tables of an older form"
    Projection(first, topic_names()).mark_built(START)
    project(second)
    first.dispose()
    ask(*drop_first)
    assert order_of(Views(second, topic_names()), order_id) is not None
    second.dispose()


def said_by(url, schema=""):
    """Return what is said when the views are opened."""
    with pytest.raises(DatabaseError) as refused, open_views(url, schema):
        pass
    return str(refused.value)


def test_what_the_server_says_when_it_refuses_us_is_said_without_the_password(postgresql, pgbouncer, role, server):
    wrong = said_by(pgbouncer.set(password="hunter2"))
    assert wrong.startswith("the database of ORDERS_DATABASE_URL cannot be used: OperationalError: connection failed:")
    assert "password authentication failed" in wrong or "SASL authentication failed" in wrong
    assert "hunter2" not in wrong
    assert 'database "none" does not exist' in said_by(postgresql.set(database="none"))
    assert 'role "absent" does not exist' in said_by(postgresql.set(username="absent"))
    assert "unsupported startup parameter" in said_by(pgbouncer.update_query_dict({"options": "-c work_mem=1MB"}))
    assert 'invalid connection option "sslmod"' in said_by(postgresql.update_query_dict({"sslmod": "hunter2"}))
    writing = open_database(role, writes=True)
    with pytest.raises(DatabaseError) as refused:
        prepare(writing)
    writing.dispose()
    assert str(refused.value) == (
        "the tables of the views cannot be created: InsufficientPrivilege (42501): permission denied for schema "
        "public; set ORDERS_DATABASE_SCHEMA to a schema where the role may create tables"
    )


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT CAST('4111-secret' AS int)", "InvalidTextRepresentation (22P02)"),
        ("SELECT 1 4111secret", "SyntaxError (42601)"),
        ("INSERT INTO orders (order_id) VALUES ('4111-secret')", "NotNullViolation (23502)"),
    ],
)
def test_a_message_that_may_hold_a_value_is_left_out(opened, statement, code):
    writing, _ = opened()
    with pytest.raises(DBAPIError) as refused, writing.begin() as connection:
        connection.exec_driver_sql(statement)
    assert describe(refused.value) == code


def test_a_schema_needs_postgresql():
    with pytest.raises(DatabaseError, match="ORDERS_DATABASE_SCHEMA needs PostgreSQL"):
        database_of(Settings(database_schema="orders"))


@pytest.mark.parametrize("name", ["x" * 63, "ä" * 31, "orders", "Shop-1", 'a"b', "50%"])
def test_a_name_that_postgresql_keeps_as_it_is(name):
    assert Settings(database_schema=name).database_schema == name


@pytest.mark.parametrize("name", ["x" * 64, "ä" * 32, "pg_orders", "$user", "a\0b", "a\nb"])
def test_any_other_name_of_a_schema_is_refused(name):
    with pytest.raises(ValidationError, match="database_schema"):
        Settings(database_schema=name)


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(postgresql, authority):
    """Provide a server that speaks TLS only, with a certificate for 127.0.0.1."""
    with running_pgbouncer(postgresql, authority.issue("db")) as url:
        yield url


def query(url: URL):
    engine = open_database(url)
    try:
        with engine.begin() as connection:
            return connection.exec_driver_sql("SELECT 1").scalar()
    finally:
        engine.dispose()


def test_a_server_whose_certificate_is_known_is_used(encrypted, authority):
    known = {"sslrootcert": str(authority.file)}
    assert query(encrypted.update_query_dict({"sslmode": "require"})) == 1
    assert query(encrypted.update_query_dict({"sslmode": "verify-ca", **known})) == 1
    assert query(encrypted.update_query_dict({"sslmode": "verify-full", **known})) == 1


def test_any_other_is_refused_with_the_reason(encrypted, authority, tmp_path):
    full = encrypted.update_query_dict({"sslmode": "verify-full", "sslrootcert": str(authority.file)})
    assert "SSL required" in said_by(encrypted.update_query_dict({"sslmode": "disable"}))
    stranger = CertificateAuthority(tmp_path, "another-ca")
    assert "certificate verify failed" in said_by(full.update_query_dict({"sslrootcert": str(stranger.file)}))
    elsewhere = full.set(host="db.example").update_query_dict({"hostaddr": "127.0.0.1"})
    assert 'does not match host name "db.example"' in said_by(elsewhere)
    assert "does not exist" in said_by(full.update_query_dict({"sslrootcert": str(tmp_path / "none.crt")}))
