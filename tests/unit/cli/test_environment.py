"""What the command line makes of its settings."""

import sys

import order_service.views
from order_service.cli.environment import log_index_of
from order_service.settings import Settings
from order_service.views.log_index import ViewsIndex


def test_the_views_are_an_index_where_a_database_is_set():
    assert log_index_of(Settings()) is None
    assert isinstance(log_index_of(Settings(database_url="postgresql://db/views")), ViewsIndex)


def test_where_only_the_command_line_is_installed_there_is_no_index_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("order_service.views")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(order_service, "views", order_service.views)  # a package that is imported again replaces it
    assert log_index_of(Settings(database_url="postgresql://db/views")) is None
