"""Which databases the views can be in, and what is said of all others."""

import pytest

from order_service.errors import DatabaseError
from order_service.settings import Settings
from order_service.views.process import Building
from order_service.views.tables import database_of


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "sqlite:///.data/views.db"),
        ("sqlite:////var/views.db", "sqlite:////var/views.db"),
        ("postgresql://db/orders", "postgresql+psycopg://db/orders"),
        ("postgres://db/orders", "postgresql+psycopg://db/orders"),
        ("postgresql+psycopg://db/orders", "postgresql+psycopg://db/orders"),
    ],
)
def test_which_database_is_meant(given, meant):
    assert str(database_of(Settings(database_url=given))) == meant


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nonsense", "is no URL of a database"),
        ("postgresql://orders:hun@ter:2@localhost/db", "is no URL of a database"),
        ("mysql://db/orders", "is of mysql, not one of sqlite, postgresql"),
        ("postgresql+asyncpg://db/orders", "is of postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_any_other_is_refused_without_its_password(given, why):
    with pytest.raises(DatabaseError, match=why) as caught:
        database_of(Settings(database_url=given))
    assert "ter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_views_are_ready_when_they_have_what_the_log_held_at_the_start():
    building = Building()
    assert building.faults() == ["the views are being opened"]
    building.tell(1200)
    assert building.faults() == ["the views are being built: 1,200 offsets are left"]
    building.tell(0)
    assert building.faults() == []
