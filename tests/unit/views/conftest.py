"""The databases of the views."""

from tests.support.databases import engine, pgbouncer, postgresql, postgresql_server, projection, url, views

__all__ = ["engine", "pgbouncer", "postgresql", "postgresql_server", "projection", "url", "views"]
